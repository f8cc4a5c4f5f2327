"""A Prefect server for one command, where the user has none: started quietly, stopped cleanly, kept in its log."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from fortifai_core.errors import StageFailed

START_SECONDS = 90.0
FLUSH_SECONDS = 1.0  # the server writes task-run events to its database in batches


def quiet_environment() -> None:
    """Settings for a run without a server of its own; they must be set before Prefect is imported."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "false")
    os.environ.setdefault("PREFECT_CLI_COLORS", "true")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def prefect_api(log: Path) -> Iterator[str]:
    """The URL of the Prefect API: the configured server's, or that of one started for the length of the block.

    Prefect's own temporary server prints the traces of its shutdown to the terminal; this one has a log.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    configured = PREFECT_API_URL.value()
    if configured:
        yield configured
        return
    port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "flows.embedded", str(port)],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env={
                **os.environ,
                "PREFECT_UI_ENABLED": "0",
                "PREFECT__SERVER_EPHEMERAL": "1",
                "PREFECT__SERVER_FINAL": "1",
            },
            start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the server in order
        )
    try:
        _wait_until_healthy(url, server, log)
        with temporary_settings({PREFECT_API_URL: url}):
            yield url
        time.sleep(FLUSH_SECONDS)
    finally:
        server.terminate()
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise StageFailed(f"the embedded Prefect server ended with code {server.returncode}; its log: {log}")
        with (
            contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError),
            urllib.request.urlopen(f"{url}/health", timeout=2) as answer,
        ):
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise StageFailed(f"the embedded Prefect server did not answer within {START_SECONDS:.0f} s; its log: {log}")


def _exit_when_orphaned() -> None:
    sys.stdin.buffer.read()  # returns when the parent has gone, however it went
    os._exit(0)


def main() -> None:
    """The server process: `python -m flows.embedded PORT`; ends when its standard input closes."""
    import uvicorn

    threading.Thread(target=_exit_when_orphaned, daemon=True).start()
    uvicorn.run(
        "prefect.server.api.server:create_app",
        factory=True,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        log_level="error",
        lifespan="on",
    )


if __name__ == "__main__":
    main()
