"""Killed at any moment, an experiment goes on where it was and ends with the same results, bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from helpers import cli, digests, start_cli
from storage.store.store import ArtifactStore

pytestmark = pytest.mark.long
OVERRIDES = ["--set", "runtime.workers=1", "--set", "runtime.threads=1", "--set", "runtime.save_steps=3"]
SLOWER = ["--set", "training.epochs=80", "--set", "generations=3"]


def names_in(folder: Path) -> list[str]:
    """What lies in a folder; nothing where it has gone, since others work in here meanwhile."""
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def wait_for_training(store: Path, generation: int, process: subprocess.Popen[str]) -> None:
    """Until the training of that generation has written a checkpoint and goes on."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        models = {f"model-{m.key}" for m in ArtifactStore(store).ls("model")}
        # a workspace is removed only after its model was committed: what lies there may be of a finished training
        unfinished = [
            checkpoint
            for stage in set(names_in(store / "work")) - models
            for checkpoint in names_in(store / "work" / stage / "trainer")
            if (store / "work" / stage / "trainer" / checkpoint / "digests.json").is_file()
        ]
        if len(models) >= generation + 1 and unfinished:  # the base model is one, too
            return
        time.sleep(0.02)
    raise AssertionError("the training never came to its first checkpoint")


def children_of(process: int) -> set[int]:
    listed = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()[1:]]
    return {pid for pid, parent in pairs if parent == process}


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/status")
    return not (status.exists() and "State:\tZ" in status.read_text(encoding="utf-8"))


def left_of(children: Sequence[int]) -> list[int]:
    """Those that are still there 20 seconds later: they end by themselves a little after their parent."""
    deadline = time.monotonic() + 20
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return [child for child in children if alive(child)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_in_the_middle_of_training_it_resumes_to_the_same_results(tmp_path: Path, how: signal.Signals) -> None:
    one_arm = [*OVERRIDES, *SLOWER, "--set", "losses=[{type: tce, gamma: 0.9}]"]
    cli(tmp_path, "whole", "run", "smoke", *one_arm)
    process = start_cli(tmp_path, "cut", "run", "smoke", *one_arm)
    wait_for_training(tmp_path / "cut", 2, process)
    children = children_of(process.pid)
    assert len(children) >= 2  # a worker, and the Prefect server
    process.send_signal(how)
    output, _ = process.communicate(timeout=60)
    assert not left_of(children)
    assert process.returncode != 0
    printed = re.findall(r"go on with: fortifai (resume smoke-\w+)", output)
    # at the start, for a kill that leaves no time for words; and at the end where there was some
    assert len(printed) == (1 if how == signal.SIGKILL else 2) and len(set(printed)) == 1
    assert "Traceback" not in output
    said = cli(tmp_path, "cut", *printed[0].split())
    assert "stages computed" in said
    assert digests(ArtifactStore(tmp_path / "cut")) == digests(ArtifactStore(tmp_path / "whole"))
    resumed = [m for m in ArtifactStore(tmp_path / "cut").ls("model") if m.metrics.get("resumed-from")]
    assert len(resumed) == 1  # it went on from a checkpoint, and did not begin anew


@pytest.mark.timeout(600)
def test_killed_while_it_treats_text_it_resumes_to_the_same_results(tmp_path: Path) -> None:
    treatments = "treatments=[{type: surprise-filter, keep: 0.7}, {type: detector, folds: 2}, {type: weights}]"
    treated = [*OVERRIDES, "--set", "losses=[{type: cross-entropy}]", "--set", treatments]
    cli(tmp_path, "whole", "run", "smoke", *treated)
    process = start_cli(tmp_path, "cut", "run", "smoke", *treated)
    deadline = time.monotonic() + 180
    while not any(name.startswith("treated-") for name in names_in(tmp_path / "cut" / "work")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    process.kill()
    process.communicate(timeout=60)
    assert len(ArtifactStore(tmp_path / "cut").ls("model")) == 2  # the base model and M_0
    cli(tmp_path, "cut", "resume", "smoke")
    assert digests(ArtifactStore(tmp_path / "cut")) == digests(ArtifactStore(tmp_path / "whole"))
    assert len(ArtifactStore(tmp_path / "cut").ls("treated")) == 3


def test_a_killed_worker_fails_its_stage_and_nothing_else(tmp_path: Path) -> None:
    arguments = [*OVERRIDES, *SLOWER, "--set", "losses=[{type: cross-entropy}]"]
    process = start_cli(tmp_path, "cut", "run", "smoke", *arguments)
    wait_for_training(tmp_path / "cut", 1, process)
    workers = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    worker = next(
        line for line in workers.splitlines() if "tasks.engine.worker" in line and str(process.pid) in line.split()
    )
    os.kill(int(worker.split()[0]), signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "worker process ended with code -9" in output
    assert "fortifai resume smoke-" in output
    assert ArtifactStore(tmp_path / "cut").verify().damaged == []
    cli(tmp_path, "cut", "resume", "latest")


BRIEF = [*OVERRIDES, "--set", "training.epochs=20", "--set", "losses=[{type: cross-entropy}]"]


def server_of(process: subprocess.Popen[str]) -> psutil.Process | None:
    """The embedded server of a run; None while it has none."""
    return next((c for c in psutil.Process(process.pid).children() if "flows.embedded" in c.cmdline()), None)


def test_a_run_whose_server_is_killed_goes_on_with_another_one(tmp_path: Path) -> None:
    """While it makes its database first, and in the middle of a training."""
    process = start_cli(tmp_path, "cut", "run", "smoke", *BRIEF)
    database = tmp_path / "prefect" / "prefect.db"
    while not database.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    server = server_of(process)
    assert server is not None
    server.kill()
    wait_for_training(tmp_path / "cut", 1, process)
    server = server_of(process)
    assert server is not None
    server.kill()
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert "the Prefect server ended with code -9 and is started again" in output and "Traceback" not in output
    assert "report:" in output


def test_a_server_that_dies_again_and_again_ends_the_run_in_order(tmp_path: Path) -> None:
    process = start_cli(tmp_path, "cut", "run", "smoke", *BRIEF)
    wait_for_training(tmp_path / "cut", 1, process)
    children = children_of(process.pid)
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(psutil.Error):
            server = server_of(process)
            if server is not None:
                server.kill()
        time.sleep(0.05)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 1, output
    assert "failed: the Prefect server ended with code -9, for the 4th time" in output and "Traceback" not in output
    assert output.count("go on with: fortifai resume smoke-") == 2
    assert not left_of(children)
    assert "report:" in cli(tmp_path, "cut", "resume", "latest")


@pytest.mark.timeout(400)
def test_the_command_line_from_a_first_run_to_the_questions_one_asks_of_it(tmp_path: Path) -> None:
    arguments = ["smoke", *OVERRIDES]
    first = cli(tmp_path, "store", "run", *arguments)
    assert "retention of split 0" in first and "report:" in first
    again = cli(tmp_path, "store", "run", *arguments)
    assert "0 stages computed" in again
    planned = json.loads(cli(tmp_path, "store", "plan", *arguments, "--json"))
    assert all(row["found"] for row in planned)
    changed = json.loads(cli(tmp_path, "store", "plan", *arguments, "--set", "losses.1.gamma=0.8", "--json"))
    missing = [row for row in changed if not row["found"]]
    assert {row["run"] for row in missing} == {"tce-0.8 · seed 0", "shared"}
    assert [row["stage"] for row in missing if row["run"] == "shared"] == ["report"]
    epochs = json.loads(cli(tmp_path, "store", "plan", *arguments, "--set", "training.epochs=3", "--json"))
    first_miss = next(row for row in epochs if not row["found"])
    assert "training.epochs: 2.0 → 3.0" in first_miss["why"]
    asked = json.loads(
        cli(tmp_path, "store", "sql", "select arm, generation, value from metrics where metric = 'kr-total'", "--json")
    )
    assert {(row["arm"], row["generation"]) for row in asked} == {(a, g) for a in ("ce", "tce-0.9") for g in (0, 1)}
    catalog = Path(cli(tmp_path, "store", "path", "catalog").strip())
    assert catalog.is_absolute() and catalog.is_file()
    assert "smoke-" in cli(tmp_path, "store", "ls")
    assert "are sound, 0 were set aside" in cli(tmp_path, "store", "verify")


def test_sigterm_within_the_flow_still_says_how_to_go_on(tmp_path: Path) -> None:
    """Prefect's own handler sends the signal once more where it strikes the flow's code, not its waiting."""
    script = """
import asyncio, contextlib, os, signal, types
from prefect import flow
from rich.console import Console
import flows.experiment, flows.local
async def struck(prepared, reporter, pool):
    @flow(validate_parameters=False)
    async def here():
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(5)
    await here()
flows.experiment.run_here = struck
flows.local.TerminalReporter = lambda *_: contextlib.nullcontext()
flows.local.prefect_api_beside = flows.local.workers = lambda *_, **__: contextlib.nullcontext()
flows.local._announce = lambda *_, **__: None
store = types.SimpleNamespace(logs=__import__("pathlib").Path("."))
prepared = types.SimpleNamespace(plan=None, store=store, record_id="this")
flows.local._run([prepared], Console(), resume="fortifai resume {name}")
"""
    # Prefect makes its database at this first start, for which a busy machine takes longer than its 20 s
    slow = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "100"}
    quiet = {**os.environ, **slow, "PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": ""}
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=quiet, timeout=120)
    assert "go on with: fortifai resume this" in ended.stdout and ended.returncode == 130, ended.stderr[-2000:]
