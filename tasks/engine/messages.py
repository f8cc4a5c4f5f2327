"""A child process's side of what its parent asked for: messages on its standard output, and an end with its parent."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

from fortifai_core.errors import FortifaiError
from tasks.engine.children import PARENT

Send = Callable[..., None]


def die_with_parent() -> None:
    """Have the kernel end this process with its parent (on Linux); to be called first of all.

    A parent that died before this is one whose place another process has taken.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.environ.pop(PARENT, None) not in (None, str(os.getppid())):  # not for what this process starts
        os._exit(1)


def open_channel() -> Send:
    """Take the standard output for messages, a line of JSON each; what libraries print goes to the log from here on."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def send(**message: Any) -> None:
        channel.write(json.dumps(message) + "\n")
        channel.flush()

    return send


def send_error(send: Send, error: Exception) -> None:
    """Tell the parent, which raises it there; the log has the traceback."""
    with contextlib.suppress(OSError):  # the log may lie on the very disk that is full
        traceback.print_exception(error)
    send(
        event="error",
        type=type(error).__name__,
        message=str(error),
        expected=isinstance(error, FortifaiError),
        exit_code=getattr(error, "exit_code", 1),
    )
