"""A worker: a child process that builds one stage at a time, told by JSON lines on its standard input.

`python -m tasks.engine.worker` reads `{"stage": …, "store": …, "runtime": …, "device": …}` lines and answers with
`{"event": "progress" | "done" | "error", …}` lines. It dies with its parent: when the pipe closes, and (on
Linux) by the kernel's own signal. Everything else it or its libraries print goes to its log.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from typing import Any

from tasks.engine.messages import Send, die_with_parent, open_channel, send_error

PROGRESS_SECONDS = 0.5


def _read_requests(requests: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        requests.put(json.loads(line))
    os._exit(0)  # the parent is gone: whatever is being built has its checkpoints and shards


def _serve(request: dict[str, Any], send: Send) -> None:
    from fortifai_core.config.stages import Runtime
    from storage.store.store import ArtifactStore
    from tasks.engine.build import build
    from tasks.engine.stages import Stage

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
        send_error(send, error)
    else:
        send(event="done", found=found, metrics=artifact.manifest.metrics, seconds=artifact.manifest.seconds)


def main() -> None:
    """Serve stages until the standard input closes."""
    die_with_parent()
    send = open_channel()
    requests: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read_requests, args=(requests,), daemon=True).start()
    if os.environ.get("FORTIFAI_WORKER_WARM") == "1":
        import torch

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        from transformers.utils import logging

        logging.disable_progress_bar()
    while True:
        _serve(requests.get(), send)


if __name__ == "__main__":
    main()
