"""The journal of a segment: what an attempt wrote is found by the next, whole or not at all."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from fortifai_core.families.base import Made
from tasks.families.journal import Journal, sample_name


def made(generation: int) -> Made:
    """A generation with numbers of every kind that a class may give."""
    rng = np.random.default_rng(generation)
    parameters = {"weight": rng.normal(size=(2, 3)).astype(np.float32), "count": np.array([generation])}
    fit = {"loss": float(rng.normal()), "live-fraction": 1 / 3}
    return Made(generation, parameters, {"x": rng.normal(size=(4, 2))}, fit, {"tail": math.nan, "spread": 1e-300}, 5, 4)


def bits(journal: Journal) -> list[tuple[object, ...]]:
    """Everything that the journal holds, so that equal means equal to the bit."""
    return [
        (
            one.generation,
            {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in one.parameters.items()},
            {name: array.tobytes() for name, array in journal.sample(one.generation).items()},
            repr((one.fit, one.measures)),
            (one.fitted, one.drawn),
        )
        for one in journal.made
    ]


def test_the_next_attempt_finds_every_generation_to_the_bit(tmp_path: Path) -> None:
    first = Journal(tmp_path, first=3, every=0)
    for generation in range(3, 8):
        first.add(made(generation))
    again = Journal(tmp_path, first=3)
    assert [one.generation for one in again.made] == [3, 4, 5, 6, 7]
    assert bits(again) == bits(first)
    # and a third one what the second added to it
    again.every = 0
    again.add(made(8))
    assert [one.generation for one in Journal(tmp_path, first=3).made] == [3, 4, 5, 6, 7, 8]


def test_a_sample_is_a_file_at_once_and_the_rest_only_every_few_seconds(tmp_path: Path) -> None:
    journal = Journal(tmp_path, first=0, every=3600)
    journal.add(made(0))
    assert [path.name for path in tmp_path.iterdir()] == [sample_name(0)]
    assert not journal.made[0].sample, "it need not stay in memory"
    assert Journal(tmp_path, first=0).made == [], "what is not listed is made again"


@pytest.mark.parametrize(
    ("torn", "how"),
    [
        ("made-00001.json", "gone"),
        ("made-00001.json", "empty"),
        ("made-00001.json", "flipped"),
        ("made-00001.safetensors", "empty"),
        ("made-00001.safetensors", "flipped"),
        (sample_name(1), "gone"),
        (sample_name(1), "flipped"),
    ],
)
def test_generations_after_one_that_is_not_whole_are_made_again(tmp_path: Path, torn: str, how: str) -> None:
    journal = Journal(tmp_path, first=0, every=0)
    for generation in range(4):
        journal.add(made(generation))
    if how == "gone":  # the list comes last: a crash may leave the parameters alone
        (tmp_path / torn).unlink()
    elif how == "flipped":
        content = bytearray((tmp_path / torn).read_bytes())
        content[-20] ^= 1
        (tmp_path / torn).write_bytes(content)
    else:
        (tmp_path / torn).write_bytes(b"")
    again = Journal(tmp_path, first=0, every=3600)
    assert [one.generation for one in again.made] == [0]
    again.add(made(1))
    again.every = 0
    for generation in range(2, 6):
        again.add(made(generation))
    assert bits(Journal(tmp_path, first=0)) == bits(again)
    assert [one.generation for one in again.made] == list(range(6))


def test_a_class_that_cannot_go_on_writes_no_more_than_its_samples(tmp_path: Path) -> None:
    journal = Journal(tmp_path, first=0, keep=False, every=0)
    for generation in range(3):
        journal.add(made(generation))
    assert sorted(path.name for path in tmp_path.iterdir()) == [sample_name(generation) for generation in range(3)]
    assert Journal(tmp_path, first=0, keep=False).made == []
