"""What a report is made from: plain frozen values, so that one can be built without a model or a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fortifai_core.config.failure_metrics import DEFAULT, FailureMetric, failure_metric
from fortifai_core.config.stages import Reading, Regime
from fortifai_core.errors import InputError
from fortifai_core.measures.mutation import Mutation
from fortifai_core.outcomes.inference import Clusters
from fortifai_core.outcomes.paper import PaperArm
from fortifai_core.wording import arm_title


@dataclass(frozen=True)
class Scores:
    """KR-test answers of one model, as columns of equal length (those of scores.parquet)."""

    question: Sequence[str]
    document: Sequence[str]
    split: Sequence[int]
    correct: Sequence[bool]

    def __post_init__(self) -> None:
        lengths = {len(self.question), len(self.document), len(self.split), len(self.correct)}
        if len(lengths) != 1:
            raise InputError("scores", sorted(lengths), "the columns must be equally long")

    def of(self, split: int | None) -> dict[str, tuple[str, bool]]:
        """question -> (document, right or wrong), of one split or of all (None)."""
        return {
            question: (document, bool(correct))
            for question, document, asked_of, correct in zip(
                self.question, self.document, self.split, self.correct, strict=True
            )
            if split is None or asked_of == split
        }


@dataclass(frozen=True)
class GenerationResult:
    """What was measured of M_generation in one run.

    Attributes:
        scores: answers to the questions of all splits seen so far.
        perplexity: on held-out real text.
        unigram_kl: nats, of split k's newest text against the real one; empty where nothing was regenerated.
        live_fraction: share of target tokens that the loss did not mask in training, at the end.
        tokens_trained, tokens_synthetic: in the training set, epochs not counted twice.
        drift: measures of the whole generation, by name (`model-kl`), and of split 0's newest text (`self-bleu-0`).
        confidence: (base or generation, real, seen or self) → counts of p over `drift_model.EDGES`.
        benchmarks: headline scores, by `task:metric`.
        clusters: what a measure is the mean of, by document or window, under the names of `outcomes.definitions`.
        seconds: by stage name (`train`, `regenerate`, `evaluate`, …), as when the stage was computed.
    """

    generation: int
    scores: Scores
    perplexity: float | None = None
    unigram_kl: Mapping[int, float] = field(default_factory=dict)
    live_fraction: float | None = None
    tokens_trained: int | None = None
    tokens_synthetic: int | None = None
    drift: Mapping[str, float] = field(default_factory=dict)
    confidence: Mapping[tuple[str, str], Sequence[int]] = field(default_factory=dict)
    benchmarks: Mapping[str, float] = field(default_factory=dict)
    clusters: Mapping[str, Clusters] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def retention(self, split: int | None) -> float | None:
        """Share of right answers on one split or on all (None); None where there is no question."""
        answers = self.scores.of(split)
        return sum(right for _, right in answers.values()) / len(answers) if answers else None

    def value(self, metric: str) -> float | None:
        """What an arm may be judged by (`failure_metrics`); None where it was not measured."""
        if metric == "kr-total":
            return self.retention(None)
        if metric.startswith("kr-split-"):
            return self.retention(int(metric.removeprefix("kr-split-")))
        return self.perplexity if metric == "perplexity-real" else self.drift.get(metric)


@dataclass(frozen=True)
class RunResult:
    """One arm with one seed, M_0 first and without gaps. `before`: M_-1 on every split, where it was asked."""

    seed: int
    generations: tuple[GenerationResult, ...]
    before: GenerationResult | None = None

    def __post_init__(self) -> None:
        numbers = [result.generation for result in self.generations]
        if numbers != list(range(len(numbers))) or not numbers:
            raise InputError("generations", numbers, "give M_0, M_1, … without a gap")


@dataclass(frozen=True)
class ArmResult:
    """One arm, with all its seeds.

    Attributes:
        label: its name, or its loss's in the configuration, e.g. `tce-0.9`.
        reading: what makes up its text; None: as the experiment's regime says.
    """

    label: str
    runs: tuple[RunResult, ...]
    reading: Reading | None = None

    def __post_init__(self) -> None:
        seeds = [run.seed for run in self.runs]
        if not seeds or len(set(seeds)) < len(seeds):
            raise InputError(f"arm {self.label}", seeds, "give at least one run, and each seed once")

    @property
    def title(self) -> str:
        return arm_title(self.label)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def generations(self) -> int:
        """How many generations every run of this arm has reached."""
        return min(len(run.generations) for run in self.runs)


@dataclass(frozen=True)
class Report:
    """What every report has, of whatever model class.

    Attributes:
        config: the experiment's full configuration, as plain JSON.
        command: the exact command that makes these results again.
        environment: versions and hardware, in words.
        notes: facts to be read beside any result: ceilings, what was left out.
        level: of all intervals.
        differences: of arms by name: label → how each differs from the first, in one line; empty for the first.
    """

    experiment: str
    config: Mapping[str, Any]
    command: str
    environment: Mapping[str, str]
    notes: Sequence[str] = field(default=(), kw_only=True)
    level: float = field(default=0.95, kw_only=True)
    differences: Mapping[str, str] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class ReportData(Report):
    """Everything that the report of an experiment on a language model shows.

    Attributes:
        quoted: arms of the paper's tables, shown as quotations.
        threshold, metric: what an arm fails by, and where (`failure_metrics`).
        mutations: one document in every arm, by the first seed.
        baseline: the arm that others are compared with; the first one, where it is absent.
        chance: retention of a model that knows nothing.
    """

    arms: tuple[ArmResult, ...]
    quoted: Sequence[PaperArm] = ()
    regime: Regime = Regime.PAPER
    threshold: float = 0.75
    metric: str = DEFAULT
    mutations: Sequence[Mutation] = ()
    baseline: str = "ce"
    chance: float = 0.5
    draws: int = 2000

    def __post_init__(self) -> None:
        labels = [arm.label for arm in self.arms]
        if not labels or len(set(labels)) < len(labels):
            raise InputError("arms", labels, "give at least one arm, and each once")

    @property
    def judged(self) -> FailureMetric:
        """The measure that arms fail by."""
        return failure_metric(self.metric)

    @property
    def by_retention(self) -> bool:
        """Whether arms fail by the retention of split 0, as in the paper."""
        return self.metric == DEFAULT
