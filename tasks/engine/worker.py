"""A worker: a child process that builds one stage at a time, told by JSON lines on its standard input.

`python -m tasks.engine.worker` reads `{"stage": …, "store": …, "runtime": …, "device": …}` lines and answers with
`{"event": "progress" | "done" | "error", …}` lines. It dies with its parent: when the pipe closes, and (on
Linux) by the kernel's own signal. Everything else it or its libraries print goes to its log.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from typing import Any, TextIO

PROGRESS_SECONDS = 0.5


def _die_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() == 1:
        os._exit(1)


def _read_requests(requests: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)  # the parent is gone: whatever is being built has its checkpoints and shards


def _serve(request: dict[str, Any], channel: TextIO) -> None:
    from fortifai_core.config.stages import Runtime
    from fortifai_core.errors import FortifaiError
    from storage.store.store import ArtifactStore
    from tasks.engine.build import build
    from tasks.engine.stages import Stage

    def send(**message: Any) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    last = 0.0

    def progress(done: int, total: int, unit: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= PROGRESS_SECONDS:
            last = now
            send(event="progress", done=done, total=total, unit=unit)

    stage = Stage.from_json(request["stage"])
    try:
        artifact, found = build(
            stage,
            ArtifactStore(request["store"]),
            Runtime.model_validate(request["runtime"]),
            device=request["device"],
            progress=progress,
            anew=request["anew"],
        )
    except Exception as error:  # noqa: BLE001 - sent to the parent, which raises it as StageFailed
        with contextlib.suppress(OSError):  # the log may lie on the very disk that is full
            traceback.print_exc()
        send(
            event="error",
            type=type(error).__name__,
            message=str(error),
            expected=isinstance(error, FortifaiError),
            exit_code=getattr(error, "exit_code", 1),
        )
    else:
        send(event="done", found=found, metrics=artifact.manifest.metrics, seconds=artifact.manifest.seconds)


def main() -> None:
    """Serve stages until the standard input closes."""
    _die_with_parent()
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # prints of libraries must not end up among the messages
    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    if os.environ.get("FORTIFAI_WORKER_WARM") == "1":
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        from transformers.utils import logging

        logging.disable_progress_bar()
    while True:
        _serve(requests.get(), channel)


if __name__ == "__main__":
    main()
