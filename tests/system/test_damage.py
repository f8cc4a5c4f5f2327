"""One flipped bit, of the same size, in every kind of artifact: found before a number is made of it or shown."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from artifacts import flip_one_of_each_kind
from flows.cli.app import app
from flows.load import load_any_config
from flows.prepare import Prepared, prepare_experiment
from fortifai_core.config.stages import Runtime
from fortifai_core.errors import ArtifactDamaged
from storage.store.store import ArtifactDamagedWarning, ArtifactStore
from tasks.engine.build import build
from tasks.engine.stages import Stage

PRESETS = {
    "smoke": ["generations=2", "splits=2", "runtime.threads=1"],
    "gmm": ["family.segment=1", "generations=3", "seeds=[0]"],
}
KINDS = {
    "smoke": "source pretraining tokenizer corpus model split evaluation drift failure report",
    "gmm": "family-data family-segment family-failure report",
}
# whose files nobody reads but people: what is made of them is made of their manifests
UNREAD = {"failure", "family-failure", "report"}


def built(one: Prepared, stage: Stage) -> None:
    build(stage, one.store, Runtime(), progress=lambda done, total, unit: None)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Prepared]:
    """A store for each preset, with everything in it."""
    made = {}
    for preset, overrides in PRESETS.items():
        store = tmp_path_factory.mktemp(preset) / "store"
        made[preset] = prepare_experiment(load_any_config(preset, overrides), store=str(store))
        for stage in made[preset].plan.stages():
            built(made[preset], stage)
    return made


def copy_of(one: Prepared, target: Path) -> Prepared:
    shutil.copytree(one.store.root, target)
    return Prepared(one.plan, ArtifactStore(target), one.record_id)


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of everything in a store but its locks and its catalog, which may be made anew."""
    return {
        str(path.relative_to(root)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.relative_to(root).parts[0] not in ("locks", "catalog.duckdb") and path.is_file()
    }


@pytest.mark.parametrize(("preset", "kind"), [(p, kind) for p, kinds in KINDS.items() for kind in kinds.split()])
def test_a_flipped_bit_is_found_before_a_number_is_made_of_it(
    finished: dict[str, Prepared], tmp_path: Path, preset: str, kind: str
) -> None:
    one = copy_of(finished[preset], tmp_path / "store")
    assert {manifest.kind for manifest in one.store.ls()} == set(KINDS[preset].split())
    key = flip_one_of_each_kind(one.store, only=kind)[kind]
    before = snapshot(one.store.root)
    said = CliRunner().invoke(app, ["path", key, "--store", one.store.url])
    assert isinstance(said.exception, ArtifactDamaged) and "sha256" in str(said.exception) and not said.stdout
    assert snapshot(one.store.root) == before
    found, same = 0, 0
    for child in [s for s in one.plan.stages() if key in {parent.key for parent in s.parents.values()}]:
        manifest = one.store.peek(child.kind, child.key)
        assert manifest is not None
        one.store.remove(child.kind, child.key)
        try:
            with pytest.warns(ArtifactDamagedWarning):
                built(one, child)
        except ArtifactDamaged:
            found += 1
            assert not one.store.has(child.kind, child.key) and not one.store.has(kind, key)
            break
        except pytest.fail.Exception:  # it was built without a warning: of the sealed manifest, not of the files
            same += 1
            again = one.store.peek(child.kind, child.key)
            assert again is not None and again.metrics == manifest.metrics
    assert found or kind in UNREAD
    assert [path.name.endswith(f"-{kind}-{key}") for path in one.store.root.glob("damaged/*")] == [True] * found


def test_reading_commands_move_nothing_whatever_is_damaged(
    finished: dict[str, Prepared], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = copy_of(finished["smoke"], tmp_path / "store")
    keys = flip_one_of_each_kind(one.store)
    torn = next(s for s in one.plan.stages() if s.kind == "split" and s.key != keys["split"])
    (one.store.tree.place(torn.kind, torn.key) / "manifest.json").write_text("{")
    monkeypatch.setenv("FORTIFAI_STORE", one.store.url)
    before = snapshot(one.store.root)
    run = CliRunner()
    for command in (
        ["plan", "smoke", *(f"--set={override}" for override in PRESETS["smoke"])],
        ["ls"],
        ["show", "smoke"],
        ["show", keys["model"]],
        ["sql", "select count(*) from metrics"],
        ["trace", "nothing"],
        ["report"],
        ["report", "--out", str(tmp_path / "out")],
        ["path", "report"],
        ["path", "catalog"],
        ["path", keys["evaluation"]],
        ["export", "model", str(tmp_path / "model")],
        ["export", "dataset", str(tmp_path / "dataset")],
        ["kr", "compare", "smoke", "questions.json"],
    ):
        said = run.invoke(app, command)
        assert isinstance(said.exception, (type(None), ArtifactDamaged, SystemExit)), (command, said.exception)
        assert snapshot(one.store.root) == before, command
    assert not (one.store.root / "damaged").exists()


def test_a_flipped_bit_in_a_reports_table_is_said_and_built_anew_by_the_next_run(
    finished: dict[str, Prepared], tmp_path: Path
) -> None:
    one = copy_of(finished["smoke"], tmp_path / "store")
    report = one.plan.report()
    table = one.store.tree.place(report.kind, report.key) / "table.json"
    whole = table.read_bytes()
    table.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    arguments = ["--store", one.store.url]
    said = CliRunner().invoke(app, ["report", one.record_id, *arguments])
    assert isinstance(said.exception, ArtifactDamaged) and "fortifai verify" in str(said.exception)
    said = CliRunner().invoke(app, ["verify", "--json", *arguments])
    assert said.exit_code == 1
    assert [(d["kind"], d["file"]) for d in json.loads(said.stdout)["damaged"]] == [("report", "table.json")]
    built(one, report)
    assert table.read_bytes() == whole
    assert CliRunner().invoke(app, ["report", one.record_id, *arguments]).exit_code == 0
