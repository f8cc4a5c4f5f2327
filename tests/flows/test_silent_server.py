"""A Prefect server of the user's that takes connections and says nothing: the run ends, with one line."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.cli.app import exit_code
from flows.embedded import _watch_theirs


class Server:
    """It answers to these paths, and takes every other request without a word."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/api"
        self.answered: set[str] = set()
        self.status = "200 OK"
        self.heard: list[str] = []
        self._held: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            path = connection.recv(4096).decode().partition(" /api/")[2].partition(" ")[0]
            self.heard.append(path)
            if path in self.answered:
                connection.sendall(
                    f"HTTP/1.1 {self.status}\r\nContent-Length: 4\r\nConnection: close\r\n\r\ntrue".encode()
                )
                connection.close()
            else:
                self._held.append(connection)


@contextmanager
def serving() -> Iterator[Server]:
    server = Server()
    try:
        yield server
    finally:
        server.listener.shutdown(socket.SHUT_RDWR)
        server.listener.close()
        for connection in server._held:
            connection.close()


def test_a_silent_server_is_refused_before_anything_is_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving() as server, temporary_settings({PREFECT_API_URL: server.url}):
        code = exit_code(["run", "gaussian-demo", "--store", str(tmp_path / "store")])
    said = capsys.readouterr().err
    assert code == 2 and said.count("\n") == 1, said
    assert f"PREFECT_API_URL = '{server.url}': no Prefect server answers there" in said
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("answered", "status"),
    [(set(), "200 OK"), ({"health"}, "200 OK"), ({"ready"}, "503 Service Unavailable"), ({"ready"}, "502 Bad Gateway")],
    ids=["silent", "greets and does nothing", "without its database", "gone behind a proxy"],
)
def test_a_server_that_goes_silent_is_given_up(answered: set[str], status: str) -> None:
    told: list[str] = []
    with serving() as server:
        server.answered, server.status = answered, status
        _watch_theirs(server.url, threading.Event(), told.append, every=0.01, patience=0.5)
    assert told == [f"no Prefect server answers at PREFECT_API_URL = {server.url} any more"]


def test_a_server_that_answers_is_not_given_up() -> None:
    ended, told = threading.Event(), list[str]()
    with serving() as server:
        server.answered = {"ready"}
        watch = threading.Thread(
            target=_watch_theirs, args=[server.url, ended, told.append], kwargs={"every": 0.01, "patience": 0.3}
        )
        watch.start()
        watch.join(0.8)
        assert watch.is_alive() and not told and len(server.heard) > 5
        ended.set()
        watch.join(10)
    assert not watch.is_alive() and not told
