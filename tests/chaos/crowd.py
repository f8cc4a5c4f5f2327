"""Four processes run the same experiment in the same store at once, while others read in it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from arena import Arena, a_server, results

PROCESSES = 4
READERS = (["sql", "select kind, count(*) from stages group by kind", "--json"], ["report", "before"], ["ls"])


def crowd(arena: Arena, *, names: tuple[str, ...] = ("language", "gmm")) -> dict[str, Any]:
    """Each of the experiments by four processes at once.

    On the arena's server, and each with a server of its own whose database none has made yet.

    Returns:
        Figures; `wrong` lists what was not as it should be.
    """
    wrong: list[str] = []
    reads, runs = 0, 0
    began = time.monotonic()
    for name in names:
        for home in (None, arena.root / f"crowd-home-{name}"):
            where = f"{name}, {'one server' if home is None else 'a server each, at the first start'}"
            store = arena.root / f"crowd-{name}-{'shared' if home is None else 'own'}"
            arena.run(arena.command("gmm", "name=before", "seeds=[7]", "generations=3"), store=store)  # for the readers
            there = set(results(store))
            outputs = [arena.root / f"{store.name}-{i}.out" for i in range(PROCESSES)]
            arguments = [*arena.command(name), "--json"]
            processes = [arena.start(arguments, store=store, output=path, home=home) for path in outputs]
            failed: list[str] = []
            done = threading.Event()
            counts = [0]
            reader = threading.Thread(target=_read, args=[arena, store, done, failed, counts])
            reader.start()
            codes = [process.wait(timeout=600) for process in processes]
            done.set()
            reader.join()
            reads, runs = reads + counts[0], runs + PROCESSES
            texts = [path.read_text(errors="replace") for path in outputs]
            if any(codes):
                wrong.append(
                    f"{where}: exit codes {codes}\n" + "\n".join(t for t, c in zip(texts, codes, strict=True) if c)
                )
                continue
            ended = [json.loads(text[text.rindex("\n{") :]) for text in texts]
            made = {address: files for address, files in results(store).items() if address not in there}
            built = sum(one["built"] for one in ended)
            if built != len(made):
                wrong.append(f"{where}: {len(made)} artifacts were built {built} times")
            if len({one["report"] for one in ended}) != 1 or made != arena.whole(name):
                wrong.append(f"{where}: results differ")
            wrong += failed
    return {
        "processes at once": PROCESSES,
        "runs": runs,
        "reads meanwhile": reads,
        "lost or different": len(wrong),
        "wrong": wrong,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }


def _read(arena: Arena, store: Path, done: threading.Event, failed: list[str], counts: list[int]) -> None:
    while not done.is_set():
        for arguments in READERS:
            try:
                arena.run(arguments, store=store)
            except AssertionError as error:
                failed.append(f"a reader failed: {error}")
            counts[0] += 1


def many(arena: Arena, *, runs: int = 20) -> dict[str, Any]:
    """So many different runs at once, each a process of its own, against one server whose database is Postgres."""
    began = time.monotonic()
    store = arena.root / "many"
    outputs = [arena.root / f"many-{seed}.out" for seed in range(runs)]
    with postgres() as database, a_server(arena.root / "many-server.log", database) as api:
        place = replace(arena, api=api)
        processes = [
            place.start([*place.command("gaussian", f"seeds=[{seed}]"), "--json"], store=store, output=output)
            for seed, output in enumerate(outputs)
        ]
        codes = [process.wait(timeout=900) for process in processes]
    wrong = [path.read_text(errors="replace") for path, code in zip(outputs, codes, strict=True) if code]
    reports = sum(address.startswith("report/") for address in results(store))
    if reports != runs:
        wrong.append(f"{reports} reports of {runs}")
    return {
        "runs at once": runs,
        "lost or different": len(wrong),
        "wrong": wrong,
        "minutes": round((time.monotonic() - began) / 60, 1),
    }


@contextmanager
def postgres() -> Iterator[str]:
    """A Postgres of its own, with nothing in it; where it is, as Prefect wants it said.

    Raises:
        FileNotFoundError: there is no Postgres on this machine.
    """
    programs = {name: shutil.which(name) for name in ("initdb", "postgres")}
    if None in programs.values():
        raise FileNotFoundError("initdb and postgres are not on the PATH: Postgres is tried where they are")
    # it refuses to be run by root
    user: dict[str, Any] = {"user": "nobody", "group": "nogroup"} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        if user:
            shutil.chown(folder, user["user"], user["group"])
        data = f"{folder}/data"
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "cwd": folder, **user}
        subprocess.run([programs["initdb"], "-D", data, "-U", "prefect", "--auth=trust"], check=True, **quiet)
        options = ["-c", "listen_addresses=127.0.0.1", "-c", "max_connections=200"]
        server = subprocess.Popen(
            [programs["postgres"], "-D", data, "-p", str(port), "-k", folder, *options],
            stderr=subprocess.DEVNULL,
            **quiet,
        )
        try:
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline:
                with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                time.sleep(0.1)
            time.sleep(1)  # it takes connections a little before it serves them
            yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # its word for a fast stop
            server.wait(timeout=60)
