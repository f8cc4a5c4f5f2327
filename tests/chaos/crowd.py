"""Four processes run the same experiment in the same store at once, while others read in it."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

from arena import Arena, results

PROCESSES = 4
READERS = (["sql", "select kind, count(*) from stages group by kind", "--json"], ["report", "gmm"], ["ls"])


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
            arena.run(arena.command("gmm", "seeds=[7]", "generations=3"), store=store)  # for the readers
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
