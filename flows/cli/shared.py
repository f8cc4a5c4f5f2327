"""What the commands share: their common options, the two terminals, and how JSON is printed."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from flows.terminal import Terminal

out = Terminal()
err = Terminal(stderr=True)

Source = Annotated[str, typer.Argument(help="A preset (see `fortifai init`) or a YAML file.")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="Override a field: path=value. May be repeated.")]
Store = Annotated[str | None, typer.Option("--store", help="Artifact store: a folder or URL. [FORTIFAI_STORE]")]
Refresh = Annotated[list[str] | None, typer.Option("--refresh", help="Build this stage anew, and all after it.")]
AllowCode = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-code", help="Import this module of yours, which a loss names. Repeatable. [FORTIFAI_ALLOW_CODE]"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Which = Annotated[str, typer.Argument(help="An experiment's name or id; `latest` is the newest.")]


def show_json(value: Any) -> None:
    """Machine-readable output, on standard output, nothing else."""
    typer.echo(json.dumps(value, indent=2, default=str))
