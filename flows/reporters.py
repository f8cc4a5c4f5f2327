"""Who is told while an experiment runs: a terminal with bars, a plain log, or the log of a Prefect run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from fortifai_core.outside import line, markup, visible
from tasks.engine.plans import Plan
from tasks.engine.progress import StageProgress
from tasks.engine.stages import Stage

# Roles whose end is worth a line however quick they were; a family has too many quick ones.
SHOWN = ("train", "base", "evaluate", "data", "segment")
LINE_EVERY_SECONDS = 30.0


def full_label(stage: Stage) -> str:
    """`ce · seed 0 · train · g2`, or `tokenizer` for what all arms share."""
    return stage.label if stage.arm is None else f"{stage.arm} · seed {stage.seed} · {stage.label}"


class Told:
    """What each stage at work has told of its progress, and when it is time to write that down again.

    Args:
        clock: seconds that only go forward.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._stages: dict[tuple[str, str], StageProgress] = {}
        self._written: dict[tuple[str, str], float] = {}

    def take(self, stage: Stage, done: int, total: int, unit: str) -> StageProgress:
        """Take in what a stage says; its pace counts from its first word, when a worker had begun with it."""
        progress = self._stages.setdefault(stage.reference, StageProgress())
        now = self.clock()
        self._written.setdefault(stage.reference, now)
        progress.tell(done, total, unit, now=now)
        return progress

    def is_due(self, stage: Stage) -> bool:
        """Whether a stage that spoke just now has had no line for `LINE_EVERY_SECONDS`; then it counts as written."""
        due = self.clock() - self._written[stage.reference] >= LINE_EVERY_SECONDS
        if due:
            self._written[stage.reference] = self.clock()
        return due

    def forget(self, stage: Stage) -> None:
        self._stages.pop(stage.reference, None)
        self._written.pop(stage.reference, None)


class LogReporter:
    """Writes to the logger of the Prefect run: a line for each stage built, and one every half minute of a long one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.told = Told(clock)

    def _logger(self) -> Any:
        from prefect.exceptions import MissingContextError
        from prefect.logging import get_run_logger

        try:
            return get_run_logger()
        except MissingContextError:
            return logging.getLogger("fortifai")

    def started(self, stage: Stage) -> None:
        self._logger().info("%s: started", line(full_label(stage)))

    def progressed(self, stage: Stage, done: int, total: int, unit: str) -> None:
        """Every half minute; what the UI shows as an artifact follows more closely."""
        progress = self.told.take(stage, done, total, unit)
        if self.told.is_due(stage):
            # as text now: it changes before a slow handler writes
            self._logger().info("%s: %s", line(full_label(stage)), str(progress))

    def finished(self, stage: Stage, *, found: bool, seconds: float) -> None:
        self.told.forget(stage)
        self._logger().info("%s: %s", line(full_label(stage)), "found" if found else f"done in {seconds:.1f} s")

    def noted(self, message: str) -> None:
        self._logger().info("%s", visible(message))


class TerminalReporter:
    """A bar for the whole and one for each stage at work; a line for each finished generation of an arm.

    Without a terminal (a pipe, a log file) only lines are printed, one every half minute of a long stage among them.
    """

    def __init__(self, plan: Plan, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self.expected = len(plan.uses())
        self.live = console.is_terminal
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[text]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not self.live,
        )
        self.active: dict[tuple[str, str], TaskID] = {}
        self.told = Told(clock)
        self.done = 0
        self.whole = self.bars.add_task("all stages", total=self.expected, text="")

    def __enter__(self) -> TerminalReporter:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def started(self, stage: Stage) -> None:
        """The bar appears with the first progress, so that stages waiting for a worker show none."""

    def progressed(self, stage: Stage, done: int, total: int, unit: str) -> None:
        progress = self.told.take(stage, done, total, unit)
        if not self.live:
            if self.told.is_due(stage):
                self.console.print(f"  [dim]…[/]  {markup(full_label(stage))}  [dim]{progress}[/]", highlight=False)
            return
        if stage.reference not in self.active:
            self.active[stage.reference] = self.bars.add_task(visible(full_label(stage)), total=total, text="")
        self.bars.update(self.active[stage.reference], completed=done, total=total, text=str(progress))

    def finished(self, stage: Stage, *, found: bool, seconds: float) -> None:
        if stage.reference in self.active:
            self.bars.remove_task(self.active.pop(stage.reference))
        self.told.forget(stage)
        self.done += 1
        self.bars.update(self.whole, completed=self.done, text=f"{self.done} / {self.expected}")
        if not found and (stage.role in SHOWN or seconds > 10):
            self.console.print(
                f"  [dim]{self.done:>3}/{self.expected}[/]  {markup(full_label(stage))}  [dim]{seconds:.1f} s[/]"
            )

    def noted(self, message: str) -> None:
        self.console.print(f"  {markup(message)}")
