"""The specs of the stages of model classes other than language models."""

from __future__ import annotations

from typing import Any, Literal

from fortifai_core.families.registry import AnyFamily, AnyMask, FamilyFailure
from fortifai_core.settings import Frozen
from tasks.engine.stages import Reference, Spec


class DataSpec(Spec):
    """The real data. `digests`: of the files that they come from, if from any."""

    role, kind, builder = "data", "family-data", "tasks.families.builders:build_data"
    family: AnyFamily
    digests: dict[str, str]
    seed: int

    def content(self) -> dict[str, Any]:
        family = self.family
        content = family.model_dump(mode="json", include={"type", *family.data_fields})
        for name, part in content.items():
            if isinstance(part, dict):  # a file enters by its digest, never by its path
                content[name] = {field: value for field, value in part.items() if field not in family.path_fields}
        return {"family": content, "seed": self.seed, "digests": self.digests}


class SegmentSpec(Spec):
    """Generations `first` to `last` of one run: their models, what each draws, its measures.

    Attributes:
        data: the real data; None for a class that draws its own.
        earlier: the segments before this one that are read, in order: the last one, or under `accumulate` all.
        start: the segment that holds M_0; None in that segment itself.
    """

    role, kind, builder = "segment", "family-segment", "tasks.families.builders:build_segment"
    keyed = ("mask", "regime", "seed", "first", "last")
    family: AnyFamily
    mask: AnyMask
    regime: Literal["replace", "accumulate"]
    seed: int
    first: int
    last: int
    data: Reference | None
    earlier: tuple[Reference, ...]
    start: Reference | None

    def content(self) -> dict[str, Any]:
        family = self.family
        read = set() if self.data is None else family.data_fields  # those enter by the data
        return {**super().content(), "family": family.model_dump(mode="json", exclude={"segment", *read})}

    @property
    def detail(self) -> str:
        return "" if self.first == self.last else f"from g{self.first}"


class FailureSpec(Spec):
    """Whether the run has failed by now. `measured`: the segments so far, in order."""

    role, kind, builder = "failure", "family-failure", "tasks.families.builders:build_failure"
    rule: FamilyFailure
    measured: tuple[Reference, ...]

    def content(self) -> dict[str, Any]:
        return self.rule.model_dump(mode="json", exclude={"stop_arm"})


class SegmentResults(Frozen):
    """The artifacts of one segment, as the report reads them."""

    first: int
    last: int
    segment: Reference
    failure: Reference | None


class RunResults(Frozen):
    """The artifacts of one run."""

    arm: str
    seed: int
    data: Reference | None
    segments: tuple[SegmentResults, ...]


class ReportSpec(Spec):
    """The report on all runs; `config` is the experiment's, as JSON types, and `command` goes on with it."""

    role, kind, version, builder = "report", "report", 4, "tasks.families.report:build_report"
    shown = True
    config: dict[str, Any]
    command: str
    runs: tuple[RunResults, ...]

    def content(self) -> dict[str, Any]:
        return {name: self.config[name] for name in ("name", "family", "arms", "regime", "failure")}
