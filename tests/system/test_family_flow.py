"""An experiment on a family from end to end: stages, report, catalog; cut at any moment, the same results."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import signal
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from artifacts import flip_one_of_each_kind
from flows.load import load_any_config
from flows.local import read_report
from flows.prepare import Prepared, plan_for, prepare_experiment
from flows.tools.explain import explain_plan
from fortifai_core.config.stages import Runtime
from fortifai_core.errors import ConfigError, InputError
from helpers import Recorder, cli, digests, run_flow, shown_artifacts, start_cli
from storage.catalog.catalog import query
from storage.store.experiments import load_experiment, record_experiment
from storage.store.store import ArtifactStore
from tasks.engine.build import build
from tasks.engine.stages import Stage
from tasks.families.journal import EVERY_SECONDS

GMM = [
    "family.data.samples=120",
    "family.components=2",
    "family.projections=8",
    "arms=[{type: none}, {type: threshold, gamma: 0.8}]",
    "seeds=[1, 2]",
    "generations=3",
    "runtime.workers=1",
]
GAUSSIAN = ["family.samples=200", "family.replicates=6", "family.segment=4", "generations=10", "runtime.workers=1"]
VAE = [
    "family.epochs=2",
    "family.channels=4",
    "family.latent=3",
    "family.samples=300",
    "family.classifier_epochs=1",
    "family.measured_images=100",
    "arms=[{type: none}, {type: dynamic-quantile}]",
    "seeds=[1]",
    "generations=2",
    "runtime.workers=1",
]


def quiet(_done: int, _total: int, _unit: str) -> None:
    """Progress that nobody looks at."""


def prepared(store: Path, preset: str, *overrides: str, refresh: Sequence[str] = ()) -> Prepared:
    return prepare_experiment(load_any_config(preset, overrides), store=str(store), refresh=refresh)


def build_all(one: Prepared, *, upto: int | None = None) -> list[Stage]:
    """Every stage by its own builder, in order, without a server; those that were not there before."""
    built = []
    for stage in one.plan.stages()[:upto]:
        _, found = build(stage, one.store, Runtime(), progress=quiet, anew=stage.reference in one.refresh)
        if not found:
            built.append(stage)
    return built


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    one = prepared(tmp_path_factory.mktemp("families") / "store", "gmm", *GMM)
    build_all(one)
    return one


def report_folder(one: Prepared) -> Path:
    stage = one.plan.report()
    artifact = one.store.find(stage.kind, stage.key)
    assert artifact is not None
    return artifact.path


def test_every_artifact_is_sound_and_a_second_time_nothing_is_built(finished: Prepared) -> None:
    assert finished.store.verify().damaged == []
    assert build_all(finished) == []


@pytest.mark.parametrize(("preset", "overrides"), [("gmm", GMM), ("gaussian", GAUSSIAN)])
def test_what_verify_sets_aside_is_built_anew_as_it_was(preset: str, overrides: list[str], tmp_path: Path) -> None:
    one = prepared(tmp_path / "store", preset, *overrides)
    assert {stage.kind for stage in build_all(one)} == {stage.kind for stage in one.plan.stages()}
    before = digests(one.store)
    flipped = flip_one_of_each_kind(one.store)
    assert {damage.kind: damage.key for damage in one.store.verify().damaged} == flipped
    assert {stage.kind: stage.key for stage in build_all(one)} == flipped
    assert digests(one.store) == before
    assert one.store.verify().damaged == []


def test_cut_between_and_within_stages_it_ends_with_the_same_bits(
    finished: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.families import builders

    one = prepared(tmp_path / "cut", "gmm", *GMM)
    whole = builders.write_parameters

    def torn(path: Path, parameters: Any) -> None:
        whole(path, parameters)
        raise KeyboardInterrupt  # after a file was written, before the artifact was committed

    monkeypatch.setattr(builders, "write_parameters", torn)
    with pytest.raises(KeyboardInterrupt):
        build_all(one)
    monkeypatch.undo()
    build_all(one, upto=5)
    again = prepared(tmp_path / "cut", "gmm", *GMM)
    assert len(build_all(again)) == len(again.plan.stages()) - 5
    assert digests(again.store) == digests(finished.store)


@pytest.mark.parametrize(("role", "kept"), [("data", set()), ("segment", {"data"}), ("failure", {"data", "segment"})])
def test_refresh_builds_anew_what_is_asked_for_and_what_follows_from_it(
    finished: Prepared, tmp_path: Path, role: str, kept: set[str]
) -> None:
    shutil.copytree(finished.store.root, tmp_path / "store")
    again = prepared(tmp_path / "store", "gmm", *GMM, refresh=[role])
    built = build_all(again)
    assert {s.role for s in built} == {"data", "segment", "failure", "report"} - kept
    assert {s.reference for s in built} == {s.reference for s in again.plan.stages() if s.role not in kept}
    assert digests(again.store) == digests(finished.store)


def test_a_refresh_that_is_stopped_is_gone_on_with(finished: Prepared, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished.store.root, store)
    before = digests(finished.store)
    asked = prepared(store, "gmm", *GMM, refresh=["segment"])
    once = build_all(asked, upto=len(asked.plan.stages()) // 2)
    assert 0 < len(once) < len(asked.refresh)
    for _ in range(2):  # it may be stopped again before it does anything
        with pytest.warns(UserWarning, match=f"{len(asked.refresh) - len(once)} stages are still to be built anew"):
            again = prepared(store, "gmm", *GMM)
        assert again.refresh == asked.refresh - {stage.reference for stage in once}
        assert load_experiment(again.store, again.record_id).status == "planned"
    assert {stage.reference for stage in build_all(again)} == again.refresh
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not prepared(store, "gmm", *GMM).refresh
    assert digests(again.store) == before
    # nor is anything left to do where the last thing that was recorded is that all is finished
    asked = prepared(store, "gmm", *GMM, refresh=["segment"])
    record_experiment(asked.store, config=asked.plan.config.model_dump(mode="json"), status="finished")
    assert not prepared(store, "gmm", *GMM).refresh


@pytest.mark.parametrize("role", ["family-train", "sample"])
def test_roles_that_no_stage_has_are_refused_with_those_that_there_are(tmp_path: Path, role: str) -> None:
    with pytest.raises(ConfigError, match=rf"--refresh = '{role}'.*segment"):
        prepared(tmp_path, "gmm", *GMM, refresh=[role])
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("override", "said", "stage"),
    [
        ("family.components=3", "family.components: 2 → 3", "segment"),
        ("family.projections=9", "family.projections: 8 → 9", "segment"),
        ("family.data.noise=0.1", "family.data.noise: 0.06 → 0.1", "data"),
        ("failure.threshold=0.25", "threshold: 0.5 → 0.25", "failure"),
    ],
)
def test_the_plan_says_which_field_changed_from_what_to_what(
    finished: Prepared, override: str, said: str, stage: str
) -> None:
    plan = plan_for(load_any_config("gmm", [*GMM, override]))
    rows = explain_plan(plan, finished.store)
    missing = [row for row in rows if not row["found"]]
    assert missing[0]["stage"].startswith(stage) and missing[0]["why"] == said
    # what comes after it is made from something else, or has the field among its own, as the report has all
    assert all(row["why"].endswith(said) or "made from something else" in row["why"] for row in missing)


def test_the_report_is_one_page_that_needs_nothing_else(finished: Prepared) -> None:
    folder = report_folder(finished)
    page = (folder / "report.html").read_text()
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page) and "<script" not in page
    assert "data:image/svg+xml;base64," in page and "The paper’s" in page and "Figure 8" in page
    tables = ("tables/results.csv", "tables/results.parquet")
    for name in ("report.html", *tables, "table.json", "figures/gmm-grid.svg", "figures/gmm-grid.png"):
        assert (folder / name).stat().st_size
    for name in ("covariance-trace", "sliced-wasserstein", "live-fraction"):
        assert (folder / "figures" / f"{name}.svg").read_text().startswith("<svg")
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert "fortifai resume gmm" in page and "prefers-color-scheme" in page and "viewport" in page
    table = json.loads((folder / "table.json").read_text())
    assert table["headers"] == ["generation", "CE", "TCE 0.8"] and table["headline"]
    assert [row[0] for row in table["rows"]][:3] == ["M0", "M1", "M2"]


def test_the_rows_of_the_report_are_those_of_the_catalog(finished: Prepared) -> None:
    import csv

    with (report_folder(finished) / "tables" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    where = "metric = 'sliced-wasserstein' and arm = 'tce-0.8' and seed = 2 and generation = 2"
    sql = f"select value from metrics where {where}"
    ((value,),) = query(finished.store, sql)[1]
    (row,) = (
        r
        for r in rows
        if (r["arm"], r["seed"], r["generation"], r["metric"]) == ("tce-0.8", "2", "2", "sliced-wasserstein")
    )
    assert float(row["value"]) == value


def test_the_catalog_knows_families(finished: Prepared) -> None:
    store = finished.store
    assert query(store, "select name, corpus, model, regime, generations from experiments")[1] == [
        ("gmm", "moons", "gmm", "replace", 3)
    ]
    runs = query(store, "select arm, seed, newest_generation from runs order by all")[1]
    assert runs == [("ce", 1, 2), ("ce", 2, 2), ("tce-0.8", 1, 2), ("tce-0.8", 2, 2)]
    counted = query(store, "select count(*) from metrics where metric = 'live-fraction'")[1]
    assert counted == [(12,)]  # M_0 is one artifact for both arms, and each arm has its row
    # a row for each stage that makes generations, and its check
    assert query(store, "select distinct generation, stages from generations order by 1")[1] == [(2, 2)]
    roles = "select role, count(*) from stages where kind like 'family-%' and present group by role order by 1"
    assert query(store, roles)[1] == [("data", 2), ("failure", 4), ("segment", 4)]
    assert query(store, "select count(*) from stages where kind like 'family-%' and not present")[1] == [(0,)]
    parents = "select distinct role, parent_kind from lineage where kind = 'family-segment' order by 1"
    found = query(store, parents)[1]
    assert found == [("data", "family-data")]


def test_a_gaussian_s_segments_go_on_where_they_ended(tmp_path: Path) -> None:
    settings = [*GAUSSIAN, "arms=[{type: none}, {type: adaptive}]"]
    one = prepared(tmp_path / "one", "gaussian", *settings)
    build_all(one)
    whole = prepared(
        tmp_path / "two", "gaussian", *GAUSSIAN, "arms=[{type: none}, {type: adaptive}]", "family.segment=10"
    )
    build_all(whole, upto=-1)  # all but the report
    asked = "select arm, generation, metric, value from metrics order by all"
    assert query(one.store, asked)[1] == query(whole.store, asked)[1]
    generations = query(one.store, "select min(generation), max(generation) from metrics")[1]
    assert generations == [(0, 9)]
    assert one.store.verify().damaged == []
    page = (report_folder(one) / "report.html").read_text()
    assert "6 replicates" in page and "Time to failure" in page
    assert [m.metrics["status"] for m in one.store.ls("family-failure")]


@pytest.mark.long
def test_a_vae_from_its_digits_to_its_report(tmp_path: Path) -> None:
    one = prepared(tmp_path, "vae", *VAE, "regime=accumulate")
    build_all(one)
    (segments,) = {len(run.generations) for run in one.plan.runs}
    assert segments == 1 and len(one.store.ls("family-segment")) == 2
    files = {"metrics.parquet", "models.safetensors", "preview.png", "sample-00000.parquet", "sample-00001.parquet"}
    assert all({e["name"] for e in m.files} == files for m in one.store.ls("family-segment"))
    # M_1 is trained on real images and on all that M_0 drew
    counts = query(one.store, "select distinct generation, count from metrics where metric = 'loss' order by 1")[1]
    (real,) = {m.metrics["items"] for m in one.store.ls("family-data")}
    assert counts == [(0, real), (1, real + 300)]
    page = (report_folder(one) / "report.html").read_text()
    assert "Figure 9" in page and "ELBO" in page
    drawn = {path.name for path in (report_folder(one) / "figures").glob("*.png")}
    assert drawn >= {"vae-samples.png", "vae-kept.png", "vae-confidence.png", "frechet.png"}


def test_names_from_outside_are_escaped_and_claims_follow_the_intervals(finished: Prepared, tmp_path: Path) -> None:
    from dataclasses import replace

    from fortifai_core.families.base import Figure, Generation, Results, Run
    from fortifai_core.report.family_analysis import FamilyReport
    from fortifai_core.report.page import contents_of, render

    def report(values: dict[str, list[float]]) -> FamilyReport:
        runs = tuple(
            Run(arm, seed, (Generation(0, {"sliced-wasserstein": value}),))
            for arm, own in values.items()
            for seed, value in enumerate(own)
        )
        results = Results(finished.plan.config.family, tuple(values), {}, runs)  # type: ignore[union-attr]
        return FamilyReport("gmm", {"regime": "replace"}, "fortifai resume gmm", {}, results, ())

    apart = contents_of(report({"ce": [1.0, 1.1, 0.9, 1.0], "tce-0.8": [0.5, 0.61, 0.4, 0.5]}))
    assert "told apart" in apart.headline[1] and "not distinguishable" not in " ".join(apart.headline)
    alike = contents_of(report({"ce": [1.0, 1.2, 0.8, 1.0], "tce-0.8": [1.1, 0.9, 1.0, 1.05]}))
    assert "not distinguishable at this size" in alike.headline[1]
    single = contents_of(report({"ce": [1.0], "tce-0.8": [0.1]}))
    assert "nobody can tell" in single.headline[1]
    page = render(contents_of(replace(report({"ce": [1.0, 2.0]}), notes=("<b>&",), command="run '<x>'")))
    assert "<b>&" not in page and "&lt;b&gt;&amp;" in page and "&lt;x&gt;" in page
    drawing = tmp_path / "large.svg"  # longer than any text that a page shows whole
    drawing.write_text(f"<svg>{'x' * 200_000}</svg>")
    figure = Figure("large", "Large", "A caption.", (drawing,))
    page = render(contents_of(replace(report({"ce": [1.0, 2.0]}), figures=(figure,))))
    embedded = re.search('src="data:image/svg.xml;base64,([^"]*)"', page)
    assert embedded is not None and base64.b64decode(embedded[1]) == drawing.read_bytes()


# ------------------------------------------------------------------------------------------- with Prefect, long


def run(one: Prepared) -> Recorder:
    recorder = Recorder()
    run_flow(one, recorder)
    return recorder


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_the_flow_builds_every_stage_once_and_the_ui_shows_table_chart_and_picture(
    finished: Prepared, tmp_path: Path
) -> None:
    one = prepared(tmp_path, "gmm", *GMM)
    first = run(one)
    assert set(Counter(s.reference for s in first.built).values()) == {1}
    assert {s.reference for s in one.plan.stages()} == {s.reference for s in first.built}
    assert digests(one.store) == digests(finished.store)
    assert run(prepared(tmp_path, "gmm", *GMM)).built == []

    artifacts = shown_artifacts("gmm")
    rows = json.loads(artifacts["gmm-tce-0-8-seed-2-table"])
    assert [row["generation"] for row in rows] == [0, 1, 2] and all("sliced-wasserstein" in row for row in rows)
    assert "xychart-beta" in artifacts["gmm-ce-seed-1-sliced-wasserstein"]
    assert artifacts["gmm-ce-seed-1-picture"].startswith("data:image/png;base64,")
    # and of the whole experiment: the report's table and sentences, where it lies, and the profile
    assert "Collapse profile" in artifacts["gmm-summary"] and "report.html" in artifacts["gmm-summary"]
    profile = json.loads(artifacts["gmm-profile"])
    assert {"definition", "collapse is", "CE", "TCE 0.8"} == set(profile[0])
    assert [row["definition"] for row in profile][:2] == ["Variance", "Modes kept apart"]
    assert artifacts["gmm-profile-image"].startswith("data:image/png;base64,")


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_an_arm_stops_when_it_has_failed(tmp_path: Path) -> None:
    stop = ["failure={metric: sliced-wasserstein, threshold: 1.2, when: above, relative: true, stop_arm: true}"]
    settings = [*GMM, "generations=11", "family.segment=2", "arms=[{type: none}]"]
    one = prepared(tmp_path, "gmm", *settings, *stop)
    recorder = run(one)
    newest = {s.seed: s.generation or 0 for s in recorder.built if s.role == "segment"}
    stopped = {seed: last for seed, last in newest.items() if last < 10}
    assert stopped
    for seed, last in stopped.items():
        # it ends with the stage in which it failed, which may make a generation after that
        step = next(step for step in one.plan.run("ce", seed).generations if step.last == last)
        assert step.failure is not None
        check = one.store.find(*step.failure.reference)
        assert check is not None and check.manifest.metrics["status"] == "failed"
        assert step.first <= check.manifest.metrics["failed_in"] <= last
    assert any("failed by generation" in note for note in recorder.notes)
    # the report reads what was made, and nothing else
    read = {reference for stage in recorder.built if stage.role == "report" for reference in stage.parents.values()}
    assert read == {s.reference for s in recorder.built if s.role != "report"}
    # it is the one that is found afterwards, also when the same is run again, and made anew with what it reads
    table, _ = read_report(one.store, load_experiment(one.store, one.record_id))
    same = prepared(tmp_path, "gmm", *settings, *stop)
    assert read_report(same.store, load_experiment(same.store, same.record_id))[0] == table
    assert not run(same).built
    refreshed = prepare_experiment(same.plan.config, store=same.store.url, refresh=["failure"])
    assert {s.role for s in run(refreshed).built} == {"failure", "report"}
    assert read_report(same.store, load_experiment(same.store, same.record_id))[0] == table
    # nothing that was computed is lost to the change of the option
    again = run(prepared(tmp_path, "gmm", *settings, *stop, "failure.stop_arm=false"))
    assert {s.generation for s in again.built if s.role == "segment"} == {
        min(g + 2, 10) for g in range(min(newest.values()), 10, 2)
    }


def sets(overrides: list[str]) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


@pytest.mark.long
@pytest.mark.timeout(400)
def test_killed_and_resumed_by_the_printed_command_it_ends_with_the_same_digests(tmp_path: Path) -> None:
    """In the middle of a segment, whose journal it goes on from.

    The segment's worker stands still until the next generation is due in the journal, so that however quick the
    machine is, most of the segment is still to be made when the journal begins.
    """
    settings = [*GMM, "seeds=[1]", "arms=[{type: none}]", "generations=161", "family.segment=1000"]
    whole = prepared(tmp_path / "whole", "gmm", *settings)
    build_all(whole)
    process = start_cli(tmp_path, "cut", "run", "gmm", *sets(settings))
    store = ArtifactStore(tmp_path / "cut")
    (segment,) = (s for s in whole.plan.stages() if s.role == "segment" and s.generation == 160)
    workspace = store.root / "work" / f"{segment.kind}-{segment.key}"

    def wait_for(pattern: str) -> None:
        deadline = time.monotonic() + 120
        while not any(workspace.glob(pattern)) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.002)

    wait_for("sample-*.parquet")
    (worker,) = (child for child in psutil.Process(process.pid).children() if "tasks.engine.worker" in child.cmdline())
    worker.suspend()
    time.sleep(EVERY_SECONDS)
    worker.resume()
    wait_for("made-*.json")
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    (command,) = re.findall(r"go on with: fortifai (resume gmm-\w+)", output)
    assert store.find(*segment.reference) is None
    journal = sorted(workspace.glob("made-*.json"))
    assert journal
    kept = [entry["generation"] for path in journal for entry in json.loads(path.read_text())["made"]]
    assert kept == list(range(len(kept))) and len(kept) < 160
    said = cli(tmp_path, "cut", *command.split())
    assert "stages computed" in said and "report:" in said
    assert digests(store) == digests(whole.store)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_the_commands_on_a_family(tmp_path: Path) -> None:
    gmm = ["gmm", *sets([*GMM, "seeds=[1]"])]
    first = cli(tmp_path, "store", "run", *gmm)
    assert "2 arms × 1 seed × 3 generations" in first and "Sliced Wasserstein" in first
    again = cli(tmp_path, "store", "run", *gmm)
    assert "0 stages computed" in again
    rows = json.loads(cli(tmp_path, "store", "plan", *gmm, "--set", "arms.1.gamma=0.7", "--json"))
    missing = {(row["run"], row["stage"]) for row in rows if not row["found"]}
    assert ("tce-0.7 · seed 1", "segment · g2 · from g0") in missing
    assert not any(where.startswith("ce") for where, _ in missing)
    changed = json.loads(cli(tmp_path, "store", "plan", *gmm, "--set", "family.components=3", "--json"))
    assert "family.components: 2 → 3" in next(row["why"] for row in changed if not row["found"])
    assert "gmm-" in cli(tmp_path, "store", "ls") and "tce-0.8" in cli(tmp_path, "store", "ls")
    assert json.loads(cli(tmp_path, "store", "show", "gmm"))["config"]["family"]["type"] == "gmm"
    assert "are sound, 0 were set aside" in cli(tmp_path, "store", "verify")
    asked = cli(tmp_path, "store", "sql", "select distinct metric from metrics", "--json")
    assert {"metric": "component-survival"} in json.loads(asked)
    assert "report.html" in cli(tmp_path, "store", "report")
    assert cli(tmp_path, "store", "path", "report").strip().endswith("report.html")


def test_where_all_is_found_the_table_is_printed_without_a_server(
    finished: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import local

    monkeypatch.setattr(local, "configured_api", lambda: None)
    output = io.StringIO()
    outcome = local.run_here(
        load_any_config("gmm", GMM),
        store=finished.store.url,
        refresh=[],
        console=Console(file=output, width=160),
        resume="{name}",
    )
    printed = output.getvalue()
    assert outcome["built"] == 0 and "TCE 0.8 minus CE" in printed and "time to failure" in printed


def test_a_server_that_is_away_is_named_before_anything_is_done(tmp_path: Path) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.local import run_here

    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}),
        pytest.raises(InputError, match=r"PREFECT_API_URL = 'http://127\.0\.0\.1:9/api'.*unset PREFECT_API_URL"),
    ):
        run_here(
            load_any_config("gmm", GMM), store=str(tmp_path / "store"), refresh=[], console=Console(), resume="{name}"
        )
    assert not list(tmp_path.iterdir())


def status_of(one: Prepared) -> str:
    return load_experiment(one.store, one.record_id).status


def test_a_finished_experiment_stays_so_until_something_of_it_is_to_be_made(finished: Prepared, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished.store.root, store)
    one = prepared(store, "gmm", *GMM)
    record_experiment(one.store, config=one.plan.config.model_dump(mode="json"), status="failed")
    assert status_of(prepared(store, "gmm", *GMM)) == "planned"
    record_experiment(one.store, config=one.plan.config.model_dump(mode="json"), status="finished")
    assert status_of(prepared(store, "gmm", *GMM)) == "finished"
    one.store.remove(*one.plan.report().reference)
    assert status_of(prepared(store, "gmm", *GMM)) == "planned"


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_a_run_that_finds_everything_and_fails_leaves_the_experiment_finished(
    finished: Prepared, tmp_path: Path
) -> None:
    class Broken(Recorder):
        def finished(self, stage: Stage, *, found: bool, seconds: float) -> None:
            raise RuntimeError("the terminal is gone")

    store = tmp_path / "store"
    shutil.copytree(finished.store.root, store)
    one = prepared(store, "gmm", *GMM)
    record_experiment(one.store, config=one.plan.config.model_dump(mode="json"), status="planned")
    with pytest.raises(RuntimeError):
        run_flow(one, Broken())
    assert status_of(one) == "failed"
    run_flow(one, Recorder())
    again = prepared(store, "gmm", *GMM)
    with pytest.raises(RuntimeError):
        run_flow(again, Broken())
    assert status_of(again) == "finished"
