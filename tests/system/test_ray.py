"""Stages on a Ray cluster: what processes compute, whichever node dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.load import load_experiment_config
from flows.prepare import Prepared, prepare_experiment
from fortifai_core.config.stages import Runtime
from fortifai_core.errors import InputError
from helpers import Recorder, digests, run_flow
from storage.store.store import ArtifactStore
from tasks.engine.ray_workers import RayWorker, connect, disconnect

ray_cluster = pytest.importorskip("ray.cluster_utils")
pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
SETTINGS = ["runtime.workers=2", "runtime.threads=1", "losses=[{type: cross-entropy}, {type: tce, gamma: 0.9}]"]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes on this machine, of one CPU each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    one = ray_cluster.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    one.second = one.add_node(num_cpus=1)
    try:
        yield one
    finally:
        disconnect()
        one.shutdown()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> dict[str, Any]:
    store = tmp_path_factory.mktemp("processes") / "store"
    run_flow(prepared(store), Recorder())
    return digests(ArtifactStore(store))


def prepared(store: Path, *more: str) -> Prepared:
    return prepare_experiment(load_experiment_config("smoke", [*SETTINGS, *more]), store=str(store))


def on_ray(store: Path, cluster: Any) -> Prepared:
    return prepared(store, "runtime.engine=ray", f"runtime.address={cluster.address}")


def builders(under: int | None = None) -> list[psutil.Process]:
    """Processes that build stages, of one node (its raylet's pid) or of all."""
    below = psutil.Process(under or os.getpid()).children(recursive=True)
    found = []
    for process in below:
        try:
            if "tasks.engine.worker" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def opened_by(process: psutil.Process) -> list[str]:
    """Files that it has open; none of one that has ended."""
    try:
        return [file.path for file in process.open_files()]
    except psutil.Error:
        return []


def eventually(holds: Callable[[], object], *, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def raylet(node: Any) -> int:
    (process,) = node.all_processes["raylet"]
    return int(process.process.pid)


def test_a_node_that_dies_in_a_stage_changes_nothing(cluster: Any, expected: dict[str, Any], tmp_path: Path) -> None:
    """Both nodes build; one is killed while it does; the results are to the bit those of processes."""
    store = tmp_path / "store"
    seen: list[int] = []

    def kill_the_second() -> None:
        pid = raylet(cluster.second)
        end = time.monotonic() + 300
        while not seen and time.monotonic() < end:
            # a builder of the second node that is at work on a model: it has that artifact's lock
            busy = [one for one in builders(pid) if any("/locks/model-" in file for file in opened_by(one))]
            if busy:
                seen.append(len(busy))
                cluster.remove_node(cluster.second, allow_graceful=False)
            time.sleep(0.1)

    killer = threading.Thread(target=kill_the_second)
    killer.start()
    recorder = Recorder()
    run_flow(on_ray(store, cluster), recorder)
    killer.join()
    assert seen, "the second node never built anything"
    made = digests(ArtifactStore(store))
    differing = {
        f"{artifact}/{name}"
        for artifact in made.keys() | expected.keys()
        for name in {**made.get(artifact, {}), **expected.get(artifact, {})}
        if made.get(artifact, {}).get(name) != expected.get(artifact, {}).get(name)
    }
    # a report's page names the settings of the run that made it
    assert not [one for one in differing if not one.endswith("/report.html")]


def test_a_cancelled_stage_leaves_no_process_and_nothing_half_written(cluster: Any, tmp_path: Path) -> None:
    plan = on_ray(tmp_path / "store", cluster)
    store = ArtifactStore(tmp_path / "store")
    worker = RayWorker(store.url, plan.plan.config.runtime, 1, store.logs / "ray.log")

    async def until_training() -> None:
        stages = list(plan.plan.stages())
        first = next(index for index, stage in enumerate(stages) if stage.role == "train")
        for stage in stages[:first]:
            await worker.build(stage)
        begun = asyncio.Event()
        task = asyncio.create_task(worker.build(stages[first], lambda *_: begun.set()))
        await asyncio.wait_for(begun.wait(), 120)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert store.find(stages[first].kind, stages[first].key) is None

    async def main() -> None:
        await worker.start()
        await until_training()

    asyncio.run(main())
    eventually(lambda: not any(one.status() == psutil.STATUS_RUNNING for one in builders()), seconds=30, what="idle")
    assert not store.verify().damaged
    disconnect()
    cluster.shutdown()
    eventually(lambda: not builders(), seconds=30, what="builders end with their cluster")


def test_what_the_cluster_does_not_have_is_said_before_anything_is_built(cluster: Any, tmp_path: Path) -> None:
    plan = on_ray(tmp_path / "store", cluster)
    runtime = plan.plan.config.runtime
    with pytest.raises(
        InputError, match=r"runtime.threads = 64: no node of the cluster has 64 CPUs; the largest has 1"
    ):
        connect(runtime, 64)
    disconnect()
    with pytest.raises(InputError, match=r"runtime.address = .*no cluster answers there"):
        connect(Runtime(engine="ray", address="127.0.0.1:1"), 1)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`fortifai run smoke` with `runtime.engine=ray` alone, which starts a cluster; it prints to a file, `out`."""
    environment = {**os.environ, "FORTIFAI_STORE": str(folder / "store"), "PREFECT_HOME": str(folder / "prefect")}
    chosen = [f"--set={one}" for one in ("runtime.engine=ray", "generations=1", "losses=[{type: cross-entropy}]")]
    command = [sys.executable, "-m", "flows.cli", "run", "smoke", *chosen]
    with (folder / "out").open("wb") as out, subprocess.Popen(command, env=environment, stdout=out, stderr=out) as run:
        try:
            yield run
        finally:
            run.kill()


def test_a_local_cluster_ends_with_the_command(tmp_path: Path) -> None:
    """No process outlives the run; those of other runs, which may have a cluster too, have another store."""

    def of_this_run() -> set[str]:
        store = str(tmp_path / "store")
        processes = psutil.process_iter(["name", "environ"])
        return {one.info["name"] for one in processes if (one.info["environ"] or {}).get("FORTIFAI_STORE") == store}

    with alone(tmp_path) as process:
        eventually(lambda: {"raylet", "gcs_server"} <= of_this_run(), seconds=200, what="a cluster of its own")
        assert process.wait(400) == 0, (tmp_path / "out").read_text()
    assert "stages computed" in (tmp_path / "out").read_text()
    eventually(lambda: not of_this_run(), seconds=30, what="no process is left")


def test_the_death_of_the_own_node_ends_in_one_line(tmp_path: Path) -> None:
    """Of a cluster of one node, which `local` starts, nothing is left to go on with: the run says how to resume."""
    with alone(tmp_path) as process:
        eventually(lambda: builders(process.pid), seconds=200, what="a stage is built")
        for one in psutil.Process(process.pid).children(recursive=True):
            if one.name() == "raylet":
                one.kill()
        assert process.wait(200) == 1
    said = (tmp_path / "out").read_text()
    assert "its worker or node died" in said and "go on with: fortifai resume" in said
    assert "Traceback" not in said
