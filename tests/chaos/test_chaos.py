"""The short version of the long disturbances, of which `make chaos` makes many more."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from arena import arena
from crowd import crowd
from kills import campaign
from soak import soak

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def test_killed_five_times_anywhere_it_ends_with_the_same_results(tmp_path: Path) -> None:
    with arena(tmp_path) as place:
        figures = campaign(place, kills=5, seed=random.randrange(10**6))
    assert figures["kills"] == 5
    assert not figures["lost or different"], (figures["seed"], [o for o in figures["outcomes"] if o["wrong"]])


def test_four_at_once_build_everything_once_while_others_read(tmp_path: Path) -> None:
    with arena(tmp_path) as place:
        figures = crowd(place, names=("gmm",))
    assert figures["runs"] == 8 and figures["reads meanwhile"] and figures["wrong"] == []


def test_a_run_of_many_generations_does_not_grow(tmp_path: Path) -> None:
    with arena(tmp_path) as place:
        figures = soak(place, generations=30)
    # Memory and time need more generations to be told from noise. Files and threads may grow by as many in all as in
    # the long version: by fewer than 4 over these generations; a leak of one in every fifth is seen. With half as many
    # the last few, in which the flow ends and holds more connections, are too many of them.
    grown = figures["growth a generation (MiB, files, threads)"]
    assert set(grown) == {"flow", "worker", "server"}
    assert all(by[what] < figures["limits"][what] for by in grown.values() for what in ("files", "threads")), grown
