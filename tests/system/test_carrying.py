"""An experiment carried to another store without its weights: what is done is done there, the rest goes on."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.app import app, exit_code
from flows.load import load_experiment_config
from flows.prepare import Prepared, prepare_experiment
from flows.study import finished_seeds
from flows.tools.carrying import BY, MANIFEST, RECORD, carry, take_in
from flows.tools.exporting import export_dataset
from fortifai_core.config.stages import Runtime
from fortifai_core.errors import ArtifactDamaged, DataError, InputError
from helpers import digests
from storage.store.experiments import load_experiment, record_experiment
from storage.store.manifest import Manifest
from storage.store.store import ArtifactStore
from storage.tables.models import is_weights
from tasks.engine.build import build
from tasks.engine.needs import needs
from tasks.engine.stages import Stage

SMALL = ["splits=3", "losses=[{type: cross-entropy}]", "evaluation.drift=false", "runtime.threads=1"]
Files = dict[str, dict[str, str]]


def prepared_in(store: Path) -> Prepared:
    return prepare_experiment(load_experiment_config("smoke", [*SMALL, "name=carried"]), store=str(store))


def built(one: Prepared, stages: Sequence[Stage]) -> None:
    for stage in stages:
        build(stage, one.store, Runtime(), progress=lambda done, total, unit: None)


def recorded(one: Prepared, status: str) -> Prepared:
    record_experiment(one.store, config=one.plan.config.model_dump(mode="json"), status=status)
    return one


def packed(one: Prepared, target: Path) -> Path:
    carry(one.store, load_experiment(one.store, "carried"), target)
    return target


def but_weights(files: Files) -> Files:
    """But for the report, which holds times."""
    kept = {address: found for address, found in files.items() if not address.startswith("report/")}
    return {
        address: {name: digest for name, digest in found.items() if not is_weights(address.partition("/")[0], name)}
        for address, found in kept.items()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    one = prepared_in(tmp_path_factory.mktemp("carrying") / "store")
    built(one, one.plan.stages())
    return recorded(one, "finished")


@pytest.fixture(scope="module")
def archive(finished: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return packed(finished, tmp_path_factory.mktemp("packed") / "carried.tar.xz")


def test_what_was_finished_is_finished_there_and_weights_alone_are_not_there(
    finished: Prepared, archive: Path, tmp_path: Path
) -> None:
    there = ArtifactStore(tmp_path / "there")
    brought = take_in(there, archive)
    assert (brought.new, brought.before) == (len({s.reference for s in finished.plan.stages()}), 0)
    assert brought.record.status == "finished" and brought.record.id == load_experiment(finished.store, "carried").id
    assert but_weights(digests(there)) == but_weights(digests(finished.store))
    assert needs(finished.plan, there).to_do == ()
    assert finished_seeds(finished.plan.config, there) == list(finished.plan.config.seeds)
    assert there.verify().damaged == []
    model = next(stage for stage in finished.plan.stages() if stage.role == "train")
    manifest = there.peek(model.kind, model.key)
    assert manifest is not None and manifest.removed is not None and manifest.removed["by"] == BY
    assert [entry["name"] for entry in manifest.removed["files"]] == ["model.safetensors"]
    again = take_in(there, archive)
    assert (again.new, again.before) == (0, brought.new)


def test_what_was_stopped_goes_on_there_and_ends_with_the_same_bits(finished: Prepared, tmp_path: Path) -> None:
    stages = finished.plan.stages()
    half = [stage for stage in stages if (stage.generation or 0) < 1 and stage.role not in ("report", "failure")]
    here, there = prepared_in(tmp_path / "here"), prepared_in(tmp_path / "there")
    built(here, half)
    brought = take_in(there.store, packed(recorded(here, "running"), tmp_path / "half.tar.xz"))
    # what was planned there stays as it was planned; nobody is taken to be at work on it
    assert brought.new == len({stage.reference for stage in half}) and brought.record.status != "finished"
    to_do = needs(there.plan, there.store).to_do
    assert 0 < len(to_do) < len(stages)
    built(there, to_do)
    made = digests(finished.store)
    assert but_weights(digests(there.store)) == but_weights(made)
    for stage in to_do:
        if stage.role == "train":
            address = f"{stage.kind}/{stage.key}"
            assert digests(there.store)[address] == made[address]


def test_results_alone_are_reported_anew_and_what_is_missing_is_made_again_for_who_reads_it(
    finished: Prepared, tmp_path: Path
) -> None:
    target = tmp_path / "results.tar.xz"
    carry(finished.store, load_experiment(finished.store, "carried"), target, text=False)
    with tarfile.open(target) as archive:
        names = archive.getnames()
    assert not [name for name in names if "/part-" in name or "/split-" in name or name.startswith("report-")]
    there = prepared_in(tmp_path / "there")
    record = take_in(there.store, target).record
    (report,) = needs(there.plan, there.store).to_do
    assert report.role == "report"  # the finished seeds are finished, without a text
    assert finished_seeds(there.plan.config, there.store) == list(there.plan.config.seeds)
    built(there, [report])
    tables = [store.find(report.kind, report.key) for store in (there.store, finished.store)]
    made, before = (one.file("tables/results.csv").read_bytes() for one in tables if one is not None)
    assert made == before
    # who needs a text is told that it is not here, and how to get it
    with pytest.raises(InputError, match=r"has no text, .* removed it"):
        export_dataset(there.store, record.label, arm="ce", seed=0, generation=1, target=tmp_path / "data")
    # a stage that reads text has it made again first; or it comes with an archive that has it
    whole = ArtifactStore(tmp_path / "whole")
    take_in(whole, target)
    assert take_in(whole, packed(finished, tmp_path / "whole.tar.xz")).new > 0
    assert but_weights(digests(whole)) == but_weights(digests(finished.store))
    last = max((s for s in there.plan.stages() if s.role == "evaluate"), key=lambda stage: stage.generation or 0)
    there.store.remove(last.kind, last.key)
    again = {stage.role for stage in needs(there.plan, there.store).to_do}
    assert {"evaluate", "train", "regenerate", "corpus"} <= again
    built(there, needs(there.plan, there.store).to_do)
    assert digests(there.store)[f"{last.kind}/{last.key}"] == digests(finished.store)[f"{last.kind}/{last.key}"]


def test_what_is_here_with_its_weights_stays_as_it_is(finished: Prepared, archive: Path) -> None:
    before = digests(finished.store)
    assert take_in(finished.store, archive).new == 0
    assert digests(finished.store) == before


def test_the_same_artifacts_make_the_same_archive(finished: Prepared, archive: Path, tmp_path: Path) -> None:
    assert packed(finished, tmp_path / "twin.tar.xz").read_bytes() == archive.read_bytes()


def changed(archive: Path, target: Path, change: Callable[[str, bytes], tuple[str, bytes] | None]) -> Path:
    """A copy of the archive in which each file has the name and content that `change` gives it; None leaves it out."""
    with tarfile.open(archive) as old, tarfile.open(target, "w:xz") as new:
        for entry in old:
            stream = old.extractfile(entry)
            assert stream is not None
            given = change(entry.name, stream.read())
            if given is not None:
                twin = tarfile.TarInfo(given[0])
                twin.size = len(given[1])
                new.addfile(twin, io.BytesIO(given[1]))
    return target


def other_settings(name: str, content: bytes) -> tuple[str, bytes]:
    if not (name.startswith("evaluation-") and name.endswith(MANIFEST)):
        return name, content
    manifest = Manifest.from_json(content)
    return name, replace(manifest, content={**manifest.content, "splits": [0]}).to_json().encode()


def other_config(name: str, content: bytes) -> tuple[str, bytes]:
    if name != RECORD:
        return name, content
    record = json.loads(content)
    return name, json.dumps({**record, "config": {**record["config"], "splits": 2}}).encode()


CHANGES: dict[str, tuple[Callable[[str, bytes], tuple[str, bytes] | None], str]] = {
    "other-text": (lambda n, c: (n, c[:-1] + b"!" if n.endswith("scores.parquet") else c), "is not what it was"),
    "a-file-missing": (lambda n, c: None if n.endswith("scores.parquet") else (n, c), "is missing"),
    "other-settings": (other_settings, "its key is not that of its settings"),
    "a-manifest-edited": (lambda n, c: (n, c.replace(b'"seconds"', b'"seconde"')), "is damaged"),
    "no-record": (lambda n, c: None if n == RECORD else (n, c), "is no archive"),
    "other-configuration": (other_config, "is no archive"),
    "another-name": (lambda n, c: (n, c.replace(b'"name": "carried"', b'"name": "../carried"')), "is no archive"),
    "a-name-twice": (lambda n, c: (n.replace("clusters.parquet", "scores.parquet"), c), "is no archive"),
    "below-a-file": (lambda n, c: (n.replace("/clusters.parquet", "/scores.parquet/x"), c), "is no archive"),
    "a-way-out": (lambda n, c: (n.replace("scores.parquet", "../../../scores.parquet"), c), "scores.parquet"),
    "an-absolute-name": (lambda n, c: (f"/{n}" if n.endswith("scores.parquet") else n, c), "no archive|scores.parquet"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_of_an_archive_that_was_changed_nothing_is_taken_in(archive: Path, tmp_path: Path, case: str) -> None:
    change, said = CHANGES[case]
    there = ArtifactStore(tmp_path / "there")
    with pytest.raises((DataError, InputError), match=said) as refused:
        take_in(there, changed(archive, tmp_path / "changed.tar.xz", change))
    assert "\n" not in str(refused.value)
    assert not there.addresses() and not list(tmp_path.rglob("scores.parquet"))


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_an_archive_that_was_cut_off_or_lost_a_bit_is_refused(archive: Path, tmp_path: Path, at: float) -> None:
    data, there = archive.read_bytes(), ArtifactStore(tmp_path / "there")
    place = int(len(data) * at)
    for name, content in {
        "cut": data[:place],
        "flipped": data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :],
    }.items():
        file = tmp_path / f"{name}.tar.xz"
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"damaged|no archive"):
            take_in(there, file)
    assert not there.addresses()


def test_a_damaged_artifact_is_not_carried(finished: Prepared, tmp_path: Path) -> None:
    here = prepared_in(tmp_path / "here")
    built(here, here.plan.stages()[:1])
    first = here.plan.stages()[0]
    artifact = here.store.find(first.kind, first.key)
    assert artifact is not None
    spoilt = artifact.path / artifact.manifest.files[0]["name"]
    spoilt.write_bytes(b"x" * spoilt.stat().st_size)
    with pytest.raises((ArtifactDamaged, InputError)), pytest.warns(UserWarning):
        packed(recorded(here, "failed"), tmp_path / "spoilt.tar.xz")
    assert not (tmp_path / "spoilt.tar.xz").exists()


def test_at_the_terminal(finished: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run, store = CliRunner(), finished.store.url
    said = run.invoke(app, ["pack", "carried", "--artifacts", "--store", store])
    (made,) = tmp_path.glob("carried-*.tar.xz")
    assert said.exit_code == 0 and made.name in said.output.replace("\n", "")
    taken = run.invoke(app, ["import", str(made), "--store", str(tmp_path / "there")])
    assert taken.exit_code == 0 and "artifacts taken in, 0 were here" in " ".join(taken.output.split())
    refused = {
        ("pack", "carried", "--artifacts", "--out", str(tmp_path / "x.zip"), "--store", store): "ends in .tar.xz",
        ("import", str(tmp_path / "gone.tar.xz"), "--store", store): "is no file",
        ("import", str(made), "--name", "other", "--store", store): "keeps its name",
    }
    for arguments, words in refused.items():
        assert exit_code(list(arguments)) == 2
        result = run.invoke(app, list(arguments))
        assert words in str(result.exception) or words in result.output
