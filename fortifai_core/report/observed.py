"""From results to the statistics that the collapse profile judges, by the names that its definitions use."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from fortifai_core.families.base import Generation, Run
from fortifai_core.outcomes.definitions import FAMILIES, REAL, Definition, language_definitions
from fortifai_core.outcomes.inference import Clusters, Sampled
from fortifai_core.outcomes.profile import Course, Profile, profile_of
from fortifai_core.outcomes.time_to_failure import TimeToFailure
from fortifai_core.report.data import GenerationResult, ReportData, RunResult
from fortifai_core.report.family_analysis import FamilyReport, spread

# Of a long run so many generations are judged, evenly: each costs a correction, and neighbours say the same. Where runs
# were stopped, the last of each are judged too, so that all have them in common.
JUDGED = 41
# Logarithms of what has vanished: a statistic of 0 is written as this share.
LEAST = 1e-12

Values = Mapping[str, Sampled]


def profile_of_report(data: ReportData, failures: Mapping[str, Sequence[TimeToFailure]]) -> Profile:
    """The profile of an experiment on a language model. `failures`: each arm's times to failure, the first arm's first.

    The order of arms is that of `failures`.
    """
    definitions = language_definitions(data.threshold if data.by_retention else 0.75)
    arms = {arm.label: arm for arm in data.arms}
    observed = {
        label: _by_measure(definitions, {run.seed: _of_run(run) for run in arms[label].runs}) for label in failures
    }
    return profile_of(observed, definitions, headline="retention", failures=failures)


def profile_of_family(report: FamilyReport, failures: Mapping[str, Sequence[TimeToFailure]]) -> Profile:
    """The profile of an experiment on another model class."""
    kind = report.results.config.type
    definitions = FAMILIES.get(kind, ())
    runs = {arm: tuple(report.results.of(arm)) for arm in report.results.arms}
    judged = _judged(run for of_arm in runs.values() for run in of_arm)
    observed = {
        arm: _by_measure(definitions, {run.seed: _of_family(run, kind, judged) for run in of_arm})
        for arm, of_arm in runs.items()
    }
    headline = {"gmm": "variance", "zipf": "tail-types"}.get(kind, "")
    return profile_of(observed, definitions, headline=headline, failures=failures)


def _by_measure(
    definitions: Iterable[Definition], runs: Mapping[int, Mapping[int, Values]]
) -> dict[str, dict[int, Course]]:
    """measure → seed → course, of what the definitions name; what is not measured in any generation is left out."""
    found: dict[str, dict[int, Course]] = {}
    for measure in dict.fromkeys(definition.measure for definition in definitions):
        for seed, generations in runs.items():
            course = {g: value for g, values in generations.items() if (value := _named(values, measure)) is not None}
            if course:
                found.setdefault(measure, {})[seed] = course
    return found


def _named(values: Values, measure: str) -> Sampled | None:
    """The statistic of that name; `log-X` is the logarithm of X, where it is not kept as one."""
    if measure in values:
        return values[measure]
    plain = values.get(measure.removeprefix("log-")) if measure.startswith("log-") else None
    if plain is None:
        return None
    # what is not a number has not vanished: max() would make it the least there is
    return Sampled(math.nan if math.isnan(plain.value) else math.log(max(LEAST, plain.value)))


def _of_run(run: RunResult) -> dict[int, Values]:
    """By generation; the real text's own values stand in the first drift, and are its generation -1."""
    courses: dict[int, Values] = {result.generation: _of_generation(result) for result in run.generations}
    first = run.generations[0].drift
    real = {name.replace("-real-0", "-0"): value for name, value in first.items() if name.endswith("-real-0")}
    if real:
        courses[REAL] = _plain(real)
    return courses


def _of_generation(result: GenerationResult) -> Values:
    values = dict(_plain(result.drift))
    if result.perplexity is not None:
        values["perplexity-real"] = Sampled(result.perplexity)
    if 0 in result.unigram_kl:
        values["unigram-kl-0"] = Sampled(result.unigram_kl[0])
    values |= {name: Sampled.of(clusters) for name, clusters in result.clusters.items()}
    answers = result.scores.of(0)
    if answers:
        documents, place = np.unique([document for document, _ in answers.values()], return_inverse=True)
        right = np.array([correct for _, correct in answers.values()], dtype=np.float64)
        of_document = [np.bincount(place, each).astype(np.float64) for each in (right, np.ones_like(right))]
        values["kr-split-0"] = Sampled.of(Clusters(tuple(documents.tolist()), *of_document))
    return values


def _plain(drift: Mapping[str, float]) -> dict[str, Sampled]:
    values = {name: Sampled(value) for name, value in drift.items()}
    if "self-bleu-0" in drift:
        values["unlike-0"] = Sampled(1 - drift["self-bleu-0"])
    return values


def _judged(runs: Iterable[Run]) -> set[int]:
    """The longest run's generations, thinned, and the last of every other: all runs then have them in common."""
    reached = [tuple(g.generation for g in run.generations) for run in runs]
    longest = max(reached, key=len, default=())
    return {*spread(longest, JUDGED), *(one[-1] for one in reached if one)}


def _of_family(run: Run, kind: str, judged: Collection[int]) -> dict[int, Values]:
    return {g.generation: _of_model(g, kind) for g in run.generations if g.generation in judged}


def _of_model(generation: Generation, kind: str) -> Values:
    values = {name: Sampled(value) for name, value in generation.metrics.items() if math.isfinite(value)}
    if kind == "gaussian" and "sigma" in generation.parameters:
        # replicates are independent chains: their variance has a mean that need not fall where all but a few collapse
        logs = 2 * np.log(np.maximum(np.ravel(generation.parameters["sigma"]).astype(np.float64), LEAST))
        values["log-variance"] = Sampled.of(Clusters(tuple(map(str, range(len(logs)))), logs, np.ones(len(logs))))
    return values
