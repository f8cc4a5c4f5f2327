"""`fortifai bench engines`: what orchestration adds to a stage, with worker processes and on Ray, beside each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from fortifai_core.errors import StageFailed

LENGTHS = (1, 3)  # generations: what the longer run takes more is its stages', the rest is start and end
PRESET = "smoke"  # stages of about a tenth of a second


def bench_engines(
    *,
    workers: int,
    address: str | None = None,
    ray: bool = True,
    rounds: int = 3,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """One small experiment of two lengths by each engine, each run a process with an empty store of its own.

    Args:
        workers: stages computed at once, of one thread each.
        address: of a Ray cluster, `host:port`; None: one that starts and ends with each run.
        ray: without it processes alone.
        rounds: how often each is run, the engines in turn; each figure is the median of as many.

    Returns:
        One row an engine: `stages` and `seconds` of the longer run, `ratio` of these to those of the first row. With
        one worker also, in seconds, `latency`: what a stage takes beside what its worker computes, and `start`: what a
        run without stages would take; both None where stages compute beside each other.

    Raises:
        StageFailed: a run failed; with its last line.
    """
    engines = {"processes": ["runtime.engine=processes"]}
    if ray:
        engines["ray"] = ["runtime.engine=ray", *([f"runtime.address={address}"] if address else [])]
    measured: dict[str, list[dict[str, Any]]] = {engine: [] for engine in engines}
    for _ in range(rounds):
        for engine, settings in engines.items():
            short, long = (_run([*settings, f"runtime.workers={workers}", f"generations={n}"], say) for n in LENGTHS)
            measured[engine].append(row_of(engine, short, long, alone=workers == 1))
    rows = [middle(found) for found in measured.values()]
    return [{**row, "ratio": row["seconds"] / rows[0]["seconds"]} for row in rows]


def middle(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of several of the same engine: the median of each figure by itself."""
    first, *_ = rows
    figures = (name for name, value in first.items() if isinstance(value, float))
    return first | {name: median(row[name] for row in rows) for name in figures}


def row_of(engine: str, short: Mapping[str, Any], long: Mapping[str, Any], *, alone: bool) -> dict[str, Any]:
    """What two runs of an engine say, without `ratio`; `alone`: whether a stage computed after the other."""
    other = [run["seconds"] - run["stage_seconds"] for run in (short, long)]
    latency = (other[1] - other[0]) / (long["built"] - short["built"])
    beside = {"latency": latency, "start": other[0] - latency * short["built"]}
    row = {"engine": engine, "stages": long["built"], "seconds": long["seconds"]}
    return row | (beside if alone else dict.fromkeys(beside))


def _run(settings: Sequence[str], say: Callable[[str], None]) -> dict[str, Any]:
    said = " ".join(settings)
    say(f"running {PRESET} {said}")
    sets = [part for setting in (*settings, "runtime.threads=1") for part in ("--set", setting)]
    with tempfile.TemporaryDirectory(prefix="fortifai-") as folder:
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "run", PRESET, *sets, "--json"],
            env={**os.environ, "FORTIFAI_STORE": str(Path(folder) / "store")},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise StageFailed(f"{PRESET} {said}: {(done.stderr.strip().splitlines() or ['no word'])[-1]}")
    ran: dict[str, Any] = json.loads(done.stdout)
    return ran


def engines_table(rows: Sequence[dict[str, Any]], console: Console) -> None:
    """Print one line an engine."""
    table = Table(box=None, pad_edge=False)
    table.add_column("engine")
    for name in ("stages", "s", "× first", "start, s", "beside computing, ms a stage"):
        table.add_column(name, justify="right")
    for row in rows:
        beside = ("–", "–") if row["start"] is None else (f"{row['start']:.1f}", f"{row['latency'] * 1e3:.0f}")
        table.add_row(row["engine"], str(row["stages"]), f"{row['seconds']:.1f}", f"{row['ratio']:.2f}", *beside)
    console.print(table)
