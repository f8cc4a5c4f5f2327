"""The harness itself: what is aimed at, how a killed run may end, and which processes are looked at."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import psutil
import pytest

from arena import EXPERIMENTS, Arena, below
from kills import OWN, SIGNS, Aim, _judge, aims
from soak import _died, _look, _slope

# A flow whose first child has ended and was not waited for; then a worker, which has started a launcher and a rank.
FLOW = """
import subprocess, sys, time
sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
ended = subprocess.Popen(["true"])
worker = "import subprocess, sys, time\\nfor line in eval(sys.argv[2]): subprocess.Popen(line)\\ntime.sleep(60)"
ranks = [[*sleeps, "tasks.engine.launch", "tasks.language.ranks"], [*sleeps, "tasks.language.ranks"]]
subprocess.Popen([sys.executable, "-c", worker, "tasks.engine.worker", repr(ranks)])
print("begun", flush=True)
time.sleep(60)
"""


@pytest.fixture
def flow() -> Iterator[int]:
    """The process id of such a flow, once all of it is there."""
    with subprocess.Popen([sys.executable, "-c", FLOW], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"begun\n"
        own = psutil.Process(process.pid)
        try:
            while len(own.children(recursive=True)) < 4 or own.children()[0].status() != psutil.STATUS_ZOMBIE:
                assert process.poll() is None
            yield process.pid
        finally:
            for one in [*own.children(recursive=True), own]:
                one.kill()


def test_a_process_that_has_ended_hides_no_other(flow: int) -> None:
    found = _look(flow)
    assert set(found) == {"flow", "worker"} and found["flow"]["process"] == flow
    assert all(one["memory"] > 0 and one["files"] > 0 and one["threads"] > 0 for one in found.values())


def test_what_died_and_was_started_anew_is_said_by_the_soak() -> None:
    throughout = [(0.0, {"process": 1.0}), (1.0, {"process": 1.0})]
    assert list(_died({"flow": throughout, "worker": throughout, "server": throughout})) == []
    anew = [*throughout, (2.0, {"process": 2.0})]
    assert list(_died({"flow": throughout, "worker": anew})) == [
        "worker: 2 processes were seen, where one works throughout",
        "server: 0 processes were seen, where one works throughout",
    ]


def test_the_target_is_found_below_the_flow(flow: int) -> None:
    found = {target: below(flow, sign) for target, sign in SIGNS.items()}
    assert {target: len(processes) for target, processes in found.items()} == {
        "worker": 1, "server": 0, "migration": 0, "rank": 1, "ray worker": 0, "ray node": 0,
    }  # fmt: skip
    assert found["rank"][0].cmdline()[-2:] == ["import time; time.sleep(60)", "tasks.language.ranks"]
    assert SIGNS["ray worker"](["ray::train · g0"]) and SIGNS["ray node"](["/core/src/ray/raylet/raylet", "--store"])
    assert not any(SIGNS["ray worker"]([line]) for line in ("ray::IDLE", "ray::DashboardAgent", "python"))


def test_each_experiment_has_its_turn_and_where_several_build_a_stage_one_of_them_is_killed(tmp_path: Path) -> None:
    made = {f"{kind}/{n}": {"a": "b"} for kind in ("corpus", "model", "split") for n in range(3)}
    arena = Arena(tmp_path, "", dict.fromkeys(EXPERIMENTS, made))
    drawn = list(islice(aims(arena, seed=3, names=list(EXPERIMENTS)), 20 * len(EXPERIMENTS)))
    assert [aim.experiment for aim in drawn[: len(EXPERIMENTS)]] == list(EXPERIMENTS)
    for name, targets in OWN.items():
        assert {aim.target for aim in drawn if aim.experiment == name} == set(targets)
        assert not [aim for aim in drawn if aim.target in targets and aim.experiment != name]
    assert {aim.kind for aim in drawn if aim.target == "rank"} == {"model"}
    assert {aim.target for aim in islice(aims(arena, seed=3, names=["ray"]), 9)} == {"ray worker", "ray node"}


@pytest.mark.parametrize(
    ("target", "code", "said", "well"),
    [
        ("flow", -signal.SIGKILL, "", True),
        ("flow", 1, "", False),
        ("server", 0, "", True),
        ("server", 1, "go on with: fortifai resume x", False),
        ("rank", 1, "process 1 of 2 ended with signal 9 (out of memory?); go on with: fortifai resume x", True),
        ("rank", 1, "torch's launcher ended with code 1; go on with: fortifai resume x", False),
        ("ray worker", 1, "train: its worker or node died; go on with: fortifai resume x", True),
        ("ray worker", 1, "train: its worker or node died", False),
        ("ray node", 1, "no node of the Ray cluster is alive any more\ngo on with: fortifai resume x", True),
        ("ray worker", 0, "", True),
        ("ray worker", 0, "Traceback (most recent call last):", False),
    ],
)
def test_how_a_struck_run_may_end(target: str, code: int, said: str, well: bool) -> None:
    assert (_judge(Aim("language", target), code, said) == "") == well


@pytest.mark.parametrize(
    ("held", "grows"),
    [
        (lambda g: 30 + g, 1.0),
        (lambda g: 30 + g // 2, 0.5),
        (lambda g: 30 + (7 if g > 12 else 0), 0.0),  # a busy end
        (lambda g: 30 + 5 * (g in (4, 11)), 0.0),
    ],
)
def test_a_leak_is_told_from_what_comes_and_goes(held: Callable[[int], int], grows: float) -> None:
    """Looked at four times a generation, once with more open than it keeps."""
    ends = [float(g) for g in range(4, 17)]
    values = [(4 + i / 4, float(held(4 + i // 4) + 3 * (i % 4 == 1))) for i in range(48)]
    assert _slope(values, ends) == pytest.approx(grows, abs=0.06)
