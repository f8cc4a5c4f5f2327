"""`fortifai gc`: what goes, what stays and why; nothing is lost, and what was removed comes back as it was."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.app import app, exit_code
from flows.load import load_experiment_config
from flows.prepare import Prepared, prepare_experiment
from flows.tools.collecting import BY, Collection, collect
from flows.tools.explain import explain_plan
from fortifai_core.config.stages import Runtime
from fortifai_core.errors import ArtifactDamaged, InputError
from helpers import digests
from storage.catalog.catalog import query
from storage.store.experiments import StageRecord, record_experiment
from storage.store.manifest import MANIFEST_NAME, Manifest
from storage.store.store import ArtifactStore
from storage.tables.models import is_weights
from tasks.engine.build import build
from tasks.engine.needs import needs
from tasks.engine.stages import Stage

SMALL = ["splits=3", "losses=[{type: cross-entropy}]", "evaluation.drift=false", "runtime.threads=1"]


def prepared_in(store: Path | str, *overrides: str, name: str = "smoke") -> Prepared:
    return prepare_experiment(load_experiment_config("smoke", [*SMALL, f"name={name}", *overrides]), store=str(store))


def built(one: Prepared, stages: Sequence[Stage] | None = None) -> None:
    for stage in one.plan.stages() if stages is None else stages:
        build(stage, one.store, Runtime(), progress=lambda done, total, unit: None)


def recorded(one: Prepared, status: str) -> None:
    record_experiment(one.store, config=one.plan.config.model_dump(mode="json"), status=status)


def models(one: Prepared) -> list[Stage]:
    return [stage for stage in one.plan.stages() if stage.role == "train"]


def whole(one: Prepared) -> list[int | None]:
    """The generations whose weights are there."""
    return [s.generation for s in models(one) if one.store.held(s.kind, s.key, is_weights)]


def gc(store: ArtifactStore, *names: str, keep: str = "none", remove: bool = True) -> Collection:
    return collect(store, names, keep=keep, remove=remove)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A store with one finished experiment of two generations, one arm. Tests work on a copy."""
    one = prepared_in(tmp_path_factory.mktemp("gc") / "store")
    built(one)
    recorded(one, "finished")
    return one


@pytest.fixture
def one(finished: Prepared, tmp_path: Path) -> Prepared:
    shutil.copytree(finished.store.root, tmp_path / "store")
    return Prepared(finished.plan, ArtifactStore(tmp_path / "store"), finished.record_id)


def snapshot(store: ArtifactStore) -> dict[str, bytes]:
    parts = ("artifacts", "experiments", "work")
    return {str(p): p.read_bytes() for part in parts for p in (store.root / part).rglob("*") if p.is_file()}


def test_it_first_shows_what_it_would_do_and_does_it_only_when_told(one: Prepared) -> None:
    before = snapshot(one.store)
    said = CliRunner().invoke(app, ["gc", "--keep", "none", "--store", one.store.url])
    assert said.exit_code == 0 and "nothing was removed" in said.output and "would go" in said.output
    assert snapshot(one.store) == before
    shown = gc(one.store, remove=False)
    done = gc(one.store)
    assert [(item.what, item.goes, item.size) for item in done.items] == [(i.what, i.goes, i.size) for i in shown.items]
    gone = set(before) - set(snapshot(one.store))
    assert done.freed == sum(len(before[name]) for name in gone) > 0
    assert {Path(name).name for name in gone} == {"model.safetensors"}


@pytest.mark.parametrize(("keep", "left"), [("all", [0, 1]), ("last", [1]), ("none", [])])
def test_the_policy_says_whose_weights_stay(one: Prepared, keep: str, left: list[int]) -> None:
    gc(one.store, keep=keep)
    assert whole(one) == left
    assert one.store.held(*one.plan.shared[2].reference, is_weights)  # M_-1, which the others are made from


def test_the_best_is_that_of_the_lowest_perplexity_on_real_text(one: Prepared) -> None:
    asked = [step.measured for step in one.plan.runs[0].generations]
    values = [float(m.metrics["perplexity-real"]) for s in asked if (m := one.store.peek(s.kind, s.key))]
    gc(one.store, keep="best")
    assert whole(one) == [values.index(min(values))]


def test_without_weights_everything_can_still_be_asked_and_nothing_counts_as_damage(one: Prepared) -> None:
    questions = ["select * from metrics order by all", "select kind, key, role, generation from stages order by all"]
    answers = [query(one.store, sql) for sql in questions]
    gc(one.store)
    assert [query(one.store, sql) for sql in questions] == answers
    removed = query(one.store, "select count(*) from artifacts where removed is not null")[1]
    assert removed == [(2,)]
    verified = one.store.verify()
    assert not verified.damaged and verified.sound == len(one.plan.stages())
    for command in (["ls"], ["report"], ["plan", "smoke", *[x for o in SMALL for x in ("--set", o)]]):
        assert exit_code([*command, "--store", one.store.url]) == 0
    model = models(one)[0]
    manifest = one.store.peek(model.kind, model.key)
    assert manifest and manifest.removed and manifest.removed["by"] == BY
    assert [entry["name"] for entry in manifest.removed["files"]] == ["model.safetensors"]


def test_nothing_is_made_again_while_nobody_needs_it(one: Prepared) -> None:
    gc(one.store)
    rows = explain_plan(one.plan, one.store)
    assert all(row["found"] for row in rows)
    assert sum("no stage to do needs them" in row["why"] for row in rows) == 2


def test_plan_says_what_is_made_again_and_for_whom(one: Prepared) -> None:
    gc(one.store)
    last = one.plan.runs[0].generations[-1]
    assert last.evaluate is not None
    one.store.remove(*last.evaluate.reference)
    todo = {row["stage"]: row["why"] for row in explain_plan(one.plan, one.store) if not row["found"]}
    assert set(todo) == {"train · g0", "train · g1", "evaluate · g1"}
    assert "evaluate · g1 needs them" in todo["train · g1"] and "train · g1 needs them" in todo["train · g0"]
    assert [s.label for s in needs(one.plan, one.store).to_do] == ["train · g0", "train · g1", "evaluate · g1"]


def test_a_builder_does_not_work_without_weights_and_they_come_back_as_they_were(one: Prepared) -> None:
    before = digests(one.store)
    gc(one.store)
    last = one.plan.runs[0].generations[-1]
    assert last.evaluate is not None
    one.store.remove(*last.evaluate.reference)
    with pytest.raises(ArtifactDamaged, match="weights fortifai gc removed"):
        built(one, [last.evaluate])
    built(one, needs(one.plan, one.store).to_do)
    assert digests(one.store) == before
    assert all(manifest.removed is None for manifest in one.store.ls())


def test_the_report_is_written_without_weights(one: Prepared) -> None:
    gc(one.store)
    report = one.plan.report()
    one.store.remove(*report.reference)
    assert [stage.role for stage in needs(one.plan, one.store).to_do] == ["report"]
    built(one, [report])


def test_what_an_unfinished_experiment_needs_stays(one: Prepared) -> None:
    more = prepared_in(one.store.url, "generations=3", name="more")
    recorded(more, "failed")
    done = gc(one.store)
    assert whole(one) == [1]  # M_2 is made from it
    assert [i.key for i in done.items if "of more-" in i.why and "needs it" in i.why] == [models(one)[1].key]


def test_of_a_running_experiment_nothing_goes(one: Prepared) -> None:
    prepared_in(one.store.url, "generations=3", name="more")  # on record as planned by this process, which lives
    assert not gc(one.store).going
    assert whole(one) == [0, 1]


def test_what_an_experiment_shares_that_was_not_asked_about_stays(one: Prepared) -> None:
    fewer = prepared_in(one.store.url, "generations=1", name="fewer")
    built(fewer)
    recorded(fewer, "finished")
    gc(one.store, "smoke")
    assert whole(one) == [0]
    gc(one.store, "smoke", "fewer")
    assert whole(one) == []


def test_what_cannot_be_made_again_stays(one: Prepared) -> None:
    """A model of which no experiment, or not the experiment as it is made today, has a stage."""
    with one.store.build("model", "f" * 64) as draft:
        (draft.path / "model.safetensors").write_bytes(b"weights")
        draft.commit(stage_version=1, content={})
    record = {**one.plan.config.model_dump(mode="json"), "name": "older"}
    old = "e" * 64
    with one.store.build("model", old) as draft:
        (draft.path / "model.safetensors").write_bytes(b"weights")
        draft.commit(stage_version=1, content={})
    stages = [StageRecord("model", old, "train", "ce", 0, 0)]
    record_experiment(one.store, config=record, status="finished", stages=stages)
    done = gc(one.store)
    reasons = {item.key: item.why for item in done.items if not item.goes}
    assert "no experiment names it" in reasons["f" * 64] and "cannot be made again" in reasons[old]
    assert one.store.held("model", old, is_weights) and one.store.held("model", "f" * 64, is_weights)


def test_leftover_checkpoints_go_but_not_those_that_somebody_goes_on_from(one: Prepared) -> None:
    more = prepared_in(one.store.url, "generations=3", name="more")
    recorded(more, "failed")
    going_on = models(more)[-1]
    for key in (models(one)[0].key, going_on.key, "d" * 64):
        (one.store.workspace("model", key) / "checkpoint").write_bytes(b"1234")
    (one.store.root / "work" / f"split-{'d' * 64}.draft").mkdir()
    gc(one.store, keep="all")
    assert sorted(p.name for p in (one.store.root / "work").iterdir() if p.is_dir()) == [f"model-{going_on.key}"]


def test_what_is_being_built_in_this_moment_is_left_alone(one: Prepared) -> None:
    model = models(one)[0]
    held, release = threading.Event(), threading.Event()

    def building() -> None:
        with one.store.build(model.kind, model.key, anew=True):
            held.set()
            release.wait(30)

    thread = threading.Thread(target=building)
    thread.start()
    held.wait(30)
    try:
        gc(one.store)
        assert whole(one) == [0]
    finally:
        release.set()
        thread.join()


def test_who_registers_while_it_removes_waits_and_finds_what_is_gone(
    one: Prepared, caplog: pytest.LogCaptureFixture
) -> None:
    """An experiment is on record before the look, or after the removal: never between the two."""
    registered = one.store.root / "experiments"
    thread = threading.Thread(target=prepared_in, args=(one.store.url,), kwargs={"name": "late"})
    with one.store.registering():
        thread.start()
        while not any("the record of experiments" in message for message in caplog.messages):
            assert thread.is_alive()
            thread.join(0.05)
        assert not list(registered.glob("late-*"))
    thread.join(60)
    assert list(registered.glob("late-*"))


def test_it_removes_while_nobody_can_register(one: Prepared) -> None:
    thread = threading.Thread(target=gc, args=(one.store,))
    with one.store.registering():
        thread.start()
        thread.join(1)
        prepared = whole(one)
        record_experiment(one.store, config=one.plan.config.model_dump(mode="json"), status="running")
    thread.join(60)
    assert prepared == whole(one) == [0, 1]  # it looked after that


def test_a_kill_between_manifest_and_file_leaves_an_artifact_that_is_sound_and_can_be_finished(one: Prepared) -> None:
    model = models(one)[0]
    place = one.store.tree.place(model.kind, model.key)
    weights = (place / "model.safetensors").read_bytes()
    gc(one.store)
    (place / "model.safetensors").write_bytes(weights)  # as if it had not come to the file
    assert not one.store.verify().damaged
    assert gc(one.store).freed == len(weights)
    assert not (place / "model.safetensors").exists()


def test_bad_input_is_one_line(one: Prepared, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(one.store)
    store = ["--store", one.store.url, "--yes"]
    assert exit_code(["gc", "--keep", "some", *store]) == 2
    assert exit_code(["gc", "nobody", *store]) == 2
    said = capsys.readouterr().err
    assert said.count("error:") == 2 and "--keep = 'some'" in said and "all, last, best, none" in said
    with pytest.raises(InputError, match="is remote"):
        gc(ArtifactStore("memory://gc-test", cache=one.store.root.parent / "cache"))
    record = next((one.store.root / "experiments").glob("*.json"))
    record.write_text(record.read_text().replace("finished", "Finished"))
    assert exit_code(["gc", *store]) == 2
    assert {n: d for n, d in snapshot(one.store).items() if "experiments" not in n} == {
        n: d for n, d in before.items() if "experiments" not in n
    }


def test_an_export_says_how_the_weights_come_back(one: Prepared, tmp_path: Path) -> None:
    from flows.tools.exporting import export_model

    gc(one.store)
    with pytest.raises(InputError, match="--weights"):
        export_model(one.store, "smoke", arm="ce", seed=0, generation=1, target=tmp_path / "out")
    config = one.plan.config
    again = prepare_experiment(config, store=one.store.url, weights=True)
    assert again.refresh == {stage.reference for stage in models(one)}


def manifest_text(one: Prepared) -> dict[str, Any]:
    model = models(one)[0]
    text: dict[str, Any] = json.loads((one.store.tree.place(model.kind, model.key) / MANIFEST_NAME).read_text())
    return text


def test_a_manifest_is_of_a_newer_schema_only_where_something_was_removed(one: Prepared) -> None:
    """An older release refuses what it does not know, rather than setting it aside as damaged."""
    assert manifest_text(one)["manifest_schema"] == 1 and "removed" not in manifest_text(one)
    gc(one.store)
    changed = manifest_text(one)
    assert changed["manifest_schema"] == 2
    changed["removed"]["at"] = "yesterday"
    with pytest.raises(ArtifactDamaged):
        Manifest.from_json(json.dumps(changed))
