"""`fortifai serve`: a Prefect server with its UI, and every preset as a deployment, on this machine.

Two children do the work, each with a log file of its own: the server, and the runner, which starts a process for
each flow run. Both end with this process, however it ends. `python -m flows.server.serving STORE` is the runner.
Reports are served by this process itself (`flows.report_pages`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

from flows.access import LOOPBACK, WILDCARDS, accepts, check_folder, login_for, own_hosts, serving_login
from flows.embedded import (
    child_process,
    first_start,
    is_healthy,
    sigterm_as_interrupt,
    talkative_environment,
    wait_until_healthy,
)
from flows.load import load_any_config, presets
from flows.report_pages import VARIABLE as REPORTS
from flows.report_pages import report_pages
from flows.stores import open_store
from fortifai_core.errors import InputError, StageFailed
from fortifai_core.families.registry import FamilyExperiment
from fortifai_core.outside import markup
from tasks.engine.children import FOLDER

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment

POLL_SECONDS = 2.0  # how long a run waits at most before it is started
HEARTBEAT_SECONDS = 30  # the shortest that Prefect accepts; the zombie automation waits for three of them
READY_SECONDS = 120.0
STOP_SECONDS = 20.0  # for the runner to cancel its runs


def serve_all(*, host: str, port: int, store: str | None, console: Console) -> None:
    """Serve until Ctrl-C or SIGTERM. A server that is at that address already is used, and left running.

    Raises:
        InputError: the port is taken by something else, the host is none of this machine's addresses, or files of the
            current folder would set Prefect.
        StoreError: the store cannot be written to.
        StageFailed: the server or the runner ended by itself; the message names its log.
    """
    check_folder()
    opened = open_store(store)
    opened.writable()
    address = f"http://{_reachable(host)}:{port}"
    url = f"{address}/api"
    is_there = server_at(host, port)
    login = login_at(url, port) if is_there else serving_login()
    logs = opened.logs
    server_log, runs_log = logs / "serve-server.log", logs / "serve-runs.log"
    console.print(f"{'using the Prefect server' if is_there else 'starting a Prefect server'} at {markup(address)} …")
    for warning in _warnings(host, port, login):
        console.print(f"[yellow]warning:[/] {markup(warning)}", soft_wrap=True, highlight=False)
    try:
        with sigterm_as_interrupt(), contextlib.ExitStack() as stack:
            server = None
            if not is_there:
                server = stack.enter_context(_server(host, port, url, login, server_log))
            reports = stack.enter_context(report_pages(opened, port + 1, login))
            runner = stack.enter_context(_runner(opened.url, url, login, reports, runs_log))
            names = _wait_for_deployments(runner, runs_log)
            welcome = _welcome(address, names, opened.name, login, runs_log, None if is_there else server_log)
            console.print(welcome, soft_wrap=True, highlight=False)
            _watch(server, server_log, runner, runs_log)
    except KeyboardInterrupt:
        console.print("stopped; what was finished is kept")


def server_at(host: str, port: int) -> bool:
    """Whether a Prefect server is at that address; False when the port is free.

    Raises:
        InputError: it is taken by something else, or cannot be had here.
    """
    if not 0 < port < 65536:
        raise InputError("--port", port, "choose one from 1 to 65535")
    if is_healthy(f"http://{_reachable(host)}:{port}/api"):
        return True
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except socket.gaierror as error:
        raise InputError("--host", host, f"is no address ({error.strerror}); 127.0.0.1 is this machine") from error
    except PermissionError as error:
        raise InputError("--port", port, "only an administrator may use it; choose one above 1023") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            remedy = f"something that is no Prefect server uses it; choose another, e.g. --port {port + 1}"
            raise InputError("--port", port, remedy) from error
        raise InputError("--host", host, f"cannot be served from here ({error.strerror or error})") from error
    return False


def login_at(url: str, port: int) -> str | None:
    """The login to the server that is at this API URL already; None where it wants none.

    Raises:
        InputError: it wants one that nobody here knows.
    """
    for login in (None, login_for(url)):
        if accepts(url, login):
            return login
    remedy = "the Prefect server there wants another login: export PREFECT_API_AUTH_STRING=user:password"
    raise InputError("--port", port, remedy)


def _warnings(host: str, port: int, login: str | None) -> Iterator[str]:
    if login is None:
        yield "that server has no login: whatever reaches it, a web page too, may run code as you"
    if own_hosts(host) != list(LOOPBACK):
        names = ", ".join(f"{name}:{port}" for name in own_hosts(host) if name not in LOOPBACK)
        yield (
            f"other machines reach this server, at {names or host}. Whoever has the login below may run code as you, "
            "and it is sent unencrypted: leave --host at 127.0.0.1 in a network that you do not trust"
        )


def _reachable(host: str) -> str:
    """The host as a client on this machine writes it in a URL."""
    if host in WILDCARDS:
        return "[::1]" if ":" in host else "127.0.0.1"
    return f"[{host}]" if ":" in host else host


@contextlib.contextmanager
def _server(host: str, port: int, url: str, login: str | None, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
        **talkative_environment(),
        "PREFECT_SERVER_API_HOST": host,
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_API_AUTH_STRING": login or "",
    }
    environment.pop("PREFECT_API_URL", None)  # another server's, perhaps
    # a page that was fetched from another machine asks where it came from
    environment.setdefault("PREFECT_UI_API_URL", "/api" if host in WILDCARDS else url)
    # when this process is killed, the runner needs the server a little longer, to report its runs as cancelled
    arguments = ("flows.embedded", host, str(port), str(STOP_SECONDS / 2))
    with contextlib.ExitStack() as stack:
        with first_start():
            server = stack.enter_context(child_process(*arguments, log=log, environment=environment))
            wait_until_healthy(url, server, log)
        yield server


@contextlib.contextmanager
def _runner(store: str, url: str, login: str | None, reports: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    environment = {
        "PYTHONUNBUFFERED": "1",
        **talkative_environment(),
        "PREFECT_API_URL": url,
        "FORTIFAI_STORE": store,
        REPORTS: reports,
        FOLDER: os.getcwd(),
    }
    environment.pop("PREFECT_API_AUTH_STRING", None)  # another server's, perhaps
    if login:
        environment["PREFECT_API_AUTH_STRING"] = login
    with child_process(
        "flows.server.serving", store, log=log, environment=environment, stdout=subprocess.PIPE, patience=STOP_SECONDS
    ) as runner:
        yield runner


def _wait_for_deployments(runner: subprocess.Popen[bytes], log: Path) -> list[str]:
    """The names of the deployments, once the runner has registered them and looks for runs."""
    assert runner.stdout is not None
    late = threading.Timer(READY_SECONDS, runner.kill)  # the pipe closes then, and ends the reading below
    late.start()
    try:
        line = runner.stdout.readline()
    finally:
        late.cancel()
    if not line:
        raise StageFailed(f"the deployments could not be registered; the log: {log}")
    names: list[str] = json.loads(line)["deployments"]
    return names


def _watch(
    server: subprocess.Popen[bytes] | None, server_log: Path, runner: subprocess.Popen[bytes], log: Path
) -> None:
    while True:
        if runner.poll() is not None:
            raise StageFailed(f"the process that starts runs ended with code {runner.returncode}; its log: {log}")
        if server is not None and server.poll() is not None:
            raise StageFailed(f"the Prefect server ended with code {server.returncode}; its log: {server_log}")
        time.sleep(0.5)


def _welcome(
    address: str, names: list[str], store: str, login: str | None, runs_log: Path, server_log: Path | None
) -> str:
    logs = f"{runs_log}" + (f"\n             {server_log}" if server_log else "")
    shown = f"login        {markup(login)} (the UI asks for it once)\n" if login else ""
    export = f"  export PREFECT_API_AUTH_STRING={markup(shlex.quote(login))}\n" if login else ""
    return (
        f"\n[bold]UI[/]           {address}/v2 (its older one, {address}, does not draw the line charts)\n"
        f"{shown}"
        f"deployments  {markup(', '.join(names))}\n"
        f"store        {markup(store)}\n"
        f"logs         {markup(logs)}\n\n"
        "in another terminal:\n\n"
        f"  export PREFECT_API_URL={address}/api\n"
        f"{export}"
        "  prefect deployment run 'recursive-training/tiny' --param generations=6 --watch\n\n"
        "Ctrl-C stops the server and the runs in progress; what they finished is kept"
    )


def deployments(store: str) -> list[RunnerDeployment]:
    """Every preset as a deployment of its flow, to be run by this machine."""
    from prefect.types.entrypoint import EntrypointType

    from flows.family import recursive_family
    from flows.recursive import recursive_training

    made = []
    for name, purpose in presets().items():
        config = load_any_config(name)
        served: Any = recursive_family if isinstance(config, FamilyExperiment) else recursive_training
        deployment: Any = served.to_deployment(
            name=name,
            description=purpose,
            tags=["preset"],
            parameters={"experiment": config.model_dump(mode="json"), "store": store},
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        _draw_for_people(deployment._parameter_openapi_schema.definitions)
        # spelt out, so that a work pool which an earlier `prefect deploy` gave the deployment is forgotten
        deployment.work_pool_name = deployment.work_queue_name = None
        made.append(deployment)
    return made


def _draw_for_people(definitions: dict[str, Any]) -> None:
    """What people need to read the form, in place: a tab for each alternative, by its type; a name for every field."""
    _draw_alternatives_as_tabs(definitions)
    for form in definitions.values():
        for name, field in form.get("properties", {}).items():
            field.setdefault("title", name.replace("_", " ").title())
            if "const" in field:
                form["title"] = field["const"]
                field["description"] = "Says which of the tabs this is: leave it as it is."


def _draw_alternatives_as_tabs(schema: Any) -> None:
    """`oneOf` becomes `anyOf`, in place: the UI's form has a tab for each of those, and bare JSON for the other.

    They mean the same here, because each alternative has a `type` of its own.
    """
    if isinstance(schema, dict):
        if "oneOf" in schema:
            schema["anyOf"] = schema.pop("oneOf")
        for part in schema.values():
            _draw_alternatives_as_tabs(part)
    elif isinstance(schema, list):
        for part in schema:
            _draw_alternatives_as_tabs(part)


async def _run_deployments(served: list[RunnerDeployment], channel: TextIO) -> None:
    from prefect.runner import Runner

    runner = Runner(
        name="fortifai-serve", query_seconds=POLL_SECONDS, heartbeat_seconds=HEARTBEAT_SECONDS, pause_on_shutdown=False
    )
    for deployment in served:
        await runner.aadd_deployment(deployment)
    running = asyncio.create_task(runner.start())
    while not runner.started and not running.done():
        await asyncio.sleep(0.05)
    # in place of the runner's own handler, which leaves the loop by an exception
    stop = asyncio.Event()
    for ending in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(ending, stop.set)
    if not running.done():
        print(json.dumps({"deployments": [f"{d.flow_name}/{d.name}" for d in served]}), file=channel, flush=True)
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([running, stopping], return_when=asyncio.FIRST_COMPLETED)
    if not running.done():
        await runner.astop()
    stopping.cancel()
    await running


def _stop_when_orphaned() -> None:
    """Stop in order when the parent has gone; if that takes too long, with everything that was started here."""

    def watch() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(STOP_SECONDS)
        os.killpg(os.getpgid(0), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def main() -> None:
    """The runner's process: `python -m flows.server.serving STORE`; tells on standard output when it is ready."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what Prefect and the runs print belongs into the log
    _stop_when_orphaned()
    os.chdir(os.sep)  # runs are started where this is, and find no module there; they go on to FOLDER
    asyncio.run(_run_deployments(deployments(sys.argv[1]), channel))


if __name__ == "__main__":
    main()
