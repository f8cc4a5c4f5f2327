"""The study: a question's experiment is run, and what it says is kept so that it needs no store."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from artifacts import put
from flows.load import load_any_config, load_experiment_config
from flows.prepare import plan_for
from flows.study import QUESTIONS, _keep_contrasts, coverage, finished_seeds, run_study
from fortifai_core.errors import InputError
from fortifai_core.report.contrasts import Values, contrasts_of
from helpers import environment
from storage.store.store import ArtifactStore

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
    drawn = (kept / "retention.svg").read_text()
    assert "0 of 5 registered seeds, and 1 not registered; other settings than registered" in drawn
    again = subprocess.run(command, env=environment(tmp_path, "store"), capture_output=True, text=True, check=False)
    assert again.returncode == 2 and "--out" in again.stderr
    more = ["--set", "seeds=[301, 302]", "--finished", "--out", str(tmp_path / "part"), "--json"]
    part = subprocess.run(
        [*command[:5], *sets, *more], env=environment(tmp_path, "store"), capture_output=True, text=True, check=False
    )
    assert part.returncode == 0, part.stderr
    assert json.loads((tmp_path / "part" / "study.json").read_text())["seeds"] == [301]
    assert json.loads(part.stdout)["built"] == 0  # the report of that one seed was there, too
    # what was kept answers in an empty store, where nothing but the report is made
    taken = subprocess.run(
        [*command[:3], "import", str(kept / "artifacts.tar.xz")],
        env=environment(tmp_path, "other"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert taken.returncode == 0, taken.stderr
    more[4] = str(tmp_path / "elsewhere")
    there = subprocess.run(
        [*command[:5], *sets, *more], env=environment(tmp_path, "other"), capture_output=True, text=True, check=False
    )
    assert there.returncode == 0, there.stderr
    assert json.loads(there.stdout)["built"] == 1
    tables = [pq.read_table(folder / "results.parquet").to_pylist() for folder in (kept, tmp_path / "elsewhere")]
    assert tables[0] == tables[1]


def test_a_question_that_is_not_registered_is_refused() -> None:
    from rich.console import Console

    with pytest.raises(InputError, match="choose one of reproduction, smollm2, map, beyond"):
        run_study("everything", target=None, overrides=[], store=None, console=Console())


def test_how_many_of_the_registered_seeds_an_answer_rests_on_is_said() -> None:
    whole = load_any_config("study-compat")
    assert coverage(whole, whole) == "5 of 5 registered seeds"
    assert coverage(load_any_config("study-compat", ["seeds=[346, 350]"]), whole) == "2 of 5 registered seeds"
    other = load_any_config("study-compat", ["seeds=[346, 1]", "training.epochs=1", "runtime.workers=2"])
    assert coverage(other, whole) == "1 of 5 registered seeds, and 1 not registered; other settings than registered"
    assert coverage(load_any_config("share", ["seeds=[1, 9]"]), load_any_config("share"), "planned") == (
        "1 of 3 planned seeds, and 1 not planned"
    )
    assert [name for name, question in QUESTIONS.items() if not question.registered] == ["share"]


def test_contrasts_are_kept_and_drawn_by_what_was_measured(tmp_path: Path) -> None:
    asked = QUESTIONS["compat"].contrasts
    values: Values = {"kr-split-0": {}, "log-perplexity-real": {}, "model-kl": {}}
    values["log-perplexity-real"][0] = {arm: {1: 4.0, 2: 5.0 + len(arm)} for arm in asked[2].arms}
    _keep_contrasts(tmp_path, contrasts_of(values, asked), asked, "2 of 5 registered seeds")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["contrasts.parquet", "contrasts.svg"]
    assert pq.read_table(tmp_path / "contrasts.parquet").num_rows == 3


def test_a_seed_is_finished_when_every_arm_is(tmp_path: Path) -> None:
    config = load_experiment_config("study-compat", ["seeds=[346, 347, 348]", "generations=2"])
    store = ArtifactStore(tmp_path / "store")
    assert finished_seeds(config, store) == []
    stages = [stage for stage in plan_for(config).stages() if stage.role != "report" and stage.seed != 348]
    last = next(stage for stage in reversed(stages) if stage.seed == 347 and stage.role == "drift")
    for stage in stages:
        if stage != last:
            put(store, stage.kind, stage.key)
    assert finished_seeds(config, store) == [346]
    put(store, last.kind, last.key)
    assert finished_seeds(config, store) == [346, 347]


@pytest.mark.parametrize("question", QUESTIONS)
def test_without_a_finished_seed_an_answer_is_refused(question: str, tmp_path: Path) -> None:
    from rich.console import Console

    store = tmp_path / "store"
    with pytest.raises(InputError, match=r"none of its \d+ seeds is finished in this store"):
        run_study(question, target=None, overrides=[], store=str(store), console=Console(), finished=True)
    assert not store.exists()


def test_what_a_question_contrasts_are_arms_of_its_experiment() -> None:
    assert QUESTIONS["compat"].contrasts
    for question in QUESTIONS.values():
        labels = load_any_config(question.preset).arm_labels
        assert {arm for contrast in question.contrasts for arm in contrast.arms} <= set(labels)


def test_the_authors_way_differs_in_decoding_and_checkpoint_alone() -> None:
    greedy, tce_greedy, theirs, tce_theirs = load_experiment_config("study-compat").resolved_arms()
    for ours, authors in ((greedy, theirs), (tce_greedy, tce_theirs)):
        same = {"training": authors.experiment.training, "regeneration": authors.experiment.regeneration}
        assert ours.experiment.model_copy(update=same) == authors.experiment
    assert greedy.experiment.regeneration == tce_greedy.experiment.regeneration
    assert theirs.experiment.regeneration == tce_theirs.experiment.regeneration
    preset = load_experiment_config("wikitext-llama-1b-paper-compat")
    alike = ("engine", "decoding", "beams", "repetition_penalty", "head", "across_documents")
    for name in alike:
        assert getattr(theirs.experiment.regeneration, name) == getattr(preset.regeneration, name)
    assert theirs.experiment.training.checkpoint == preset.training.checkpoint == "best"


def test_the_studys_experiments_are_the_demos_but_for_arms_and_seeds() -> None:
    tiny, real = load_experiment_config("tiny"), load_experiment_config("smollm2-almanac")
    real = real.model_copy(update={"training": real.training.model_copy(update={"precision": "bfloat16"})})
    seeds: list[int] = []
    for question in QUESTIONS.values():
        if question.preset.startswith("study-"):
            one = load_experiment_config(question.preset)
            seeds += one.seeds
            like = real if question.preset == "study-smollm2" else tiny
            same = {"name": like.name, "seeds": like.seeds, "losses": like.losses, "arms": like.arms}
            assert one.model_copy(update=same) == like
    assert len(seeds) == len(set(seeds)) and not set(seeds) & {*range(1, 6), *range(100, 104)}
