"""A stage: one step of an experiment, described by a typed spec from which its key follows. No torch, no Prefect.

A **spec** is what a builder receives: typed settings, and typed references to the artifacts that it reads. Its
`content()` is the part that changes the result; content and the parents' keys make the key. What a builder needs
besides and a key must not hold (paths) is a field that `content()` leaves out. A **stage** is a spec with its place in
the experiment. JSON exists in manifests and on the way to a worker only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

from fortifai_core.settings import Frozen
from storage.store.keys import artifact_key

ROLES: dict[str, int] = {}


class Reference(NamedTuple):
    """An artifact, whether it exists yet or not."""

    kind: str
    key: str


class Spec(Frozen):
    """What one stage makes, from what. A subclass for each role, defined at the top of a module.

    Class attributes:
        role: how the stage is called, as in `--refresh ROLE`.
        kind: of the artifact that it makes; by default the role.
        version: raise it when the builder's code changes what it makes: every artifact after it is rebuilt.
        builder: `module:function`, imported when a worker needs it.
        keyed: the fields that enter the key as they are.
        shown: whether people are shown its files as they are: then a found artifact's digests are checked first.
        waits: whether only the report needs the result, so that anything else gets a worker first.
        whole: whether it reads of its parents what may have been taken out of them, weights or text.
        launched: whether `runtime.launcher` starts what it computes.
    """

    role: ClassVar[str]
    kind: ClassVar[str] = ""
    version: ClassVar[int] = 1
    builder: ClassVar[str] = ""
    keyed: ClassVar[tuple[str, ...]] = ()
    shown: ClassVar[bool] = False
    waits: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    launched: ClassVar[bool] = False

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        if cls.builder:
            cls.kind = cls.kind or cls.role
            if ROLES.setdefault(cls.role, cls.version) != cls.version:
                raise TypeError(f"{cls.__name__}: role {cls.role} has version {ROLES[cls.role]} already")

    def content(self) -> dict[str, Any]:
        """The settings that change the result, as JSON types: part of the key. By default the fields `keyed`."""
        return self.model_dump(mode="json", include=set(self.keyed))

    def parents(self) -> dict[str, Reference]:
        """The artifacts that are read, under the names by which manifests know them: by default the fields' own."""
        return dict(references(self))

    @property
    def detail(self) -> str:
        """What a label says besides role, generation and split."""
        return ""


def references(value: Any, name: str = "") -> Iterator[tuple[str, Reference]]:
    """Every reference inside a spec's fields, with the path of the field: `runs.0.steps.1.train`.

    What has `references` of its own says itself what it refers to, told under which name it stands.
    """
    if isinstance(value, Reference):
        yield name, value
    elif hasattr(value, "references"):
        yield from value.references(name)
    elif isinstance(value, Frozen):
        for field in type(value).model_fields:
            yield from references(getattr(value, field), f"{name}.{field}" if name else field)
    elif isinstance(value, Mapping):
        for field, part in value.items():
            yield from references(part, f"{name}.{field}")
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield from references(part, f"{name}.{index}")


@dataclass(frozen=True)
class Stage:
    """One step of an experiment: what it makes, and where it stands. Arm and seed are None where runs share it."""

    spec: Spec
    arm: str | None = None
    seed: int | None = None
    generation: int | None = None
    split: int | None = None
    version: int | None = None

    @property
    def role(self) -> str:
        return self.spec.role

    @property
    def kind(self) -> str:
        return self.spec.kind

    @cached_property
    def content(self) -> dict[str, Any]:
        return self.spec.content()

    @cached_property
    def parents(self) -> dict[str, Reference]:
        return self.spec.parents()

    @cached_property
    def key(self) -> str:
        keys = {name: parent.key for name, parent in self.parents.items()}
        return artifact_key(self.kind, version=self.spec.version, content=self.content, parents=keys)

    @cached_property
    def reference(self) -> Reference:
        return Reference(self.kind, self.key)

    @property
    def label(self) -> str:
        """As people read it: `regenerate · g2 · split 0`."""
        parts = [self.role]
        if self.generation is not None:
            parts.append(f"g{self.generation}")
        if self.split is not None:
            parts.append(f"split {self.split}")
        if self.spec.detail:
            parts.append(self.spec.detail)
        return " · ".join(parts)

    @property
    def run(self) -> str:
        """Whose it is, as people read it: `tce-0.9 · seed 1`, or `shared`."""
        return "shared" if self.arm is None else f"{self.arm} · seed {self.seed}"

    @property
    def place(self) -> dict[str, Any]:
        """Where it stands in the experiment."""
        return {name: getattr(self, name) for name in ("arm", "seed", "generation", "split", "version")}

    def to_json(self) -> dict[str, Any]:
        """For a worker's pipe."""
        kind, values = type(self.spec), self.spec.model_dump(mode="json")
        return {"spec": f"{kind.__module__}:{kind.__name__}", "values": values, **self.place}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Stage:
        place = dict(data)
        kind = load(place.pop("spec"))
        return cls(spec=kind.model_validate(place.pop("values")), **place)


def load(name: str) -> Any:
    """What `module:name` names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)
