"""The parent's side of the workers: a few child processes, each building one stage at a time."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from fortifai_core.config.stages import Runtime
from fortifai_core.errors import InputError, StageFailed
from fortifai_core.families.registry import FamilyRuntime
from tasks.engine.children import child_environment
from tasks.engine.plans import AnyExperiment
from tasks.engine.stages import Reference, Stage

OnProgress = Callable[[int, int, str], None]
AnyRuntime = Runtime | FamilyRuntime


class WorkerError(StageFailed):
    """A stage failed in its worker. `log` is the worker's log file, `cause` the type of the error there."""

    def __init__(self, message: str, *, log: Path, cause: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.log, self.cause, self.exit_code = log, cause, exit_code


class Worker(Protocol):
    """Builds one stage at a time: a process of this machine, or a place in a cluster's queue."""

    async def start(self) -> Any:
        """Get ready, if it is not."""

    async def build(self, stage: Stage, on_progress: OnProgress | None = None, *, anew: bool = False) -> dict[str, Any]:
        """Build one stage, with `anew` although it is there; returns `{"found": bool, "metrics": {…}}`.

        Raises:
            WorkerError: the stage failed, or the process died.
        """
        ...

    async def stop(self) -> None:
        """End it, and what it is building."""


def worker_command() -> list[str]:
    """How a worker process is started."""
    return [sys.executable, "-m", "tasks.engine.worker"]


def worker_environment(runtime: AnyRuntime, threads: int) -> dict[str, str]:
    """What a worker process is told besides the environment of whoever starts it."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        # a family's worker imports what its stages use, which may well be no torch at all
        "FORTIFAI_WORKER_WARM": "1" if isinstance(runtime, Runtime) else "0",
        "PYTHONUNBUFFERED": "1",
    }


def request_of(stage: Stage, *, store_url: str, runtime: AnyRuntime, device: str, anew: bool) -> dict[str, Any]:
    """What a worker process is asked, as JSON."""
    return {
        "stage": stage.to_json(),
        "store": store_url,
        "runtime": runtime.model_dump(mode="json"),
        "device": device,
        "anew": anew,
    }


def heard(message: dict[str, Any], stage: Stage, log: Path, on_progress: OnProgress | None) -> dict[str, Any] | None:
    """Take in one message of a worker process: the outcome of its stage, or None where it goes on.

    Raises:
        WorkerError: the message says that the stage failed, or that the process died.
    """
    where = f"{stage.label} ({stage.arm or 'shared'})"
    match message["event"]:
        case "progress":
            if on_progress is not None:
                on_progress(message["done"], message["total"], message["unit"])
            return None
        case "done":
            return message
        case "died":
            code = message["code"]
            reason = "out of memory?" if code == -9 else "see its log"
            text = f"{where}: its worker process ended with code {code} ({reason}); log: {log}"
            raise WorkerError(text, log=log, cause="WorkerDied")
    text = message["message"] if message["expected"] else f"{message['type']}: {message['message']}; log: {log}"
    raise WorkerError(f"{where}: {text}", log=log, cause=message["type"], exit_code=message["exit_code"])


class ProcessWorker:
    """One child process. Started when first used; killed when the stage it builds is cancelled."""

    def __init__(
        self, index: int, *, store_url: str, runtime: AnyRuntime, threads: int, device: str, log: Path
    ) -> None:
        self.index, self.store_url, self.runtime, self.log = index, store_url, runtime, log
        self.threads, self.device = threads, device
        self.process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> asyncio.subprocess.Process:
        """The running child; started anew if it is not there or has died."""
        async with self._starting:
            if self.process is None or self.process.returncode is not None:
                self.log.parent.mkdir(parents=True, exist_ok=True)
                environment = {**child_environment(), **worker_environment(self.runtime, self.threads)}
                # the log is the child's own file: a child that held the terminal's or a server's pipe open would
                # make a dead run look alive
                with self.log.open("ab") as log:
                    self.process = await asyncio.create_subprocess_exec(
                        *worker_command(),
                        stdin=asyncio.subprocess.PIPE,
                        stdout=asyncio.subprocess.PIPE,
                        stderr=log,
                        env=environment,
                        limit=2**24,
                        start_new_session=True,
                    )
            return self.process

    async def build(self, stage: Stage, on_progress: OnProgress | None = None, *, anew: bool = False) -> dict[str, Any]:
        """Build one stage, as `Worker.build`."""
        process = await self.start()
        assert process.stdin is not None and process.stdout is not None
        request = request_of(stage, store_url=self.store_url, runtime=self.runtime, device=self.device, anew=anew)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died: what it said last is read
                process.stdin.write(json.dumps(request).encode() + b"\n")
                await process.stdin.drain()
            while line := await process.stdout.readline():
                message = heard(json.loads(line), stage, self.log, on_progress)
                if message is not None:
                    return message
        except WorkerError:
            raise
        except BaseException:  # what it goes on saying is not to be taken for an answer to the next request
            await self.stop()
            raise
        outcome = heard({"event": "died", "code": await process.wait()}, stage, self.log, on_progress)
        assert outcome is not None  # it raised
        return outcome

    async def stop(self) -> None:
        """Kill the child and wait for it."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()


class Turns:
    """The free workers. Who waits for one is served by rank (0 first), and within a rank first come, first served."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._free = deque(workers)
        self._waiting: list[tuple[int, int, asyncio.Future[Worker]]] = []
        self._arrivals = itertools.count()

    async def get(self, rank: int) -> Worker:
        """A worker, which is the caller's until it is `put` back."""
        if self._free:
            return self._free.popleft()
        turn: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (rank, next(self._arrivals), turn))
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.put(turn.result())  # it was handed over in the very moment of the cancellation
            raise

    def put(self, worker: Worker) -> None:
        """Hand the worker to the next in line, or keep it."""
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():  # a cancelled one is done
                turn.set_result(worker)
                return
        self._free.append(worker)


class Clock:
    """The time in which at least one stage was being built."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._active = 0
        self._since = 0.0

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Around the building of a stage."""
        if not self._active:
            self._since = time.monotonic()
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self.seconds += time.monotonic() - self._since


class WorkerPool:
    """`build` waits for a free worker, and measurements let the training go first."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self.workers = list(workers)
        self.turns = Turns(self.workers)
        self.anew: set[Reference] = set()  # what is to be built although it is there
        self.clock = Clock()
        self._warm = False
        self._begun: dict[Reference, asyncio.Task[dict[str, Any]]] = {}

    def begin(self, stages: Sequence[Stage]) -> None:
        """Build these as soon as their parents are there, before anybody asks for them with `build`.

        So the workers are busy while a server starts, and between one task and the next.

        Args:
            stages: none of which is there yet; parents before children.
        """
        for stage in stages:
            parents = [self._begun[parent] for parent in stage.parents.values() if parent in self._begun]
            self._begun[stage.reference] = asyncio.create_task(self._after(parents, stage))

    def has_begun(self, stage: Stage) -> bool:
        """Whether `begin` was told of this stage, or it is to be built anew: then it is not to be looked up."""
        return stage.reference in self._begun or stage.reference in self.anew

    async def _after(self, parents: Sequence[asyncio.Task[dict[str, Any]]], stage: Stage) -> dict[str, Any]:
        await asyncio.gather(*parents)
        return await self._build(stage, None)

    async def build(self, stage: Stage, on_progress: OnProgress | None = None) -> dict[str, Any]:
        """Build one stage on the next free worker; what only the report waits for is built when nothing else waits."""
        if stage.reference in self.anew and stage.reference not in self._begun:
            # once, however many runs share it
            self._begun[stage.reference] = asyncio.create_task(self._build(stage, on_progress))
        begun = self._begun.get(stage.reference)
        if begun is None:
            return await self._build(stage, on_progress)
        try:
            return await asyncio.shield(begun)
        except WorkerError:
            # whoever asks again wants it tried again
            if self._begun.get(stage.reference) is begun:
                del self._begun[stage.reference]
            raise

    async def _build(self, stage: Stage, on_progress: OnProgress | None) -> dict[str, Any]:
        if not self._warm:
            # the others import their libraries while the first one builds what all wait for
            self._warm = True
            await asyncio.gather(*(worker.start() for worker in self.workers))
        worker = await self.turns.get(int(stage.spec.waits))
        try:
            with self.clock.running():
                outcome = await worker.build(stage, on_progress, anew=stage.reference in self.anew)
            self.anew.discard(stage.reference)
            return outcome
        finally:
            self.turns.put(worker)

    async def close(self) -> None:
        """Stop every child, and what was begun and never asked for."""
        for task in self._begun.values():
            task.cancel()
        await asyncio.gather(*self._begun.values(), return_exceptions=True)
        await asyncio.gather(*(worker.stop() for worker in self.workers))


def process_workers(
    *, store_url: str, runtime: AnyRuntime, workers: int, threads: int, logs: Path
) -> list[ProcessWorker]:
    """Child processes of this one, on the GPUs in turn where there are any."""
    devices = devices_for(runtime, workers)
    return [
        ProcessWorker(
            index,
            store_url=store_url,
            runtime=runtime,
            threads=threads,
            device=devices[index],
            log=logs / f"worker-{os.getpid()}-{index}.log",
        )
        for index in range(workers)
    ]


def gpu_count(runtime: AnyRuntime) -> int:
    """How many GPUs this machine's workers compute on; 0: they compute on the CPU."""
    if runtime.device == "cpu" or (runtime.device == "auto" and not os.path.exists("/dev/nvidiactl")):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def devices_for(runtime: AnyRuntime, workers: int) -> list[str]:
    """Where each worker computes: GPUs in turn, or the CPU.

    Raises:
        InputError: a GPU is asked for and none is there.
    """
    count = gpu_count(runtime)
    if runtime.device == "cuda" and not count:
        raise InputError("runtime.device", "cuda", "no CUDA device is visible here; use `cpu` or `auto`")
    each = getattr(runtime, "processes", 1)  # one GPU for every process of a training
    return [f"cuda:{index * each % count}" for index in range(workers)] if count else ["cpu"] * workers


def check_processes(runtime: AnyRuntime) -> None:
    """Refuse more processes that train at once than this machine has cores, or GPUs where they compute on them.

    Raises:
        InputError: naming how many there are.
    """
    if not isinstance(runtime, Runtime) or runtime.launcher == "single":
        return
    devices = devices_for(runtime, 1)
    if devices == ["cpu"]:
        if runtime.sharding != "none":
            raise InputError(
                "runtime.sharding", runtime.sharding, "is for GPUs, and none is visible here: leave it out"
            )
        there, what = _cores(), "cores"
    else:
        import torch

        there, what = torch.cuda.device_count(), "GPUs"
    if runtime.processes > there:
        raise InputError("runtime.processes", runtime.processes, f"this machine has {there} {what}: at most one each")
    if (asked := runtime.workers * runtime.processes) > there:
        remedy = f"workers of {runtime.processes} processes each are {asked} processes, and this machine has {there} "
        raise InputError("runtime.workers", runtime.workers, f"{remedy}{what}: at most {there // runtime.processes}")


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def pool_size(config: AnyExperiment) -> tuple[int, int]:
    """(workers, threads of each): as configured, or one worker a run up to the cores or GPUs, sharing the cores.

    A worker whose trainings are shared by several processes takes a core or a GPU for each of these.
    Of a cluster nobody knows the cores beforehand: there one worker a run, of one thread, and Ray has them wait.
    """
    cores = _cores()
    runs = len(config.arm_labels) * len(config.seeds)
    if config.runtime.engine == "ray":
        return config.runtime.workers or runs, config.runtime.threads or 1
    places = min(cores, gpu_count(config.runtime) or cores) // getattr(config.runtime, "processes", 1)
    workers = config.runtime.workers or min(runs, max(1, places))
    return workers, config.runtime.threads or max(1, cores // workers)
