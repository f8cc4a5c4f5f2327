"""Fifty generations: memory, open files, threads and the time of a generation stay flat in every process."""

from __future__ import annotations

import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import psutil

from arena import Arena, results
from storage.store.experiments import load_experiment
from storage.store.store import ArtifactStore

LOOK_SECONDS = 0.25
# Fifty generations may each add so much: MiB of memory, files, threads; later ones may take so much longer.
LIMITS = {"memory": 1.0, "files": 0.1, "threads": 0.1}
GENERATIONS = 50
# Prefect's clients hold two dozen connections, a few more or fewer from minute to minute: so many that come are no
# trend over fifty generations, and as many are none over less.
COUNTED = ("files", "threads")
SLOWER = 1.5
NAMES = {"tasks.engine.worker": "worker", "flows.embedded": "server"}


def soak(arena: Arena, *, generations: int) -> dict[str, Any]:
    """Run a language model so long, look at its processes meanwhile, and fit lines over the later three quarters.

    What is fitted is the least that a process held in each generation: what it keeps does not go away in between.
    """
    limits = {what: limit * (GENERATIONS / generations if what in COUNTED else 1) for what, limit in LIMITS.items()}
    store, home = arena.root / "soak", arena.root / "soak-home"
    arguments = arena.command(
        "language",
        "regime=replace",
        f"splits={generations}",
        f"generations={generations}",
        f"corpus.entities={2 * generations}",
    )
    began = time.monotonic()
    process = arena.start(arguments, store=store, output=arena.root / "soak.out", home=home)
    seen: dict[str, list[tuple[float, dict[str, float]]]] = defaultdict(list)
    while process.poll() is None:
        for name, measured in _look(process.pid).items():
            seen[name].append((time.time(), measured))
        time.sleep(LOOK_SECONDS)
    assert process.returncode == 0, (arena.root / "soak.out").read_text(errors="replace")
    results(store)
    opened = ArtifactStore(store)
    record = load_experiment(opened)
    trained = sorted(
        (s.generation, (opened.root / "artifacts" / s.kind / s.key / "manifest.json").stat().st_mtime)
        for s in record.stages
        if s.role == "train" and s.generation is not None
    )
    ends = [moment for _, moment in trained]
    first, last = ends[len(ends) // 4], ends[-1]
    slopes = {
        name: {
            what: round(_slope([(when, m[what]) for when, m in rows if first <= when <= last], ends), 3)
            for what in LIMITS
        }
        for name, rows in seen.items()
    }
    seconds = [after - before for before, after in itertools.pairwise(ends)]
    quarter = len(seconds) // 4
    early, late = (statistics.median(part) for part in (seconds[quarter : 2 * quarter], seconds[-quarter:]))
    wrong = [
        f"{name}: {what} grow by {slope} a generation"
        for name, by_name in slopes.items()
        for what, slope in by_name.items()
        if slope > limits[what]
    ]
    wrong += _died(seen)
    if late > SLOWER * early:
        wrong.append(f"a generation takes {late:.1f} s, it took {early:.1f} s")
    return {
        "generations": generations,
        "minutes": round((time.monotonic() - began) / 60, 1),
        "growth a generation (MiB, files, threads)": slopes,
        "limits": limits,
        "seconds a generation, second and last quarter": [round(early, 2), round(late, 2)],
        "lost or different": len(wrong),
        "wrong": wrong,
    }


def _look(flow: int) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    try:
        own = psutil.Process(flow)
        processes = [own, *own.children()]
    except psutil.NoSuchProcess:  # the run has ended
        return found
    for one in processes:
        with suppress(psutil.NoSuchProcess):  # it ends while it is looked at; the others do not
            name = "flow" if one is own else next((n for m, n in NAMES.items() if m in one.cmdline()), "")
            if name:
                with one.oneshot():
                    memory = one.memory_info().rss / 2**20
                    measured = {"memory": memory, "files": one.num_fds(), "threads": one.num_threads()}
                    found[name] = {**measured, "process": one.pid}
    return found


def _died(seen: Mapping[str, Sequence[tuple[float, dict[str, float]]]]) -> Iterator[str]:
    """What was not looked at from the beginning to the end: one that was started anew does not show how it grew."""
    for name in ("flow", *NAMES.values()):
        count = len({measured["process"] for _, measured in seen.get(name, ())})
        if count != 1:
            yield f"{name}: {count} processes were seen, where one works throughout"


def _slope(values: list[tuple[float, float]], ends: list[float]) -> float:
    """Growth from generation to generation, of the least of each; none of what one generation saw.

    The median of the slopes between any two (Theil and Sen): a leak is in most of them; connections that a busy machine
    held longer in a few generations are not.
    """
    least: dict[int, float] = {}
    for when, value in values:
        generation = sum(end <= when for end in ends)
        least[generation] = min(value, least.get(generation, value))
    slopes = [(b - a) / (j - i) for (i, a), (j, b) in itertools.combinations(sorted(least.items()), 2)]
    return statistics.median(slopes) if slopes else 0.0
