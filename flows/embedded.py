"""A Prefect server for one command, where the user has none: started quietly, stopped cleanly, kept in its log."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import io
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from flows import access
from fortifai_core.errors import ConfigError, InputError, StageFailed
from fortifai_core.parsing import refusing
from storage.store.locks import file_lock
from tasks.engine.children import child_environment

START_SECONDS = 300.0  # the first start makes Prefect's database: over 90 s were seen on a busy machine
RETRY_SECONDS = b"0.2"
FLUSH_SECONDS = 1.0  # the server writes task-run events to its database in batches
LOOK_SECONDS = 0.2  # between two looks whether our own server lives
RESTARTS = 3  # of a server that dies again and again; one that lived for STEADY_SECONDS begins anew
STEADY_SECONDS = 60.0
STARTUP_FAILED = 3  # uvicorn's own code
ASK_SECONDS = 5.0  # between two questions to the user's server
SILENT_SECONDS = 120.0  # until the user's server counts as gone

_log = logging.getLogger("fortifai")

_quieted: set[str] = set()


def quiet_environment() -> None:
    """Settings for a run without a server of its own; they must be set before Prefect is imported."""
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")  # Prefect's client announces its telemetry on a new user's terminal
    os.environ.setdefault("PREFECT_CLI_COLORS", "true")
    # two minutes of the quick ones that our server asks for (`_server`): with 30, which is six seconds, a dozen arms
    # failed on a crowded machine; against another server they take longer and longer, and are never so many
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", "600")
    for name, value in (("PREFECT_LOGGING_LEVEL", "CRITICAL"), ("PREFECT_LOGGING_TO_API_ENABLED", "false")):
        if name not in os.environ:
            os.environ[name] = value
            _quieted.add(name)


def talkative_environment() -> dict[str, str]:
    """The environment for processes whose log is kept: as the user made it, before `quiet_environment`."""
    return {name: value for name, value in child_environment().items() if name not in _quieted}


def configured_api() -> str | None:
    """The URL of the Prefect API that the user has configured, by the environment or a profile; or none."""
    access.check_folder()
    remedy = "correct or unset what is named, in the environment (PREFECT_…) or the profile"
    quiet = contextlib.redirect_stderr(io.StringIO())  # what Prefect says of it, it says on many lines
    with quiet, refusing("Prefect's settings", "PREFECT_…", remedy, error=ConfigError):
        from prefect.settings import PREFECT_API_URL

        return PREFECT_API_URL.value() or None


def check_api() -> None:
    """Refuse a configured Prefect API at which nothing answers, before anything is done.

    Raises:
        InputError: it is away.
    """
    url = configured_api()
    if url and not _answers(url):
        time.sleep(1)
        if not _answers(url):
            raise InputError(
                "PREFECT_API_URL",
                url,
                "no Prefect server answers there: start it, or do without it by `unset PREFECT_API_URL` "
                "(where a profile sets it: `prefect config unset PREFECT_API_URL`)",
            )


def _answers(url: str) -> bool:
    """Whether anything at all answers at an API that the user has configured, by a proxy perhaps."""
    return _status(url, "health") is not None


def _is_ready(url: str) -> bool:
    """Whether a server answers there that reaches its database: without it says 503, a proxy before none 502."""
    status = _status(url, "ready")
    return status is not None and status < 500


def _status(url: str, path: str) -> int | None:
    """What a GET of the API is answered with; None where nothing answers."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/{path}", timeout=3) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError as error:
        return 0 if isinstance(error.reason, ssl.SSLError) else None
    except (OSError, http.client.HTTPException, ValueError):
        return None


@contextlib.asynccontextmanager
async def prefect_api_beside(
    log: Path, *, said: Callable[[str], None], lost: Callable[[str], None]
) -> AsyncIterator[str]:
    """`server_url` in a coroutine, with Prefect's client pointed at it.

    What else runs in this loop goes on while the server starts and stops.
    """
    stack = contextlib.ExitStack()
    url = await asyncio.to_thread(stack.enter_context, server_url(log, said=said, lost=lost))
    try:
        from prefect.settings import temporary_settings

        with temporary_settings(access.client_settings(url)):  # here, for a thread has a context of its own
            yield url
    finally:
        await asyncio.shield(asyncio.to_thread(stack.close))


@contextlib.contextmanager
def server_url(
    log: Path, *, said: Callable[[str], None] = _log.warning, lost: Callable[[str], None] = _log.error
) -> Iterator[str]:
    """The URL of the Prefect API: the configured server's, or that of one started for the length of the block.

    Results are in the store, and a server only shows them: one of ours that dies is started again. Its socket is this
    process's, so that whoever asks meanwhile waits and is answered. Prefect's own temporary server prints the traces
    of its shutdown to the terminal; this one has a log, and a login, which `flows.access.client_settings` knows.

    Args:
        said: told in one line, by a thread of its own, that our server died and is started again.
        lost: told why, by the same thread, when the server is gone for good. Prefect's client would go on asking for
            a very long time.
    """
    configured = configured_api()
    if configured:
        with _watching(lambda ended: _watch_theirs(configured, ended, lost)):
            yield configured
        return
    with socket.socket() as listener, contextlib.ExitStack() as child:
        listener.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        environment = {
            **child_environment(),
            "PREFECT_SERVER_API_AUTH_STRING": access.new_login(url),
            "PREFECT_UI_ENABLED": "0",
            "PREFECT__SERVER_EPHEMERAL": "1",
            "PREFECT__SERVER_FINAL": "1",
        }

        def start() -> subprocess.Popen[bytes]:
            child.close()
            number = listener.fileno()
            arguments = ("flows.embedded", "socket", str(number))
            return child.enter_context(child_process(*arguments, log=log, environment=environment, inherits=[number]))

        with first_start():
            server = start()
            import flows.recursive  # noqa: F401  # takes as long as the server's start: both at once

            for restarts in range(RESTARTS + 1):
                try:
                    wait_until_healthy(url, server, log)
                    break
                except StageFailed:
                    killed = (server.poll() or 0) < 0
                    if not killed or restarts == RESTARTS:  # what ends by itself has said why in its log
                        raise
                    server = start()
        with _watching(lambda ended: _watch_ours(server, start, ended, log, said, lost)):
            yield url
            time.sleep(FLUSH_SECONDS)


@contextlib.contextmanager
def first_start() -> Iterator[None]:
    """Around the start of a server: the first one makes or migrates Prefect's database, while others wait."""
    from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL, PREFECT_HOME

    home = PREFECT_HOME.value()
    database = hashlib.sha256(str(PREFECT_API_DATABASE_CONNECTION_URL.value()).encode()).hexdigest()[:8]
    made = home / f".fortifai-{version('prefect')}-{database}"
    if not made.exists():
        with file_lock(home / ".fortifai.lock", what="the first start of Prefect's server"):
            if not made.exists():
                yield
                made.touch()
                return
    yield


@contextlib.contextmanager
def _watching(watch: Callable[[threading.Event], None]) -> Iterator[None]:
    """`watch` in a thread, for the length of the block; it returns soon after its event is set."""
    ended = threading.Event()
    thread = threading.Thread(target=watch, args=[ended], daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch_ours(
    server: subprocess.Popen[bytes],
    start: Callable[[], subprocess.Popen[bytes]],
    ended: threading.Event,
    log: Path,
    said: Callable[[str], None],
    lost: Callable[[str], None],
) -> None:
    deaths, born = 0, time.monotonic()
    while not ended.wait(LOOK_SECONDS):
        if server.poll() is None:
            continue
        deaths = 1 if time.monotonic() - born > STEADY_SECONDS else deaths + 1
        how = f"the Prefect server ended with code {server.returncode}"
        if deaths > RESTARTS:
            lost(f"{how}, for the {deaths}th time; its log: {log}")
            return
        said(f"{how} and is started again; nothing is lost; its log: {log}")
        server, born = start(), time.monotonic()


def _watch_theirs(
    url: str,
    ended: threading.Event,
    lost: Callable[[str], None],
    *,
    every: float = ASK_SECONDS,
    patience: float = SILENT_SECONDS,
) -> None:
    """Say that the user's server is gone, when it has not answered for `patience` seconds.

    It is asked what it has to ask its database for: one that greets everybody and does nothing is gone as well.
    """
    heard = time.monotonic()
    while not ended.wait(every):
        if _is_ready(url):
            heard = time.monotonic()
        elif time.monotonic() - heard > patience:
            lost(f"no Prefect server answers at PREFECT_API_URL = {url} any more")
            return


@contextlib.contextmanager
def child_process(
    module: str,
    *arguments: str,
    log: Path,
    environment: dict[str, str],
    stdout: int | None = None,
    patience: float = 10.0,
    inherits: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module …` for the length of the block; what it prints goes to `log`.

    The child is one that ends when its standard input closes, so that it never outlives this process.

    Args:
        patience: seconds it has to end in order, before it is killed.
        inherits: numbers of our open files that it shall have, too.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=output if stdout is None else stdout,
            stderr=output,
            env=environment,
            pass_fds=inherits,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then stops the child in order
        )
    try:
        yield child
    finally:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            try:
                child.wait(timeout=patience)
            finally:  # also after a second Ctrl-C: no child is left behind
                if child.poll() is None:
                    child.kill()
                    child.wait()


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """`kill` stops as orderly as Ctrl-C does.

    Needed around a flow too: Prefect turns SIGTERM into an exception, and where that passes through the flow it sends
    the signal once more to whoever had it before. Python's default would end the process without a word.
    """
    if threading.current_thread() is not threading.main_thread():  # nobody else may say what a signal does
        yield
        return

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_healthy(url: str) -> bool:
    """Whether a Prefect server answers at this API URL."""
    with contextlib.suppress(urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError):
        return access.fetch(f"{url}/health", None, seconds=2).strip() == b"true"
    return False


def wait_until_healthy(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return when the server that was started at `url` answers.

    Raises:
        StageFailed: it ended, or does not answer in time; its log is named.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise StageFailed(f"the Prefect server ended with code {server.returncode}; its log: {log}")
        if is_healthy(url):
            return
        time.sleep(0.1)
    raise StageFailed(f"the Prefect server did not answer within {START_SECONDS:.0f} s; its log: {log}")


def _server(host: str, port: int) -> Callable[..., Awaitable[None]]:
    """Prefect's server, taking one writing request at a time, with a word to its clients on how soon to ask again.

    On SQLite two requests that write at the same moment make one of them fail with 503, at once: a dozen arms that
    start together would use up their clients' retries. What still meets with the server's own services is repeated
    by the client, but left to itself not before two seconds: an eternity for a run whose stages are all found.

    Args:
        host, port: where it listens; it answers to these names, and to its own pages (`flows.access`).
    """
    os.environ["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] = ",".join(access.own_origins(host, port))
    from prefect.server.api.server import create_app

    app = create_app()
    writing = asyncio.Lock()

    async def hurried(scope: Any, receive: Any, send: Any) -> None:
        async def send_with_hint(message: Any) -> None:
            if message["type"] == "http.response.start" and message["status"] == 503:
                message = {**message, "headers": [*message["headers"], (b"retry-after", RETRY_SECONDS)]}
            await send(message)

        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD", "OPTIONS"):
            async with writing:
                await app(scope, receive, send_with_hint)
        else:
            await app(scope, receive, send_with_hint)

    guarded: Callable[..., Awaitable[None]] = access.guarded(hurried, host, port)
    return guarded


def _exit_when_orphaned(linger: float) -> None:
    sys.stdin.buffer.read()  # returns when the parent has gone, however it went
    time.sleep(linger)
    os._exit(0)


def main() -> None:
    """The server process: `python -m flows.embedded HOST PORT [LINGER]`, or `… socket NUMBER` for one it inherits.

    It ends when its standard input closes, LINGER seconds later: so long may others still report to it.
    """
    import uvicorn

    host, number = sys.argv[1], int(sys.argv[2])
    linger = float(sys.argv[3]) if len(sys.argv) > 3 else 0.0
    threading.Thread(target=_exit_when_orphaned, args=[linger], daemon=True).start()
    inherited = socket.socket(fileno=number) if host == "socket" else None
    if inherited is not None:
        host, number = inherited.getsockname()[:2]
    serving = uvicorn.Config(
        partial(_server, host, number), factory=True, host=host, port=number, log_level="error", lifespan="on"
    )
    server = uvicorn.Server(serving)
    server.run(sockets=None if inherited is None else [inherited])
    if not server.started:
        sys.exit(STARTUP_FAILED)


if __name__ == "__main__":
    main()
