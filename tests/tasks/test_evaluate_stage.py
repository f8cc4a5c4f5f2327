"""Evaluations of a run whose questions are about later splits alone: what is measured, and who reads it afterwards."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from flows.load import load_experiment_config
from flows.local import print_outcome, read_report
from flows.prepare import Prepared, prepare_experiment
from flows.tools.leads import leads_of
from flows.tools.profiling import read_profile, show
from fortifai_core.config.stages import Runtime
from fortifai_core.errors import InputError
from storage.catalog.catalog import query
from storage.store.experiments import Experiment, load_experiment, record_experiment
from storage.store.store import Artifact
from storage.tables import parquet
from tasks.engine.build import build
from tasks.language.publish import retention_chart, retention_image

DOCUMENTS = 36
SMALL = ["splits=2", "model.pretraining_epochs=0.2", "training.epochs=1", "evaluation.drift=false", "runtime.threads=1"]
Artifacts = dict[tuple[str, str | None, int | None], Artifact]


def corpus_in(folder: Path) -> str:
    """The setting for a corpus of short texts, with questions about the last three of them."""
    numbers = range(DOCUMENTS)
    texts = [{"text": f"The town {n} was founded in {1200 + n} and has {n} gates.", "id": f"d{n}"} for n in numbers]
    questions = [
        {"context": f"The town {n} was founded in", "sentence_true": f" {1200 + n}", "sentence_false": f" {1300 + n}"}
        | {"location": f"d{n}"}
        for n in numbers[-3:]
    ]
    for name, rows in (("text", texts), ("questions", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"corpus={{type: text, files: ['{folder}/text.jsonl'], questions: '{folder}/questions.jsonl'}}"


@dataclass
class Finished:
    """An experiment of which every stage was built; artifacts by role, arm and generation."""

    made: Prepared
    record: Experiment
    artifacts: Artifacts

    def said(self, show: Callable[[Console], None]) -> str:
        """What a command prints."""
        file = io.StringIO()
        show(Console(file=file, width=200))
        return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("asked-later")


def finished(folder: Path, generations: int) -> Finished:
    overrides = [*SMALL, corpus_in(folder), f"generations={generations}", f"name=asked-{generations}"]
    made = prepare_experiment(load_experiment_config("smoke", overrides), store=str(folder / "store"))
    artifacts: Artifacts = {
        (stage.role, stage.arm, stage.generation): build(stage, made.store, Runtime(), progress=lambda *_: None)[0]
        for stage in made.plan.stages()
    }
    record_experiment(made.store, config=made.plan.config.model_dump(mode="json"), status="finished")
    return Finished(made, load_experiment(made.store, made.record_id), artifacts)


@pytest.fixture(scope="module")
def never(folder: Path) -> Finished:
    """M_0, which is asked nothing: all questions are about split 1."""
    return finished(folder, 1)


@pytest.fixture(scope="module")
def later(folder: Path, never: Finished) -> Finished:
    """The same with M_1, the first one that is asked."""
    return finished(folder, 2)


@pytest.mark.parametrize("arm", ["ce", "tce-0.9"])
def test_a_model_that_is_asked_nothing_has_its_perplexity(never: Finished, later: Finished, arm: str) -> None:
    evaluation = never.artifacts["evaluate", arm, 0]
    assert set(evaluation.manifest.metrics) == {"perplexity-real"}
    assert float(evaluation.manifest.metrics["perplexity-real"]) > 1 and not evaluation.has("scores.parquet")
    assert [row["metric"] for row in parquet.read_rows(evaluation.file("metrics.parquet"))] == ["perplexity-real"]
    assert later.artifacts["evaluate", arm, 0].manifest == evaluation.manifest
    asked = later.artifacts["evaluate", arm, 1]
    assert set(asked.manifest.metrics) == {"kr-split-1", "kr-total", "perplexity-real"}
    assert {row["split"] for row in parquet.read_rows(asked.file("scores.parquet"))} == {1}


def test_whether_it_failed_cannot_be_told(never: Finished, later: Finished) -> None:
    checks = [a for one in (never, later) for (role, *_), a in one.artifacts.items() if role == "failure"]
    told = [(check.manifest.metrics["status"], check.manifest.metrics["failed_in"]) for check in checks]
    assert told == [("not-measured", -1)] * (2 + 4)


@pytest.mark.parametrize(("which", "generations"), [("never", 1), ("later", 2)])
def test_the_report_and_its_tables_have_what_was_measured(
    which: str, generations: int, request: pytest.FixtureRequest
) -> None:
    one: Finished = request.getfixturevalue(which)
    store, record = one.made.store, one.record
    table, place = read_report(store, record)
    assert table["rows"][:generations] == [[f"M{g}", "–", "–"] for g in range(generations)]
    assert table["headline"] == ["There are no questions about split 0, so retention was not measured."]
    assert table["headline"][0] in one.said(lambda console: print_outcome(store, record, console))
    rows = list(csv.DictReader((place / "tables" / "results.csv").read_text().splitlines()))
    by_metric = {(row["metric"], int(row["generation"])) for row in rows if row["arm"] == "ce" and row["value"]}
    wanted = {("perplexity-real", g) for g in range(generations)} | ({("kr-split-1", 1)} if generations == 2 else set())
    assert {found for found in by_metric if found[0] in ("perplexity-real", "kr-split-0", "kr-split-1")} == wanted


def test_the_profile_the_catalog_and_the_page_in_the_server_cope(later: Finished) -> None:
    store, record = later.made.store, later.record
    profile = read_profile(store, record)
    assert {row[0].partition(",")[0] for row in profile["table"]["rows"]} >= {"Perplexity"}
    assert "Perplexity, doubled" in later.said(lambda console: show(record, profile, console))
    assert query(store, "select generation, count(*) from scores group by all")[1] == [(1, 6)]
    known = "select distinct arm, generation from metrics where metric = 'perplexity-real' order by all"
    assert query(store, known)[1] == [("ce", 0), ("ce", 1), ("tce-0.9", 0), ("tce-0.9", 1)]
    measured = [{"generation": g, **later.artifacts["evaluate", "ce", g].manifest.metrics} for g in (0, 1)]
    assert retention_chart("ce", measured, threshold=0.75) == "No questions were asked about split 0.\n"
    assert retention_image("ce", measured, threshold=0.75) == ""
    with pytest.raises(InputError, match="asks no questions about split 0"):
        leads_of(store, record)
