"""Base of every configuration: frozen, typed, no unknown fields; and the error of fields that do not fit together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from fortifai_core.parsing import INTEGERS, is_text

# As tables hold it, and any generator takes it.
Seed = Annotated[int, Field(ge=0, le=INTEGERS[-1])]


class Frozen(BaseModel):
    """Base of all configuration: immutable, unknown fields are refused, and a value is taken for what it is alone:
    `true` and `"1"` are no numbers, `1` and `"yes"` are no booleans, an integer has at most 64 bits.

    Class attributes:
        later: fields that a release added. Where one says what was always done, no dump has it: keys and records of
            configurations that were written before it stay as they are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    later: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _as_before(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        for name in type(self).later:
            field = type(self).model_fields[name]
            if getattr(self, name) == field.get_default(call_default_factory=True):
                written.pop(name, None)
        return written

    @model_validator(mode="before")
    @classmethod
    def _as_it_is(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        wrong = [
            InitErrorDetails(
                type=PydanticCustomError("as_it_is", "{problem}", {"problem": problem}), loc=loc, input=part
            )
            for field, value in data.items()
            if field in cls.model_fields and (isinstance(value, (list, tuple)) or not _is_list(cls, field))
            for loc, part in _parts(field, value)
            if (problem := _problem(part, _kinds(cls, field)))
        ]
        if wrong:  # as pydantic says it, so that each keeps the place of its field in the whole
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return data


class Inconsistent(ValueError):
    """Fields that do not fit together; kept in parts, so that whoever shows it can name the field."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        self.field, self.value, self.remedy = field, value, remedy
        super().__init__(f"{field} = {value!r}: {remedy}")


def _parts(field: str, value: Any) -> Iterable[tuple[tuple[str | int, ...], Any]]:
    """A value with its place, or what a list or mapping holds: no field of its own stands for that."""
    if isinstance(value, Mapping):
        return [((field, str(name)), part) for name, part in value.items()]
    if isinstance(value, (list, tuple)):
        return [((field, index), part) for index, part in enumerate(value)]
    return [((field,), value)]


def _problem(value: Any, kinds: frozenset[type]) -> str:
    """Why a value is not one of a field that admits these plain types; nothing where it is, or its model decides."""
    if isinstance(value, str) and not is_text(value):
        return "half a surrogate pair is no text: write the whole character"
    if type(value) is int and value not in INTEGERS:
        return "is beyond 64 bits: give an integer from -2^63 to 2^63-1"
    numbers = kinds & {bool, int, float}
    if not numbers or type(value) not in (bool, int, str) or type(value) in kinds:
        return ""
    if type(value) is int and float in kinds:
        return ""
    return f"is {_called(value)}: give {'true or false' if bool in kinds else 'a number'}"


def _is_list(model: type[BaseModel], field: str) -> bool:
    """Whether a field admits nothing but a list; pydantic refuses anything else."""
    return get_origin(model.model_fields[field].annotation) is list


@cache
def _kinds(model: type[BaseModel], field: str) -> frozenset[type]:
    """The plain types that a field admits, in containers and unions too; none where it admits everything."""
    kinds: set[type] = set()
    waiting: list[Any] = [model.model_fields[field].annotation]
    while waiting:
        annotation = waiting.pop()
        if annotation is Any:
            return frozenset()
        if isinstance(annotation, type) and issubclass(annotation, (bool, int, float, str)):
            kinds.add(next(kind for kind in (bool, int, float, str) if issubclass(annotation, kind)))
        elif not isinstance(annotation, type) and isinstance(annotation, (bool, int, float, str)):
            kinds.add(type(annotation))  # of a Literal
        inner = get_args(annotation)
        waiting += inner[1:] if get_origin(annotation) in (dict, Mapping) else inner  # names are always text
    return frozenset(kinds)


def _called(value: object) -> str:
    return "text" if isinstance(value, str) else "true or false" if isinstance(value, bool) else "a number"


class Engine(Frozen):
    """Where stages are built. Nothing here is part of a key."""

    engine: Literal["processes", "ray"] = Field("processes", description="Processes of this machine, or a Ray cluster.")
    address: str = Field("local", description="Of a running Ray cluster, host:port or `auto`; `local` starts one here.")

    @model_validator(mode="after")
    def _address_is_of_a_cluster(self) -> Engine:
        if self.engine == "processes" and self.address != "local":
            raise Inconsistent("runtime.address", self.address, "only with runtime.engine=ray")
        if "://" in self.address:
            raise Inconsistent("runtime.address", self.address, "host:port; run the flow on a machine of the cluster")
        return self


def moved(error: ValidationError, place: tuple[str | int, ...], title: str) -> ValidationError:
    """The same findings, of a value that stands at `place` within another; raised in a validator, they name it."""
    prefix = ".".join(map(str, place))
    found: list[InitErrorDetails] = []
    for one in error.errors():
        cause, kind = one.get("ctx", {}).get("error"), one["type"]
        told: Any = (
            "extra_forbidden"
            if kind == "extra_forbidden"
            else PydanticCustomError("moved", "{problem}", {"problem": one["msg"]})
        )
        found.append(InitErrorDetails(type=told, loc=(*place, *one["loc"]), input=one["input"]))
        if isinstance(cause, Inconsistent):
            cause = Inconsistent(f"{prefix}.{cause.field}", cause.value, cause.remedy)
            found[-1] |= {"type": "value_error", "ctx": {"error": cause}}
    return ValidationError.from_exception_data(title, found)
