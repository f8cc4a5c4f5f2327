"""What was made under other circumstances is told in one sentence, with every difference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch  # noqa: F401  (then a process knows its own threads)

from storage.store.provenance import collect, rooms_of
from storage.store.store import ArtifactStore
from tasks.engine.session import Circumstances


class Told:
    def __init__(self) -> None:
        self.notes: list[str] = []

    def noted(self, message: str) -> None:
        self.notes.append(message)


@pytest.mark.parametrize(
    ("here", "made_with", "difference"),
    [
        ({"threads": 3}, {}, None),
        ({"threads": 2}, {}, "torch_threads: 3 → 2"),
        ({"threads": 3, "processes": 2}, {}, None),  # no training, or one of an earlier release
        ({"threads": 3, "processes": 2}, {"processes": 1}, "processes: 1 → 2"),
    ],
)
def test_threads_and_processes_are_compared_with_those_of_a_worker(
    tmp_path: Path, here: dict[str, int], made_with: dict[str, int], difference: str | None
) -> None:
    """Not with those of this process, which builds nothing."""
    store, told = ArtifactStore(tmp_path), Told()
    circumstances = Circumstances(**here)
    made = collect(rooms_of("model")) | {"torch_threads": 3} | made_with
    for key in ("a" * 64, "b" * 64):
        with store.build("model", key) as draft:
            (draft.path / "weights").write_bytes(b"w")
            artifact = draft.commit(stage_version=1, content={}, parents={}, metrics={}, provenance=made)
        circumstances.note(artifact.manifest)
    reporter: Any = told
    circumstances.tell(reporter)
    if difference is None:
        assert not told.notes
    else:
        (note,) = told.notes
        assert "2 stages" in note and difference in note


def test_all_is_said_at_once_and_of_several_old_values_the_most_frequent(tmp_path: Path) -> None:
    store, told = ArtifactStore(tmp_path), Told()
    circumstances = Circumstances(threads=3)
    made = collect(rooms_of("model")) | {"torch_threads": 3, "processes": 1}
    for number, other in enumerate([{}, {"python": "3.9"}, {"python": "3.8"}, {"python": "3.9", "torch_threads": 1}]):
        with store.build("model", str(number) * 64) as draft:
            (draft.path / "weights").write_bytes(b"w")
            artifact = draft.commit(stage_version=1, content={}, parents={}, metrics={}, provenance={**made, **other})
        circumstances.note(artifact.manifest)
    reporter: Any = told
    circumstances.tell(reporter)
    (note,) = told.notes
    assert note.startswith("warning: 3 stages were found that were made under other circumstances")
    assert f"(python: 3.9 → {made['python']}, and 1 more; torch_threads: 1 → 3 (1 of them));" in note
