"""Whatever stands in a field of a configuration, it makes a valid one or a `ConfigError` of one line; nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel

from flows.load import load_any_config, presets, validate
from fortifai_core.errors import ConfigError
from fortifai_core.parsing import INTEGERS, Malformed, load_yaml

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["\ud800", "yes", "1", "", "none", "text", "tce", 10**400, 2**63, -1, 0, 1e300, {}, []])
)
NAMES = st.sampled_from(["type", "name", "gamma", "seed", "files", "path", "a"]) | st.text(max_size=4)
VALUES = st.recursive(LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(NAMES, v, max_size=3), max_leaves=6)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything in a configuration as JSON types."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield (*path, name)
        yield from _places(part, (*path, name))


WHOLE = {name: load_any_config(name).model_dump(mode="json") for name in presets()}
PLACES = [(name, path) for name, config in WHOLE.items() for path in _places(config)]


def _with(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The same configuration with another value in that place."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _with(value[path[0]], path[1:], new)
    return copy


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, BaseModel):
        yield from (number for name in type(value).model_fields for number in _numbers(getattr(value, name)))
    elif isinstance(value, (list, tuple)):
        yield from (number for part in value for number in _numbers(part))
    elif isinstance(value, int):
        yield value


@given(st.sampled_from(PLACES), VALUES)
@example(("tiny", ("losses", 1, "gamma")), True)
@example(("tiny", ("seeds", 0)), 2**63)
@example(("tiny", ("corpus",)), {"type": "text", "files": ["\ud800"]})
def test_any_value_in_any_field_is_accepted_or_refused_in_one_line(
    place: tuple[str, tuple[Any, ...]], new: Any
) -> None:
    preset, path = place
    try:
        config = validate(_with(WHOLE[preset], path, new))
    except ConfigError as error:
        assert "\n" not in str(error) and error.field and error.remedy
        return
    assert all(number in INTEGERS for number in _numbers(config))
    assert validate(config.model_dump(mode="json")) == config


@given(VALUES)
def test_any_value_for_a_whole_experiment(new: Any) -> None:
    for data in ({"family": new}, {"name": "a", "corpus": new, "losses": [new]}):
        with pytest.raises(ConfigError):
            validate(data)
            raise ConfigError("none", new, "it was valid")


@given(st.text(st.sampled_from("ab: -[]{}\"'&*!|>\n\t#,?0195.e~%@`\\\ud800é"), max_size=40))
def test_any_text_is_yaml_or_malformed(text: str) -> None:
    try:
        load_yaml(text)
    except Malformed as error:
        assert str(error)
