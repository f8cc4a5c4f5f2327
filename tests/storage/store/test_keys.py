"""Keys: exact, stable, and refused where they could not be."""

from __future__ import annotations

import hashlib
from enum import Enum, IntEnum, StrEnum
from pathlib import Path

import numpy as np
import pytest

from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.errors import FortifaiError
from storage.store.keys import EncodingError, artifact_key, canonical_json


class Colour(StrEnum):
    RED = "red"


class Number(IntEnum):
    ONE = 1


class Plain(Enum):
    A = "a"


def test_key_is_the_digest_of_the_text_that_the_format_promises() -> None:
    """The text is spelled out by hand: a change of the encoding would orphan everybody's artifacts."""
    text = (
        '{"content":{"a":[1,1.0,null,true,"\\u00e9"],"b":{"lr":2e-05}},"kind":"model",'
        '"parents":{"base":"p1"},"schema":1,"version":3}'
    )
    key = artifact_key(
        "model",
        version=3,
        content={"b": {"lr": 2e-5}, "a": (1, 1.0, None, True, "é")},
        parents={"base": "p1"},
    )
    assert key == hashlib.sha256(text.encode()).hexdigest()
    assert key == "a302636ed00bb7ae086380126c1c99e2a48c25f0bbfc81e24675243cb670897f"


def test_every_part_of_a_key_matters_and_order_of_names_does_not() -> None:
    base = {"kind": "model", "version": 1, "content": {"a": 1, "b": [1, 2]}, "parents": ["p", "q"]}

    def key(**changes: object) -> str:
        fields = {**base, **changes}
        return artifact_key(fields.pop("kind"), **fields)  # type: ignore[arg-type]

    different = [
        key(),
        key(kind="split"),
        key(version=2),
        key(content={"a": 1.0, "b": [1, 2]}),
        key(content={"a": True, "b": [1, 2]}),
        key(content={"a": "1", "b": [1, 2]}),
        key(content={"a": 1, "b": [2, 1]}),
        key(content={"a": 1, "b": [1, 2], "c": None}),
        key(parents=["q", "p"]),
        key(parents={"p": "q"}),
        key(parents=[]),
    ]
    assert len(set(different)) == len(different)
    assert key(content={"b": (1, 2), "a": 1}) == key()
    assert canonical_json({"c": Colour.RED, Colour.RED: 0.1}) == canonical_json({"c": "red", "red": 0.1})


def test_floats_are_exact_and_never_taken_for_integers() -> None:
    assert canonical_json(1) == "1"
    assert canonical_json(1.0) == "1.0"
    assert canonical_json(1e22) == "1e+22" != canonical_json(10**22)
    assert canonical_json(0.1 + 0.2) != canonical_json(0.3)
    for value in (1e16, 5e-324, 0.1, 1 / 3, -0.0):
        assert float(canonical_json(value)).hex() == value.hex()


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        float("inf"),
        {1, 2},
        b"x",
        np.float64(1.0),
        np.int64(1),
        np.str_("a"),
        np.zeros(2),
        Number.ONE,
        Plain.A,
        Path("x"),
        ExperimentConfig.__base__(),
        {1: "integer name"},
        object(),
    ],
    ids=lambda v: type(v).__name__,
)
def test_what_has_no_exact_encoding_is_refused_by_its_place(value: object) -> None:
    with pytest.raises(EncodingError, match=r"content\.losses\[1\]\.gamma") as caught:
        artifact_key("model", version=1, content={"losses": [{}, {"gamma": value}]})
    assert isinstance(caught.value, FortifaiError)
    assert isinstance(caught.value, TypeError)


def test_a_single_key_is_not_a_list_of_parents() -> None:
    with pytest.raises(EncodingError, match="parents"):
        artifact_key("model", version=1, content={}, parents="abc")
