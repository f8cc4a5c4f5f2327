"""The command line: `fortifai run | plan | init | serve | resume | report | ls | show | sql | …`."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import typer

from flows.cli import keeping, results, running, study
from flows.cli.bench import benches
from flows.cli.kr import app as kr
from flows.cli.models import app as models
from flows.cli.shared import err
from flows.cli.watch import leads, watch
from flows.embedded import quiet_environment
from fortifai_core.errors import FortifaiError, one_line
from fortifai_core.outside import markup, visible
from fortifai_core.parsing import check_argument

quiet_environment()

app = typer.Typer(
    name="fortifai",
    help="A laboratory for recursive training: how fast a model forgets, and how TCE delays it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(running.init)
app.command()(running.run)
app.command()(running.demo)
app.command()(study.study)
app.command()(running.resume)
app.command()(running.plan)
app.command()(running.serve)
app.command()(results.report)
app.command()(results.profile)
app.command()(results.power)
app.command("ls")(results.list_all)
app.command()(results.show)
app.command()(results.sql)
app.command()(results.trace)
app.command()(study.fates)
app.command()(results.path)
app.command()(keeping.verify)
app.command()(keeping.gc)
app.command()(keeping.doctor)
app.command()(keeping.export)
app.command()(keeping.pack)
app.command("import")(keeping.import_file)
app.command()(watch)
app.command()(leads)
app.add_typer(benches, name="bench")
app.add_typer(kr, name="kr")
app.add_typer(models, name="models")
app.add_typer(study.paper, name="paper")

# Wrong use of the command line. Where typer brings a click of its own, that one's.
_UsageError: Any = typer.BadParameter.__base__


def exit_code(arguments: Sequence[str]) -> int:
    """Run `fortifai ARGUMENTS` in this process, and return what the process would end with.

    What is wrong with the arguments, or with whatever they name, is one line on standard error.
    """
    started = time.monotonic()
    try:
        for number, argument in enumerate(arguments, start=1):
            check_argument(f"argument {number}", argument)
        ended = app(list(arguments), standalone_mode=False)
    except FortifaiError as error:
        err.print(f"[red]error:[/] {markup(str(error))}", soft_wrap=True, highlight=False)
        return error.exit_code
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "fortifai"
        if error.format_message():  # without one, the help was printed in its place
            message = f"{one_line(error.format_message()).rstrip('.')}; `{command} --help` says how"
            err.print(f"[red]error:[/] {markup(message)}", soft_wrap=True, highlight=False)
        return int(error.exit_code)
    except KeyboardInterrupt:
        err.print(f"stopped after {time.monotonic() - started:.0f} s; what was finished is kept")
        return 130
    except BrokenPipeError:
        return 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except Exception:  # noqa: BLE001 - shown in full, as the interpreter would
        sys.stderr.write(visible(traceback.format_exc()))
        return 1
    return ended if isinstance(ended, int) else 0


def main() -> None:
    """The entry point: every expected error is one line, exit code 2 for bad input and 1 for a failed run."""
    warnings.formatwarning = lambda message, *_: f"fortifai: {visible(str(message))}\n"
    # peft asks transformers 5.24 for this by its old name; nobody at a terminal can do anything about it
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal of another encoding cannot show, it shows escaped
            stream.reconfigure(errors="backslashreplace")
    code = exit_code(sys.argv[1:])
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
        sys.stderr.flush()
    # Not by returning: threads of Prefect's client would keep a failed run waiting for a server that has gone.
    os._exit(code)


if __name__ == "__main__":
    main()
