"""Workers on a Ray cluster: a stage is one Ray task, which has a worker process of its own node build it.

So a stage is built by the same process, with the same environment, as without Ray; Ray decides where. Nodes share the
store, and have this software installed. Ray is imported when a stage is built.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fortifai_core.errors import InputError, StageFailed
from tasks.engine.children import child_environment
from tasks.engine.pool import (
    AnyRuntime,
    OnProgress,
    WorkerError,
    heard,
    request_of,
    worker_command,
    worker_environment,
)
from tasks.engine.stages import Stage

NODES = 3  # that may die under one stage before it fails; it goes on from what they left in the store
_connecting = threading.Lock()
_joined = False


class RayWorker:
    """A place in the cluster's queue. Takes the CPUs that `threads` says, and a GPU where the runtime wants one."""

    def __init__(self, store_url: str, runtime: AnyRuntime, threads: int, log: Path) -> None:
        self.store_url, self.runtime, self.threads, self.log = store_url, runtime, threads, log
        self.gpus = 0

    async def start(self) -> None:
        """Connect this process to the cluster, once for all workers.

        Raises:
            InputError: Ray is not installed, nobody answers there, or no node has what a stage takes.
            StageFailed: all nodes died.
        """
        self.gpus = await asyncio.to_thread(connect, self.runtime, self.threads)

    async def build(self, stage: Stage, on_progress: OnProgress | None = None, *, anew: bool = False) -> dict[str, Any]:
        """Build one stage where the cluster has room; as `ProcessWorker.build`. A stage whose node dies is built on.

        Raises:
            WorkerError: the stage failed, its worker died, or so did `NODES` nodes under it.
        """
        await self.start()
        import ray

        device = "cuda:0" if self.gpus else "cpu"
        request = request_of(stage, store_url=self.store_url, runtime=self.runtime, device=device, anew=anew)
        environment = worker_environment(self.runtime, self.threads)
        relay = ray.remote(num_returns="streaming", max_retries=0)(_relay)
        for _ in range(NODES):
            task: Any = relay.options(num_cpus=self.threads, num_gpus=self.gpus, name=stage.label).remote(
                request, environment, str(self.log)
            )
            try:
                async for reference in task:
                    message = heard(await reference, stage, self.log, on_progress)
                    if message is not None:
                        return message
            except asyncio.CancelledError:
                ray.cancel(task, force=True)
                with contextlib.suppress(ray.exceptions.RayError):
                    await asyncio.to_thread(ray.get, task.completed())  # until its process is gone
                raise
            except (ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError):
                continue
            except ray.exceptions.RayTaskError:
                raise  # a defect of `_relay`
            except ray.exceptions.RayError:  # its worker; this process's own node; the memory that Ray allows
                break
        raise WorkerError(
            f"{stage.label} ({stage.arm or 'shared'}): its worker or node died; log, on that node: {self.log}",
            log=self.log,
            cause="WorkerDied",
        )

    async def stop(self) -> None:
        """Leave the cluster, if this process joined it here; one that was started here ends with all its processes."""
        await asyncio.to_thread(disconnect)


def connect(runtime: AnyRuntime, threads: int) -> int:
    """Make this process a driver of the cluster at `runtime.address`; the GPUs that one stage takes.

    Raises:
        InputError, StageFailed: as `RayWorker.start`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    try:
        import ray
    except ImportError:
        raise InputError("runtime.engine", "ray", "Ray is not installed: pip install 'fortifai[ray]'") from None
    global _joined
    with _connecting:
        if not ray.is_initialized():
            try:
                _reach(runtime.address)
                ray.init(address=runtime.address, include_dashboard=None, log_to_driver=False, configure_logging=False)
            except (OSError, ValueError, RuntimeError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                remedy = f"no cluster answers there ({reason}); `local` starts one on this machine"
                raise InputError("runtime.address", runtime.address, remedy) from None
            _joined = True
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not nodes:  # they died under an earlier stage
        raise StageFailed("no node of the Ray cluster is alive any more")
    gpus = int(runtime.device == "cuda" or (runtime.device == "auto" and any(node.get("GPU") for node in nodes)))
    if not any(node.get("CPU", 0) >= threads and node.get("GPU", 0) >= gpus for node in nodes):
        best = max(int(node.get("CPU", 0)) for node in nodes)
        wants = f"{threads} CPUs" + (" and a GPU" if gpus else "")
        raise InputError("runtime.threads", threads, f"no node of the cluster has {wants}; the largest has {best} CPUs")
    return gpus


def _reach(address: str) -> None:
    """Raise at once what Ray would say after minutes of trying."""
    host, _, port = address.rpartition(":")
    if host:
        if not port.isdecimal():
            raise ValueError("not host:port")
        socket.create_connection((host, int(port)), timeout=10).close()


def disconnect() -> None:
    """Undo `connect`; whoever joined a cluster otherwise stays in it."""
    global _joined
    with _connecting:
        if _joined:
            import ray

            ray.shutdown()
            _joined = False


_children: dict[str, subprocess.Popen[str]] = {}


def _relay(request: dict[str, Any], environment: dict[str, str], log: str) -> Iterator[dict[str, Any]]:
    """On a node: what a worker process there answers. The process serves this Ray worker's next stages, too."""
    told = {**child_environment(), **environment}
    asked = json.dumps([sorted(environment.items()), os.environ.get("CUDA_VISIBLE_DEVICES")])
    child = _children.get(asked)
    if child is None or child.poll() is not None:
        Path(log).parent.mkdir(parents=True, exist_ok=True)
        with Path(log).open("ab") as errors:
            child = _children[asked] = subprocess.Popen(
                worker_command(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=told,
                text=True,
                start_new_session=True,
            )
    assert child.stdin is not None and child.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        child.stdin.write(json.dumps(request) + "\n")
        child.stdin.flush()
        for line in child.stdout:
            message = json.loads(line)
            yield message
            if message["event"] != "progress":
                return
    yield {"event": "died", "code": child.wait()}
