"""The Zipf vocabulary: its two masks against what they claim to be, and survival against the law of drift."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from fortifai_core.errors import ConfigError, DataError
from fortifai_core.families.base import Arrays, Generation, Mask, NoMask, Results, Run, ThresholdMask
from fortifai_core.families.gaussian.config import AdaptiveMask
from fortifai_core.families.zipf.family import ZipfConfig, ZipfFamily, capped, dropped, tail_types
from fortifai_core.families.zipf.figures import draw

COUNTS = np.array([500.0, 250.0, 120.0, 60.0, 40.0, 20.0, 9.0, 1.0, 0.0])


def quiet(*_: object) -> None:
    pass


def chain(config: ZipfConfig, mask: Mask, *, seed: int, generations: int) -> list[dict[str, float]]:
    family = ZipfFamily(config)
    real = data = family.real(seed=seed)
    rows, first = [], None
    for generation in range(generations):
        parameters, fit = family.fit(data, mask=mask, generation=generation, seed=seed, previous=None, progress=quiet)
        first = first or parameters
        data = family.sample(parameters, count=config.documents, generation=generation, seed=seed)
        measures = family.measure(parameters, data, real, generation=generation, seed=seed, first=first)
        rows.append({**fit, **measures})
    return rows


def descend(counts: np.ndarray, gamma: float) -> np.ndarray:
    """Gradient descent on truncated cross entropy of a softmax, the mask a constant; averaged at its end."""
    share = counts[counts > 0] / counts.sum()
    logits, tail = np.log(share), []
    for step in range(40_000):
        p = np.exp(logits - logits.max())
        p /= p.sum()
        live = share * (p <= gamma)
        logits -= 0.01 * (live.sum() * p - live) / p.max()
        if step >= 30_000:
            tail.append(p)
    fitted = np.zeros(counts.shape)
    fitted[counts > 0] = np.mean(tail, axis=0)
    return fitted


@pytest.mark.parametrize("gamma", [0.4, 0.25])
def test_capped_is_where_descent_on_truncated_cross_entropy_rests(gamma: float) -> None:
    fitted = capped(COUNTS, gamma)
    assert fitted.sum() == pytest.approx(1)
    assert fitted.max() == pytest.approx(gamma)
    np.testing.assert_allclose(descend(COUNTS, gamma), fitted, atol=0.004)


def test_capped_keeps_the_proportions_of_what_is_free() -> None:
    fitted = capped(COUNTS, 0.2)
    free = (fitted < 0.2 - 1e-12) & (COUNTS > 0)
    assert 0 < free.sum() < 8
    ratio = fitted[free] / COUNTS[free]
    np.testing.assert_allclose(ratio, ratio[0])
    assert ratio[0] > 1 / COUNTS.sum()


def test_rows_are_fitted_on_their_own() -> None:
    table = np.stack([COUNTS, COUNTS[::-1], np.zeros(9), np.eye(9)[3] * 5])
    for refit in (capped, dropped):
        for gamma in (1.0, 0.6, 0.3, 0.05):
            together = refit(table, gamma)
            for row, counts in zip(together, table, strict=True):
                np.testing.assert_array_equal(row, refit(counts, gamma))
    assert capped(table, 0.3)[2].sum() == 0
    assert capped(table, 0.3)[3].tolist() == np.eye(9)[3].tolist()


def test_a_gamma_that_cannot_hold_the_mass_gives_equal_shares() -> None:
    np.testing.assert_allclose(capped(COUNTS, 0.1), np.where(COUNTS > 0, 1 / 8, 0))


def test_dropped_leaves_out_what_is_confident() -> None:
    fitted = dropped(COUNTS, 0.2)
    assert fitted[:2].tolist() == [0, 0]
    np.testing.assert_allclose(fitted[2:], COUNTS[2:] / 250)
    # Where everything is confident there would be nothing left to fit.
    assert dropped(np.array([5.0, 5.0]), 0.2).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("masking", ["capped", "dropped"])
def test_gamma_1_is_plain_to_the_bit_and_a_seed_is_a_run(order: int, masking: str) -> None:
    config = ZipfConfig(order=order, vocabulary=60, documents=20, length=30, masking=masking)
    plain = chain(config, NoMask(), seed=0, generations=3)
    assert chain(config, ThresholdMask(gamma=1.0), seed=0, generations=3) == plain
    assert chain(config, NoMask(), seed=0, generations=3) == plain
    assert chain(config, NoMask(), seed=1, generations=3) != plain
    assert plain[0]["live-fraction"] == 1 and plain[0]["gamma"] == 1


def test_types_die_as_the_law_of_neutral_drift_says() -> None:
    # With n tokens drawn from frequencies drawn with n tokens …, a type of frequency p is in the sample of M_i as long
    # as a branching process of Poisson offspring lives: q_0 = e^-np, then q ← exp(−(1 − q)) within, independently.
    config = ZipfConfig(vocabulary=3000, documents=200, length=100)
    law = np.arange(1, 3001) ** -1.0
    law /= law.sum()
    n, extinct = 20_000, 0.0
    expected = []
    for _ in range(6):
        extinct = math.exp(-(1 - extinct))
        alive = 1 - np.exp(-n * law * (1 - extinct))
        expected.append(alive.sum() / (1 - np.exp(-n * law)).sum())
    runs = [chain(config, NoMask(), seed=seed, generations=6) for seed in range(4)]
    found = np.mean([[row["type-survival"] for row in run] for run in runs], axis=0)
    np.testing.assert_allclose(found, expected, rtol=0.02)


def test_survival_and_its_kin_only_fall_with_plain_estimation() -> None:
    rows = chain(ZipfConfig(order=2, vocabulary=400, documents=40, length=40), NoMask(), seed=0, generations=5)
    for name in ("type-survival", "bigram-survival", "tail-survival"):
        values = [row[name] for row in rows]
        assert values == sorted(values, reverse=True) and values[-1] < values[0] < 1


def test_a_capped_head_leaves_more_to_the_tail_and_a_dropped_one_is_gone() -> None:
    config = ZipfConfig(vocabulary=500, documents=100, length=50, temperature=0.9)
    plain = chain(config, NoMask(), seed=0, generations=8)[-1]
    held = chain(config, ThresholdMask(gamma=0.03), seed=0, generations=8)[-1]
    assert held["tail-survival"] > plain["tail-survival"]
    assert held["live-fraction"] < 1
    gone = ZipfFamily(config.model_copy(update={"masking": "dropped"}))
    data = gone.real(seed=0)
    parameters, _ = gone.fit(data, mask=ThresholdMask(gamma=0.03), generation=0, seed=0, previous=None, progress=quiet)
    assert parameters["start"][0] == 0  # the commonest type of all


def test_sampling_draws_what_the_model_says() -> None:
    for order in (1, 2):
        config = ZipfConfig(order=order, vocabulary=12, documents=2000, length=40, temperature=0.5)
        family = ZipfFamily(config)
        parameters, _ = family.fit(
            family.real(seed=0), mask=NoMask(), generation=0, seed=0, previous=None, progress=quiet
        )
        tokens = family.sample(parameters, count=2000, generation=0, seed=0)["token"]
        table = parameters["next"] if order == 2 else parameters["start"]
        sharp = table**2 / (table**2).sum(axis=-1, keepdims=True)
        if order == 1:
            found = np.bincount(tokens.ravel(), minlength=12)
            expected = sharp * tokens.size
        else:
            after = tokens[:, 1:][tokens[:, :-1] == 0]
            found, expected = np.bincount(after, minlength=12), sharp[0] * after.size
        assert (np.abs(found - expected) < 4.5 * np.sqrt(expected) + 1).all()


def test_the_tail_is_what_lies_beyond_nine_tenths() -> None:
    frequency = np.array([0.0, 0.05, 0.5, 0.05, 0.4])
    assert tail_types(frequency).tolist() == [False, True, False, True, False]


def test_bad_input_is_refused() -> None:
    family = ZipfFamily(ZipfConfig(vocabulary=20))
    fit = {"mask": NoMask(), "generation": 0, "seed": 0, "previous": None, "progress": quiet}
    bad: list[Arrays] = [{}, {"token": np.zeros(5, np.int32)}, {"token": np.full((2, 3), 20, np.int32)}]
    for data in bad:
        with pytest.raises(DataError, match="token"):
            family.fit(data, **fit)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="none or threshold"):
        family.fit(family.real(seed=0), **{**fit, "mask": AdaptiveMask()})  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="at most 4000 types"):
        ZipfConfig(order=2, vocabulary=10_000)


def test_its_figures(tmp_path: Path) -> None:
    config = ZipfConfig(vocabulary=200, documents=20, length=50)
    family, runs = ZipfFamily(config), []
    real = family.real(seed=0)
    for mask in (NoMask(), ThresholdMask(gamma=0.05)):
        rows = chain(config, mask, seed=0, generations=3)
        sample = family.sample({"start": np.full(200, 1 / 200)}, count=20, generation=0, seed=0)
        generations = tuple(Generation(generation=g, metrics=row, sample=sample) for g, row in enumerate(rows))
        runs.append(Run(arm=mask.label, seed=0, generations=generations))
    results = Results(config=config, arms=("ce", "tce-0.05"), real=real, runs=tuple(runs))
    figures = draw(results, tmp_path)
    assert [figure.name for figure in figures] == ["zipf-by-frequency"]
    for figure in figures:
        text = "".join(ET.parse(figure.paths[0]).getroot().itertext())
        assert "TCE 0.05" in text and figure.paths[1].stat().st_size > 1000
