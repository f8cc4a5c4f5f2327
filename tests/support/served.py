"""A `fortifai serve` in a process of its own, asked as another terminal and another program ask it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    """A port on loopback that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Served:
    """A `fortifai serve` in a process of its own; `environment` is that of all that it starts."""

    process: subprocess.Popen[bytes]
    output: Path
    api: str
    store: Path
    environment: dict[str, str]

    @property
    def login(self) -> str:
        """As it is printed, for another terminal to copy."""
        return self.exports["PREFECT_API_AUTH_STRING"]

    def authorized(self, login: str | None = None) -> dict[str, str]:
        """The header with the login, or with another one."""
        return {"authorization": f"Basic {base64.b64encode((login or self.login).encode()).decode()}"}

    def get(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """What the API answers, to a POST where there is a body."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json", **self.authorized()}
        request = urllib.request.Request(f"{self.api}{path}", data, headers)
        for _ in range(10):
            try:
                with urllib.request.urlopen(request, timeout=20) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                # SQLite was busy: the server says when to ask again, as Prefect's own clients do
                if error.code != 503:
                    raise
                time.sleep(float(error.headers["retry-after"]))
        raise AssertionError(f"{path}: the server stays busy")

    @property
    def exports(self) -> dict[str, str]:
        """What another terminal is told to export."""
        return dict(re.findall(r"^  export (PREFECT_\w+)=(\S+)$", self.output.read_text(), flags=re.MULTILINE))

    def prefect(self, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """A command of Prefect's in another terminal, after the exports that were printed there."""
        environment = {**self.environment, **self.exports, "COLUMNS": "500"}
        command = [sys.executable, "-m", "prefect", *arguments]
        return subprocess.run(command, env=environment, timeout=timeout, text=True, capture_output=True, check=False)

    def start_run(self, deployment: str = "recursive-training/smoke", **parameters: Any) -> str:
        """The id of a run that will start by itself."""
        deployment = self.get(f"/deployments/name/{deployment}")["id"]
        run = self.get(f"/deployments/{deployment}/create_flow_run", {"parameters": parameters})
        return str(run["id"])

    def state_of(self, run: str) -> str:
        """The name of a run's state."""
        return str(self.get(f"/flow_runs/{run}")["state_name"])


def eventually(condition: Callable[[], Any], *, seconds: float, what: str) -> Any:
    """What the condition gives, once that is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := condition():
            return result
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds} s: {what}")


@contextlib.contextmanager
def serve(
    folder: Path, *arguments: str, port: int | None = None, home: Path | None = None, cwd: Path | None = None
) -> Iterator[Served]:
    """Serve for the length of the block, from a store and with a log in `folder`."""
    store, output, port = folder / "store", folder / "output", port or free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {
        "PREFECT_HOME": str(home or folder / "prefect"),
        "FORTIFAI_STORE": str(store),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    folder.mkdir(parents=True, exist_ok=True)
    with output.open("wb") as opened:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "flows.cli", "serve", "--port", str(port), *arguments],
            env=environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=opened,
            stderr=subprocess.STDOUT,
        )
    served = Served(process, output, f"http://127.0.0.1:{port}/api", store, environment)
    try:
        eventually(
            lambda: "in another terminal" in output.read_text() or process.poll() is not None,
            seconds=300,
            what="`fortifai serve` is ready",
        )
        assert process.poll() is None, output.read_text()
        yield served
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()  # and with it all that it started
                process.wait()
                raise
