"""The seam between a model class (a "family") and what runs it: real data, fit, sample, measure, as plain arrays.

A family is pure: it is given its data and a seed, and returns arrays and numbers. The stages around it keep
them (parameters as safetensors, samples and metrics as Parquet), decide on what each generation is fitted
(`Mask`, regime), and draw the report. Every draw comes from the seed given, so the same call gives the same bits
whatever ran beside it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fortifai_core.settings import Frozen

# Named arrays: a sample set (first axis = items; e.g. {"x": (n, d)}) or a model's parameters.
Arrays = dict[str, NDArray[Any]]

# done, total, unit
Progress = Callable[[int, int, str], None]


class Mask(Frozen, ABC):
    """The arm: which terms of the loss are dropped. Subclasses set `type` to a literal of their own."""

    type: str

    @property
    @abstractmethod
    def label(self) -> str:
        """How the arm is called: lower case, digits, dots, dashes."""


class NoMask(Mask):
    """Plain maximum likelihood (ELBO for a VAE): every term counts."""

    type: Literal["none"] = "none"

    @property
    def label(self) -> str:
        return "ce"


class ThresholdMask(Mask):
    """Drops the terms that the model is most confident about; what gamma cuts is for the family to say.

    For a density (Gaussian, mixture) the samples above the gamma quantile of the likelihood under the model
    (Algorithm 2: 0.8 drops those above the 80th percentile); for a VAE pixels with p(x|z) > gamma. gamma = 1
    drops nothing.
    """

    type: Literal["threshold"] = "threshold"
    gamma: float = Field(0.85, gt=0, le=1, description="Terms above it are masked; 1 masks nothing.")

    @property
    def label(self) -> str:
        return f"tce-{self.gamma:g}"


class FamilyConfig(Frozen):
    """Base of every family's configuration; a subclass has a `type` literal of its own.

    Class attributes say which stage reads which field, so that a key holds what its stage reads and no more.
    """

    type: str
    # Fields that the real data depend on; fit and sample depend on it through the data alone.
    data_fields: ClassVar[frozenset[str]] = frozenset()
    # How the arm without a mask is called.
    plain_label: ClassVar[str] = "ce"
    # Every measure's name and what it is, as a report writes it; and the one that a summary speaks of.
    measures: ClassVar[dict[str, str]] = {}
    headline: ClassVar[str] = ""

    # Fields within the data that are paths, which no key may hold; the files' digests stand for them.
    path_fields: ClassVar[frozenset[str]] = frozenset()
    # Whether the class draws its real data itself, so that there is no stage for them; it then knows one regime.
    draws_real_data: ClassVar[bool] = False

    segment: int = Field(
        50, ge=1, le=10_000, description="Generations computed in one stage; the results do not depend on it."
    )

    def sample_count(self, real: int) -> int:
        """Items sampled in each generation, of `real` real ones."""
        return real

    @property
    def seeded_data(self) -> bool:
        """Whether the real data differ from seed to seed."""
        return True


@dataclass(frozen=True)
class Span:
    """The generations that a stage makes, `first` to `last`, and what each is trained on."""

    first: int
    last: int
    seed: int
    regime: Literal["replace", "accumulate"] = "replace"


@dataclass(frozen=True)
class Before:
    """What is there when a stage begins; all of it empty before M_0.

    Attributes:
        parameters: of the generation before.
        start: parameters of M_0 of this run.
        samples: what the models so far drew: the last one's, or under `accumulate` everybody's, in order.
    """

    parameters: Arrays | None = None
    start: Arrays | None = None
    samples: tuple[Arrays, ...] = ()


@dataclass(frozen=True)
class Made:
    """One generation as it was made.

    Attributes:
        parameters: of M_i: what M_(i+1) starts from, and what figures show.
        sample: drawn from M_i, nothing dropped; empty for a class that draws inside.
        fit, measures: metrics of the fit and of the model, by name.
        fitted, drawn: over how many items each was taken.
    """

    generation: int
    parameters: Arrays
    sample: Arrays
    fit: dict[str, float]
    measures: dict[str, float]
    fitted: int
    drawn: int


class Family(ABC):
    """One model class under recursive training. Pure; every draw comes from the seed it is given."""

    # Whether a stage that was cut off may go on from any generation, not from the last one of a stage alone.
    resumable: ClassVar[bool] = True

    @abstractmethod
    def generations(
        self, span: Span, *, mask: Mask, real: Arrays, before: Before, progress: Progress
    ) -> Iterator[Made]:
        """Make one generation after the other.

        Args:
            mask: the arm.
            real: the real data, whole; empty for a class that draws its own.
            before: where the run stands at `span.first`.
        """


C = TypeVar("C", bound=FamilyConfig)


class Fitted(Family, Generic[C]):
    """A class whose generations are fitted, sampled and measured one by one; subclasses say how."""

    def __init__(self, config: C, folder: Path | None = None) -> None:
        """`folder`: where real data lie that come from outside, for classes that read them themselves."""
        self.config, self.folder = config, folder

    def generations(
        self, span: Span, *, mask: Mask, real: Arrays, before: Before, progress: Progress
    ) -> Iterator[Made]:
        """As `Family.generations`: fit to what the regime gives, draw, measure."""
        previous, start, samples = before.parameters, before.start, before.samples
        items, count, seed = len(next(iter(real.values()))), span.last - span.first + 1, span.seed
        for position, i in enumerate(range(span.first, span.last + 1)):

            def within(done: int, total: int, unit: str, position: int = position) -> None:
                progress(position * total + done, count * total, unit)

            data = joined([real, *samples]) if i == 0 or span.regime == "accumulate" else samples[-1]
            parameters, fit = self.fit(data, mask=mask, generation=i, seed=seed, previous=previous, progress=within)
            drawn = self.sample(parameters, count=self.config.sample_count(items), generation=i, seed=seed)
            start = parameters if start is None else start
            measures = self.measure(parameters, drawn, real, generation=i, seed=seed, first=start)
            samples = (*samples, drawn) if span.regime == "accumulate" else (drawn,)
            previous = parameters
            fitted, counted = (len(next(iter(arrays.values()))) for arrays in (data, drawn))
            yield Made(i, parameters, drawn, fit, measures, fitted, counted)

    @abstractmethod
    def real(self, *, seed: int) -> Arrays:
        """The real data that M_0 is fitted to, e.g. {"x": (n, d)} or {"pixels": (n, 28, 28) uint8, "label": (n,)}."""

    @abstractmethod
    def fit(
        self, data: Arrays, *, mask: Mask, generation: int, seed: int, previous: Arrays | None, progress: Progress
    ) -> tuple[Arrays, dict[str, float]]:
        """Fit M_i to `data`.

        Args:
            data: what this generation is trained on: real data at generation 0, samples after that.
            mask: the arm.
            previous: parameters of M_(i-1); None at generation 0.

        Returns:
            (parameters of M_i, metrics of the fit: live fraction, the gamma used, the loss …).
        """

    @abstractmethod
    def sample(self, parameters: Arrays, *, count: int, generation: int, seed: int) -> Arrays:
        """`count` items drawn from the model, in the form of the real data."""

    @abstractmethod
    def measure(
        self, parameters: Arrays, sample: Arrays, real: Arrays, *, generation: int, seed: int, first: Arrays
    ) -> dict[str, float]:
        """The measures of M_i, by name.

        Args:
            sample: drawn from M_i, nothing dropped.
            real: the real data, whole.
            first: parameters of M_0 of this run.
        """


def joined(parts: list[Arrays]) -> Arrays:
    """Data sets one after another: the arrays that all of them have (what a VAE draws has no label)."""
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


@dataclass(frozen=True)
class Generation:
    """One generation of one run. `sample` and `parameters` may be empty where figures need none."""

    generation: int
    metrics: dict[str, float]
    sample: Arrays = field(default_factory=dict)
    parameters: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One arm with one seed, generation by generation."""

    arm: str
    seed: int
    generations: tuple[Generation, ...]


@dataclass(frozen=True)
class Results:
    """What the figures of an experiment are drawn from. `arms` in the order configured, the baseline first."""

    config: FamilyConfig
    arms: tuple[str, ...]
    real: Arrays
    runs: tuple[Run, ...]

    def of(self, arm: str) -> tuple[Run, ...]:
        """The runs of an arm, by seed."""
        return tuple(run for run in self.runs if run.arm == arm)


@dataclass(frozen=True)
class Figure:
    """A figure that was drawn: `paths` are its files (.svg, .png).

    Attributes:
        caption: what was measured and is seen here.
        paper: what the paper's figure of the same kind shows, described in our words; empty where it has none.
    """

    name: str
    title: str
    caption: str
    paths: tuple[Path, ...]
    paper: str = ""
