"""An S3 server in a process of its own (moto's), which its clients reach through a gate that can be shut."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_SERVER = """
import sys
from tasks.engine.messages import die_with_parent
die_with_parent()
from moto.server import main
main(["-H", "127.0.0.1", "-p", sys.argv[1]])
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Gate:
    """Forwards TCP connections. Shut, it drops them all and refuses new ones: what clients see of a dead server.

    moto keeps its objects in memory, so it cannot itself die and come back with them, as S3 does.
    """

    inner: int
    port: int = field(default_factory=_free_port)
    _listener: socket.socket | None = None
    _ends: set[socket.socket] = field(default_factory=set)

    def open(self) -> None:
        """Let clients through."""
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        """Drop and refuse everybody."""
        assert self._listener is not None
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in list(self._ends):
            _shut(end)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self.inner))
                threading.Thread(target=self._connect, args=(client, server), daemon=True).start()

    def _connect(self, client: socket.socket, server: socket.socket) -> None:
        """Forward both ways until either ends; moto ends one connection a request, so each is closed."""
        with client, server:
            self._ends |= {client, server}
            back = threading.Thread(target=_forward, args=(server, client), daemon=True)
            back.start()
            _forward(client, server)
            back.join()
            self._ends -= {client, server}


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def _forward(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for end in (source, target):
        _shut(end)


@dataclass(frozen=True)
class ObjectStorage:
    """A running server. `environment`: what a client needs to find it."""

    gate: Gate

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.gate.port}",
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def new_store(self) -> str:
        """URL of a place where nothing is yet."""
        return f"s3://fortifai/{uuid.uuid4().hex}"


@contextmanager
def object_storage(log: Path) -> Iterator[ObjectStorage]:
    """A server that ends with the block, or with this process."""
    port = _free_port()
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, "-c", _SERVER, str(port)], stdout=output, stderr=output)
    gate = Gate(port)
    try:
        deadline = time.monotonic() + 120
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text(
                encoding="utf-8", errors="replace"
            )
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/data.json", timeout=5).read()
                break
            time.sleep(0.1)
        gate.open()
        yield ObjectStorage(gate)
        gate.shut()
    finally:
        process.kill()
        process.wait()
