"""The study: each of its questions is an experiment, registered before it was run but for one, and some figures."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.embedded import check_api
from flows.hints import command_line
from flows.load import load_any_config
from flows.local import execute, print_results, read_report, spent
from flows.outputs import folder_to_make
from flows.prepare import plan_for, prepare_experiment
from flows.stores import open_store
from flows.tools.carrying import carry
from flows.tools.profiling import read_profile, show
from fortifai_core.charts.svg import with_line
from fortifai_core.errors import InputError
from fortifai_core.outcomes.contrasts import Contrast
from fortifai_core.outcomes.profile import Compared
from fortifai_core.outside import markup
from fortifai_core.report.contrasts import (
    contrast_rows,
    contrast_svg,
    contrast_table,
    contrasts_of,
    values_of,
)
from storage.store import durable
from storage.store.experiments import load_experiment
from storage.store.provenance import collect, rooms_of
from storage.store.store import ArtifactStore
from storage.tables import parquet
from tasks.engine.needs import needs
from tasks.engine.plans import AnyExperiment


@dataclass(frozen=True)
class Question:
    """One question of the study.

    Attributes:
        preset: the experiment that answers it, with the seeds that are registered, or planned.
        figures: of its report, those that are kept.
        contrasts: what is asked of its arms beside each one's difference to the first.
        registered: whether it was, before it was run.
    """

    asks: str
    preset: str
    figures: tuple[str, ...] = ("profile", "retention")
    contrasts: tuple[Contrast, ...] = ()
    registered: bool = True


# The pairs of arms of `study-settings`, and what is other in each.
SETTINGS = {
    "6-epochs": "half the epochs",
    "24-epochs": "twice the epochs",
    "lr-0.001": "a third of the rate",
    "lr-0.006": "twice the rate",
    "narrow": "half as wide",
    "wide": "half as wide again",
    "half-real": "one split, half real",
}
QUESTIONS = {
    "reproduction": Question("Does TCE keep more than cross entropy, in the paper's regime?", "study-reproduction"),
    "smollm2": Question("Does TCE keep more of what a real pretrained model has learned?", "study-smollm2"),
    "map": Question(
        "Where does TCE act: which gamma, with which decoding?",
        "study-map",
        contrasts=tuple(
            Contrast(f"TCE {gamma}, {words}", (f"tce-{gamma}-{decoding}",), (f"ce-{decoding}",))
            for decoding, words in (("greedy", "greedy"), ("t0.6", "T = 0.6"), ("t1", "T = 1"))
            for gamma in ("0.5", "0.9", "0.99")
        ),
    ),
    "beyond": Question("Does anything do better than a fixed gamma, and what could any loss keep?", "study-beyond"),
    "regularisation": Question("Is it only regularisation?", "study-regularisation"),
    "compat": Question(
        "How much of TCE's effect is the authors' decoding and choice of checkpoint?",
        "study-compat",
        contrasts=(
            Contrast("TCE, greedy", ("tce-0.9-greedy",), ("ce-greedy",)),
            Contrast("TCE, the authors' way", ("tce-0.9-authors",), ("ce-authors",)),
            Contrast("the difference", ("tce-0.9-authors", "ce-greedy"), ("ce-authors", "tce-0.9-greedy")),
        ),
    ),
    "beams": Question(
        "How much of TCE's effect is the authors' decoding, where the model has learned something?",
        "study-beams",
        contrasts=(
            Contrast("TCE, greedy", ("tce-greedy",), ("ce-greedy",)),
            Contrast("TCE, 5 beams", ("tce-beams",), ("ce-beams",)),
            Contrast("TCE, beams and penalty", ("tce-penalty",), ("ce-penalty",)),
            Contrast("the third less the first", ("tce-penalty", "ce-greedy"), ("ce-penalty", "tce-greedy")),
        ),
    ),
    "thresholds": Question(
        "How low may gamma go, and does a threshold of each token's own do better?",
        "study-thresholds",
        contrasts=(
            *(
                Contrast(f"TCE {words}, greedy", (f"tce-{words}-greedy",), ("ce-greedy",))
                for words in ("0.1", "0.3", "0.5", "entropy")
            ),
            *(
                Contrast(f"entropy − {gamma}, greedy", ("tce-entropy-greedy",), (f"tce-{gamma}-greedy",))
                for gamma in ("0.1", "0.3", "0.5")
            ),
            Contrast("TCE entropy, T = 0.6", ("tce-entropy-t0.6",), ("ce-t0.6",)),
            Contrast("entropy − 0.9, T = 0.6", ("tce-entropy-t0.6",), ("tce-0.9-t0.6",)),
        ),
    ),
    "smoothing": Question(
        "Do label smoothing and weight decay do better than the best fixed gamma?",
        "study-smoothing",
        contrasts=(
            Contrast("smoothing − CE", ("smoothing",), ("ce",)),
            Contrast("smoothing − TCE 0.9", ("smoothing",), ("tce-0.9",)),
            Contrast("smoothing − TCE 0.5", ("smoothing",), ("tce-0.5",)),
            Contrast("decay − CE", ("weight-decay",), ("ce",)),
            Contrast("decay − TCE 0.9", ("weight-decay",), ("tce-0.9",)),
            Contrast("both − smoothing", ("smoothing-and-decay",), ("smoothing",)),
            Contrast("smoothing: synthetic − all", ("smoothing-on-synthetic",), ("smoothing",)),
        ),
    ),
    "provenance": Question(
        "Is it worth knowing who wrote a text?",
        "study-provenance",
        contrasts=(
            Contrast("TCE 0.5 on all text", ("tce-0.5",), ("ce",)),
            Contrast("TCE 0.5 on synthetic text", ("tce-0.5-on-synthetic",), ("ce",)),
            Contrast("TCE 0.5 on real text", ("tce-0.5-on-real",), ("ce",)),
            Contrast("TCE: synthetic − all", ("tce-0.5-on-synthetic",), ("tce-0.5",)),
            Contrast("untempered on synthetic text", ("untempered-on-synthetic",), ("ce",)),
            Contrast("untempered: synthetic − all", ("untempered-on-synthetic",), ("untempered",)),
        ),
    ),
    "settings": Question(
        "Does what TCE does hang on epochs, learning rate, size or the text?",
        "study-settings",
        contrasts=(
            Contrast("TCE, as it is", ("tce",), ("ce",)),
            *(Contrast(f"TCE, {words}", (f"tce-{name}",), (f"ce-{name}",)) for name, words in SETTINGS.items()),
        ),
    ),
    "models": Question(
        "What becomes of models that read each other's text?",
        "study-pool",
        contrasts=(
            Contrast("large: in the pool − alone", ("large-in-pool",), ("large",)),
            Contrast("small: in the pool − alone", ("small-in-pool",), ("small",)),
        ),
    ),
    "share": Question("How much synthetic text is safe?", "share", registered=False),
}
MADE_BY = ("cpu", "platform", "python", "packages", "git")
ARTIFACTS = "artifacts.tar.xz"
TABLES = ("results", "time-to-failure", "profile", "profile-differences", "ranking")


def run_study(
    name: str,
    *,
    target: Path | None,
    overrides: list[str],
    store: str | None,
    console: Console,
    finished: bool = False,
) -> dict[str, Any]:
    """Run the experiment of one question (stages that are there are found), print its profile, and keep what it says.

    Args:
        target: a new folder for tables (Parquet), figures (SVG), `study.json`, and what every stage measured
            (`artifacts.tar.xz`, for `fortifai import`: with it any store answers, and goes on to more seeds).
            None keeps nothing.
        overrides: `path=value`, as of `fortifai run`: of a smaller version, to see how it goes. What was overridden
            is said in `study.json`.
        finished: only of the seeds that are finished in the store; nothing is trained.

    How many of the registered (or planned) seeds an answer rests on is said with it, and in every figure.

    Raises:
        InputError: no such question, `target` is there already, or no seed is finished.
    """
    if name not in QUESTIONS:
        raise InputError("question", name, f"choose one of {', '.join(QUESTIONS)}")
    if target is not None:
        target = folder_to_make("--out", target)
    check_api()
    question = QUESTIONS[name]
    config = load_any_config(question.preset, overrides)
    arguments = "".join(f" --set {shlex.quote(override)}" for override in overrides)
    if finished:
        seeds = finished_seeds(config, open_store(store))
        if not seeds:
            remedy = (
                f"none of its {len(config.seeds)} seeds is finished in this store: leave --finished out to run them"
            )
            raise InputError("question", name, remedy)
        config, arguments = config.model_copy(update={"seeds": seeds}), f"{arguments} --finished"
    rests_on = coverage(config, load_any_config(question.preset), "registered" if question.registered else "planned")
    one = prepare_experiment(config, store=store)
    (outcome,) = execute([one], console, resume=command_line(f"study {name}{arguments}", store=store))
    record = load_experiment(one.store, one.record_id)
    table, folder = read_report(one.store, record)
    profile = read_profile(one.store, record)
    console.print(f"\n[bold reverse] {markup(question.asks)} [/]", highlight=False)
    console.print(f"[bold]{markup(rests_on)}[/]", highlight=False)
    print_results(table, console)
    show(record, profile, console)
    values = values_of(_results(folder)) if question.contrasts else {}
    contrasts = contrasts_of(values, question.contrasts)
    if contrasts:
        _show_contrasts(contrasts, console)
    console.print(f"\n{spent([outcome])}")
    if target is not None:
        made = collect(rooms_of("report"))
        about = {
            "question": question.asks,
            "command": f"fortifai study {name}{arguments}",
            "experiment": record.label,
            "arms": one.plan.config.arm_labels,
            "seeds": list(one.plan.config.seeds),
            "rests on": rests_on,
            "summary": profile["summary"],
            "headline": table["headline"],
            "made by": {name: made[name] for name in MADE_BY if name in made},
        }
        _keep(folder, target, question.figures, about)
        if contrasts:
            _keep_contrasts(target, contrasts, question.contrasts, rests_on)
        carry(one.store, record, target / ARTIFACTS, text=False)
        console.print(f"kept: {markup(target)}", soft_wrap=True)
    return {**outcome, "kept": str(target) if target is not None else None}


def finished_seeds(config: AnyExperiment, store: ArtifactStore) -> list[int]:
    """The seeds of which all arms are in the store, to their last generation."""

    def is_whole(seed: int) -> bool:
        plan = plan_for(config.model_copy(update={"seeds": [seed]}))
        there = needs(plan, store).manifests
        return all(stage.reference in there for stage in plan.stages() if stage.role != "report")

    return [seed for seed in config.seeds if is_whole(seed)]


def coverage(config: AnyExperiment, whole: AnyExperiment, as_whole: str = "registered") -> str:
    """`2 of 5 registered seeds`; with what is not as in the whole experiment, which was registered, or `as_whole`."""
    known = [seed for seed in config.seeds if seed in whole.seeds]
    words = f"{len(known)} of {len(whole.seeds)} {as_whole} seeds"
    if len(known) < len(config.seeds):
        words += f", and {len(config.seeds) - len(known)} not {as_whole}"
    alike = {"seeds": whole.seeds, "runtime": whole.runtime}
    return words if config.model_copy(update=alike) == whole else f"{words}; other settings than {as_whole}"


def _show_contrasts(found: Sequence[Compared], console: Console) -> None:
    heads, *rows = contrast_rows(found)
    told = Table(*heads, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for cells in rows:
        told.add_row(*map(markup, cells))
    console.print()
    console.print(told)
    console.print("[dim]95% intervals over seeds; told after one correction (Holm) for all of them[/]")


def _keep_contrasts(target: Path, found: Sequence[Compared], asked: Sequence[Contrast], rests_on: str) -> None:
    as_csv = target / "contrasts.csv"
    contrast_table(found, asked).write_csv(as_csv)
    parquet.of_csv(as_csv, as_csv.with_suffix(".parquet"))
    as_csv.unlink()
    drawing = with_line(contrast_svg(found, width=960, standalone=True), rests_on)
    as_csv.with_suffix(".svg").write_text(drawing, encoding="utf-8")


def _results(report: Path) -> Sequence[dict[str, str]]:
    with (report / "tables" / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _keep(report: Path, target: Path, figures: tuple[str, ...], about: dict[str, Any]) -> None:
    target.mkdir(parents=True)
    for name in TABLES:
        path = report / "tables" / f"{name}.csv"
        if path.is_file():
            parquet.of_csv(path, target / f"{name}.parquet")
    for name in figures:
        path = report / "figures" / f"{name}.svg"
        if path.is_file():
            drawing = with_line(path.read_text(encoding="utf-8"), about["rests on"])
            (target / path.name).write_text(drawing, encoding="utf-8")
    durable.write_bytes(target / "study.json", json.dumps(about, indent=2, default=str).encode())
