"""What the file system says of files is the same number whoever asks, and another one once a file was touched."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from storage.store import states
from storage.store.states import by_stat, by_statx, states_of

LATER = time.time_ns() + 3_600_000_000_000  # by then every time has settled


def test_both_ways_to_ask_are_told_the_same(tmp_path: Path) -> None:
    statx = states._statx()
    if statx is None:
        pytest.skip("this system has no statx")
    for number in range(5):
        (tmp_path / f"{number} é").write_bytes(bytes(number))
        os.utime(tmp_path / f"{number} é", ns=(0, 1_700_000_000_123_456_789 - number))
    os.utime(tmp_path / "4 é", ns=(0, -1_500_000_000))  # before 1970
    (tmp_path / "link").symlink_to("3 é")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    names = [f"{number} é" for number in range(5)]
    paths = [
        os.fsencode(name) for name in (*names, "link", "dangling", "folder", "missing", "0 é/under a file", "x" * 999)
    ]
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        told = list(by_statx(statx, handle, paths))
        assert told == list(by_stat(handle, paths))
    finally:
        os.close(handle)
    assert [marks is not None for marks in told] == [True] * 6 + [False, True] + [False] * 3
    found = (tmp_path / "1 é").stat()
    changed = divmod(found.st_ctime_ns, 10**9)
    assert told[1] == (found.st_ino, 1, *changed, 1_700_000_000, 123_456_788)
    assert told[4] is not None and told[4][4:] == (-2, 500_000_000)


def test_a_state_is_of_all_files_in_their_order_and_none_where_one_is_missing(tmp_path: Path) -> None:
    for name in ("a-1", "a-2", "b-1", "b-2", "c-1"):
        (tmp_path / name).write_text(name)
    starts, ends = ["a", "b", "c", "a"], ["-1", "-2"]
    first = list(states_of(tmp_path, starts, ends, before=LATER))
    assert first[2] is None and first[0] == first[3] is not None and first[0] != first[1]
    assert list(states_of(tmp_path, ["a"], ["-2", "-1"], before=LATER)) != first[:1]
    compared = list(states_of(tmp_path, starts, ends))
    assert [compared[0], compared[1], compared[3]] == [first[0], first[1], first[3]]
    assert compared[2] not in (None, *first)
    (tmp_path / "b-2").write_text("b-34")  # another size: the clock of the file system need not have ticked
    again = list(states_of(tmp_path, starts, ends, before=LATER))
    assert again[0] == first[0] and again[1] != first[1]
    assert list(states_of(tmp_path / "nowhere", starts, ends, before=LATER)) == [None] * 4
    # many more than are asked for at once
    assert list(states_of(tmp_path, starts * 3_000, ends, before=LATER)) == again * 3_000


def test_what_was_touched_so_shortly_before_that_its_times_may_stand_still_has_no_state(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("text")
    times = path.stat()
    newest = max(times.st_mtime_ns, times.st_ctime_ns)
    settled = newest + states.SETTLED_NS
    assert list(states_of(tmp_path, ["file"], [""], before=settled - 1)) == [None]
    assert list(states_of(tmp_path, ["file"], [""], before=settled)) == list(states_of(tmp_path, ["file"], [""]))
