"""How long a stage will still take: told from its pace, shown in the terminal's bars."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from flows.load import load_experiment_config
from flows.reporters import LogReporter, TerminalReporter
from tasks.engine.progress import StageProgress
from tasks.language.plan import Digests, plan_experiment


def test_the_time_left_is_what_is_left_at_the_pace_so_far() -> None:
    progress = StageProgress()
    assert progress.seconds_left is None and progress.percent == 0
    progress.tell(0, 400, "steps", now=1000.0)
    assert progress.seconds_left is None and "left" not in str(progress)
    progress.tell(100, 400, "steps", now=1020.0)
    assert (progress.percent, progress.seconds_left) == (25.0, pytest.approx(60.0))
    assert str(progress) == "100 of 400 steps, 1 min 00 s left"
    progress.tell(400, 400, "steps", now=1090.0)
    assert progress.percent == 100 and str(progress) == "400 of 400 steps"


def test_what_an_earlier_attempt_finished_is_not_this_ones_pace() -> None:
    progress = StageProgress()
    progress.tell(900, 1000, "tokens", now=50.0)
    assert progress.seconds_left is None, "nothing was done yet as far as anybody here has seen"
    progress.tell(910, 1000, "tokens", now=60.0)
    assert progress.seconds_left == pytest.approx(90.0)


@pytest.mark.parametrize(("done", "total"), [(0, 400), (10, 800)])
def test_another_count_has_a_pace_of_its_own(done: int, total: int) -> None:
    """A stage that counts one thing after another: texts, then questions."""
    progress = StageProgress()
    progress.tell(0, 400, "texts", now=0.0)
    progress.tell(390, 400, "texts", now=1000.0)
    progress.tell(done, total, "questions", now=1001.0)
    assert progress.seconds_left is None
    progress.tell(done + 10, total, "questions", now=1002.0)
    assert progress.seconds_left == pytest.approx((total - done - 10) / 10)


def test_without_a_terminal_a_long_stage_says_every_half_minute_how_far_it_is(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = [0.0]
    plan = plan_experiment(load_experiment_config("smoke"), Digests({}))
    long, quick = [stage for stage in plan.stages() if stage.role == "regenerate"][:2]
    file = io.StringIO()
    console = Console(file=file, width=160)
    caplog.set_level("INFO", logger="fortifai")
    log = LogReporter(clock=lambda: clock[0])
    with TerminalReporter(plan, console, clock=lambda: clock[0]) as terminal:
        for reporter in (terminal, log):
            clock[0] = 0.0
            reporter.started(long)
            reporter.started(quick)
            for second in range(1000, 1100):  # begun after a long wait, which is no reason for a line
                clock[0] = second
                reporter.progressed(long, second - 1000, 400, "tokens")
                if second < 1020:
                    reporter.progressed(quick, second - 1000, 20, "tokens")
            reporter.finished(quick, found=False, seconds=20.0)
    printed = [" ".join(line.split()) for line in file.getvalue().splitlines() if "…" in line]
    logged = [record.getMessage() for record in caplog.records if " of 400 " in record.getMessage()]
    label = f"{long.arm} · seed {long.seed} · {long.label}"
    said = [
        "30 of 400 tokens, 6 min 10 s left",
        "60 of 400 tokens, 5 min 40 s left",
        "90 of 400 tokens, 5 min 10 s left",
    ]
    assert printed == [f"… {label} {words}" for words in said]
    assert logged == [f"{label}: {words}" for words in said]


def test_the_terminal_shows_pace_acceptance_and_the_time_left() -> None:
    clock = [0.0]
    plan = plan_experiment(load_experiment_config("smoke"), Digests({}))
    stage = next(one for one in plan.stages() if one.role == "regenerate")
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=160)
    with TerminalReporter(plan, console, clock=lambda: clock[0]) as reporter:
        reporter.started(stage)
        clock[0] = 500.0  # waited for a worker
        reporter.progressed(stage, 0, 4000, "tokens")
        clock[0] = 510.0
        reporter.progressed(stage, 1000, 4000, "tokens, 100 a second, acceptance 42%")
        reporter.bars.refresh()
        reporter.finished(stage, found=False, seconds=40.0)
        reporter.bars.refresh()
        last = io.StringIO()
        Console(file=last, width=160).print(reporter.bars.get_renderable())
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    lines = [line for line in re.split(r"[\r\n]+", shown) if "ce · seed 0 · regenerate · g0 · split 0" in line]
    assert any("1,000 of 4,000 tokens, 100 a second, acceptance 42%, 30 s left" in line for line in lines)
    assert "left" not in last.getvalue(), "a finished stage has no bar"
