"""`python -m flows.cli.reference FILE`: the reference of the command line as a page, made from the Typer app itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from flows.cli.app import app

_HEAD = """# Command line

<!-- made by `make docs` from the program itself; edit the commands' help instead -->

Every command prints its own help: `fortifai run --help`. Bad input gives one line that names field, value and remedy,
and exit code 2; a failed run gives exit code 1; Ctrl-C gives 130. With `--json` a command prints JSON on standard
output and nothing else there.
"""


def commands(group: Any = None, prefix: str = "fortifai") -> Iterator[tuple[str, Any]]:
    """Every command with its full name (`fortifai kr build`), groups included, in the program's own order."""
    program: Any = group or typer.main.get_command(app)
    for name, command in program.commands.items():
        yield f"{prefix} {name}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix} {name}")


def reference() -> str:
    """The page, in Markdown."""
    every = list(commands())
    summary = ["| command | what it does |", "|---|---|"]
    summary += [f"| [`{name}`](#{name.replace(' ', '-')}) | {_cell(_first(command.help))} |" for name, command in every]
    return "\n".join([_HEAD, *summary, "", *(line for name, command in every for line in _section(name, command))])


def _section(name: str, command: Any) -> list[str]:
    lines = [f"## {name}", "", command.help or "", ""]
    if hasattr(command, "commands"):
        return lines
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option"]
    shown = [p.name.upper() if p.required else f"[{p.name.upper()}]" for p in arguments]
    required = [f"{p.opts[0]} …" for p in options if p.required]
    lines += ["```text", " ".join([name, *shown, *required, *(["[OPTIONS]"] if options else [])]), "```", ""]
    if not command.params:
        return lines
    rows = [(f"`{p.name.upper()}`", p) for p in arguments]
    rows += [(", ".join(f"`{text}`" for text in (*p.opts, *p.secondary_opts)), p) for p in options]
    lines += ["| | | default |", "|---|---|---|"]
    lines += [f"| {label} | {_cell(p.help or '')} | {_default(p)} |" for label, p in rows]
    return [*lines, ""]


def _default(parameter: Any) -> str:
    """What is taken where nothing is said; nothing for flags that are off and options without a value."""
    if parameter.required:
        return "required"
    value = parameter.default
    if value is None or value is False or value == []:
        return ""
    return "on" if value is True else f"`{value}`"


def _first(text: str | None) -> str:
    """A help text's first sentence."""
    return (text or "").split("\n")[0].split(". ")[0].rstrip(".")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
