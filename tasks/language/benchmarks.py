"""Builder of a benchmark: lm-eval's own tasks, prompts and metrics on M_i. The only module that imports lm-eval.

Results are found again by our own keys (the model's, the task's version, the data's digests). lm-eval's `use_cache` has
no model in its key and would hand one model's answers to the next, so it is never used.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fortifai_core.corpus.documents import Question
from fortifai_core.errors import ConfigError, DataError
from storage.sources import mirror
from storage.tables import parquet
from tasks.engine.context import Context
from tasks.language.benchmark_data import known, stock_folder
from tasks.language.files import base_folder
from tasks.language.specs import BenchmarkCheckSpec, BenchmarkSpec

HELLASWAG_TEXT = {
    "output_type": "multiple_choice",
    "validation_split": "validation",
    "doc_to_text": "{{query}}",
    "doc_to_target": "{{label}}",
    "doc_to_choice": "endings",
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
    "metadata": {"version": 1.0},
}
_DATA = "!function tasks.language.benchmark_data.mirror_rows"


def load_tasks(benchmark: str, *, fewshot: int | None, folder: Path) -> dict[str, Any]:
    """lm-eval's task objects of a benchmark, by name; data from the mirror where FORTIFAI_DATA names one.

    The stock definitions are included, not copied; only where the data comes from is written over them, into `folder`.

    Args:
        fewshot: worked examples before each item; None takes the task's own number.

    Raises:
        ConfigError: examples are asked for and the task has none.
    """
    from lm_eval.tasks import TaskManager

    found = known(benchmark)
    if found is None:
        loaded = TaskManager().load([benchmark])["tasks"]
    elif mirror.root() is None and found.folder is not None:
        manager = TaskManager(include_defaults=False, include_path=stock_folder() / found.folder)
        loaded = manager.load([benchmark])["tasks"]
    else:
        folder.mkdir(parents=True, exist_ok=True)
        shots = found.fewshot if fewshot is None else fewshot
        for task in found.data:
            arguments = {"benchmark": benchmark, "name": task, "fewshot": shots}
            own: dict[str, Any] = {"task": task, "dataset_kwargs": arguments}
            if found.folder is None:
                own |= HELLASWAG_TEXT
            else:
                own["include"] = str(stock_folder() / found.folder / found.files[task])
            # JSON is YAML; the function's tag is not JSON, and stands on a line of its own
            lines = [f"{name}: {json.dumps(value)}" for name, value in own.items()]
            (folder / f"{task}.yaml").write_text(
                "\n".join([*lines, f"custom_dataset: {_DATA}"]) + "\n", encoding="utf-8"
            )
        manager = TaskManager(include_defaults=False, include_path=folder)
        loaded = manager.load(list(found.data))["tasks"]
    for task in loaded.values():
        default = task.get_config("num_fewshot")
        if fewshot and default == 0:
            raise ConfigError(f"evaluation.benchmark_fewshot.{benchmark}", fewshot, "it has no examples to show: use 0")
        task.set_config(key="num_fewshot", value=(default or 0) if fewshot is None else fewshot)
        task.set_fewshot_seed(seed=1234)
    return dict(loaded)


def longest_request(tasks: dict[str, Any], tokenizer: Any, *, limit: int | None) -> tuple[int, int]:
    """(tokens of the longest request with room for its answer, how many requests there are)."""
    for task in tasks.values():
        task.build_all_requests(limit=limit)
    sizes = list(request_sizes(tasks, tokenizer))
    return max(sizes), len(sizes)


def request_sizes(tasks: dict[str, Any], tokenizer: Any) -> Iterator[int]:
    """Tokens that the model would have to read for each request that was built, with room for its answer."""
    for task in tasks.values():
        for request in task.instances:
            if request.request_type == "generate_until":
                room = int(request.args[1].get("max_gen_toks", GENERATED_TOKENS))
                yield _tokens(tokenizer, request.args[0]) + room
            else:
                # the last token is predicted, never read
                yield _tokens(tokenizer, "".join(request.args[:2])) - 1


def _tokens(tokenizer: Any, text: str) -> int:
    return len(tokenizer(text)["input_ids"])


GENERATED_TOKENS = 256  # HFLM.max_gen_toks
# zero-shot items are cut from the left where they are too long, and counted; a few are enough to see that all is there
ZERO_SHOT_LOOK = 20


def build_check(context: Context[BenchmarkCheckSpec]) -> dict[str, Any]:
    """Before any generation is trained: the tasks load, their data is there, the examples fit the model's window.

    Raises:
        ConfigError: so many examples do not fit; names the largest number that does.
    """
    from storage.tables.models import load_config, load_tokenizer

    spec = context.spec
    name, asked, limit = spec.task.name, spec.task.fewshot, spec.task.limit
    tokenizer = load_tokenizer(context.artifact(spec.tokenizer).path)
    window = spec.window
    if window is None and spec.base is not None:
        config = load_config(context.artifact(spec.base).path)
        window = getattr(config.get_text_config(), "max_position_embeddings", None)
    tasks = load_tasks(name, fewshot=asked, folder=context.workspace / "tasks")
    shots = max(task.get_config("num_fewshot") for task in tasks.values())
    look = limit if shots else min(limit or ZERO_SHOT_LOOK, ZERO_SHOT_LOOK)
    longest, count = longest_request(tasks, tokenizer, limit=look)
    asked_for = [request for task in tasks.values() for request in task.instances]
    rooms = [
        int(r.args[1].get("max_gen_toks", GENERATED_TOKENS)) for r in asked_for if r.request_type == "generate_until"
    ]
    if window is not None and max(rooms, default=0) >= window:
        raise ConfigError(
            f"evaluation.benchmarks.{name}",
            name,
            f"an answer may take {max(rooms):,} tokens, and the model reads {window:,} in all: raise "
            "model.max_positions, or leave this benchmark out",
        )
    if window is not None and shots and longest > window:
        fits = shots - 1
        while fits:
            tasks = load_tasks(name, fewshot=fits, folder=context.workspace / "tasks")
            if longest_request(tasks, tokenizer, limit=look)[0] <= window:
                break
            fits -= 1
        cut = " (where long items are cut)" if not fits else ""
        raise ConfigError(
            f"evaluation.benchmark_fewshot.{name}",
            shots,
            f"so many examples need {longest:,} tokens, and the model reads {window:,}: the largest number that fits "
            f"is {fits}{cut}; set it with --fewshot {name}={fits}",
        )
    (context.directory / "check.json").write_text(
        json.dumps({"tasks": sorted(tasks), "requests": count, "longest": longest, "window": window}, indent=1),
        encoding="utf-8",
    )
    return {"tasks": len(tasks), "longest-request": longest}


def build_benchmark(context: Context[BenchmarkSpec]) -> dict[str, Any]:
    """metrics.parquet: every score of every task; items.parquet: every item's."""
    from peft import PeftModel

    from storage.tables.models import load_model, load_tokenizer

    spec, asked = context.spec, context.spec.task
    artifact = context.artifact(spec.model)
    tokenizer = load_tokenizer(artifact.path / "tokenizer")
    model = load_model(artifact.path, base=base_folder(context, spec.base), dtype=spec.dtype).to(context.device)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    name = asked.name
    tasks = load_tasks(name, fewshot=asked.fewshot, folder=context.workspace / "tasks")
    outcome = evaluate(model, tokenizer, tasks, limit=asked.limit, batch=max(1, context.runtime.inference_batch // 8))
    items = list(item_rows(name, outcome))
    metrics = list(metric_rows(name, outcome))
    if not items or not metrics:
        raise DataError(f"evaluation.benchmarks.{name}", 0, "lm-eval gave no score for any item")
    parquet.write_table(context.directory / "items.parquet", items, schema="benchmark-items")
    parquet.write_table(context.directory / "metrics.parquet", metrics, schema="metrics")
    headline = metrics if len(tasks) == 1 else [row for row in metrics if row["metric"].startswith(f"{name}:")]
    # lm-eval cuts what is too long from the left, without a word
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    cut = sum(size > window for size in request_sizes(tasks, tokenizer)) if window else 0
    return {"items": len({(row["task"], row["item"]) for row in items}), "requests-cut": cut} | {
        row["metric"]: row["value"] for row in headline or metrics
    }


def evaluate(model: Any, tokenizer: Any, tasks: dict[str, Any], *, limit: int | None, batch: int) -> dict[str, Any]:
    """lm-eval's results with samples. Batch size is set on the model object, where alone it has an effect."""
    from lm_eval.evaluator import evaluate as lm_evaluate
    from lm_eval.models.huggingface import HFLM

    lm = HFLM(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=batch)
    # not `simple_evaluate`: it reads all of lm-eval's 15,000 definitions first, whatever is asked for
    outcome = lm_evaluate(lm=lm, task_dict=dict(tasks), limit=limit, bootstrap_iters=0, log_samples=True)
    assert outcome is not None  # None on other ranks than the first, and there is one
    return dict(outcome)


def score_choices(
    model: Any, tokenizer: Any, questions: Sequence[Question], *, batch: int
) -> list[tuple[float, float]]:
    """KR-test questions as lm-eval's multiple choice: of each, log p of the true and of the false answer, in nats."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    rows = [{"context": q.context, "answers": [q.true_answer, q.false_answer]} for q in questions]
    task = ConfigurableTask(
        config={
            "task": "kr",
            "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{context}}",
            "doc_to_choice": "{{answers}}",
            "doc_to_target": 0,
            "num_fewshot": 0,
            "metadata": {"version": 1.0},
        }
    )
    outcome = evaluate(model, tokenizer, {"kr": task}, limit=None, batch=batch)
    found = {s["doc_id"]: [float(response[0]) for response in s["filtered_resps"]] for s in outcome["samples"]["kr"]}
    return [(found[index][0], found[index][1]) for index in range(len(questions))]


def metric_rows(benchmark: str, outcome: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """`task:metric[:filter]` for every task; of several tasks also their plain mean under the benchmark's name.

    The plain mean, each task counting alike, is how lm-eval aggregates BLiMP.
    """
    over: dict[str, list[tuple[float, int]]] = {}
    for task in outcome["samples"]:
        count = int(outcome["n-samples"][task]["effective"])
        for label, value in outcome["results"][task].items():
            metric, comma, chosen = label.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, (int, float)):
                continue
            named = metric if chosen == "none" else f"{metric}:{chosen}"
            yield {"metric": f"{task}:{named}", "split": None, "value": float(value), "count": count}
            over.setdefault(named, []).append((float(value), count))
    if len(outcome["samples"]) > 1:
        for named, values in over.items():
            mean = sum(value for value, _ in values) / len(values)
            yield {
                "metric": f"{benchmark}:{named}", "split": None, "value": mean, "count": sum(n for _, n in values)
            }  # fmt: skip


def item_rows(benchmark: str, outcome: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One row an item, filter and metric; `answer` is the choice taken, or the text that was read out."""
    for task, samples in outcome["samples"].items():
        for sample in samples:
            answer = _answer(sample["filtered_resps"])
            for metric in sample["metrics"]:
                value = sample[metric]
                if isinstance(value, (bool, int, float)):
                    yield {
                        "benchmark": benchmark,
                        "task": task,
                        "item": int(sample["doc_id"]),
                        "filter": str(sample["filter"]),
                        "metric": metric,
                        "value": float(value),
                        "target": str(sample["target"]),
                        "answer": answer,
                    }


def _answer(responses: Any) -> str:
    """The number of the most probable choice, or the first text."""
    first = responses[0]
    if isinstance(first, (list, tuple)) and first and isinstance(first[0], (int, float)):
        return str(max(range(len(responses)), key=lambda index: float(responses[index][0])))
    return str(first)
