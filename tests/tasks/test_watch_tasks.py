"""The watch's tasks for lm-eval: they load from the folder that the command names, and their scores are ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from flows.cli.app import app
from fortifai_core.corpus.tokenization import train_tokenizer
from fortifai_core.errors import DataError
from fortifai_core.measures.text_counts import perplexity
from tasks.language.benchmarks import evaluate
from tasks.language.watch_tasks import compression_ratio, distinct_2, documents, process_results

TEXTS = [
    f"on day {n} the keeper wrote of wind and of {n * 7} ships that passed before noon came again" for n in range(8)
]


def test_lm_eval_runs_them_on_a_file_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    file = tmp_path / "held-out.txt"
    file.write_text("\n\n".join(TEXTS), encoding="utf-8")
    monkeypatch.setenv("FORTIFAI_WATCH_TEXT", str(file))
    folder = CliRunner().invoke(app, ["path", "lm-eval"]).stdout.strip()
    manager = TaskManager(include_defaults=False, include_path=folder)
    tasks: dict[str, Any] = manager.load(["fortifai_watch_perplexity", "fortifai_watch_samples"])["tasks"]
    tokenizer = train_tokenizer(TEXTS, vocabulary=300)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **shape)).eval()
    results = evaluate(model, tokenizer, tasks, limit=None, batch=4)
    samples = results["results"]["fortifai_watch_samples"]
    written = [sample["resps"][0][0] for sample in results["samples"]["fortifai_watch_samples"]]
    assert len(written) == len(TEXTS)
    assert samples["distinct_2,none"] == pytest.approx(distinct_2(written))
    assert samples["compression_ratio,none"] == pytest.approx(compression_ratio(written))
    assert 0 <= samples["repeated_4_grams,none"] <= 1
    # lm-eval gives the first token too, after the end-of-text token
    ids = [[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]] for text in TEXTS]
    ours, tokens = perplexity(model, ids, batch=4, sequence_length=200)
    words = sum(len(text.split()) for text in TEXTS)
    wanted = ours ** (tokens / words)
    assert results["results"]["fortifai_watch_perplexity"]["word_perplexity,none"] == pytest.approx(wanted, rel=1e-3)


def test_samples_by_hand() -> None:
    twice = ["a b a b a b", "a b a b a b", "c d e f g h", "i j k l m n"]
    # of 4 × 5 pairs: ab, ba; five and five others
    assert distinct_2(twice) == pytest.approx(12 / 20)
    assert process_results({}, ["a b a b a b"])["repeated_4_grams"] == pytest.approx(1 / 3)
    assert process_results({}, [""])["repeated_4_grams"] == 0
    assert compression_ratio(["abc " * 200] * 4) > 10 > compression_ratio(twice)


def test_a_file_that_is_not_named_or_too_short_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORTIFAI_WATCH_TEXT", raising=False)
    with pytest.raises(DataError, match="FORTIFAI_WATCH_TEXT = ''"):
        documents()
    short = tmp_path / "short.txt"
    short.write_text("too short\n", encoding="utf-8")
    with pytest.raises(DataError, match="more than 12 words"):
        documents(text=str(short))
    with pytest.raises(DataError, match="nowhere"):
        documents(text=str(tmp_path / "nowhere.txt"))
