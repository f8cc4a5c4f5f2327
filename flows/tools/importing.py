"""Takes the results of `examples/algorithm1.py` into the store, for report and catalog."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from flows.load import validate
from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.config.stages import Runtime
from fortifai_core.errors import DataError
from fortifai_core.settings import Frozen
from storage.store.experiments import Experiment, StageRecord, record_experiment
from storage.store.keys import artifact_key
from storage.store.store import ArtifactStore
from storage.tables import parquet
from tasks.engine.build import build
from tasks.engine.stages import Reference, Stage
from tasks.language.files import metric_row
from tasks.language.specs import GenerationResults, ReportSpec, RunResults

# Of the artifacts made here; what they hold is the file's, which their keys name by its digest.
VERSION = 1


class Settings(BaseModel):
    """Of a whole run, as far as a configuration of ours can say them."""

    corpus: str
    model: str
    entities: int
    splits: int
    generations: int
    epochs: int
    batch: int
    length: int
    lr: float


class Line(Frozen):
    """One line of the file: one generation of one arm with one seed.

    Attributes:
        retention: by split. scores: question, document, split, log-probabilities of the true and the false answer.
        tokens, synthetic: read in training, and the part of them that a model wrote.
    """

    arm: str = Field(pattern=r"^(ce|tce-[0-9.]+)$")
    seed: int = Field(ge=0)
    generation: int = Field(ge=-1)
    retention: dict[int, float]
    questions: int
    perplexity: float
    seconds: float
    tokens: int
    synthetic: int
    scores: list[tuple[str, str, int, float, float]]
    settings: Settings


def import_results(store: ArtifactStore, file: Path, *, name: str | None = None) -> Experiment:
    """Every generation as an evaluation, a report on them, and the record of an experiment.

    M_-1, which the report does not show, is in the catalog with the others. The same file gives the same artifacts.

    Raises:
        DataError: the file is not there, a line is none of that program's, or a run has gaps.
    """
    if not file.is_file():
        raise DataError("file", str(file), "is no file; `examples/algorithm1.py --out FILE` writes one")
    content = file.read_bytes()
    lines = list(_lines(file, content))
    runs = _runs(file, lines)
    settings = lines[0].settings
    named = name or f"imported-{file.stem.lower().replace('_', '-')}"
    config = _config(named, settings, runs)
    digest = hashlib.sha256(content).hexdigest()
    stages: list[StageRecord] = []
    results: list[RunResults] = []
    labels = dict(zip(dict.fromkeys(arm for arm, _ in runs), config.arm_labels, strict=True))
    source = _commit(store, "source", {"imported": digest}, content, metrics={"note-0": _note(file)})
    for (arm, seed), generations in runs.items():
        found, before = [], None
        label = labels[arm]
        for line in generations:
            place = {"arm": arm, "seed": seed, "generation": line.generation}
            evaluation = _commit(store, "evaluation", {"imported": digest, **place}, line)
            stages.append(StageRecord("evaluation", evaluation.key, "evaluate", label, seed, line.generation))
            if line.generation < 0:
                before = evaluation
            else:
                found.append(
                    GenerationResults(
                        generation=line.generation,
                        train=evaluation,
                        regenerate={},
                        evaluate=evaluation,
                        drift=None,
                        benchmarks=(),
                    )
                )
        results.append(
            RunResults(arm=label, seed=seed, source=source, corpus=source, generations=tuple(found), before=before)
        )
    command = f"fortifai import {file.name}"
    report = Stage(ReportSpec(config=config.model_dump(mode="json"), command=command, runs=tuple(results)))
    build(report, store, Runtime(), progress=lambda *_: None)
    stages.insert(0, StageRecord("source", source.key, "source"))
    stages.append(StageRecord(report.kind, report.key, report.role))
    return record_experiment(store, config=config.model_dump(mode="json"), status="imported", stages=stages)


def _lines(file: Path, content: bytes) -> Iterator[Line]:
    for number, text in enumerate(content.decode(errors="replace").splitlines(), start=1):
        try:
            yield Line.model_validate(json.loads(text))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise DataError(f"{file}:{number}", place, f"{first['msg']}: no line of examples/algorithm1.py") from error
        except ValueError as error:
            raise DataError(f"{file}:{number}", text[:40], f"is no JSON ({error}): was the file cut off?") from error


def _runs(file: Path, lines: list[Line]) -> dict[tuple[str, int], list[Line]]:
    """The lines of each arm and seed, which all have the same generations and settings."""
    if not lines:
        raise DataError("file", str(file), "has no lines")
    runs: dict[tuple[str, int], list[Line]] = {}
    for line in lines:
        runs.setdefault((line.arm, line.seed), []).append(line)
    expected = list(range(-1, len(next(iter(runs.values()))) - 1))
    for (arm, seed), of_run in runs.items():
        generations = [line.generation for line in of_run]
        if generations != expected or len(expected) < 2:
            remedy = f"each run needs the generations {expected}, once and in order: is it finished?"
            raise DataError(str(file), f"{arm}, seed {seed}: generations {generations}", remedy)
    if len({arm for arm, _ in runs}) * len({seed for _, seed in runs}) != len(runs):
        raise DataError(str(file), sorted(runs), "every arm needs every seed")
    return runs


def _config(name: str, settings: Settings, runs: dict[tuple[str, int], list[Line]]) -> ExperimentConfig:
    """The experiment that was run, as far as a configuration can say it."""
    arms = list(dict.fromkeys(arm for arm, _ in runs))
    losses = [
        {"type": "cross-entropy"} if arm == "ce" else {"type": "tce", "gamma": float(arm.removeprefix("tce-"))}
        for arm in arms
    ]
    corpus: dict[str, Any] = {"type": "almanac", "entities": settings.entities, "facts": 4, "validation_entities": 8}
    if settings.corpus != "almanac":
        corpus = {"type": "huggingface", "dataset": "Salesforce/wikitext", "config": "wikitext-2-v1", "text": "raw"}
    training = {"epochs": settings.epochs, "learning_rate": settings.lr, "batch_size": settings.batch}
    config = validate(
        {
            "name": name,
            "corpus": corpus,
            "splits": settings.splits,
            "generations": settings.generations,
            "model": {"type": "pretrained", "path": settings.model or "random weights"},
            "losses": losses,
            "seeds": list(dict.fromkeys(seed for _, seed in runs)),
            "training": {**training, "sequence_length": settings.length},
            "evaluation": {"drift": False},
        }
    )
    assert isinstance(config, ExperimentConfig)
    return config


def _note(file: Path) -> str:
    return f"Imported from {file.name}: made by examples/algorithm1.py, perhaps on another machine than this report."


def _commit(
    store: ArtifactStore, kind: str, named: dict[str, Any], held: Line | bytes, *, metrics: Any = None
) -> Reference:
    """An artifact of what the file says, or of the file itself; found, where the same was imported before."""
    reference = Reference(kind, artifact_key(kind, version=VERSION, content=named))
    with store.build(*reference) as draft:
        if draft.found is None:
            if isinstance(held, Line):
                metrics = _write(draft.path, held)
            else:
                (draft.path / "results.jsonl").write_bytes(held)
            seconds = held.seconds if isinstance(held, Line) else 0.0
            draft.commit(stage_version=VERSION, content=named, metrics=metrics, seconds=seconds)
    return reference


def _write(folder: Path, line: Line) -> dict[str, float]:
    """scores.parquet and metrics.parquet, as an evaluation has them; the metrics of its manifest."""
    columns = ("question", "document", "split", "logp_true", "logp_false")
    scores: list[dict[str, Any]] = [
        {**dict(zip(columns, row, strict=True)), "correct": row[3] > row[4]} for row in line.scores
    ]
    if scores:
        parquet.write_table(folder / "scores.parquet", scores, schema="scores")
    asked = {split: sum(row[2] == split for row in line.scores) for split in line.retention}
    rows = [metric_row(f"kr-split-{k}", k, value, asked[k]) for k, value in line.retention.items()]
    if scores:
        total = sum(bool(row["correct"]) for row in scores) / len(scores)
        rows.append(metric_row("kr-total", None, total, len(scores)))
    rows.append(metric_row("perplexity-real", None, line.perplexity, 1))
    parquet.write_table(folder / "metrics.parquet", rows, schema="metrics")
    read = {"tokens-read": line.tokens, "tokens-synthetic": line.synthetic}
    return {row["metric"]: row["value"] for row in rows} | read
