"""The study: a question's experiment is run, and what it says is kept so that it needs no store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows.load import load_experiment_config
from flows.study import QUESTIONS, run_study
from fortifai_core.errors import InputError
from helpers import environment

SMALL = (
    "seeds=[301]",
    "generations=2",
    "splits=2",
    "corpus.entities=6",
    "corpus.pretraining_entities=8",
    "corpus.validation_entities=4",
    "model.hidden_size=32",
    "model.intermediate_size=48",
    "model.layers=1",
    "model.vocabulary=512",
    "model.pretraining_epochs=1",
    "training.epochs=1",
    "arms=[{name: ce}, {name: dropout, training: {dropout: 0.1}}]",
    "runtime.threads=1",
)


@pytest.mark.long
def test_a_question_is_answered_and_what_it_says_is_kept(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    sets = [word for override in SMALL for word in ("--set", override)]
    command = [sys.executable, "-m", "flows.cli", "study", "regularisation", "--out", str(kept), *sets, "--json"]
    done = subprocess.run(
        command, env=environment(tmp_path, "store"), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["kept"] == str(kept)
    assert QUESTIONS["regularisation"].asks in done.stderr and "collapse profile" in done.stderr
    about = json.loads((kept / "study.json").read_text())
    assert (about["seeds"], about["arms"]) == ([301], ["ce", "dropout"])
    assert about["command"].startswith("fortifai study regularisation --set 'seeds=[301]'")
    results = pq.read_table(kept / "results.parquet").to_pylist()
    assert {row["arm"] for row in results} >= {"ce", "dropout"}
    assert pq.read_table(kept / "profile.parquet").num_rows > 0
    assert "<svg" in (kept / "profile.svg").read_text() and "<svg" in (kept / "retention.svg").read_text()
    again = subprocess.run(command, env=environment(tmp_path, "store"), capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "--out" in again.stderr


def test_a_question_that_is_not_registered_is_refused() -> None:
    from rich.console import Console

    with pytest.raises(InputError, match="reproduction, map, beyond"):
        run_study("everything", target=None, overrides=[], store=None, console=Console())


def test_the_studys_experiments_are_the_demos_but_for_arms_and_seeds() -> None:
    tiny = load_experiment_config("tiny")
    seeds: list[int] = []
    for question in QUESTIONS.values():
        if question.preset.startswith("study-"):
            one = load_experiment_config(question.preset)
            seeds += one.seeds
            same = {"name": tiny.name, "seeds": tiny.seeds, "losses": tiny.losses, "arms": tiny.arms}
            assert one.model_copy(update=same) == tiny
    assert len(seeds) == len(set(seeds)) and not set(seeds) & {*range(1, 6), *range(100, 104)}
