"""Text that is far larger than what may be held in memory goes from files to splits and packed sequences."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

MEGABYTES = int(os.environ.get("FORTIFAI_TEST_MEGABYTES", 96))  # 2000: 15 minutes of one core
ALLOWED = 320  # MB above what the loaded packages need, whatever the size; held whole, 96 MB of text take over 1,000
# Builds every stage between the file and a training, in a process whose peak is its own.
BUILD = """
import json, resource, sys
import torch, transformers, datasets, pyarrow.parquet, duckdb
from flows.load import load_experiment_config
from flows.prepare import plan_for
from storage.store.store import ArtifactStore
from storage.tables import parquet
from tasks.engine.build import build
from tasks.engine.context import Context
from tasks.language.files import split_file
from tasks.language.train import _packed

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

config = load_experiment_config("smoke", json.loads(sys.argv[2]))
store = ArtifactStore(sys.argv[1])
plan = plan_for(config)
before, peaks = peak(), {}
for stage in plan.stages():
    if stage.role in ("pretraining", "source", "tokenizer", "corpus"):
        build(stage, store, config.runtime, progress=lambda done, total, unit: None)
        peaks[stage.role] = peak()
corpus = next(s for s in plan.stages() if s.role == "corpus")
artifact = store.read(corpus.kind, corpus.key)
rows = 0
context = Context(corpus, corpus.spec, store, artifact.path, config.runtime, "cpu", lambda *_: None)
for split in range(config.splits):
    tokens = parquet.iter_column(artifact.file(split_file(split)), "tokens")
    rows += len(_packed(context, f"{split}.arrow", tokens, length=64, end_of_text=0))
peaks["packed"] = peak()
print(json.dumps({"before": before, "peaks": peaks, "rows": rows, **artifact.manifest.metrics}))
"""


def write_text(path: Path, megabytes: int) -> int:
    """Documents of 2 kB of made-up words, no two alike; how many."""
    chance, count, size = random.Random(5), 0, 0
    words = ["".join(chance.choices("aeionrtslk", k=chance.randint(2, 9))) for _ in range(3_000)]
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            text = " ".join(chance.choices(words, k=330))
            size += file.write(json.dumps({"text": f"{count} {text}"}) + "\n")
            count += 1
    return count


@pytest.mark.long
@pytest.mark.timeout(300 + 3 * MEGABYTES)
def test_a_corpus_larger_than_what_may_be_held_is_cut_tokenised_and_packed(tmp_path: Path) -> None:
    documents = write_text(tmp_path / "text.jsonl", MEGABYTES)
    corpus = {"type": "text", "files": [str(tmp_path / "text.jsonl")], "pretraining_fraction": 0.02}
    sets = [f"corpus={json.dumps(corpus)}"]
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(tmp_path / "store"), json.dumps(sets)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)  # shown by `pytest -s`: the figures in the documents
    above = {role: peak - found["before"] for role, peak in found["peaks"].items()}
    assert max(above.values()) < ALLOWED, above
    assert found["documents"] == documents - round(0.02 * documents) - round(0.05 * documents)
    # one stream of every split, with an end after each document, cut every 64 tokens; a rest of one has no target
    assert abs(found["rows"] - (found["tokens"] + found["documents"]) / 64) <= 3
