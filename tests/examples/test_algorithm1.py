"""The program of the paper's Algorithm 1 alone: it runs on a CPU without what the rest of the product needs."""

from __future__ import annotations

import gzip
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from flows.local import read_report
from flows.tools.importing import import_results
from fortifai_core.corpus.tokenization import train_tokenizer
from fortifai_core.errors import DataError
from storage.catalog.catalog import query
from storage.store.store import ArtifactStore

ROOT = Path(__file__).parents[2]
SMALL = ("--splits", "2", "--generations", "2", "--epochs", "1", "--length", "32", "--context", "24", "--device", "cpu")


def lines_of(folder: Path, *options: str) -> list[dict[str, Any]]:
    """What a run wrote; prefect, duckdb, datasets and the rooms around the library are not to be had in it."""
    for name in ("prefect", "duckdb", "datasets", "storage", "tasks", "flows"):
        hidden = folder / "hidden" / f"{name}.py"
        hidden.parent.mkdir(exist_ok=True)
        hidden.write_text(f"raise ImportError('{name} is not for this program')")
    command = [sys.executable, str(ROOT / "examples" / "algorithm1.py"), *SMALL, "--out", "lines.jsonl", *options]
    environment = {"PYTHONPATH": f"{folder / 'hidden'}:{ROOT}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "lines.jsonl").read_text().splitlines()]


def test_it_measures_every_generation_of_every_arm_on_the_almanac(tmp_path: Path) -> None:
    lines = lines_of(tmp_path, "--entities", "4", "--arms", "ce", "tce-0.5")
    assert [(line["arm"], line["generation"]) for line in lines] == [
        (a, g) for a in ("ce", "tce-0.5") for g in (-1, 0, 1)
    ]
    assert [sorted(line["retention"]) for line in lines[:3]] == [["0", "1"], ["0"], ["0", "1"]]
    before, first, second = (line["perplexity"] for line in lines[:3])
    assert math.isfinite(second) and first < before, "training lowers the perplexity of held-out text"
    # M_-1 has read nothing, and is the same for both arms
    assert lines[0]["retention"] == lines[3]["retention"] and before == lines[3]["perplexity"]
    the_store_takes_them(tmp_path, lines)


def the_store_takes_them(folder: Path, lines: list[dict[str, Any]]) -> None:
    store = ArtifactStore(folder / "store")
    record = import_results(store, folder / "lines.jsonl", name="alone")
    again = import_results(store, folder / "lines.jsonl", name="alone")
    assert (record.state, again.id, again.stages) == ("imported", record.id, record.stages)
    table, page = read_report(store, record)
    assert len(table["rows"]) >= 2 and (page / "report.html").is_file()
    assert any("Imported from lines.jsonl" in note for note in table["notes"])
    asked = "select arm, generation, split, value from metrics where metric like 'kr-split-%' order by all"
    _, rows = query(store, asked)
    expected = [(x["arm"], x["generation"], int(k), v) for x in lines for k, v in x["retention"].items()]
    assert [tuple(row) for row in rows] == sorted(expected)


@pytest.mark.parametrize(
    ("text", "field", "remedy"),
    [
        ("", "file", "has no lines"),
        ('{"arm": "ce"', "bad.jsonl:1", "cut off"),
        ('{"arm": "ce"}', "bad.jsonl:1", "no line of examples/algorithm1.py"),
        ("GAP", "bad.jsonl", "once and in order"),
    ],
)
def test_what_is_not_that_programs_is_refused(text: str, field: str, remedy: str, tmp_path: Path) -> None:
    line = {"arm": "ce", "seed": 0, "generation": 1, "retention": {}, "questions": 0, "perplexity": 1.0, "seconds": 0.0}
    settings = {"corpus": "almanac", "model": "", "entities": 4, "splits": 2, "generations": 2}
    settings |= {"epochs": 1, "batch": 1, "length": 8, "lr": 0.1}
    gap = json.dumps(line | {"tokens": 0, "synthetic": 0, "scores": [], "settings": settings})
    file = tmp_path / "bad.jsonl"
    file.write_text(text.replace("GAP", gap))
    with pytest.raises(DataError, match=remedy) as caught:
        import_results(ArtifactStore(tmp_path / "store"), file)
    assert caught.value.field.endswith(field)
    assert not list((tmp_path / "store").glob("artifacts/*/*")), "nothing is left behind"


def test_it_reads_wikitext_and_a_model_of_ones_own(tmp_path: Path) -> None:
    articles = [f" \n = Town {n} = \n \n Town {n} lies at the river {n} , and is old . \n" for n in range(8)]
    data = tmp_path / "data"
    for folder in ("wikitext-2-v1", "kr-test", "model"):
        (data / folder).mkdir(parents=True)
    for name in ("train", "validation"):
        (data / "wikitext-2-v1" / f"{name}.txt.gz").write_bytes(gzip.compress("".join(articles).encode()))
    asked = [
        {
            "context": "It is known:",
            "sentence_true": f"Town {n} is old.",
            "sentence_false": "It is new.",
            "location": 4 * n + 1,
        }
        for n in range(8)
    ]
    (data / "kr-test" / "wikitext-2.json").write_text(json.dumps(asked))
    tokenizer = train_tokenizer(articles, vocabulary=300)
    tokenizer.save_pretrained(data / "model")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(data / "model")
    lines = lines_of(tmp_path, "--corpus", str(data), "--model", str(data / "model"), "--arms", "ce")
    assert [line["questions"] for line in lines] == [8, 4, 8]
