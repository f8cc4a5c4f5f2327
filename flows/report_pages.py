"""The reports of a store at an address on this machine, so that a link in the UI opens them; nothing else is served.

It is another address than the UI's, so that no report stands where the browser keeps the UI's login. Whoever has the
link may read: its first part follows from the login, so that nobody guesses it and links outlive the server.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import mimetypes
import os
import secrets
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from fortifai_core.errors import FortifaiError
from storage.store.manifest import is_address
from storage.store.store import ArtifactStore

VARIABLE = "FORTIFAI_REPORTS"  # in a run's environment: where the reports of FORTIFAI_STORE are served
HOST = "127.0.0.1"
PAGE = "report.html"


def report_link(store: ArtifactStore, key: str) -> str | None:
    """The address of a report for people to open; None where its store is not the one that is served."""
    served = os.environ.get(VARIABLE)
    return f"{served}/{key}/{PAGE}" if served and os.environ.get("FORTIFAI_STORE") == store.url else None


@contextlib.contextmanager
def report_pages(store: ArtifactStore, port: int, login: str | None) -> Iterator[str]:
    """Serve the reports of a store for the length of the block, on loopback alone; gives what links to them begin with.

    Args:
        port: any free one is taken where that one is not to be had.
        login: the server's. Without one the address is another each time.
    """
    # slow to reverse, since a login may be a weak word of somebody's own and a link be shown to others
    grown = hashlib.scrypt(login.encode(), salt=b"fortifai reports", n=2**14, r=8, p=1, dklen=24) if login else b""
    secret = grown.hex() or secrets.token_hex(24)
    try:
        server = _Server((HOST, port), _Request)
    except (OSError, OverflowError):
        server = _Server((HOST, 0), _Request)
    server.store, server.secret = store, secret
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    with server:
        thread.start()
        try:
            yield f"http://{HOST}:{server.server_port}/{secret}"
        finally:
            server.shutdown()


class _Server(ThreadingHTTPServer):
    allow_reuse_address = os.name == "posix"  # elsewhere it would take a port that is in use
    store: ArtifactStore
    secret: str


class _Request(BaseHTTPRequestHandler):
    server: _Server
    timeout = 30
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "fortifai", ""

    def handle(self) -> None:
        """Answer what is asked on a connection, until it ends: it may break off, which is nobody's concern."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        """A file of a report, or what is wrong in one line."""
        try:
            status, kind, body = self._answer()
        except (FortifaiError, OSError) as error:  # damaged, or the storage is away
            status, kind, body = HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", str(error).encode(errors="replace")
        self.send_response(status)
        for header, value in (
            ("Content-Type", f"{kind}; charset=utf-8" if kind.startswith("text/") else kind),
            ("Content-Length", str(len(body))),
            ("Cache-Control", "no-store"),
            ("Referrer-Policy", "no-referrer"),  # the address is a secret
            ("X-Content-Type-Options", "nosniff"),
            ("Content-Security-Policy", "frame-ancestors 'none'; script-src 'none'"),
        ):
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the terminal is the user's."""

    def _answer(self) -> tuple[HTTPStatus, str, bytes]:
        server = self.server
        if self.headers.get("Host", "") not in {f"{name}:{server.server_port}" for name in (HOST, "localhost")}:
            return HTTPStatus.BAD_REQUEST, "text/plain", b"called by a name that is not this server's"
        _, secret, key, name = [*unquote(self.path.partition("?")[0]).split("/", 3), "", "", ""][:4]
        if hmac.compare_digest(secret.encode(), server.secret.encode()) and is_address("report", key):
            report = server.store.read("report", key)
            if report is not None and report.has(name):
                kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
                return HTTPStatus.OK, kind, report.file(name).read_bytes()
        return HTTPStatus.NOT_FOUND, "text/plain", b"no such report in this store"
