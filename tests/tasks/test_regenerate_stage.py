"""The stage that rewrites a split, with either engine: part-files, what it measures, and going on after a crash."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterTaskRunId
from transformers import LlamaConfig, LlamaForCausalLM

from flows.load import load_experiment_config
from fortifai_core.config.stages import Regeneration, Runtime
from fortifai_core.corpus.tokenization import train_tokenizer
from storage.store.keys import artifact_key
from storage.store.store import Artifact, ArtifactStore
from storage.tables import parquet
from tasks.engine import prefect_tasks
from tasks.engine.build import build
from tasks.engine.session import Circumstances, Session, session
from tasks.engine.stages import Reference, Stage
from tasks.language.specs import RegenerateSpec, VersionedText

TEXT = "The town of Ardenlith was founded in 1340, and its river is called the Senn. "
# 50 tokens a part: the documents below make several
RUNTIME = Runtime(shard_blocks=5)


@pytest.fixture
def parents(tmp_path: Path) -> tuple[ArtifactStore, dict[str, Reference]]:
    """A store with a tiny random model and a corpus of one split."""
    store = ArtifactStore(tmp_path / "store")
    tokenizer = train_tokenizer([TEXT] * 4, vocabulary=300)
    model, corpus = (
        Reference(kind, artifact_key(kind, version=1, content={"test": "tiny"})) for kind in ("model", "corpus")
    )
    with store.build(*model) as draft:
        torch.manual_seed(0)
        shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
        shape |= {"num_attention_heads": 2, "vocab_size": 300, "initializer_range": 0.3}
        LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(draft.path)
        tokenizer.save_pretrained(draft.path / "tokenizer")
        draft.commit(stage_version=1, content={}, parents={})
    with store.build(*corpus) as draft:
        rows = []
        for number in range(6):
            text = TEXT * (number + 1)
            tokens = tokenizer(text)["input_ids"][: 9 * number + 5]
            rows.append({"document": f"d{number}", "position": number, "text": text, "tokens": tokens})
            rows[-1]["kept"] = len(tokens)
        parquet.write_table(draft.path / "split-00000.parquet", rows, schema="split-text")
        draft.commit(stage_version=1, content={}, parents={})
    return store, {"model": model, "corpus": corpus}


def rewriting(parents: dict[str, Reference], **options: Any) -> Stage:
    config = Regeneration(
        block_tokens=10, context_tokens=12, head_tokens=4, context="document", decoding="sample", **options
    )
    return Stage(
        RegenerateSpec(regeneration=config, seed=0, generation=0, base=None, text=VersionedText(0, 0), **parents)
    )


def rows_of(artifact: Artifact) -> list[dict[str, Any]]:
    return parquet.read_rows(artifact.files("part-*.parquet"))


def test_both_engines_make_the_same_text_and_say_what_each_token_is(
    parents: tuple[ArtifactStore, dict[str, Reference]],
) -> None:
    store, stages = parents
    told: dict[str, list[tuple[int, int, str]]] = {"reference": [], "aligned": []}
    made = {
        engine: build(rewriting(stages, engine=engine), store, RUNTIME, progress=lambda *one, to=said: to.append(one))[
            0
        ]
        for engine, said in told.items()
    }
    texts = {engine: rows_of(artifact) for engine, artifact in made.items()}
    assert [r["tokens"] for r in texts["aligned"]] == [r["tokens"] for r in texts["reference"]]
    assert len(made["aligned"].files("part-*.parquet")) > 1
    corpus = store.find(*stages["corpus"])
    assert corpus is not None
    old = parquet.read_rows(corpus.file("split-00000.parquet"))
    for before, row in zip(old, texts["aligned"], strict=True):
        assert row["same"] == [a == b for a, b in zip(before["tokens"], row["tokens"], strict=True)]
        assert row["kept"] == sum(row["same"]) and row["accepted"] <= row["kept"]
    assert {row["accepted"] for row in texts["reference"]} == {None}
    metrics = made["aligned"].manifest.metrics
    rewritten = sum(len(row["tokens"]) - 4 for row in old)
    assert metrics["acceptance"] == sum(row["accepted"] for row in texts["aligned"]) / rewritten
    assert metrics["tokens-per-second"] > 0
    assert "acceptance" not in made["reference"].manifest.metrics
    total = sum(len(row["tokens"]) for row in old)
    assert {said[-1][:2] for said in told.values()} == {(total, total)}
    ending = re.fullmatch(r"tokens, ([\d,]+) a second, acceptance (\d+)%", told["aligned"][-1][2])
    assert ending and int(ending[2]) == round(100 * metrics["acceptance"])
    assert int(ending[1].replace(",", "")) == pytest.approx(metrics["tokens-per-second"], rel=0.2, abs=1)
    assert re.fullmatch(r"tokens, [\d,]+ a second", told["reference"][-1][2]), "it has no drafts to accept"


def test_a_crash_loses_one_part_and_the_rest_comes_out_the_same(
    parents: tuple[ArtifactStore, dict[str, Reference]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, stages = parents
    wanted = rewriting(stages, engine="aligned")
    write, written = parquet.write_table, []

    def failing(path: Path, *args: Any, **kwargs: Any) -> int:
        if len(written) == 2:
            raise OSError("the power is cut")
        written.append(Path(path).name)
        return write(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(parquet, "write_table", failing)
        with pytest.raises(OSError, match="power"):
            build(wanted, store, RUNTIME, progress=lambda *_: None)
    after: list[str] = []

    def counting(path: Path, *args: Any, **kwargs: Any) -> int:
        after.append(Path(path).name)
        return write(path, *args, **kwargs)

    monkeypatch.setattr(parquet, "write_table", counting)
    resumed, found = build(wanted, store, RUNTIME, progress=lambda *_: None)
    assert not found and not set(written) & set(after), "finished parts are not made again"
    reference, _ = build(rewriting(stages, engine="reference"), store, RUNTIME, progress=lambda *_: None)
    assert [r["tokens"] for r in rows_of(resumed)] == [r["tokens"] for r in rows_of(reference)]


def test_what_earlier_attempts_made_is_no_pace_of_this_one(parents: tuple[ArtifactStore, dict[str, Reference]]) -> None:
    """Going on after a crash, the first word says how much is there, and speed counts what is made now."""
    store, stages = parents
    wanted = rewriting(stages, engine="aligned")
    said: list[tuple[int, str]] = []

    def dying(done: int, total: int, unit: str) -> None:
        if done == total:
            raise OSError("the power is cut")
        said.append((done, unit))

    with pytest.raises(OSError, match="power"):
        build(wanted, store, RUNTIME, progress=dying)
    finished, _ = said[-1]
    said.clear()
    build(wanted, store, RUNTIME, progress=lambda done, total, unit: said.append((done, unit)))
    assert finished > 0 and said[0] == (finished, "tokens")
    assert len(said) > 1 and all("a second" in unit for _, unit in said[1:])


class Here:
    """Stands in for the pool of workers: builds in a thread of this process, and waits until it has been watched."""

    def __init__(self, store: ArtifactStore, *, published: threading.Event) -> None:
        self.store, self.published = store, published

    def has_begun(self, stage: Stage) -> bool:
        return False

    async def build(self, stage: Stage, on_progress: Callable[[int, int, str], None]) -> dict[str, Any]:
        loop = asyncio.get_running_loop()

        def progress(done: int, total: int, unit: str) -> None:
            self.published.clear()
            loop.call_soon_threadsafe(on_progress, done, total, unit)
            assert self.published.wait(60)

        artifact, found = await asyncio.to_thread(build, stage, self.store, Runtime(shard_blocks=1), progress=progress)
        return {"found": found, "metrics": artifact.manifest.metrics, "seconds": artifact.manifest.seconds}


class Silent:
    """A reporter without a terminal."""

    def started(self, stage: Stage) -> None: ...

    def progressed(self, stage: Stage, done: int, total: int, unit: str) -> None: ...

    def finished(self, stage: Stage, *, found: bool, seconds: float) -> None: ...

    def noted(self, message: str) -> None: ...


@pytest.mark.usefixtures("prefect_server")
def test_the_ui_shows_speed_acceptance_and_the_time_left_while_a_split_is_rewritten(
    parents: tuple[ArtifactStore, dict[str, Reference]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, stages = parents
    wanted = rewriting(stages, engine="aligned")
    monkeypatch.setattr(prefect_tasks, "PROGRESS_EVERY_SECONDS", 0.05)
    texts: list[tuple[float, str]] = []
    published = threading.Event()
    create, update = prefect_tasks.acreate_progress_artifact, prefect_tasks.aupdate_progress_artifact

    async def creating(progress: float, *, description: str) -> Any:
        made = await create(progress, description=description)
        published.set()
        return made

    async def noting(artifact: Any, progress: float, *, description: str) -> Any:
        made = await update(artifact, progress, description=description)
        texts.append((progress, description))
        published.set()
        return made

    monkeypatch.setattr(prefect_tasks, "acreate_progress_artifact", creating)
    monkeypatch.setattr(prefect_tasks, "aupdate_progress_artifact", noting)

    @flow
    async def rewrite() -> Any:
        task = await prefect_tasks.regenerate(wanted, return_state=True)
        async with get_client() as client:
            of_task = ArtifactFilter(task_run_id=ArtifactFilterTaskRunId(any_=[task.state_details.task_run_id]))
            return await client.read_artifacts(artifact_filter=of_task)

    pool: Any = Here(store, published=published)
    plan: Any = None  # of which a single stage reads nothing
    with session(Session(plan, store, pool, Silent(), Circumstances(threads=1))):
        artifacts = asyncio.run(rewrite())
    total = sum(9 * number + 5 for number in range(6))
    under_way = re.compile(
        rf"regenerate \(shared\): (\d+) of {total} tokens, [\d,]+ a second, acceptance \d+%, (?:\d+ min )?[\d.]+ s left"
    )
    told = [(percent, match) for percent, text in texts if (match := under_way.fullmatch(text))]
    assert told and all(percent == pytest.approx(100 * int(match[1]) / total) for percent, match in told)
    (artifact,) = artifacts
    assert (artifact.type, artifact.data) == ("progress", 100.0)
    assert re.fullmatch(
        rf"regenerate \(shared\): finished, {total} tokens, [\d,]+ a second, acceptance \d+%", artifact.description
    )


BEAMS = ["regeneration.engine=aligned", "regeneration.decoding=beam"]
SAID = "regeneration.engine = 'aligned': beams are decoded by the reference engine; for the speed of `aligned` set"


def test_the_terminal_says_once_that_beams_are_not_aligned(tmp_path: Path) -> None:
    options = [word for override in BEAMS for word in ("--set", override)]
    command = [sys.executable, "-m", "flows.cli", "plan", "smoke", *options, "--store", str(tmp_path / "store")]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = [line for line in ended.stderr.splitlines() if "beams" in line]
    assert line.startswith(f"fortifai: {SAID}")


def test_a_run_under_a_server_says_so_in_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import experiment as flow
    from flows.recursive import recursive_training

    notes: list[str] = []

    class Log(Silent):
        def noted(self, message: str) -> None:
            notes.append(message)

    async def nothing(*_: Any, **__: Any) -> dict[str, Any]:
        return {}

    monkeypatch.setattr(flow, "LogReporter", Log)
    monkeypatch.setattr(flow, "prepare_experiment", lambda *_, **__: None)
    monkeypatch.setattr(flow, "workers", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(flow, "run_prepared", nothing)
    for overrides in ([], BEAMS):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            experiment = load_experiment_config("smoke", overrides)
        asyncio.run(recursive_training.fn(experiment, generations=1, seeds=None, store=None, refresh=None))
    (note,) = notes
    assert note.startswith(f"warning: {SAID}")
