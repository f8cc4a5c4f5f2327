"""The study: each of its questions is an experiment that was registered before it was run, and some of its figures."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.embedded import check_api
from flows.hints import command_line
from flows.load import load_any_config
from flows.local import execute, print_results, read_report, spent
from flows.outputs import folder_to_make
from flows.prepare import prepare_experiment
from flows.tools.profiling import read_profile, show
from fortifai_core.errors import InputError
from fortifai_core.outside import markup
from storage.store import durable
from storage.store.experiments import load_experiment
from storage.store.provenance import collect, rooms_of
from storage.tables import parquet


@dataclass(frozen=True)
class Question:
    """One question of the study, with the preset that answers it and the figures of its report that are kept."""

    asks: str
    preset: str
    figures: tuple[str, ...] = ("profile", "retention")


QUESTIONS = {
    "reproduction": Question("Does TCE keep more than cross entropy, in the paper's regime?", "study-reproduction"),
    "map": Question("Where does TCE act: which gamma, with which decoding?", "study-map"),
    "beyond": Question("Does anything do better than a fixed gamma, and what could any loss keep?", "study-beyond"),
    "regularisation": Question("Is it only regularisation?", "study-regularisation"),
    "share": Question("How much synthetic text is safe?", "share"),
}
MADE_BY = ("cpu", "platform", "python", "packages", "git")
TABLES = ("results", "time-to-failure", "profile", "profile-differences", "ranking")


def run_study(
    name: str, *, target: Path | None, overrides: list[str], store: str | None, console: Console
) -> dict[str, Any]:
    """Run the experiment of one question (stages that are there are found), print its profile, and keep what it says.

    Args:
        target: a new folder for tables (Parquet), figures (SVG) and `study.json`; None keeps nothing.
        overrides: `path=value`, as of `fortifai run`: of a smaller version, to see how it goes. What was overridden
            is said in `study.json`.

    Raises:
        InputError: no such question, or `target` is there already.
    """
    if name not in QUESTIONS:
        raise InputError("question", name, f"choose one of {', '.join(QUESTIONS)}")
    if target is not None:
        target = folder_to_make("--out", target)
    check_api()
    question = QUESTIONS[name]
    one = prepare_experiment(load_any_config(question.preset, overrides), store=store)
    arguments = "".join(f" --set {shlex.quote(override)}" for override in overrides)
    (outcome,) = execute([one], console, resume=command_line(f"study {name}{arguments}", store=store))
    record = load_experiment(one.store, one.record_id)
    table, folder = read_report(one.store, record)
    profile = read_profile(one.store, record)
    console.print(f"\n[bold reverse] {markup(question.asks)} [/]", highlight=False)
    print_results(table, console)
    show(record, profile, console)
    console.print(f"\n{spent([outcome])}")
    if target is not None:
        made = collect(rooms_of("report"))
        about = {
            "question": question.asks,
            "command": f"fortifai study {name}{arguments}",
            "experiment": record.label,
            "arms": one.plan.config.arm_labels,
            "seeds": list(one.plan.config.seeds),
            "summary": profile["summary"],
            "headline": table["headline"],
            "made by": {name: made[name] for name in MADE_BY if name in made},
        }
        _keep(folder, target, question.figures, about)
        console.print(f"kept: {markup(target)}", soft_wrap=True)
    return {**outcome, "kept": str(target) if target is not None else None}


def _keep(report: Path, target: Path, figures: tuple[str, ...], about: dict[str, Any]) -> None:
    target.mkdir(parents=True)
    for name in TABLES:
        path = report / "tables" / f"{name}.csv"
        if path.is_file():
            parquet.of_csv(path, target / f"{name}.parquet")
    for name in figures:
        path = report / "figures" / f"{name}.svg"
        if path.is_file():
            shutil.copyfile(path, target / path.name)
    durable.write_bytes(target / "study.json", json.dumps(about, indent=2, default=str).encode())
