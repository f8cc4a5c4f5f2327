"""SIGKILL anywhere: to the flow, a worker, the server, the first start, a rank of a training, a worker of Ray's.

After `resume` every result is the same.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from arena import Arena, below, possible, results

PATIENCE = 240.0
# what is looked for in a store, of one kind of artifact, at the moment of the kill
MOMENTS = {
    "begun": "work/{kind}-*.draft",
    "writing a file": "work/{kind}-*.draft/*",
    "its workspace": "work/{kind}-*[0-9a-f]/*",
    "writing a checkpoint": "work/{kind}-*/trainer*/checkpoint-*/*",
    "a checkpoint sealed": "work/{kind}-*/trainer*/checkpoint-*/digests.json",
    "committing": "artifacts/{kind}/*",
}
LONG = ("model", "split", "family-segment")  # aimed at five times as often as the quick kinds
# the kinds that have such moments; of the others, all have
ONLY = {
    "its workspace": LONG,
    "writing a checkpoint": ("model",),
    "a checkpoint sealed": ("model",),
}
# what is killed of an experiment whose stages several processes build, and of no other
OWN = {"torchrun": ("rank",), "ray": ("ray worker", "ray node")}


def _runs(module: str) -> Callable[[list[str]], bool]:
    return lambda line: module in line


# how a target that is not the flow itself is known among the processes below the flow
SIGNS: dict[str, Callable[[list[str]], bool]] = {
    "worker": _runs("tasks.engine.worker"),
    "server": _runs("flows.embedded"),
    "migration": _runs("flows.embedded"),
    # the launcher is told the ranks' module, too
    "rank": lambda line: "tasks.language.ranks" in line and "tasks.engine.launch" not in line,
    "ray worker": lambda line: bool(re.match(r"ray::(?!IDLE|\w+Agent$)", "".join(line[:1]))),
    "ray node": lambda line: "".join(line[:1]).endswith("/raylet"),
}


@dataclass(frozen=True)
class Aim:
    """What is killed, and when: at the `nth` sight of a moment of a stage, or after `seconds`.

    Attributes:
        target: `flow`, `worker`, `server`, `first start` (the flow, while its server makes Prefect's database),
            `migration` (that server), `rank` (one of the processes that torch's launcher started for a training),
            `ray worker` (the process of Ray's that has a stage built), or `ray node` (Ray's process of a whole node).
    """

    experiment: str
    target: str
    kind: str = ""
    moment: str = ""
    nth: int = 1
    seconds: float = 0.0

    @property
    def words(self) -> str:
        """For the log and the table."""
        when = f"{self.kind}, {self.moment}, {self.nth}." if self.kind else f"after {self.seconds:.1f} s"
        return f"{self.experiment}: {self.target} killed, {when}"


@dataclass
class Outcome:
    """What came of a kill. `at_work`: the kinds of the stages that were being built when it struck."""

    aim: Aim
    struck: bool = False
    at_work: tuple[str, ...] = ()
    wrong: str = ""
    seconds: float = 0.0


def aims(arena: Arena, *, seed: int, names: Sequence[str]) -> Iterator[Aim]:
    """For ever: targets and these experiments in turn, moments at random."""
    draw = random.Random(seed)
    turns = ["flow"] * 4 + ["worker"] * 2 + ["server", "flow at random", "worker at random", "first start", "migration"]
    count = 0
    while True:
        draw.shuffle(turns)
        for turn in turns:
            name = names[count % len(names)]
            turn = draw.choice(OWN[name]) if name in OWN else turn
            target = turn.partition(" at ")[0]
            count += 1
            if target in ("first start", "migration"):
                yield Aim(name, target, seconds=draw.uniform(0, 8))
            elif target == "server" or turn != target:
                yield Aim(name, target, seconds=draw.uniform(3, 20) if target == "server" else draw.uniform(0, 10))
            else:
                built = Counter(address.partition("/")[0] for address in arena.whole(name))
                kind = draw.choice([k for k in sorted(built) if k in LONG or draw.random() < 0.2])
                if target == "rank":
                    kind = "model"  # what they train
                moment = draw.choice([m for m in MOMENTS if kind in ONLY.get(m, built)])
                yield Aim(name, target, kind, moment, draw.randint(1, built[kind]))


def strike(arena: Arena, aim: Aim, number: int) -> Outcome:
    """Kill once, go on by the printed command, compare."""
    outcome, began = Outcome(aim), time.monotonic()
    whole = arena.whole(aim.experiment)
    store, output = arena.root / f"kill-{number}", arena.root / f"struck-{number}.out"
    own = aim.target in ("server", "first start", "migration")
    home = arena.root / (f"home-{number}" if aim.target in ("first start", "migration") else "own-home")
    run = arena.command(aim.experiment)
    process = arena.start(run, store=store, output=output, home=home if own else None)
    try:
        outcome.struck = _wait_and_kill(process, aim, store, home)
        outcome.at_work = tuple(sorted({name.partition("-")[0] for name in _names(store / "work") if "draft" in name}))
        code = process.wait(timeout=PATIENCE)
        said = output.read_text(errors="replace")
        outcome.wrong = _judge(aim, code, said) if outcome.struck else ""
        if code != 0:
            printed = re.search(r"go on with: fortifai (resume \S+)", said)
            # before its first word nothing was begun, and one types the same command again
            arena.run(printed[1].split() if printed else run, store=store, home=home if own else None)
        if results(store) != whole:
            outcome.wrong = outcome.wrong or "other results than the undisturbed run"
    except (AssertionError, subprocess.TimeoutExpired) as error:
        outcome.wrong = str(error) or "it hangs"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    if not outcome.wrong:
        for folder in (store, home if home.name != "own-home" else store):
            shutil.rmtree(folder, ignore_errors=True)
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


# what a run says that ends because one of its processes did
DEATHS = {
    "worker": ("worker process ended with code -9",),
    "rank": ("ended with signal 9 (out of memory?)",),
    "ray worker": ("its worker or node died",),
    "ray node": ("its worker or node died", "no node of the Ray cluster is alive any more"),
}


def _judge(aim: Aim, code: int, said: str) -> str:
    """What is wrong with how the struck run ended; nothing if all is well."""
    if "Traceback" in said:
        return f"a traceback:\n{said}"
    if aim.target in ("flow", "first start"):
        return "" if code == -signal.SIGKILL else f"exit code {code}"
    if aim.target in DEATHS:
        named = any(words in said for words in DEATHS[aim.target]) and "go on with: fortifai resume" in said
        return "" if code == 0 or (code == 1 and named) else f"exit code {code}:\n{said}"
    return "" if code == 0 else f"it did not go on without its server, exit code {code}:\n{said}"


def _wait_and_kill(process: subprocess.Popen[bytes], aim: Aim, store: Path, home: Path) -> bool:
    """Wait for the moment and kill the target, with a wait until its children have gone, too."""
    seen: set[str] = set()
    deadline = time.monotonic() + PATIENCE
    if aim.target in ("first start", "migration"):  # its seconds count from the first sight of the database
        while not (home / "prefect.db").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
    if not aim.kind:
        time.sleep(aim.seconds)
    while aim.kind and len(seen) < aim.nth and process.poll() is None and time.monotonic() < deadline:
        seen |= {str(path.relative_to(store)) for path in _glob(store, MOMENTS[aim.moment].format(kind=aim.kind))}
        time.sleep(0.001)
    if process.poll() is not None:
        return False
    target = _target(process.pid, aim)
    while target is None and process.poll() is None and time.monotonic() < deadline:  # not started yet
        time.sleep(0.01)
        target = _target(process.pid, aim)
    if target is None:
        return False
    victims = [target]
    try:
        victims += target.children(recursive=True)
        os.kill(target.pid, signal.SIGKILL)
    except (psutil.Error, ProcessLookupError):
        return False
    psutil.wait_procs(victims[1:], timeout=20)
    return True


def _target(flow: int, aim: Aim) -> psutil.Process | None:
    """The process that is aimed at, or one of several; None where there is none (yet, or any more)."""
    if aim.target not in SIGNS:
        return psutil.Process(flow)
    found = below(flow, SIGNS[aim.target])
    if aim.target == "rank" and found:
        return found[aim.nth % len(found)]
    return found[0] if found else None


def _glob(store: Path, pattern: str) -> list[Path]:
    try:
        return list(store.glob(pattern))
    except OSError:  # it changes while it is read
        return []


def _names(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def campaign(arena: Arena, *, kills: int, seed: int, names: Sequence[str] = (), say: Any = print) -> dict[str, Any]:
    """`kills` kills that struck; figures and every outcome. What came too late for its aim is not counted.

    Args:
        names: of the experiments; by default all that this machine can run.
    """
    outcomes: list[Outcome] = []
    began = time.monotonic()
    say(f"seed {seed}, {kills} kills")
    for number, aim in enumerate(aims(arena, seed=seed, names=names or possible())):
        outcome = strike(arena, aim, number)
        outcomes.append(outcome)
        verdict = "WRONG: " + outcome.wrong if outcome.wrong else "same results" if outcome.struck else "came too late"
        at_work = f" ({', '.join(outcome.at_work)} at work)" if outcome.struck and outcome.at_work else ""
        say(f"{sum(o.struck for o in outcomes):>3}  {aim.words}{at_work}: {verdict}  {outcome.seconds:.0f} s")
        if sum(o.struck for o in outcomes) >= kills or len(outcomes) >= 3 * kills:
            break
    struck = [o for o in outcomes if o.struck]
    return {
        "seed": seed,
        "kills": len(struck),
        "lost or different": sum(bool(o.wrong) for o in outcomes),
        "by target": dict(Counter(o.aim.target for o in struck)),
        "by experiment": dict(Counter(o.aim.experiment for o in struck)),
        "by moment": dict(Counter(o.aim.moment or "at random" for o in struck)),
        "by stage at work": dict(Counter(kind for o in struck for kind in o.at_work)),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "outcomes": [asdict(o) for o in outcomes],
    }
