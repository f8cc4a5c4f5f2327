"""A stage's training by torch's launcher: the model of one process, and no process left whoever dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from flows.load import load_experiment_config
from flows.prepare import Prepared, prepare_experiment
from fortifai_core.config.stages import Runtime
from fortifai_core.errors import InputError
from storage.store.provenance import drift
from storage.store.store import Artifact, ArtifactStore
from tasks.engine.build import build
from tasks.engine.launch import main
from tasks.engine.pool import ProcessWorker, WorkerError, check_processes, pool_size
from tasks.engine.stages import Stage

SMALL = ["generations=1", "splits=2", "losses=[{type: tce, gamma: 0.9}]", "runtime.threads=1", "runtime.workers=1"]
TWO = Runtime(launcher="torchrun", processes=2, save_steps=1, threads=1)
MODULES = ("tasks.engine.launch", "tasks.language.ranks")


def test_more_processes_than_cores_are_refused_before_anything(tmp_path: Path) -> None:
    config = load_experiment_config(
        "smoke", [*SMALL, "runtime.launcher=torchrun", "runtime.processes=256", "training.batch_size=256"]
    )
    with pytest.raises(InputError, match=r"runtime\.processes = 256: this machine has \d+ cores"):
        prepare_experiment(config, store=str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_workers_of_several_processes_take_a_core_for_each() -> None:
    cores = len(os.sched_getaffinity(0))
    seeds = list(range(cores + 1))
    asked = ["runtime.workers=0", "runtime.threads=0", "runtime.device=cpu", f"training.batch_size={cores}"]
    alone = load_experiment_config("smoke", [*SMALL, *asked, f"seeds={seeds}"])
    assert pool_size(alone) == (cores, 1)
    launched = [*asked, f"seeds={seeds}", "runtime.launcher=torchrun", f"runtime.processes={cores}"]
    together = load_experiment_config("smoke", [*SMALL, *launched])
    check_processes(together.runtime)
    assert pool_size(together) == (1, cores)
    too_many = load_experiment_config("smoke", [*SMALL, *launched, "runtime.workers=2"])
    with pytest.raises(InputError, match=rf"runtime\.workers = 2: .* {2 * cores} processes, .*: at most 1$"):
        check_processes(too_many.runtime)


def test_sharding_without_a_gpu_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(InputError, match=r"runtime\.sharding = 'fsdp2': is for GPUs"):
        check_processes(Runtime(launcher="torchrun", processes=1, sharding="fsdp2"))


def test_a_key_does_not_know_of_processes(tmp_path: Path) -> None:
    more = ["runtime.launcher=torchrun", "runtime.processes=2"]
    keys = [
        [stage.key for stage in prepare_experiment(config, store=str(tmp_path / "store")).plan.stages()]
        for config in (load_experiment_config("smoke", SMALL), load_experiment_config("smoke", [*SMALL, *more]))
    ]
    assert keys[0] == keys[1]


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Stage]:
    """An experiment of which everything before M_0 is built, and the stage that trains M_0."""
    store = str(tmp_path_factory.mktemp("launched") / "store")
    prepared = prepare_experiment(load_experiment_config("smoke", [*SMALL, "training.epochs=30"]), store=store)
    stages = prepared.plan.stages()
    (train,) = (stage for stage in stages if stage.role == "train")
    for stage in stages[: stages.index(train)]:
        build(stage, prepared.store, Runtime(), progress=lambda *_: None)
    return prepared, train


def copied(begun: tuple[Prepared, Stage], folder: Path) -> ArtifactStore:
    import shutil

    shutil.copytree(begun[0].store.root, folder)
    return ArtifactStore(folder)


def tensors(artifact: Artifact) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: weight for path in artifact.files("*.safetensors") for name, weight in load_file(path).items()}


@pytest.fixture(scope="module")
def two(begun: tuple[Prepared, Stage], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    store = copied(begun, tmp_path_factory.mktemp("two") / "store")
    artifact = build(begun[1], store, TWO, progress=lambda *_: None)[0]
    assert not list((store.root / "work").glob("model-*"))
    return artifact


@pytest.mark.parametrize(("codes", "named"), [({0: 1, 1: -9}, 1), ({0: 1}, 0), ({0: -9, 1: 1}, 0)])
def test_of_several_that_end_at_the_same_time_the_killed_one_is_named(
    codes: dict[int, int], named: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one that lost its connection to a killed process may be seen first: it says nothing of why."""

    def torchrun() -> None:
        raise ChildFailedError("two", {rank: ProcessFailure(rank, 1, code, "") for rank, code in codes.items()})

    monkeypatch.setattr("torch.distributed.run.main", torchrun)
    monkeypatch.setattr("tasks.engine.launch.die_with_parent", lambda: None)
    with pytest.raises(SystemExit):
        main()
    said = json.loads(capsys.readouterr().out)
    assert (said["rank"], said["code"]) == (named, codes[named])


@pytest.mark.long
@pytest.mark.timeout(240)
def test_two_processes_make_the_model_of_one(begun: tuple[Prepared, Stage], two: Artifact, tmp_path: Path) -> None:
    one = build(begun[1], copied(begun, tmp_path / "store"), Runtime(), progress=lambda *_: None)[0]
    assert one.manifest.metrics == two.manifest.metrics
    wanted = tensors(one)
    for name, weight in tensors(two).items():
        torch.testing.assert_close(weight, wanted[name], rtol=0, atol=1e-4, msg=name)
    assert [file["name"] for file in one.manifest.files] == [file["name"] for file in two.manifest.files]
    assert "processes: 1 → 2" in drift(one.manifest.provenance, two.manifest.provenance)


def those_below(pid: int) -> list[psutil.Process]:
    """Launchers and ranks among the descendants."""
    found = []
    for process in psutil.Process(pid).children(recursive=True):
        try:
            if any(module in process.cmdline() for module in MODULES):
                found.append(process)
        except psutil.Error:
            continue
    return found


def ranks(pid: int) -> list[psutil.Process]:
    """The ranks alone: of the launcher's arguments theirs is one, too."""
    return [process for process in those_below(pid) if MODULES[0] not in process.cmdline()]


def all_gone(processes: list[psutil.Process], *, seconds: float) -> None:
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    assert not alive, [process.cmdline() for process in alive]


class Interrupted:
    """A worker that trains M_0 in two processes; `then` is called with the worker's pid when there is a checkpoint."""

    def __init__(self, begun: tuple[Prepared, Stage], folder: Path, then: Callable[[int], None]) -> None:
        self.store, self.stage, self.then = copied(begun, folder), begun[1], then
        self.processes: list[psutil.Process] = []
        self.worker = ProcessWorker(
            0, store_url=self.store.url, runtime=TWO, threads=1, device="cpu", log=folder / "logs" / "worker.log"
        )

    def heard(self, done: int, total: int, unit: str) -> None:
        assert self.worker.process is not None
        if not self.processes:
            sealed = "work/model-*/trainer-2/checkpoint-*/digests.json"
            end = time.monotonic() + 60
            while not list(self.store.root.glob(sealed)) and time.monotonic() < end:
                time.sleep(0.05)
            self.processes = those_below(self.worker.process.pid)
            assert len(ranks(self.worker.process.pid)) == 2 and len(self.processes) == 3
            self.then(self.worker.process.pid)

    async def outcome(self) -> dict[str, Any]:
        try:
            return await self.worker.build(self.stage, self.heard)
        finally:
            await self.worker.stop()


@pytest.fixture
def no_orphans() -> Iterator[None]:
    """Whatever a test does, nothing that it started stays."""
    yield
    for process in those_below(os.getpid()):
        process.kill()


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("victim", ["rank", "launcher"])
def test_a_killed_process_ends_the_stage_which_then_goes_on_from_a_checkpoint(
    begun: tuple[Prepared, Stage], two: Artifact, tmp_path: Path, victim: str, no_orphans: None
) -> None:
    def kill(pid: int) -> None:
        chosen = ranks(pid)[1] if victim == "rank" else ranks(pid)[0].parent()
        assert chosen is not None
        chosen.send_signal(signal.SIGKILL)

    run = Interrupted(begun, tmp_path / "store", kill)
    said = r"process [01] of 2 ended with signal 9 \(out of memory\?\)" if victim == "rank" else "ended with code -9"
    with pytest.raises(WorkerError, match=f"{said}; log: .*torchrun-model-") as raised:
        asyncio.run(run.outcome())
    assert "\n" not in str(raised.value)
    assert Path(str(raised.value).rpartition("log: ")[2]).is_file()
    all_gone(run.processes, seconds=30)
    assert run.store.find(run.stage.kind, run.stage.key) is None
    again = build(run.stage, run.store, TWO, progress=lambda *_: None)[0]
    assert int(again.manifest.metrics["resumed-from"]) > 0
    whole = tensors(two)
    assert all(torch.equal(weight, whole[name]) for name, weight in tensors(again).items())


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_killed_worker_takes_all_with_it(begun: tuple[Prepared, Stage], tmp_path: Path, no_orphans: None) -> None:
    run = Interrupted(begun, tmp_path / "store", lambda pid: os.kill(pid, signal.SIGKILL))
    with pytest.raises(WorkerError, match="its worker process ended with code -9"):
        asyncio.run(run.outcome())
    all_gone(run.processes, seconds=10)


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_cancelled_stage_ends_all_of_them(begun: tuple[Prepared, Stage], tmp_path: Path, no_orphans: None) -> None:
    async def cancel() -> None:
        at_work = asyncio.Event()
        run = Interrupted(begun, tmp_path / "store", lambda _: at_work.set())
        task = asyncio.create_task(run.outcome())
        await asyncio.wait_for(at_work.wait(), 90)
        task.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        all_gone(run.processes, seconds=30 - (time.monotonic() - began))
        assert run.store.find(run.stage.kind, run.stage.key) is None

    asyncio.run(cancel())
