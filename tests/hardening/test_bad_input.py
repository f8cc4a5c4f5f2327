"""Bad input of every kind: one line that names field, value and remedy, exit code 2, nothing computed or left."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from bad_inputs import STORE, Case, attempt, cases

CASES = cases()


@pytest.mark.parametrize("case", CASES, ids=[case.id for case in CASES])
def test_bad_input_is_refused_in_one_line(case: Case, tmp_path: Path) -> None:
    outcome = attempt(case, tmp_path)
    lines = outcome.err.rstrip("\n").splitlines()
    assert (outcome.code, len(lines), outcome.out) == (2, 1, ""), outcome
    assert [part for part in case.said if part not in lines[0]] == [], lines[0]
    assert len(lines[0]) < 1500
    # a query makes the catalog anew from the artifacts, which it says nothing about
    assert [name for name in outcome.changed if name != f"{STORE}/catalog.duckdb"] == []


def test_every_case_has_a_name_of_its_own() -> None:
    assert [name for name, count in Counter(case.id for case in CASES).items() if count > 1] == []
    assert len(CASES) >= 300
