"""The program of the paper's Algorithm 1 alone: it runs on a CPU without what the rest of the product needs."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from flows.cli.app import app
from flows.local import read_report
from flows.tools.importing import import_results
from fortifai_core.corpus.tokenization import train_tokenizer
from fortifai_core.errors import DataError, InputError
from storage.catalog.catalog import query
from storage.sources.model_packages import PACKAGES
from storage.store.store import ArtifactStore
from tests.support.gguf_files import write_gguf

ROOT = Path(__file__).parents[2]
SMALL = ("--splits", "2", "--generations", "2", "--epochs", "1", "--length", "32", "--context", "24", "--device", "cpu")


def lines_of(folder: Path, *options: str, status: int = 0) -> list[dict[str, Any]]:
    """What a run wrote; prefect, duckdb, datasets and the rooms around the library are not to be had in it."""
    for name in ("prefect", "duckdb", "datasets", "storage", "tasks", "flows"):
        hidden = folder / "hidden" / f"{name}.py"
        hidden.parent.mkdir(exist_ok=True)
        hidden.write_text(f"raise ImportError('{name} is not for this program')")
    command = [sys.executable, str(ROOT / "examples" / "algorithm1.py"), *SMALL, "--out", "lines.jsonl", *options]
    environment = {"PYTHONPATH": f"{folder / 'hidden'}:{ROOT}", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == status, done.stderr
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
    refused = CliRunner().invoke(app, ["resume", "--store", str(folder / "store")])
    assert isinstance(refused.exception, InputError) and "was imported" in str(refused.exception)
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


def write_wikitext(data: Path) -> list[str]:
    """Eight articles with a question about each, laid out as FORTIFAI_DATA is."""
    articles = [f" \n = Town {n} = \n \n Town {n} lies at the river {n} , and is old . \n" for n in range(8)]
    for folder in ("wikitext-2-v1", "kr-test"):
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
    return articles


def test_it_reads_wikitext_and_a_model_of_ones_own(tmp_path: Path) -> None:
    data = tmp_path / "data"
    articles = write_wikitext(data)
    tokenizer = train_tokenizer(articles, vocabulary=300)
    tokenizer.save_pretrained(data / "model")
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(data / "model")
    lines = lines_of(tmp_path, "--corpus", str(data), "--model", str(data / "model"), "--arms", "ce")
    assert [line["questions"] for line in lines] == [8, 4, 8]


@pytest.mark.long
def test_it_goes_on_where_it_ended_itself(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    how = ("--entities", "4", "--arms", "tce-0.5")
    whole = lines_of(tmp_path / "whole", *how)
    (tmp_path / "parts" / "lines.jsonl").write_text(json.dumps(whole[0]) + "\n")  # killed before its first state
    parts = [len(lines_of(tmp_path / "parts", *how, "--seconds", "0", status=75)) for _ in whole[1:]]
    assert parts == [1, 2]
    # a line whose state was not saved yet when the program was killed is written again
    file = tmp_path / "parts" / "lines.jsonl"
    file.write_text(file.read_text() + json.dumps(whole[-1]) + "\n")
    resumed = lines_of(tmp_path / "parts", *how)
    assert [measured(line) for line in resumed] == [measured(line) for line in whole]
    assert not list((tmp_path / "parts").glob("*.pt")), "what was needed to go on is gone with the need"


def measured(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in ("seconds", "settings")}


@pytest.mark.long
def test_a_kit_comes_in_parts_and_goes_on_in_parts(tmp_path: Path) -> None:
    write_wikitext(tmp_path / "data")
    (package,) = (package for package in PACKAGES if package.name == "smollm2")
    write_gguf(package.path(tmp_path / "models"))
    options = (*SMALL, "--context", "8", "--block", "4", "--arms", "ce", "--seeds", "0", "1")

    def kit(*command: str, status: int) -> str:
        environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "FORTIFAI_MODELS": str(tmp_path / "models")}
        environment |= {"FORTIFAI_DATA": str(tmp_path / "data"), "OMP_NUM_THREADS": "1"}
        program = [sys.executable, str(ROOT / "examples" / "gpu_kit.py"), *command, "--kit", str(tmp_path / "kit")]
        done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    (tmp_path / "kit").mkdir()
    assert "1 parts" in kit("pack", status=0)
    part = tmp_path / "kit" / "part-00"
    content = part.read_bytes()
    part.write_bytes(content[:-1])
    assert "part-00: is missing or damaged" in kit("run", *options, status=1)
    part.write_bytes(content)
    assert "smollm2-ce-0" not in kit("run", *options, "--minutes", "0", status=75)
    printed = kit("run", *options, status=0).splitlines()
    assert [line.split()[0] for line in printed if line.startswith("smollm2")] == ["smollm2-ce-0"] * 3 + [
        "smollm2-ce-1"
    ] * 3
    whole = "".join(file.read_text() for file in sorted((tmp_path / "kit" / "results").glob("*.jsonl")))
    (tmp_path / "all.jsonl").write_text(whole)
    record = import_results(ArtifactStore(tmp_path / "store"), tmp_path / "all.jsonl", name="kit")
    assert record.state == "imported"


def test_a_kit_that_would_write_beside_itself_is_refused(tmp_path: Path) -> None:
    kit = tmp_path / "kit"
    kit.mkdir()
    with tarfile.open(kit / "part-00", "w") as archive:
        archive.addfile(tarfile.TarInfo("../../outside"))
    digest = hashlib.sha256((kit / "part-00").read_bytes()).hexdigest()
    (kit / "kit.json").write_text(json.dumps({"parts": {"part-00": digest}, "models": {}}))
    program = [sys.executable, str(ROOT / "examples" / "gpu_kit.py"), "run", "--kit", str(kit)]
    refused = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, check=False)
    assert refused.returncode == 1 and "no kit of ours" in refused.stderr
    assert not (tmp_path / "outside").exists()
