"""An experiment from end to end: what is found is not computed, what is missing is, and nothing else changes."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
import shutil
from collections import Counter
from errno import ENOSPC
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from faults import EVERY, disk
from rich.console import Console

from artifacts import flip_one_of_each_kind
from flows.load import load_experiment_config
from flows.prepare import Prepared, plan_for, prepare_experiment
from flows.tools.collecting import collect
from fortifai_core.config.custom_code import ALLOWED
from fortifai_core.errors import ConfigError, DataError, StageFailed, StoreError
from helpers import Recorder, run_flow, shown_artifacts
from helpers import digests as artifact_digests
from storage.store.experiments import load_experiment
from storage.store.store import ArtifactStore
from tasks.engine.stages import Stage

pytestmark = pytest.mark.usefixtures("prefect_server")
OVERRIDES = ["runtime.workers=1", "runtime.threads=1"]


def run(store: Path | str, *overrides: str, preset: str = "smoke") -> tuple[Recorder, Prepared, dict[str, Any]]:
    prepared = prepare_experiment(load_experiment_config(preset, [*OVERRIDES, *overrides]), store=str(store))
    recorder = Recorder()
    outcome = run_flow(prepared, recorder)
    return recorder, prepared, outcome


def digests(prepared: Prepared) -> dict[str, dict[str, str]]:
    """sha256 of every file of every artifact but the report, which has the times in a file."""
    result = {}
    for stage in prepared.plan.stages():
        artifact = prepared.store.find(stage.kind, stage.key)
        if artifact is not None and stage.kind != "report":
            result[f"{stage.kind}/{stage.key}"] = {e["name"]: e["sha256"] for e in artifact.manifest.files}
    return result


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> tuple[Path, Prepared, Recorder]:
    """A store with one finished smoke experiment. Tests that change it work on a copy."""
    store = tmp_path_factory.mktemp("finished") / "store"
    recorder, prepared, _ = run(store)
    return store, prepared, recorder


@pytest.fixture
def copied(finished: tuple[Path, Prepared, Recorder], tmp_path: Path) -> Path:
    target = tmp_path / "store"
    shutil.copytree(finished[0], target)
    return target


def test_every_stage_is_built_once(finished: tuple[Path, Prepared, Recorder]) -> None:
    _, prepared, recorder = finished
    counts = Counter(stage.reference for stage in recorder.built)
    assert set(counts.values()) == {1}
    assert {s.reference for s in prepared.plan.stages()} == set(counts)
    assert not recorder.notes


def test_the_ui_is_shown_retention_and_drift(finished: tuple[Path, Prepared, Recorder]) -> None:
    artifacts = shown_artifacts("smoke")
    for arm in ("ce", "tce-0-9"):
        assert "xychart-beta" in artifacts[f"smoke-{arm}-seed-0-retention"]
        assert artifacts[f"smoke-{arm}-seed-0-drift-charts"].count("xychart-beta") >= 4
        kind, _, drawn = artifacts[f"smoke-{arm}-seed-0-retention-image"].partition(",")
        assert kind == "data:image/svg+xml;base64"
        tips = [title.text or "" for title in ElementTree.fromstring(base64.b64decode(drawn)).findall(".//{*}title")]
        assert [tip.partition(":")[0].rpartition(" ")[2] for tip in tips] == ["M0", "M1"]
        for name, columns in (("table", {"kr-split-0", "kr-total"}), ("drift", {"model-kl", "facts-true-0"})):
            rows = json.loads(artifacts[f"smoke-{arm}-seed-0-{name}"])
            assert {row["generation"] for row in rows} == {0, 1} and all(columns <= set(row) for row in rows)
        assert all(("live-fraction" in row) == (arm == "tce-0-9") for row in rows)


def test_runs_are_found_by_arm_and_seed_and_no_task_has_more_than_the_tag_of_its_role(
    finished: tuple[Path, Prepared, Recorder],
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterTags

    async def named() -> tuple[set[str], list[set[str]]]:
        async with get_client() as client:
            tagged = FlowRunFilter(tags=FlowRunFilterTags(all_=["arm: ce", "seed: 0"]))
            runs = await client.read_flow_runs(flow_run_filter=tagged, limit=200)
            tasks = await client.read_task_runs(limit=200)
            own = [one for one in tasks if one.state is None or one.state.state_details.child_flow_run_id is None]
            return {run.name for run in runs}, [set(one.tags) for one in own]

    names, tags = asyncio.run(named())
    assert names == {"ce · seed 0"}
    assert tags and max(map(len, tags)) <= 1  # each further set of them would cost a thread and a client


def test_every_artifact_is_sound(finished: tuple[Path, Prepared, Recorder]) -> None:
    verified = ArtifactStore(finished[0]).verify()
    assert verified.damaged == [] and verified.sound == len(finished[1].plan.stages())


def test_what_verify_sets_aside_is_built_anew_as_it_was_whatever_its_kind(copied: Path) -> None:
    store = ArtifactStore(copied)
    kinds = {manifest.kind for manifest in store.ls()}
    assert {"source", "tokenizer", "corpus", "model", "split", "evaluation", "drift", "failure", "report"} <= kinds
    before = artifact_digests(store)
    flipped = flip_one_of_each_kind(store)
    # what is shown is looked at to the last bit; what it is made of, when it is made anew
    at_once = {stage.kind: stage.key for stage in run(copied)[0].built}
    assert {"report", "evaluation", "drift"} <= at_once.keys() and at_once.items() <= flipped.items()
    rest = {kind: key for kind, key in flipped.items() if kind not in at_once}
    assert {damage.kind: damage.key for damage in store.verify().damaged} == rest
    recorder, _, outcome = run(copied)
    assert {stage.kind: stage.key for stage in recorder.built} == rest and outcome["built"] == len(rest)
    assert artifact_digests(store) == before
    assert store.verify().damaged == []


def test_a_second_run_computes_nothing(copied: Path) -> None:
    recorder, prepared, outcome = run(copied)
    assert recorder.built == []
    assert outcome["built"] == 0
    assert {s.reference for s in recorder.found} == {s.reference for s in prepared.plan.stages()}


@pytest.mark.long
def test_two_stores_hold_the_same_results(finished: tuple[Path, Prepared, Recorder], tmp_path: Path) -> None:
    _, other, _ = run(tmp_path / "other", "runtime.workers=2")
    assert digests(other) == digests(finished[1])


def test_where_all_is_found_and_no_server_keeps_a_record_no_flow_is_run(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import local

    def started(experiments: list[Prepared], *_: Any, **__: Any) -> dict[str, Any]:
        raise RuntimeError(experiments[0].record_id)

    monkeypatch.setattr(local, "configured_api", lambda: None)
    monkeypatch.setattr(local, "_run", started)
    output = Console(file=io.StringIO(), width=160)
    config = load_experiment_config("smoke", OVERRIDES)
    again = {"store": str(copied), "refresh": [], "console": output, "resume": "{name}"}
    outcome = local.run_here(config, **again)
    printed = output.file.getvalue()  # type: ignore[attr-defined]
    assert (outcome["built"], "retention of split 0" in printed, "0 stages computed" in printed) == (0, True, True)
    store = ArtifactStore(copied)
    assert outcome["report"] == store.ls("report")[0].key
    store.remove("report", outcome["report"])
    with pytest.raises(RuntimeError, match="smoke-"):
        local.run_here(config, **again)


def test_no_more_runs_are_at_work_than_there_are_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import experiment

    active: list[tuple[str, int]] = []
    seen: list[int] = []
    done: list[tuple[str, int]] = []

    async def one_run(_: str, arm: str, seed: int) -> None:
        active.append((arm, seed))
        seen.append(len(active))
        await asyncio.sleep(0.01)
        active.remove((arm, seed))
        done.append((arm, seed))

    plan = plan_for(load_experiment_config("smoke", ["seeds=[0,1,2,3,4]"]))
    monkeypatch.setattr(experiment, "run_arm", one_run)
    asyncio.run(experiment._in_turns(plan, at_once=3))
    assert max(seen) == 3
    assert sorted(done) == sorted((run.arm, run.seed) for run in plan.runs)


def test_changing_one_loss_reruns_only_that_arm(copied: Path) -> None:
    recorder, _, _ = run(copied, "losses.1.gamma=0.7")
    assert {stage.arm for stage in recorder.built if stage.role != "report"} == {"tce-0.7"}


@pytest.mark.long
def test_another_generation_computes_only_that_one(copied: Path) -> None:
    recorder, _, _ = run(copied, "generations=3")
    assert {s.generation for s in recorder.built if s.role != "report"} == {2}


@pytest.mark.parametrize(
    "role",
    ["regenerate", *(pytest.param(role, marks=pytest.mark.long) for role in ("train", "evaluate", "corpus"))],
)
def test_an_artifact_that_is_gone_or_damaged_is_rebuilt_as_it_was(
    finished: tuple[Path, Prepared, Recorder], copied: Path, role: str
) -> None:
    stage = next(s for s in finished[1].plan.stages() if s.role == role)
    store = ArtifactStore(copied)
    artifact = store.find(stage.kind, stage.key)
    assert artifact is not None
    damaged = artifact.path / artifact.manifest.files[0]["name"]
    damaged.write_bytes(b"x")
    with pytest.warns(UserWarning, match="set aside"):
        recorder, prepared, _ = run(copied)
    assert [s.reference for s in recorder.built] == [stage.reference]
    assert digests(prepared) == digests(finished[1])


@pytest.mark.long
def test_what_gc_removed_is_made_again_only_when_a_stage_needs_it(copied: Path) -> None:
    store = ArtifactStore(copied)
    before = artifact_digests(store)
    assert collect(store, [], keep="none", remove=True).freed
    recorder, prepared, _ = run(copied)
    assert not recorder.built and artifact_digests(store) != before
    _, tce = prepared.plan.runs
    last = tce.generations[-1].evaluate
    assert last is not None
    store.remove(*last.reference)
    recorder, _, _ = run(copied)
    chain = [step.train.reference for step in tce.generations]
    assert {stage.reference for stage in recorder.built} == {*chain, last.reference}
    assert [note for note in recorder.notes if "is made again for" in note and "fortifai gc" in note]
    assert not [note for note in recorder.notes if note.startswith("warning")]
    weights = prepare_experiment(prepared.plan.config, store=str(copied), weights=True)
    recorder = Recorder()
    run_flow(weights, recorder)
    assert {stage.arm for stage in recorder.built} == {"ce"}
    assert artifact_digests(store) == before


@pytest.mark.long
def test_a_failure_that_cannot_be_recorded_is_said_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full by then: what went wrong first is what counts."""
    (tmp_path / "late_losses.py").write_text(
        "def late(nll):\n    if nll.numel() > 64:\n        raise RuntimeError('the first thing that went wrong')\n"
        "    return nll * 1.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv(ALLOWED, "late_losses")
    loss = "losses=[{type: custom, name: late, function: 'late_losses:late'}]"
    prepared = prepare_experiment(load_experiment_config("smoke", [*OVERRIDES, loss]), store=str(tmp_path / "store"))

    class FillsTheDisk(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.full = contextlib.ExitStack()

        def started(self, stage: Stage) -> None:
            if stage.role == "train":
                self.full.enter_context(disk(prepared.store.root / "experiments", ENOSPC, writes=True, failing=EVERY))

    recorder = FillsTheDisk()
    with pytest.raises(StageFailed, match="the first thing that went wrong"), recorder.full:
        run_flow(prepared, recorder)
    (told,) = [note for note in recorder.notes if "could not be recorded" in note]
    assert "No space left" in told or "full" in told
    assert load_experiment(prepared.store, prepared.record_id).status == "running"


@pytest.mark.long
def test_refresh_rebuilds_what_follows_from_the_stage_and_nothing_else(copied: Path) -> None:
    config = load_experiment_config("smoke", OVERRIDES)
    prepared = prepare_experiment(config, store=str(copied), refresh=["evaluate"])
    recorder = Recorder()
    run_flow(prepared, recorder)
    assert {s.role for s in recorder.built} == {"evaluate", "failure", "report"}


@pytest.mark.long
def test_what_was_found_is_shown_as_cached(copied: Path) -> None:
    from prefect import get_client

    _, prepared, _ = run(copied)

    async def names() -> Counter[tuple[str, str]]:
        async with get_client() as client:
            runs = await client.read_task_runs(limit=200)
            return Counter((r.name.split(" · ")[0], r.state.name if r.state else "") for r in runs)

    states = asyncio.run(names())
    for role in ("train", "regenerate", "evaluate", "failure"):
        used = sum(s.role == role for s in prepared.plan.uses())
        assert states[(role, "Cached")] >= used


@pytest.mark.long
def test_an_arm_stops_when_it_has_failed_and_goes_on_when_it_may(tmp_path: Path) -> None:
    # so small a model learns nothing: it is below any threshold from M_0 on, which is not failure
    recorder, _, _ = run(tmp_path, "failure.stop_arm=true", "failure.threshold=0.99")
    assert {s.generation for s in recorder.built if s.role == "train"} == {0, 1}
    # nothing that was computed before is lost to the change of the option
    again, _, _ = run(tmp_path, "failure.threshold=0.99")
    assert {s.role for s in again.built} <= {"report"}


@pytest.mark.long
@pytest.mark.parametrize("regime", ["replace", "accumulate", "accumulate-subsample", "fresh-mix"])
def test_every_regime_runs(copied: Path, regime: str) -> None:
    recorder, prepared, _ = run(copied, f"regime={regime}", "generations=3", "losses=[{type: cross-entropy}]")
    assert {s.role for s in recorder.built} >= {"train", "regenerate", "evaluate"}
    sizes = []
    for step in prepared.plan.runs[0].generations:
        artifact = prepared.store.find(*step.train.reference)
        assert artifact is not None
        sizes.append(int(artifact.manifest.metrics["tokens-read"]))
    grows = sizes[2] > 1.5 * sizes[0]
    assert grows == (regime in ("accumulate", "fresh-mix"))


@pytest.mark.long
def test_arms_that_read_each_other_wait_for_each_other_with_one_worker(copied: Path) -> None:
    arms = "arms=[{name: a, pool: {a: 0.5, b: 0.5}}, {name: b, model: {hidden_size: 16}, pool: {a: 0.5, b: 0.5}}]"
    recorder, prepared, _ = run(copied, "losses=[{type: cross-entropy}]", "generations=3", arms)
    counts = Counter(stage.reference for stage in recorder.built)
    assert set(counts.values()) == {1}
    pools = [stage for stage in recorder.built if stage.role == "pool"]
    assert len(pools) == 3  # one for each split that was rewritten by M_0 and M_1
    built = [stage.reference for stage in recorder.built]
    for pool in pools:
        assert all(built.index(p) < built.index(pool.reference) for p in pool.parents.values() if p in built)
    assert all(prepared.store.has(*stage.reference) for stage in prepared.plan.stages())


@pytest.mark.long
def test_a_failing_stage_says_which_and_keeps_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.engine.pool import WorkerError

    (tmp_path / "broken_loss.py").write_text(
        "def broken(nll):\n    return nll * (float('nan') if nll.numel() > 64 else 1.0)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv(ALLOWED, "broken_loss")
    broken = "losses=[{type: cross-entropy}, {type: custom, name: broken, function: 'broken_loss:broken'}]"
    with pytest.raises(WorkerError, match=r"train · g0 \(broken\).*training\.learning_rate"):
        run(tmp_path / "store", broken)
    roles = {m.kind for m in ArtifactStore(tmp_path / "store").ls()}
    assert {"tokenizer", "corpus", "model"} <= roles


def test_bad_input_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    store = tmp_path / "store"
    missing = {"type": "text", "files": [str(tmp_path / "nowhere.txt")]}
    config = load_experiment_config("smoke").model_dump() | {"corpus": missing}
    from flows.load import validate

    with pytest.raises(DataError, match=r"corpus\.files\.0"):
        prepare_experiment(validate(config), store=str(store))
    with pytest.raises(ConfigError, match="--refresh"):
        prepare_experiment(load_experiment_config("smoke"), store=str(store), refresh=["trian"])
    assert not list(store.rglob("manifest.json"))


def test_an_experiment_larger_than_memory_or_disk_is_refused(tmp_path: Path) -> None:
    many = ["model.hidden_size=2048", "model.layers=8", "model.intermediate_size=5632", f"seeds={list(range(300))}"]
    with pytest.raises(StoreError, match="GB are free"):
        prepare_experiment(load_experiment_config("tiny", many), store=str(tmp_path))
    huge = ["model.hidden_size=65536", "model.layers=200", "model.intermediate_size=200000"]
    with pytest.raises(ConfigError, match=r"model = 'scratch': .* GB a worker"):
        prepare_experiment(load_experiment_config("tiny", huge), store=str(tmp_path))
