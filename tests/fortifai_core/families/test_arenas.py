"""The arenas of the quick model classes: what theory says must come out of each arm, comes out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from flows.load import load_any_config
from fortifai_core.families.base import Before, Fitted, Made, Span
from fortifai_core.families.gaussian import theory
from fortifai_core.families.gaussian.config import GaussianConfig
from fortifai_core.families.registry import FamilyArm, FamilyExperiment, family_from_config
from fortifai_core.families.zipf.family import ZipfConfig, tail_types
from fortifai_core.outcomes.definitions import FAMILIES
from fortifai_core.outcomes.inference import Sampled
from fortifai_core.outcomes.profile import Profile, profile_of
from fortifai_core.outcomes.time_to_failure import TimeToFailure, time_to_crossing


def made(config: FamilyExperiment, arm: FamilyArm, *, seed: int = 1) -> list[Made]:
    family = family_from_config(config.family)
    real = family.real(seed=seed) if isinstance(family, Fitted) else {}
    span = Span(0, config.generations - 1, seed, arm.regime)
    run = family.generations(span, mask=arm.mask, real=real, before=Before(), progress=lambda *_: None)
    return list(run)


def outcome(config: FamilyExperiment, run: list[Made]) -> TimeToFailure:
    rule = config.failure
    assert rule is not None
    values = {one.generation: one.measures[rule.metric] for one in run}
    return time_to_crossing(values, threshold=rule.threshold, falls=rule.when == "below", relative=rule.relative)


GAUSSIAN = ("family.samples=4000", "family.replicates=5", "generations=120")


@pytest.mark.parametrize("label", ["ce", "tce-0.95", "tce-0.9", "tce-0.85", "tce-0.7", "optimum", "adaptive"])
def test_a_gaussian_loses_its_spread_when_theory_says_so(label: str) -> None:
    config = load_any_config("arena-gaussian", GAUSSIAN)
    assert isinstance(config, FamilyExperiment) and isinstance(config.family, GaussianConfig)
    arm = next(arm for arm in config.resolved_arms() if arm.label == label)
    bias = config.family.sampling_bias
    gamma = {"ce": 1.0, "optimum": theory.optimal_gamma(bias), "adaptive": theory.optimal_gamma(bias)}
    rate = math.log(float(theory.growth(gamma.get(label, getattr(arm.mask, "gamma", 1.0)), bias))) / 2
    failed = outcome(config, made(config, arm))
    if rate < -1e-6:
        expected = math.log(0.1) / rate
        assert expected < config.generations - 1
        assert failed.generations == pytest.approx(expected, rel=0.05)
    else:
        assert failed.status == "censored"


def test_a_counted_vocabulary_loses_its_tail_as_a_branching_process_does() -> None:
    """A type with n tokens is drawn about Poisson(n) times, and lost for good when it is not drawn."""
    config = load_any_config("arena-zipf")
    assert isinstance(config, FamilyExperiment)
    arms = {arm.label: arm for arm in config.resolved_arms()}
    plain, kept = made(config, arms["ce"]), made(config, arms["accumulate"])
    family = family_from_config(config.family)
    assert isinstance(family, Fitted)
    tokens = family.real(seed=1)["token"]
    counts = np.bincount(tokens.ravel(), minlength=2000)
    counts = counts[tail_types(counts / counts.sum())]
    extinct = 0.0
    for one in plain:
        extinct = math.exp(extinct - 1)  # of a single token's descendants, by this generation
        assert one.measures["tail-survival"] == pytest.approx(float(np.mean(1 - extinct**counts)), abs=0.03)
    # where the real text is always among what is counted, each generation is a first one: nothing is lost for good
    first = float(np.mean(1 - np.exp(-1.0) ** counts))
    assert min(one.measures["tail-survival"] for one in kept) > first - 0.05
    assert outcome(config, plain).status == "failed"
    assert outcome(config, kept).status == "censored"


@pytest.mark.parametrize("label", ["tce-0.05", "tce-0.01"])
def test_a_cap_on_the_common_types_does_not_bring_back_what_was_not_drawn(label: str) -> None:
    config = load_any_config("arena-zipf")
    assert isinstance(config, FamilyExperiment)
    run = made(config, next(arm for arm in config.resolved_arms() if arm.label == label))
    survival = [one.measures["type-survival"] for one in run]
    assert all(later <= earlier for earlier, later in itertools.pairwise(survival))
    assert survival[-1] < survival[0]


@pytest.fixture(scope="module")
def zipf() -> tuple[FamilyExperiment, Profile]:
    """The whole preset, every arm and seed, and its verdicts."""
    config = load_any_config("arena-zipf")
    assert isinstance(config, FamilyExperiment)
    observed: dict[str, dict[str, dict[int, dict[int, Sampled]]]] = {}
    for arm, seed in itertools.product(config.resolved_arms(), config.seeds):
        for one in made(config, arm, seed=seed):
            for measure in {definition.measure for definition in FAMILIES["zipf"]}:
                value = one.measures[measure.removeprefix("log-")]
                course = observed.setdefault(arm.label, {}).setdefault(measure, {}).setdefault(seed, {})
                course[one.generation] = Sampled(math.log(value) if measure.startswith("log-") else value)
    return config, profile_of(observed, FAMILIES["zipf"], headline="tail-types")


def surviving(config: FamilyExperiment, seed: int) -> list[float]:
    """Share of the tail's types that a branching process leaves, by generation."""
    family = family_from_config(config.family)
    assert isinstance(family, Fitted)
    counts = np.bincount(family.real(seed=seed)["token"].ravel()).astype(np.float64)
    counts = counts[tail_types(counts / counts.sum())]
    extinct, found = 0.0, list[float]()
    for _ in range(config.generations):
        extinct = math.exp(extinct - 1)
        found.append(float(np.mean(1 - extinct**counts)))
    return found


def test_the_verdicts_on_the_tail_are_those_of_the_theory(zipf: tuple[FamilyExperiment, Profile]) -> None:
    config, profile = zipf
    assert all(verdict.status != "cannot be told" for verdict in profile.verdicts)
    expected = np.mean([surviving(config, seed) for seed in config.seeds], axis=0)
    crossing = int(np.argmax(expected < 0.5))
    plain = profile.verdict("ce", "tail-types")
    assert plain.status == "collapsed" and plain.generation is not None
    # it can be told at the first generation that is clearly beyond
    assert crossing <= plain.generation <= crossing + 2
    for label in ("tce-0.05", "tce-0.01"):
        # a cap lends the tail what it takes from the head, so each type has more to lose; what is lost stays lost
        capped = profile.verdict(label, "tail-types")
        assert capped.status == "collapsed" and capped.generation is not None
        assert capped.generation >= plain.generation
    # the real text stays among what is counted: each generation loses what a first one does, and a little for its draws
    kept = profile.verdict("accumulate", "tail-types")
    assert kept.status == "did not" and kept.effect is not None and kept.effect.value > expected[0] - 0.05 > 0.5


def test_the_tail_keeps_its_mass_where_its_types_are_lost(zipf: tuple[FamilyExperiment, Profile]) -> None:
    """Frequencies are a martingale under ce: what some types lose others gain. A cap only adds to the tail."""
    config, profile = zipf
    for label in ("ce", "tce-0.05", "tce-0.01", "accumulate"):
        verdict = profile.verdict(label, "tail-mass")
        assert verdict.status == "did not"
    # multinomial sampling costs about (types - 1) / 2N nats of entropy a generation, with the types of M_0 at most
    assert isinstance(config.family, ZipfConfig)
    tokens = config.family.documents * config.family.length
    law = 1 / np.arange(1, config.family.vocabulary + 1)
    entropy = -float(np.sum(law / law.sum() * np.log(law / law.sum())))
    most = config.generations * (config.family.vocabulary - 1) / (2 * tokens) / entropy
    for label in ("ce", "accumulate"):
        verdict = profile.verdict(label, "entropy")
        assert verdict.status == "did not" and verdict.effect is not None
        assert math.log(0.5) < math.log(1 - most) < verdict.effect.value < 0
