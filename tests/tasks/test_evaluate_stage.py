"""Evaluations of a run whose questions are about later splits alone: what is measured, and who reads it afterwards."""

from __future__ import annotations

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
from flows.tools import profiling
from flows.tools.leads import leads_of
from fortifai_core.config.stages import Runtime
from fortifai_core.errors import InputError
from storage.catalog.catalog import query
from storage.store.experiments import Experiment, load_experiment, record_experiment
from storage.store.store import Artifact
from storage.tables import parquet
from tasks.engine.build import build

DOCUMENTS = 36
SMALL = ["splits=3", "model.pretraining_epochs=0.2", "training.epochs=1", "evaluation.drift=false", "runtime.threads=1"]
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
    """M_0 and M_1, which are asked nothing: all questions are about split 2."""
    return finished(folder, 2)


@pytest.fixture(scope="module")
def later(folder: Path, never: Finished) -> Finished:
    """The same with M_2, the first one that is asked."""
    return finished(folder, 3)


@pytest.mark.parametrize("arm", ["ce", "tce-0.9"])
def test_a_model_that_is_asked_nothing_has_its_perplexity(never: Finished, later: Finished, arm: str) -> None:
    for generation in (0, 1):
        evaluation = never.artifacts["evaluate", arm, generation]
        assert (
            set(evaluation.manifest.metrics) == {"perplexity-real"}
            and evaluation.manifest.metrics["perplexity-real"] > 1
        )
        assert not evaluation.has("scores.parquet")
        assert [row["metric"] for row in parquet.read_rows(evaluation.file("metrics.parquet"))] == ["perplexity-real"]
        assert later.artifacts["evaluate", arm, generation].manifest == evaluation.manifest
    asked = later.artifacts["evaluate", arm, 2]
    assert set(asked.manifest.metrics) == {"kr-split-2", "kr-total", "perplexity-real"}
    assert {row["split"] for row in parquet.read_rows(asked.file("scores.parquet"))} == {2}


def test_whether_it_failed_cannot_be_told(never: Finished, later: Finished) -> None:
    checks = [a for one in (never, later) for (role, *_), a in one.artifacts.items() if role == "failure"]
    assert len(checks) == 4 + 6
    assert {(check.manifest.metrics["status"], check.manifest.metrics["failed_in"]) for check in checks} == {
        ("not-measured", -1)
    }


def test_the_report_tables_profile_and_catalog_have_what_was_measured(never: Finished, later: Finished) -> None:
    for one, generations in ((never, 2), (later, 3)):
        print(one.said(lambda console: print_outcome(one.made.store, one.record, console)))
        table, place = read_report(one.made.store, one.record)
        print(table)
        print(one.said(lambda c: profiling.show(one.record, profiling.read_profile(one.made.store, one.record), c)))
    print(query(later.made.store, "select generation, count(*) from scores group by all order by all"))
    with pytest.raises(InputError, match="asks no questions about split 0"):
        leads_of(later.made.store, later.record)
    assert 0
