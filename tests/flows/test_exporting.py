"""Exports: what leaves the store is what is in it, and opens without this software."""

from __future__ import annotations

import base64
import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from flows.load import load_experiment_config, validate
from flows.prepare import Prepared, prepare_experiment
from flows.tools.exporting import export_dataset, export_model, export_report
from flows.tools.kr_compare import compare, question_sets
from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.errors import InputError
from storage.sources.questions import write_questions
from storage.store.experiments import Experiment, StageRecord, load_experiment, record_experiment
from storage.store.store import ArtifactStore
from storage.tables.parquet import read_rows, write_table
from tasks.engine.build import build
from tasks.language.files import split_file

TINY = [
    "losses=[{type: tce, gamma: 0.8}]",
    "training.epochs=1",
    "model.pretraining_epochs=1",
    "evaluation.drift=false",
]


def prepared(store: Path, config: ExperimentConfig, *roles: str) -> Prepared:
    """An experiment in a store of its own, of which the stages of these roles are built; all in this process."""
    made = prepare_experiment(config, store=str(store))
    for stage in made.plan.stages():
        if stage.role in roles:
            build(stage, made.store, config.runtime, progress=lambda done, total, unit: None)
    return made


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """One arm of two generations, everything but the report."""
    roles = ("pretraining", "source", "tokenizer", "base", "corpus", "train", "regenerate", "evaluate")
    return prepared(tmp_path_factory.mktemp("exports"), load_experiment_config("smoke", TINY), *roles)


def artifact_path(run: Prepared, role: str, generation: int | None = None) -> Path:
    stage = next(s for s in run.plan.stages() if s.role == role and s.generation == generation)
    artifact = run.store.find(stage.kind, stage.key)
    assert artifact is not None
    return artifact.path


def as_asked(questions: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A store's questions as a file of one's own has them."""
    names = {"context": "context", "sentence_true": "true_answer", "sentence_false": "false_answer"}
    names["location"] = "document"
    return [{name: row[column] for name, column in names.items()} for row in questions]


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 9, 260, 31, 7]])).logits


@pytest.mark.parametrize(("generation", "role"), [(-1, "base"), (0, "train"), (1, "train")])
def test_an_exported_model_is_the_one_in_the_store(run: Prepared, tmp_path: Path, generation: int, role: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = tmp_path / "deep" / "model"
    made = export_model(run.store, "latest", arm="tce-0.8", seed=0, generation=generation, target=target)
    source = artifact_path(run, role, None if role == "base" else generation)
    torch.testing.assert_close(
        logits(AutoModelForCausalLM.from_pretrained(made)),
        logits(AutoModelForCausalLM.from_pretrained(source)),
        rtol=0,
        atol=0,
    )
    text = "The mayor of a town.\n"
    theirs, ours = (AutoTokenizer.from_pretrained(f) for f in (made, source / "tokenizer"))
    assert theirs(text)["input_ids"] == ours(text)["input_ids"]
    assert theirs.eos_token_id == ours.eos_token_id is not None
    assert not (made / "manifest.json").exists()
    assert list(target.parent.iterdir()) == [target]  # no temporary folder stays


def test_the_model_card_says_what_it_is_and_how_it_was_made(run: Prepared, tmp_path: Path) -> None:
    made = export_model(run.store, "latest", arm="tce-0.8", seed=0, generation=1, target=tmp_path / "model")
    card = (made / "README.md").read_text()
    assert artifact_path(run, "train", 1).name in card and run.record_id in card
    assert "kr-split-0" in card
    assert "- generation: 1\n" in card and "- loss: type tce, gamma 0.8" in card
    models = [artifact_path(run, role, at).name[:12] for role, at in (("base", None), ("train", 0), ("train", 1))]
    assert f"- lineage: base `{models[0]}` → M0 `{models[1]}` → M1 `{models[2]}`" in card
    # M_1 reads D_0^(1), which M_0 wrote, and the real D_1
    rewritten = read_rows(sorted(artifact_path(run, "regenerate", 0).glob("part-*.parquet")))
    real = read_rows(artifact_path(run, "corpus") / split_file(1))
    synthetic, whole = (sum(len(r["tokens"]) for r in rows) for rows in (rewritten, [*rewritten, *real]))
    assert f"{synthetic / whole:.1%} ({synthetic:,} of {whole:,} tokens)" in card
    head, body = card.removeprefix("---\n").split("---\n", maxsplit=1)
    assert yaml.safe_load(head)["library_name"] == "transformers"
    assert (
        ExperimentConfig.model_validate(yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])) == run.plan.config
    )


class Hub(BaseHTTPRequestHandler):
    """Stands in for the hub: makes repositories, and keeps what is committed to them."""

    asked: ClassVar[list[tuple[str, str, bytes]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.path, self.headers["Authorization"], body))
        host = f"http://{self.headers['Host']}"
        answer: dict[str, Any] = {"url": f"{host}/me/lost", "commitUrl": f"{host}/me/lost/commit/a", "commitOid": "a"}
        if "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            answer["files"] = [{"path": n, "uploadMode": "regular", "shouldIgnore": False, "oid": None} for n in names]
        self._answer(200, answer)

    def do_GET(self) -> None:
        self._answer(404, {"error": "no such thing"})

    def _answer(self, code: int, answer: dict[str, Any]) -> None:
        data = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *_: Any) -> None:
        pass


def export_with(run: Prepared, target: Path, endpoint: str, *, push: str) -> subprocess.CompletedProcess[str]:
    command = ["export", "model", str(target), "--arm", "tce-0.8", "--push-to-hub", push, "--store", run.store.url]
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_thetoken", "HF_HUB_OFFLINE": "0"}
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *command], capture_output=True, text=True, env=environment, check=False
    )


def test_an_export_is_put_on_a_hub_in_one_commit(run: Prepared, tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        Hub.asked.clear()
        done = export_with(run, tmp_path / "model", endpoint, push="me/lost")
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0 and f"{endpoint}/me/lost" in done.stdout.replace("\n", ""), done.stderr
    made = next(json.loads(body) for path, _, body in Hub.asked if path == "/api/repos/create")
    assert made["name"] == "lost" and made["visibility"] == "private"
    (commit,) = [body for path, _, body in Hub.asked if path == "/api/models/me/lost/commit/main"]
    lines = [json.loads(line) for line in commit.splitlines()]
    files = {
        line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
    }
    on_disk = {p.relative_to(tmp_path / "model").as_posix(): p.read_bytes() for p in (tmp_path / "model").rglob("*")}
    assert files == on_disk and {"README.md", "model.safetensors", "tokenizer.json"} <= set(files)
    assert {token for _, token, _ in Hub.asked} == {"Bearer hf_thetoken"}


def test_a_hub_that_does_not_answer_leaves_the_export(run: Prepared, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = export_with(run, tmp_path / "model", f"http://127.0.0.1:{port}", push="me/lost")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "has everything" in done.stderr, done.stderr
    assert (tmp_path / "model" / "README.md").is_file() and "hf_thetoken" not in done.stderr


@pytest.mark.parametrize("name", ["lost", "a/b/c", "me/", "me/lo st"])
def test_a_wrong_name_of_a_repository_is_refused(name: str) -> None:
    from storage.sources.hub_upload import check_upload

    with pytest.raises(InputError, match="OWNER/NAME"):
        check_upload(name)


def test_a_lora_adapter_is_merged_into_its_base(run: Prepared, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from storage.tables.models import load_model

    base = export_model(run.store, run.record_id, arm="", seed=0, generation=-1, target=tmp_path / "base")
    model = f"model={{type: pretrained, path: '{base}', lora: {{rank: 4, alpha: 8}}}}"
    config = load_experiment_config(
        "smoke", [*TINY, model, "generations=1", "name=adapted", "training.learning_rate=0.05"]
    )
    adapted = prepared(tmp_path / "store", config, "source", "tokenizer", "base", "corpus", "train")
    made = export_model(adapted.store, "adapted", arm="tce-0.8", seed=0, generation=0, target=tmp_path / "merged")
    assert not list(made.rglob("adapter*"))
    merged = logits(AutoModelForCausalLM.from_pretrained(made))
    original = load_model(artifact_path(adapted, "train", 0), base=artifact_path(adapted, "base"))
    torch.testing.assert_close(merged, logits(original), rtol=1e-4, atol=1e-4)
    plain = logits(AutoModelForCausalLM.from_pretrained(artifact_path(adapted, "base")))
    assert (merged - plain).abs().max() > 1e-2  # the adapter does something


def test_an_exported_dataset_is_the_text_that_the_model_read(run: Prepared, tmp_path: Path) -> None:
    from datasets import load_dataset

    made = export_dataset(run.store, "smoke", arm="tce-0.8", seed=0, generation=1, target=tmp_path / "data set")
    rows = load_dataset(str(made), cache_dir=str(tmp_path / "cache"))["train"].to_list()
    assert set(rows[0]) == {"document", "split", "version", "text", "tokens"}
    rewritten = read_rows(sorted(artifact_path(run, "regenerate", 0).glob("part-*.parquet")))
    real = read_rows(artifact_path(run, "corpus") / split_file(1))
    expected = [(0, 1, r["document"], r["text"], r["tokens"]) for r in rewritten]
    expected += [(1, 0, r["document"], r["text"], r["tokens"]) for r in real]
    assert [(r["split"], r["version"], r["document"], r["text"], r["tokens"]) for r in rows] == expected
    card = (made / "README.md").read_text()
    assert f"| 0 | 1 | {len(rewritten)} | {sum(len(r['tokens']) for r in rewritten)} |" in card


def test_a_generation_that_read_a_sample_says_so(run: Prepared, tmp_path: Path) -> None:
    config = load_experiment_config("smoke", [*TINY, "regime=accumulate-subsample", "name=sampled"])
    shared = {"pretraining", "source", "tokenizer", "base", "corpus", "train", "regenerate"}
    sampled = prepared(run.store.root, config, *shared)
    made = export_dataset(sampled.store, "sampled", arm="tce-0.8", seed=0, generation=1, target=tmp_path / "data")
    assert [p.name for p in sorted((made / "data").iterdir())] == [
        "00000-split-0-version-0.parquet",
        "00001-split-0-version-1.parquet",
    ]
    assert "random sample" in (made / "README.md").read_text()


ARMS = [
    {"name": "paper"},
    {"name": "old", "regime": "accumulate"},
    {"name": "half", "mixture": {"synthetic": 0.5, "real": "original"}},
    {"name": "narrow", "model": {"hidden_size": 16}, "loss": {"type": "tce", "gamma": 0.9}},
]


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Named arms that read different text, one from a base model of its own; M_1 of each, on what M_0 rewrote."""
    small = load_experiment_config("smoke", [*TINY[1:], "name=arms"]).model_dump(mode="json")
    config = validate({**small, "losses": [{"type": "cross-entropy"}], "arms": ARMS})
    assert isinstance(config, ExperimentConfig)
    roles = ("pretraining", "source", "tokenizer", "base", "corpus", "train", "regenerate")
    return prepared(tmp_path_factory.mktemp("arms"), config, *roles)


@pytest.mark.parametrize(
    ("arm", "read", "note"),
    [
        ("paper", ["split-0-version-1", "split-1-version-0"], ""),
        ("old", ["split-0-version-0", "split-0-version-1"], ""),
        (
            "half",
            ["split-0-version-1", "split-0-version-0"],
            "the model read a random share: 0.5 of version 1 of split 0, 0.5 of version 0 of split 0",
        ),
    ],
)
def test_the_exported_text_is_that_of_the_arm(
    arms: Prepared, tmp_path: Path, arm: str, read: list[str], note: str
) -> None:
    made = export_dataset(arms.store, "arms", arm=arm, seed=0, generation=1, target=tmp_path / "data")
    files = sorted((made / "data").iterdir())
    assert [path.stem.partition("-")[2] for path in files] == read
    card = (made / "README.md").read_text()
    assert note in card and ("random" in card) == bool(note)


def test_questions_are_asked_of_what_an_arm_has_read(arms: Prepared, tmp_path: Path) -> None:
    """Generation 1 of `paper` has read two splits, that of `old` one."""
    write_questions(tmp_path / "own.json", as_asked(read_rows(artifact_path(arms, "corpus") / "questions.parquet")))
    found = compare(arms.store, load_experiment(arms.store, "arms"), [tmp_path / "own.json"], draws=100)
    asked = {row["arm"]: row["questions"] for row in found.rows if row["generation"] == 1}
    assert asked["old"] == asked["half"] < asked["paper"]


def test_the_base_model_and_the_lineage_are_the_arms_own(arms: Prepared, tmp_path: Path) -> None:
    base = export_model(arms.store, "arms", arm="narrow", seed=0, generation=-1, target=tmp_path / "base")
    assert json.loads((base / "config.json").read_text())["hidden_size"] == 16
    made = export_model(arms.store, "arms", arm="narrow", seed=0, generation=1, target=tmp_path / "model")
    card = (made / "README.md").read_text()
    lineage = next(line for line in card.splitlines() if line.startswith("- lineage"))
    trained = [stage.key[:12] for g in arms.plan.run("narrow", 0).generations for stage in [g.train]]
    started = arms.plan.run("narrow", 0).generations[0].train.parents["model"].key[:12]
    assert lineage == f"- lineage: base `{started}` → M0 `{trained[0]}` → M1 `{trained[1]}`"
    assert "- loss: type tce, gamma 0.9" in card


@pytest.mark.parametrize("export", [export_model, export_dataset])
@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"experiment": "nothing"}, r"experiment = 'nothing'.*smoke-"),
        ({"arm": "tce-0.9"}, r"--arm = 'tce-0\.9': smoke-\w+ has tce-0\.8$"),
        ({"seed": 4}, r"--seed = 4: smoke-\w+ has 0$"),
        ({"generation": 2}, r"--generation = 2: smoke-\w+ has 0, 1 \(and -1, the base model\)"),
    ],
)
def test_a_wrong_choice_is_answered_with_what_there_is(
    run: Prepared, tmp_path: Path, export: Callable[..., Path], choice: dict[str, Any], message: str
) -> None:
    asked: dict[str, Any] = {"experiment": run.record_id, "arm": "tce-0.8", "seed": 0, "generation": 0} | choice
    with pytest.raises(InputError, match=message):
        export(run.store, asked.pop("experiment"), **asked, target=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_base_model_has_no_text_of_its_own(run: Prepared, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--generation"):
        export_dataset(run.store, run.record_id, arm="tce-0.8", seed=0, generation=-1, target=tmp_path / "x")


@pytest.mark.parametrize("export", [export_model, export_dataset])
def test_nothing_is_overwritten(run: Prepared, tmp_path: Path, export: Callable[..., Path]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    with pytest.raises(InputError, match="is there already"):
        export(run.store, run.record_id, arm="tce-0.8", seed=0, generation=0, target=tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["file"]


def test_a_place_that_cannot_be_written_is_named(run: Prepared, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"target = .*file/model': cannot be written"):
        export_model(run.store, run.record_id, arm="tce-0.8", seed=0, generation=0, target=tmp_path / "file" / "model")


def test_an_artifact_that_is_gone_names_the_command_that_builds_it(run: Prepared, tmp_path: Path) -> None:
    shutil.copytree(run.store.root, tmp_path / "store")
    store = ArtifactStore(tmp_path / "store")
    shutil.rmtree(store.root / "artifacts" / "split")
    with pytest.raises(InputError, match=rf"`fortifai resume {run.record_id} --store {store.url}` builds it"):
        export_dataset(store, run.record_id, arm="tce-0.8", seed=0, generation=1, target=tmp_path / "x")
    # what does not need it can still be exported
    assert export_dataset(store, run.record_id, arm="tce-0.8", seed=0, generation=0, target=tmp_path / "x").is_dir()


def test_a_failure_leaves_nothing_behind(run: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("half way")

    monkeypatch.setattr("flows.tools.exporting._model_card", fail)
    with pytest.raises(RuntimeError, match="half way"):
        export_model(run.store, run.record_id, arm="tce-0.8", seed=0, generation=0, target=tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_the_engines_are_timed_on_what_an_experiment_made(run: Prepared) -> None:
    from flows.bench.experiment import bench_experiment
    from storage.store.experiments import load_experiment

    record = load_experiment(run.store, "latest")
    rows = bench_experiment(run.store, record, generations=[1], repeats=1, tokens=100)
    engines = ["aligned, document", "aligned, cut", "reference, document", "reference, cut"]
    assert [row["what"] for row in rows][:4] == engines
    assert [row["what"].partition(",")[0] for row in rows][4:] == [
        "(b) generate", "(c) continuous batching", "bound: one forward pass"
    ]  # fmt: skip
    assert "M_1 on D0^(1)" in rows[0]["task"]  # what M_1 trained on, not the real text
    ours, reference = rows[1], rows[3]
    assert ours["times"]["reference, cut"] == ours["tokens_per_second"] / reference["tokens_per_second"]
    assert 0 <= ours["acceptance"] <= 1 and reference["acceptance"] is None
    with pytest.raises(InputError, match="generation"):
        bench_experiment(run.store, record, generations=[7])


def built_report(run: Prepared) -> Experiment:
    stage = run.plan.report()
    build(stage, run.store, run.plan.config.runtime, progress=lambda done, total, unit: None)
    return load_experiment(run.store, run.record_id)


def test_a_report_leaves_the_store_with_its_figures_and_every_table_in_two_forms(run: Prepared, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    target = export_report(run.store, built_report(run), target=tmp_path / "report")
    assert (target / "report.html").read_text().startswith("<!DOCTYPE html>")
    stems = {path.stem for path in (target / "tables").glob("*.csv")}
    assert {"results", "questions", "mutation", "time-to-failure", "quoted"} <= stems
    for stem in stems:
        with (target / "tables" / f"{stem}.csv").open(newline="") as file:
            header, *rows = list(csv.reader(file))
        table = pq.read_table(target / "tables" / f"{stem}.parquet")
        assert table.column_names == header
        assert [["" if v is None else str(v) for v in row.values()] for row in table.to_pylist()] == rows
    for path in (target / "figures").glob("*.svg"):
        assert path.with_suffix(".png").is_file() or path.stem.startswith("survival-strip-")
    assert (target / "figures" / "survival-strip.png").is_file()
    with pytest.raises(InputError, match="is there already"):
        export_report(run.store, load_experiment(run.store, run.record_id), target=target)


def test_the_reports_paragraph_is_the_first_document_that_is_asked_about(run: Prepared, tmp_path: Path) -> None:
    folder = export_report(run.store, built_report(run), target=tmp_path / "report")
    with (folder / "tables" / "mutation.csv").open(newline="") as file:
        real, written, *_ = csv.DictReader(file)
    corpus = artifact_path(run, "corpus")
    asked = {row["document"] for row in read_rows(corpus / "questions.parquet") if row["split"] == 0}
    first = next(row for row in read_rows(corpus / split_file(0)) if row["document"] in asked)
    assert (real["document"], real["text"], real["true"]) == (first["document"], first["text"], "3")
    rewritten = {
        row["document"]: row["text"] for row in read_rows(sorted(artifact_path(run, "regenerate", 0).glob("part-*")))
    }
    assert written["text"] == rewritten[first["document"]] and written["writer"] == "0"


def test_an_experiment_without_questions_is_compared_with_two_files(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with store.build("corpus", "c" * 64) as draft:
        text = {"document": "d", "position": 0, "text": "a b", "tokens": [1, 2], "kept": 2}
        write_table(draft.path / split_file(0), [text], schema="split-text")
        draft.commit(stage_version=1, content={})
    record = record_experiment(store, config=ExperimentConfig(name="bare").model_dump(mode="json"), status="finished")
    train = StageRecord("model", "m" * 64, "train", parents={"corpus": "c" * 64})
    with pytest.raises(InputError, match="has no questions of its own: give two files") as caught:
        question_sets(store, record, train, [tmp_path / "mine.json"])
    assert caught.value.field == "--questions"


def test_the_same_questions_from_a_file_are_answered_alike(run: Prepared, tmp_path: Path) -> None:
    own = read_rows(artifact_path(run, "corpus") / "questions.parquet")
    rows = as_asked(own)
    path = tmp_path / "again.json"
    write_questions(path, [*rows, {**rows[0], "location": "somebody-else"}])
    found = compare(run.store, load_experiment(run.store, run.record_id), [path], draws=100)
    assert [one["questions"] for one in found.sets] == [len(own), len(own)], "what is in no split is left out"
    for mine, theirs in zip(found.rows[::2], found.rows[1::2], strict=True):
        assert {**mine, "set": ""} == {**theirs, "set": ""}
    evaluation = run.store.find(*next(s.reference for s in run.plan.stages() if s.role == "evaluate"))
    assert evaluation is not None
    assert found.rows[0]["split_0"] == pytest.approx(evaluation.manifest.metrics["kr-split-0"])
    each = found.agreements[-1]
    assert each.level == "each split" and each.points == 3 and each.pearson.estimate == pytest.approx(1)
