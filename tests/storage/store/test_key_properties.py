"""Keys, for whatever values there are: equal values have equal keys, different ones different keys."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.store.keys import EncodingError, artifact_key, canonical_json

FINITE = st.floats(allow_nan=False, allow_infinity=False)
LEAVES = st.none() | st.booleans() | st.integers() | FINITE | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)
CONTENTS = st.dictionaries(st.text(), VALUES, max_size=5)
# What no JSON text stands for exactly, as far as hypothesis makes it itself.
FOREIGN = st.sampled_from([math.nan, math.inf, -math.inf]) | st.binary() | st.complex_numbers() | st.sets(st.text())


def same(one: Any, other: Any) -> bool:
    """Equal in type and value all the way down: `True`, `1` and `1.0` are three things, `0.0` and `-0.0` two."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return one.hex() == other.hex() if isinstance(one, float) else bool(one == other)


def key(content: dict[str, Any]) -> str:
    return artifact_key("model", version=1, content=content)


def reversed_names(value: Any) -> Any:
    """The same value, the entries of every dictionary in it in the opposite order."""
    if isinstance(value, dict):
        return {name: reversed_names(inner) for name, inner in reversed(value.items())}
    return [reversed_names(inner) for inner in value] if isinstance(value, list) else value


def as_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: as_tuples(inner) for name, inner in value.items()}
    return tuple(as_tuples(inner) for inner in value) if isinstance(value, list) else value


def variants(value: Any) -> st.SearchStrategy[Any]:
    """Values that are easily taken for this one, and any other."""
    near: list[Any] = [value, [value], {"": value}, str(value)]
    if isinstance(value, (bool, int, float)) and abs(value) < 2**53:
        near += [int(value), float(value), -value, value + 1, bool(value)]
    return st.sampled_from(near) | VALUES


@given(CONTENTS, st.data())
def test_two_contents_have_one_key_when_they_are_the_same_and_only_then(content: dict[str, Any], data: Any) -> None:
    other = {name: data.draw(variants(value)) for name, value in content.items()}
    assert (key(content) == key(other)) == same(content, other)


@given(VALUES)
def test_the_text_is_read_back_as_the_very_value(value: Any) -> None:
    assert same(json.loads(canonical_json(value)), value)


@given(CONTENTS)
def test_neither_the_order_of_names_nor_tuple_or_list_matters(content: dict[str, Any]) -> None:
    assert key(reversed_names(content)) == key(content) == key(as_tuples(content))


@given(VALUES, VALUES, FOREIGN)
def test_what_has_no_exact_encoding_is_refused_wherever_it_lies(before: Any, after: Any, foreign: Any) -> None:
    for holder in ([before, foreign, after], {"a": before, "b": {"c": foreign}}):
        with pytest.raises(EncodingError, match=r"content\.x(\[1\]|\.b\.c)"):
            key({"x": holder})


@given(st.text(), st.text(), st.lists(st.text(min_size=1), unique=True, max_size=4), st.integers(), st.integers())
def test_kind_version_and_parents_are_told_apart(
    kind: str, other_kind: str, parents: list[str], version: int, other_version: int
) -> None:
    def of(kind: str, version: int, parents: Any) -> str:
        return artifact_key(kind, version=version, content={}, parents=parents)

    whole = of(kind, version, parents)
    assert (of(other_kind, version, parents) == whole) == (other_kind == kind)
    assert (of(kind, other_version, parents) == whole) == (other_version == version)
    assert (of(kind, version, parents[::-1]) == whole) == (parents[::-1] == parents)
    by_role = dict(zip(parents, parents, strict=True))
    assert of(kind, version, by_role) == of(kind, version, dict(reversed(by_role.items()))) != whole


# every code point there is, halves of surrogate pairs too
ODD_TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=4)


@given(ODD_TEXT, ODD_TEXT)
def test_odd_text_is_told_apart_or_refused(one: str, other: str) -> None:
    def keyed(text: str) -> str | None:
        try:
            return key({"x": text, "names": {text: 1}})
        except EncodingError:
            return None

    first, second = keyed(one), keyed(other)
    assert first is None or (first == second) == (one == other)


def test_halves_of_a_pair_are_not_taken_for_the_character() -> None:
    assert key({"x": "\U0001f600"})
    with pytest.raises(EncodingError, match="surrogate"):
        key({"x": "\ud83d\ude00"})


def test_what_is_too_large_or_too_deep_is_refused() -> None:
    itself: list[Any] = []
    itself.append(itself)
    for value in (10**5000, -(10**5000), itself):
        with pytest.raises(EncodingError):
            key({"x": value})
