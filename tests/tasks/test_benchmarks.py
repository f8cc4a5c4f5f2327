"""Benchmarks: the mirror builds the requests of lm-eval's own definitions, and item scores are kept and findable."""

from __future__ import annotations

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from flows.load import benchmark_overrides, load_experiment_config
from fortifai_core.config.stages import Runtime
from fortifai_core.corpus.documents import Question
from fortifai_core.corpus.tokenization import train_tokenizer
from fortifai_core.errors import ConfigError
from fortifai_core.measures.retention import score_questions
from storage.catalog.catalog import query
from storage.sources.hub import Rows
from storage.store.keys import artifact_key
from storage.store.store import ArtifactStore
from tasks.engine.build import build
from tasks.engine.stages import Reference, Stage
from tasks.language.benchmark_data import describe, known
from tasks.language.benchmarks import item_rows, load_tasks, metric_rows, score_choices
from tasks.language.specs import BenchmarkCheckSpec, BenchmarkSpec, BenchmarkTask

MIRROR = os.environ.get("FORTIFAI_DATA", "")
needs_mirror = pytest.mark.skipif(not MIRROR, reason="compares with the data of the local mirror: set FORTIFAI_DATA")


def read(path: str) -> list[dict[str, Any]]:
    """Rows of a file of the mirror, read without any of our code."""
    with gzip.open(Path(MIRROR) / path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def as_on_the_hub(path: str, name: str | None = None, **_: Any) -> Any:
    """What `datasets.load_dataset` gives for the stock definitions: the same rows in the hub's own format."""
    from datasets import Dataset

    match path:
        case "nyu-mll/blimp":
            return {"train": Dataset.from_list(read(f"blimp/{name}.jsonl.gz"))}
        case "Rowan/hellaswag":
            rows = read("hellaswag/validation_original_subset1000.jsonl.gz")
            items = [{**row, "label": str(row["label"])} for row in rows]  # the hub has labels as text
            return {"train": Dataset.from_list(items[:1]), "validation": Dataset.from_list(items)}
        case "openai/gsm8k":
            assert name == "main"
            return {split: Dataset.from_list(read(f"gsm8k/{split}.jsonl.gz")) for split in ("train", "test")}
    raise AssertionError(path)


def requests_of(tasks: dict[str, Any], limit: int | None) -> dict[str, Any]:
    result = {}
    for name, task in tasks.items():
        task.build_all_requests(limit=limit)
        measured = [task.config.metric_list, task.config.filter_list, task.VERSION, task.OUTPUT_TYPE]
        result[name] = ([(r.request_type, r.doc_id, r.idx, r.args) for r in task.instances], measured)
    return result


@needs_mirror
@pytest.mark.parametrize(
    ("benchmark", "limit", "items"),
    [
        ("hellaswag", None, 1000),
        ("gsm8k", 40, 40),
        ("blimp", 1, 67),
        pytest.param("blimp", 100, 6_700, marks=pytest.mark.long),  # of all 67 files; whole it takes five minutes
        pytest.param("gsm8k", None, 1319, marks=pytest.mark.long),
    ],
)
def test_mirror_and_stock_definitions_build_identical_requests(
    benchmark: str, limit: int | None, items: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    ours = requests_of(load_tasks(benchmark, fewshot=None, folder=tmp_path), limit)
    monkeypatch.delenv("FORTIFAI_DATA")
    monkeypatch.setattr(datasets, "load_dataset", as_on_the_hub)
    stock = requests_of(load_tasks(benchmark, fewshot=None, folder=tmp_path / "unused"), limit)
    assert not (tmp_path / "unused").exists()
    assert ours == stock
    assert sum(len({doc for _, doc, _, _ in requests}) for requests, _ in ours.values()) == items


@needs_mirror
def test_gsm8k_shows_five_worked_examples_and_hellaswag_text_asks_the_converted_text(tmp_path: Path) -> None:
    [prompt] = requests_of(load_tasks("gsm8k", fewshot=None, folder=tmp_path / "a"), 1)["gsm8k"][0]
    assert prompt[3][0].count("Question: ") == 6
    requests = requests_of(load_tasks("hellaswag_text", fewshot=None, folder=tmp_path / "b"), 2)["hellaswag_text"][0]
    rows = read("hellaswag/validation_from_text.jsonl.gz")[:2]
    assert [r[3] for r in requests] == [(row["query"], f" {ending}") for row in rows for ending in row["endings"]]


@needs_mirror
def test_versions_and_data_stand_in_the_key() -> None:
    blimp = describe("blimp", fewshot=None)
    assert blimp["version"] == "1.0" and len(blimp["data"]) == 67
    assert describe("gsm8k", fewshot=None)["version"] == "3.0"
    # examples come from the train split: without any, it is not read
    assert set(describe("gsm8k", fewshot=0)["data"]) == {"gsm8k.mirror.test"}
    assert set(describe("gsm8k", fewshot=None)["data"]) == {"gsm8k.mirror.test", "gsm8k.mirror.train"}


def test_a_benchmark_without_examples_shows_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORTIFAI_DATA", str(tmp_path))
    with pytest.raises(ConfigError, match=r"benchmark_fewshot\.blimp.*use 0"):
        describe("blimp", fewshot=2)


def test_the_text_conversion_is_no_benchmark_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORTIFAI_DATA", raising=False)
    with pytest.raises(ConfigError, match="use hellaswag"):
        describe("hellaswag_text", fewshot=None)


# ------------------------------------------------------------------------------------- with made-up items

WORDS = (
    "the a king queen smith built found saw old new bridge tower in of and 3 7 12 plus is makes Question Answer".split()
)
QUESTIONS = [
    {"question": f"What is {n} plus 7?", "answer": f"{n} plus 7 makes {n + 7}\n#### {n + 7}"} for n in range(40)
]
HELLASWAG = [
    {"row": i, "query": f"the king saw {i}", "endings": ["a", "b", "c", "the tower"], "label": i % 4} for i in range(9)
]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Few and short items in place of the mirror's."""
    monkeypatch.setenv("FORTIFAI_DATA", str(tmp_path))

    def rows(dataset: str, *_: Any, **__: Any) -> Rows:
        return Rows(QUESTIONS if dataset == "openai/gsm8k" else HELLASWAG)

    monkeypatch.setattr("tasks.language.benchmark_data.hub.load_dataset_rows", rows)


def make_tokenizer() -> Any:
    return train_tokenizer([" ".join(WORDS) * 3, *(q["question"] + q["answer"] for q in QUESTIONS)], vocabulary=320)


def make_model(vocabulary: int, seed: int = 0, window: int = 512) -> Any:
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=vocabulary, max_position_embeddings=window, initializer_range=0.5,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, **shape,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def commit(store: ArtifactStore, kind: str, name: str, *parts: Any) -> Reference:
    """An artifact that the test makes by hand, of a tokenizer or of a model with one."""
    reference = Reference(kind, artifact_key(kind, version=1, content={"test": name}))
    with store.build(*reference) as draft:
        if draft.found is None:
            for part in parts:
                is_tokenizer = not hasattr(part, "forward")
                part.save_pretrained(draft.path / "tokenizer" if is_tokenizer and len(parts) > 1 else draft.path)
            draft.commit(stage_version=1, content={}, parents={})
    return reference


def check_stage(store: ArtifactStore, fewshot: int | None, window: int) -> Stage:
    tokenizer = commit(store, "tokenizer", "words", make_tokenizer())
    task = BenchmarkTask("gsm8k", 5, fewshot, {})
    return Stage(BenchmarkCheckSpec(task=task, window=window, tokenizer=tokenizer, base=None))


@pytest.mark.usefixtures("made_up")
def test_examples_that_do_not_fit_are_refused_with_the_largest_number_that_does(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    progress = lambda *_: None  # noqa: E731
    with pytest.raises(
        ConfigError, match=r"evaluation\.benchmark_fewshot\.gsm8k = 5.*largest number that fits is (\d)"
    ) as e:
        build(check_stage(store, None, 400), store, Runtime(), progress=progress)
    fits = int(str(e.value).rpartition("=")[2])
    assert 0 < fits < 5
    build(check_stage(store, fits, 400), store, Runtime(), progress=progress)
    with pytest.raises(ConfigError, match=f"largest number that fits is {fits};"):
        build(check_stage(store, fits + 1, 400), store, Runtime(), progress=progress)
    # an answer of 256 tokens has no room, whatever is shown
    with pytest.raises(ConfigError, match=r"may take 256 tokens.*model\.max_positions"):
        build(check_stage(store, 0, 256), store, Runtime(), progress=progress)
    artifact, _ = build(check_stage(store, 0, 257), store, Runtime(), progress=progress)
    assert artifact.manifest.metrics["tasks"] == 1


@pytest.mark.usefixtures("made_up")
def test_requests_that_lm_eval_cuts_are_counted(tmp_path: Path) -> None:
    store, tokenizer = ArtifactStore(tmp_path / "store"), make_tokenizer()
    counts = {}
    for window in (4, 64):
        made = make_model(len(tokenizer), window=window)
        model = commit(store, "model", f"window {window}", made, tokenizer)
        one = Stage(BenchmarkSpec(task=BenchmarkTask("hellaswag_text", 3, None, {}), model=model, base=None))
        artifact, _ = build(one, store, Runtime(), progress=lambda *_: None)
        counts[window] = artifact.manifest.metrics["requests-cut"]
    assert counts[64] == 0 and 0 < int(counts[4]) <= 3 * 4


@pytest.mark.usefixtures("made_up")
def test_item_scores_are_kept_and_in_the_catalog_and_of_this_model_alone(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    tokenizer = make_tokenizer()
    answers = []
    for seed in (0, 1):
        model = commit(store, "model", f"seed {seed}", make_model(len(tokenizer), seed), tokenizer)
        task = BenchmarkTask("hellaswag_text", 7, None, {"version": "1.0", "data": {}})
        one = Stage(BenchmarkSpec(task=task, model=model, base=None))
        artifact, found = build(one, store, Runtime(), progress=lambda *_: None)
        assert not found and artifact.manifest.metrics["items"] == 7
        sql = f"SELECT metric, count(*), avg(value) FROM benchmark_items WHERE key = '{one.key}' GROUP BY 1 ORDER BY 1"
        rows = query(store, sql)[1]
        assert [row[:2] for row in rows] == [("acc", 7), ("acc_norm", 7)]
        scores = dict(query(store, f"SELECT metric, value FROM metrics WHERE key = '{one.key}'")[1])
        assert scores == {f"hellaswag_text:{metric}": pytest.approx(mean) for metric, _, mean in rows}
        answers.append(query(store, f"SELECT item, answer FROM benchmark_items WHERE key = '{one.key}' ORDER BY 1")[1])
    assert answers[0] != answers[1], "the second model has answers of its own"


def test_several_tasks_have_a_plain_mean_under_the_benchmarks_name() -> None:
    outcome = {
        "samples": {"b_x": [], "b_y": []},
        "n-samples": {"b_x": {"effective": 10}, "b_y": {"effective": 30}},
        "results": {"b_x": {"acc,none": 0.5, "acc_stderr,none": "N/A", "alias": "x"}, "b_y": {"acc,none": 1.0}},
    }
    rows = {row["metric"]: (row["value"], row["count"]) for row in metric_rows("b", outcome)}
    assert rows == {"b_x:acc": (0.5, 10), "b_y:acc": (1.0, 30), "b:acc": (0.75, 40)}


def test_generated_answers_are_kept_as_text() -> None:
    sample = {
        "doc_id": 4, "filter": "strict-match", "target": "#### 3", "filtered_resps": ["[invalid]"],
        "metrics": ["exact_match"], "exact_match": 0.0,
    }  # fmt: skip
    [row] = item_rows("gsm8k", {"samples": {"gsm8k": [sample]}})
    assert (row["item"], row["answer"], row["value"], row["filter"]) == (4, "[invalid]", 0.0, "strict-match")


# ------------------------------------------------------------------------- the KR-test, scored by lm-eval


def test_the_kr_tests_scores_are_lm_evals() -> None:
    tokenizer = make_tokenizer()
    model = make_model(len(tokenizer), seed=3)
    draw = random.Random(0)
    questions = [
        Question(
            f"q{i}", "d", " ".join(draw.choices(WORDS, k=draw.randint(1, 9))) + draw.choice(["", ".", ","]),
            " ".join(draw.choices(WORDS, k=draw.randint(1, 5))) + ".",
            " ".join(draw.choices(WORDS, k=draw.randint(1, 5))),
        )
        for i in range(40)
    ]  # fmt: skip
    theirs = score_choices(model, tokenizer, questions, batch=8)
    ours = score_questions(
        model,
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        questions,
        variant="sum",
        batch=16,
        bos_id=None,
    )
    for index, score in enumerate(ours):
        assert (score.logp_true, score.logp_false) == pytest.approx(theirs[index], abs=1e-4)
    assert [score.correct for score in ours] == [true > false for true, false in theirs]
    assert 5 < sum(score.correct for score in ours) < 35, "both outcomes occur"


# ------------------------------------------------------------------------------------------- command line


def test_options_of_the_command_line_are_overrides() -> None:
    overrides = benchmark_overrides("blimp, hellaswag_text,gsm8k", 50, ["gsm8k=2"])
    evaluation = load_experiment_config("tiny", overrides).evaluation
    assert evaluation.benchmarks == ["blimp", "hellaswag_text", "gsm8k"]
    assert (evaluation.benchmark_limit, evaluation.benchmark_fewshot) == (50, {"gsm8k": 2})
    assert benchmark_overrides(None, None, []) == []
    with pytest.raises(ConfigError, match="gsm8k=2"):
        benchmark_overrides("gsm8k", None, ["gsm8k"])
    with pytest.raises(ConfigError, match="twice"):
        load_experiment_config("tiny", benchmark_overrides("blimp,blimp", None, []))


def test_all_67_paradigms_are_known() -> None:
    blimp = known("blimp")
    assert blimp is not None and len(blimp.data) == 67
    assert blimp.data["blimp_adjunct_island"].config == "adjunct_island"


@needs_mirror
def test_examples_may_stand_ready_for_a_benchmark_that_is_not_asked_for_but_not_for_one_that_is_none() -> None:
    from flows.prepare import plan_for

    def planned(*options: str) -> list[Stage]:
        overrides = [*benchmark_overrides("hellaswag_text", 3, []), *options]
        return plan_for(load_experiment_config("wikitext-small", overrides)).stages()

    assert {s.content["benchmark"] for s in planned() if s.role == "benchmark"} == {"hellaswag_text"}
    with pytest.raises(ConfigError, match=r"benchmark_fewshot = 'gms8k'"):
        planned("evaluation.benchmark_fewshot.gms8k=1")
