"""The address of reports: what is served there, to whom, and which runs link to it."""

from __future__ import annotations

import socket
import struct
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from artifacts import KEY, flip_one_of_each_kind, put
from flows.report_pages import VARIABLE, report_link, report_pages
from served import free_port
from storage.store.store import ArtifactStore, Draft

LOGIN = "fortifai:a-login"


def write(draft: Draft) -> None:
    (draft.path / "figures").mkdir()
    (draft.path / "report.html").write_text("<p>retention, %…</p>", encoding="utf-8")
    (draft.path / "figures" / "a b.svg").write_text("<svg/>")
    draft.commit(stage_version=1, content={"x": 1})


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    """With a report, and a corpus that is nobody's business."""
    store = ArtifactStore(tmp_path / "store")
    put(store, "report", KEY, write)
    put(store, "corpus", KEY)
    return store


@pytest.fixture
def address(store: ArtifactStore) -> Iterator[str]:
    with report_pages(store, free_port(), LOGIN) as address:
        yield address


def get(url: str, **headers: str) -> tuple[int, str, dict[str, str]]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20) as answer:
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), dict(error.headers)


def test_a_report_and_what_lies_beside_it_are_served(address: str) -> None:
    status, body, headers = get(f"{address}/{KEY}/report.html")
    assert (status, body) == (200, "<p>retention, %…</p>")
    assert headers["Content-Type"] == "text/html; charset=utf-8" and headers["Referrer-Policy"] == "no-referrer"
    status, body, headers = get(f"{address}/{KEY}/figures/a%20b.svg")
    assert (status, body, headers["Content-Type"]) == (200, "<svg/>", "image/svg+xml")
    head = urllib.request.Request(f"{address}/{KEY}/report.html", method="HEAD")
    with urllib.request.urlopen(head, timeout=20) as answer:
        assert answer.read() == b"" and int(answer.headers["Content-Length"]) == len("<p>retention, %…</p>".encode())


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        f"/{'b' * 64}/report.html",
        f"/{KEY}",
        f"/{KEY}/",
        f"/{KEY}/manifest.json",
        f"/{KEY}/none.html",
        f"/{KEY}/../../corpus/{KEY}/a.txt",
        f"/{KEY}/..%2f..%2fcorpus/{KEY}/a.txt",
        f"/..%2fcorpus/{KEY}/a.txt",
    ],
)
def test_nothing_else_is(address: str, path: str) -> None:
    assert get(f"{address}{path}")[:2] == (404, "no such report in this store")


def test_whoever_has_no_link_or_calls_it_by_another_name_gets_nothing(address: str) -> None:
    parts = urllib.parse.urlsplit(address)
    for secret in ("", "/", "/0", parts.path[:-1], f"{parts.path}0"):
        assert get(f"http://{parts.netloc}{secret}/{KEY}/report.html")[0] == 404
    page = f"{address}/{KEY}/report.html"
    assert get(page, Host=f"evil.example:{parts.port}")[0] == get(page, Host="127.0.0.1")[0] == 400
    assert get(page, Host=f"localhost:{parts.port}")[0] == 200
    post = urllib.request.Request(page, data=b"x")
    with pytest.raises(urllib.error.HTTPError, match="501"):
        urllib.request.urlopen(post, timeout=20)


def test_links_outlive_the_server_and_not_the_login(store: ArtifactStore) -> None:
    port = free_port()

    def address(login: str | None) -> str:
        with report_pages(store, port, login) as where:
            return where

    assert address(LOGIN) == address(LOGIN) != address("fortifai:another")
    assert LOGIN.split(":")[1] not in address(LOGIN)
    assert address(None) != address(None)


def test_another_port_is_taken_where_that_one_is_not_to_be_had(store: ArtifactStore) -> None:
    with report_pages(store, free_port(), LOGIN) as first:
        taken = urllib.parse.urlsplit(first).port
        assert taken is not None
        for port in (taken, 65536):
            with report_pages(store, port, LOGIN) as second:
                assert second != first and get(f"{second}/{KEY}/report.html")[0] == 200


def test_a_connection_that_breaks_off_is_not_told_to_the_terminal(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = urllib.parse.urlsplit(address)
    asked = f"GET {parts.path}/{KEY}/report.html HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n"
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        connection.sendall(asked.encode())
        assert connection.recv(1) == b"H"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset, as by a crash
    end = time.monotonic() + 20
    while any("process_request" in thread.name for thread in threading.enumerate()):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert capsys.readouterr() == ("", "")
    assert get(f"{address}/{KEY}/report.html")[0] == 200


def test_a_damaged_report_is_not_shown(store: ArtifactStore, address: str) -> None:
    flip_one_of_each_kind(store, "report")
    status, body, _ = get(f"{address}/{KEY}/report.html")
    assert status == 500 and "is damaged" in body and "fortifai verify" in body


def test_a_run_links_to_the_report_only_where_its_store_is_served(
    store: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("FORTIFAI_STORE", store.url)
    assert report_link(store, KEY) is None
    monkeypatch.setenv(VARIABLE, "http://127.0.0.1:1/secret")
    assert report_link(store, KEY) == f"http://127.0.0.1:1/secret/{KEY}/report.html"
    assert report_link(ArtifactStore(tmp_path / "other"), KEY) is None
