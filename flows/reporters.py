"""Who is told while an experiment runs: a terminal with bars, a plain log, or the log of a Prefect run."""

from __future__ import annotations

import logging
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from tasks.engine.plans import Plan
from tasks.engine.progress import StageProgress
from tasks.engine.stages import Stage

# Roles whose end is worth a line however quick they were; a family has too many quick ones.
SHOWN = ("train", "base", "evaluate", "data", "segment")


def full_label(stage: Stage) -> str:
    """`ce · seed 0 · train · g2`, or `tokenizer` for what all arms share."""
    return stage.label if stage.arm is None else f"{stage.arm} · seed {stage.seed} · {stage.label}"


class LogReporter:
    """Writes to the logger of the Prefect run: a line for each stage built."""

    def __init__(self) -> None:
        self.log = logging.getLogger("fortifai")

    def _logger(self) -> Any:
        from prefect.exceptions import MissingContextError
        from prefect.logging import get_run_logger

        try:
            return get_run_logger()
        except MissingContextError:
            return self.log

    def started(self, stage: Stage) -> None:
        self._logger().info("%s: started", full_label(stage))

    def progressed(self, stage: Stage, done: int, total: int, unit: str) -> None:
        """Progress is published as an artifact, not logged."""

    def finished(self, stage: Stage, *, found: bool, seconds: float) -> None:
        self._logger().info("%s: %s", full_label(stage), "found" if found else f"done in {seconds:.1f} s")

    def noted(self, message: str) -> None:
        self._logger().info("%s", message)


class TerminalReporter:
    """A bar for the whole and one for each stage at work; a line for each finished generation of an arm.

    Without a terminal (a pipe, a log file) only the lines are printed.
    """

    def __init__(self, plan: Plan, console: Console) -> None:
        self.console = console
        self.expected = len(plan.uses())
        self.live = console.is_terminal
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not self.live,
        )
        self.active: dict[tuple[str, str], TaskID] = {}
        self.told: dict[tuple[str, str], StageProgress] = {}
        self.done = 0
        self.whole: TaskID | None = None

    def __enter__(self) -> TerminalReporter:
        self.bars.start()
        self.whole = self.bars.add_task("all stages", total=self.expected, text="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def started(self, stage: Stage) -> None:
        self.told[stage.reference] = StageProgress()

    def progressed(self, stage: Stage, done: int, total: int, unit: str) -> None:
        if stage.reference not in self.active:
            # the bar appears with the first progress, so that stages waiting for a worker show none
            self.active[stage.reference] = self.bars.add_task(full_label(stage), total=total, text="")
        progress = self.told[stage.reference]
        progress.tell(done, total, unit)
        self.bars.update(self.active[stage.reference], completed=done, total=total, text=str(progress))

    def finished(self, stage: Stage, *, found: bool, seconds: float) -> None:
        if stage.reference in self.active:
            self.bars.remove_task(self.active.pop(stage.reference))
        self.done += 1
        if self.whole is not None:
            self.bars.update(self.whole, completed=self.done, text=f"{self.done} / {self.expected}")
        if not found and (stage.role in SHOWN or seconds > 10):
            self.console.print(
                f"  [dim]{self.done:>3}/{self.expected}[/]  {full_label(stage)}  [dim]{seconds:.1f} s[/]"
            )

    def noted(self, message: str) -> None:
        self.console.print(f"  {message}")
