"""What is computed stays what it was: keys to the letter, numbers of `smoke` within rounding."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import goldens
from flows.load import presets

RECORDED = sorted(path.stem for path in goldens.KEYS.glob("*.json"))
# Other processors and BLAS libraries round differently, and training carries it on: relative to the larger number.
TOLERANCE = 2e-3


def test_every_preset_is_recorded() -> None:
    assert sorted(presets()) == RECORDED


@pytest.mark.parametrize("preset", RECORDED)
def test_keys_are_what_they_were(preset: str) -> None:
    recorded = json.loads((goldens.KEYS / f"{preset}.json").read_text())
    assert goldens.keys_of(preset, recorded["digests"]) == recorded["keys"]
    if not recorded["digests"] or os.environ.get("FORTIFAI_DATA"):
        assert goldens.digests_of(preset) == recorded["digests"]


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every number and word of a nested value, with where it stands."""
    if isinstance(value, dict):
        for name, part in value.items():
            yield from leaves(part, f"{place} / {name}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from leaves(part, f"{place} / {index}")
    else:
        yield place, value


@pytest.mark.parametrize("name", list(goldens.COMPUTED))
def test_what_is_computed_is_what_it_was(name: str, tmp_path: Path) -> None:
    expected = dict(leaves(json.loads((goldens.GOLDEN / f"{name}.json").read_text())))
    computed = dict(leaves(json.loads(json.dumps(goldens.COMPUTED[name](tmp_path)))))
    assert computed.keys() == expected.keys()
    assert not {
        place: (value, computed[place]) for place, value in expected.items() if not alike(value, computed[place])
    }


def alike(expected: Any, computed: Any) -> bool:
    """The same word or number, but for rounding."""
    if not isinstance(expected, float):
        return bool(expected == computed)
    if math.isnan(expected):
        return math.isnan(computed)
    return math.isclose(expected, computed, rel_tol=TOLERANCE, abs_tol=1e-6)
