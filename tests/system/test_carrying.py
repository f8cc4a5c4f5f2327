"""An experiment carried to another store without its weights: what is done is done there, the rest goes on."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.app import app, exit_code
from flows.load import load_experiment_config
from flows.prepare import Prepared, prepare_experiment
from flows.study import finished_seeds
from flows.tools.carrying import BY, RECORD, carry, take_in
from flows.tools.exporting import export_dataset
from flows.tools.tracing import trace
from fortifai_core.config.stages import Runtime
from fortifai_core.errors import ArtifactDamaged, DataError, InputError
from helpers import digests
from storage.store.experiments import SEAL, experiment_id, load_experiment, record_experiment
from storage.store.manifest import MANIFEST_NAME, Manifest, seal_of
from storage.store.store import ArtifactStore
from storage.tables import parquet
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
    assert brought.new == len({stage.reference for stage in half}) and brought.record.status == "planned"
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
    texts = ("documents.parquet", "validation.parquet", "pretraining.parquet")
    assert not [name for name in names if name.endswith(texts)]
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


def with_record(content: bytes, **changed: Any) -> bytes:
    """A record of which something is another, under a seal that fits."""
    body = {name: value for name, value in json.loads(content).items() if name != SEAL} | changed
    return json.dumps({**body, SEAL: seal_of(body)}).encode()


def other_settings(name: str, content: bytes) -> tuple[str, bytes]:
    if not (name.startswith("evaluation-") and name.endswith(MANIFEST_NAME)):
        return name, content
    manifest = Manifest.from_json(content)
    return name, replace(manifest, content={**manifest.content, "splits": [0]}).to_json().encode()


def other_config(name: str, content: bytes) -> tuple[str, bytes]:
    if name != RECORD:
        return name, content
    return name, with_record(content, config={**json.loads(content)["config"], "splits": 2})


def another_name(name: str, content: bytes) -> tuple[str, bytes]:
    if name != RECORD:
        return name, content
    config = {**json.loads(content)["config"], "name": "../carried"}
    return name, with_record(content, name="../carried", config=config, id=experiment_id(config))


def a_stage_of_no_kind(name: str, content: bytes) -> tuple[str, bytes]:
    if name != RECORD:
        return name, content
    first, *others = json.loads(content)["stages"]
    return name, with_record(content, stages=[{**first, "kind": "No Kind"}, *others])


def another_size(name: str, content: bytes) -> tuple[str, bytes]:
    if not (name.startswith("evaluation-") and name.endswith(MANIFEST_NAME)):
        return name, content
    manifest = Manifest.from_json(content)
    files = [{**entry, "size": entry["size"] + 1} for entry in manifest.files]
    return name, replace(manifest, files=files).to_json().encode()


CHANGES: dict[str, tuple[Callable[[str, bytes], tuple[str, bytes] | None], str]] = {
    "other-text": (lambda n, c: (n, c[:-1] + b"!" if n.endswith("scores.parquet") else c), "is not what it was"),
    "a-file-missing": (lambda n, c: None if n.endswith("scores.parquet") else (n, c), "is missing"),
    "other-settings": (other_settings, "its key is not that of its settings"),
    "a-manifest-edited": (lambda n, c: (n, c.replace(b'"seconds"', b'"seconde"')), "is damaged"),
    "no-record": (lambda n, c: None if n == RECORD else (n, c), "is no archive"),
    "other-configuration": (other_config, "is no archive"),
    "another-name": (another_name, "is no archive"),
    "a-record-edited": (lambda n, c: (n, c.replace(b"carried", b"carrier") if n == RECORD else c), "is no archive"),
    "a-stage-of-no-kind": (a_stage_of_no_kind, "is no archive"),
    "another-size": (another_size, "is not what it was"),
    "a-hidden-file": (lambda n, c: (n.replace("scores.parquet", ".scores.parquet"), c), "is missing"),
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


def test_a_damaged_artifact_is_not_carried_and_not_left_out(tmp_path: Path) -> None:
    here = prepared_in(tmp_path / "here")
    built(here, here.plan.stages()[:3])
    first = here.plan.stages()[0]
    artifact = here.store.find(first.kind, first.key)
    assert artifact is not None
    spoilt = artifact.path / artifact.manifest.files[0]["name"]
    spoilt.write_bytes(b"x" * spoilt.stat().st_size)
    with pytest.raises(ArtifactDamaged, match=first.key[:12]):
        packed(recorded(here, "failed"), tmp_path / "spoilt.tar.xz")
    assert not (tmp_path / "spoilt.tar.xz").exists() and spoilt.exists()


def test_an_arm_that_is_added_to_results_alone_is_reported_beside_them(finished: Prepared, tmp_path: Path) -> None:
    target = tmp_path / "results.tar.xz"
    carry(finished.store, load_experiment(finished.store, "carried"), target, text=False)
    more = [*SMALL[:1], "losses=[{type: cross-entropy}, {type: tce, gamma: 0.9}]", *SMALL[2:], "name=carried"]
    there = prepare_experiment(load_experiment_config("smoke", more), store=str(tmp_path / "there"))
    take_in(there.store, target)
    to_do = needs(there.plan, there.store).to_do
    assert not [stage for stage in to_do if stage.role == "evaluate" and stage.run.startswith("ce")]
    built(there, to_do)
    report = there.store.find(to_do[-1].kind, to_do[-1].key)
    assert report is not None and report.has("report.html")
    # the first arm's texts did not come along: nobody is told that it wrote nothing
    record = load_experiment(there.store, recorded(there, "finished").record_id)
    corpus = finished.store.find("corpus", corpus_of(finished))
    assert corpus is not None
    document = parquet.read_rows(corpus.file("split-00000.parquet"))[0]["document"]
    with pytest.raises(InputError, match="has no text"):
        trace(there.store, record, document, arm="ce", seed=0)
    assert len(trace(there.store, record, document, arm="tce-0.9", seed=0)["versions"]) > 1


def corpus_of(one: Prepared) -> str:
    return next(stage.key for stage in one.plan.stages() if stage.role == "corpus")


def test_what_was_stopped_elsewhere_is_resumed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = prepared_in(tmp_path / "here")
    built(here, here.plan.stages()[:2])
    there, ran = ArtifactStore(tmp_path / "there"), list[str]()
    record = take_in(there, packed(recorded(here, "running"), tmp_path / "stopped.tar.xz")).record
    assert record.status == record.state == "stopped"
    monkeypatch.setattr("flows.local.run_here", lambda config, **_: ran.append(config.name))
    assert exit_code(["resume", record.label, "--store", there.url]) == 0
    assert ran == ["carried"]


def test_an_experiment_that_is_running_here_is_not_called_finished(
    finished: Prepared, archive: Path, tmp_path: Path
) -> None:
    here = recorded(prepared_in(tmp_path / "here"), "running")
    assert take_in(here.store, archive).record.status == "running"


def test_what_a_machine_is_set_to_stays_there(finished: Prepared, archive: Path, tmp_path: Path) -> None:
    there = ArtifactStore(tmp_path / "there")
    record = take_in(there, archive).record
    assert "runtime" not in record.config and "runtime" in load_experiment(finished.store, "carried").config
    assert record.id == load_experiment(finished.store, "carried").id


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
        ("pack", "carried", "--no-text", "--store", store): "add --artifacts",
        ("import", str(tmp_path / "gone.tar.xz"), "--store", store): "is no file",
        ("import", str(made), "--name", "other", "--store", store): "keeps its name",
    }
    for arguments, words in refused.items():
        assert exit_code(list(arguments)) == 2
        result = run.invoke(app, list(arguments))
        assert words in str(result.exception) or words in result.output
