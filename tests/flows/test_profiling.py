"""The collapse profile of finished experiments: what theory says, as rows, in the terminal, in a reviewer's pack."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from flows.cli.app import exit_code
from flows.load import load_any_config
from flows.prepare import Prepared, prepare_experiment
from flows.tools import packing, powering, profiling
from fortifai_core.charts.png import png
from fortifai_core.config.stages import Runtime
from fortifai_core.errors import DataError, InputError
from fortifai_core.families.gaussian.theory import amplification, threshold_of
from storage.store.experiments import Experiment, load_experiment, record_experiment
from storage.store.store import ArtifactStore
from tasks.engine.build import build

GAUSSIAN = [
    "family.samples=2000", "family.replicates=20", "generations=31", "arms=[{type: none}, {type: threshold}]",
]  # fmt: skip
ZIPF = [
    "family.vocabulary=2000",
    "family.documents=4",
    "generations=4",
    "arms=[{type: none}, {type: threshold, gamma: 0.05}]",
]


def finished(store: Path, preset: str, *overrides: str, report: bool = True) -> tuple[ArtifactStore, Experiment]:
    """Every stage of an experiment by its own builder, in this process; the report, if it is asked for.

    Of its pictures the profile's alone is painted: the others take most of the time, and have tests of their own.
    """

    def paint(drawings: Sequence[tuple[str, str]], path: Path, *, title: str) -> None:
        path.touch() if path.stem != "profile" else png(drawings, path, title=title)

    made: Prepared = prepare_experiment(load_any_config(preset, overrides), store=str(store))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tasks.families.report.draw", lambda *_: [])
        patched.setattr("fortifai_core.report.page.png", paint)
        for stage in made.plan.stages() if report else made.plan.stages()[:-1]:
            build(stage, made.store, Runtime(), progress=lambda *_: None)
    config = made.plan.config.model_dump(mode="json")
    record_experiment(made.store, config=config, status="finished")
    return made.store, load_experiment(made.store, made.record_id)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profiles") / "store"


@pytest.fixture(scope="module")
def gaussian(folder: Path) -> tuple[ArtifactStore, Experiment]:
    return finished(folder, "gaussian-demo", *GAUSSIAN)


@pytest.fixture(scope="module")
def zipf(folder: Path) -> tuple[ArtifactStore, Experiment]:
    return finished(folder, "zipf", *ZIPF)


def verdicts(found: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    return {row["arm"]: row for row in found["profile"] if row["definition"] == name}


def test_the_gaussian_collapses_as_theory_says_and_a_threshold_holds_that_long(
    gaussian: tuple[ArtifactStore, Experiment],
) -> None:
    """Under CE the variance is multiplied by 0.81 a generation: below a tenth from M11 on, by a margin that chance does
    not explain from M12 on. γ = 0.85 gives back the amplification of the truncated normal, which makes it 0.951: a
    tenth is 46 generations away."""
    found = profiling.read_profile(*gaussian)
    variance = verdicts(found, "variance")
    assert (variance["ce"]["verdict"], variance["ce"]["generation"]) == ("collapsed", 12)
    assert variance["ce"]["value"] == pytest.approx(0.81**12, rel=0.1)
    masked = variance["tce-0.85"]
    held = 0.81 * float(amplification(threshold_of(0.85)))
    assert held == pytest.approx(0.951, abs=1e-3)
    assert (masked["verdict"], masked["at"]) == ("did not", 30)
    assert masked["value"] == pytest.approx(held**30, rel=0.15)
    (compared,) = found["profile_differences"]
    assert (compared["outcome"], compared["arm"]) == ("differs", "tce-0.85")
    assert "collapsed by variance (M12)" in found["summary"][0] and "did not by variance" in found["summary"][1]


def test_an_experiment_in_which_nothing_collapses_says_so(folder: Path) -> None:
    overrides = ["name=held", *GAUSSIAN, "family.sampling_bias=1.0", "generations=6", "family.samples=5000"]
    found = profiling.read_profile(*finished(folder, "gaussian-demo", *overrides))
    assert {row["verdict"] for row in found["profile"]} == {"did not"}
    assert found["summary"][0] == "Nothing collapsed: 2 of 2 verdicts are that it did not."


def test_the_report_holds_the_figure_and_the_tables(gaussian: tuple[ArtifactStore, Experiment]) -> None:
    store, record = gaussian
    stage = next(s for s in record.stages if s.role == "report")
    artifact = store.read(stage.kind, stage.key)
    assert artifact is not None
    names = {path.relative_to(artifact.path).as_posix() for path in artifact.path.rglob("*")}
    assert {"profile.json", "figures/profile.svg", "figures/profile.png", "tables/profile.csv",
            "tables/profile.parquet", "tables/ranking.csv"} <= names  # fmt: skip
    page = (artifact.path / "report.html").read_text()
    assert "Collapse profile" in page and 'class="collapsed"' in page
    # the form says it too, for who does not see the colours
    drawing = (artifact.path / "figures" / "profile.svg").read_text()
    assert drawing.count('<polygon class="collapsed"') == 2 and drawing.count('<circle class="sound"') == 2


def test_the_terminal_json_and_csv_say_the_same(
    gaussian: tuple[ArtifactStore, Experiment], capsys: pytest.CaptureFixture[str]
) -> None:
    store, record = gaussian
    asked = ["profile", record.label, "--store", store.url]
    assert exit_code(asked) == 0
    shown = capsys.readouterr().out
    assert "collapsed in M12" in shown and "not judged: change in scaling law" in shown and "Holm" in shown
    assert exit_code([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert exit_code([*asked, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["verdict"] for row in rows] == [row["verdict"] for row in found["profile"]]
    assert float(rows[0]["value"]) == pytest.approx(found["profile"][0]["value"])


def test_power_from_the_seeds_of_a_finished_experiment(
    zipf: tuple[ArtifactStore, Experiment], capsys: pytest.CaptureFixture[str]
) -> None:
    store, record = zipf
    found = {one.measure: one for one in powering.told(profiling.read_profile(store, record))}
    one = found["tail-survival"]
    assert one.runs == 3 and one.corrected > one.smallest > 0
    assert one.seeds is not None and one.seeds_corrected is not None and one.seeds <= one.seeds_corrected
    # as many seeds as it takes tell what was asked for, and one fewer does not
    wider = {o.measure: o for o in powering.told(profiling.read_profile(store, record), difference=1.01 * one.smallest)}
    assert wider["tail-survival"].seeds == 3
    narrower = powering.told(profiling.read_profile(store, record), difference=0.99 * one.smallest)
    assert next(o for o in narrower if o.measure == "tail-survival").seeds == 4
    assert exit_code(["power", record.label, "--store", store.url]) == 0
    assert "tail-survival" in capsys.readouterr().out
    assert powering.seen_power(record.name, store).startswith(f"From {record.label} in the store (3 seeds)")
    assert powering.seen_power("nobody", store) == ""


@pytest.mark.parametrize("arms", [1, 3, 8])
def test_any_number_of_arms_can_be_read_in_80_columns(arms: int) -> None:
    names = [f"TCE 0.{i} live" for i in range(arms)]
    fell = [f"collapsed in M{i} (0.04{i}×)" for i in range(arms)]
    rows = [["Unlike each other", "below 0.5 × the real text's", *fell],
            ["Facts turned false", "above 10%", *("cannot be told (12.5%)" for _ in names)]]  # fmt: skip
    profile = {"table": {"headers": ["definition", "collapse is", *names], "rows": rows}, "summary": ["[A] said."],
               "not_measured": {"a": "why", "b": "why"}}  # fmt: skip
    printed = io.StringIO()
    record = SimpleNamespace(label="arena-1")
    profiling.show(record, profile, Console(file=printed, width=80))  # type: ignore[arg-type]
    said = printed.getvalue()
    assert "…" not in said and max(map(len, said.splitlines())) <= 80
    for i, name in enumerate(names):
        assert name in said and f"collapsed in M{i}" in said and f"(0.04{i}×)" in said
    assert said.count("cannot be told") == arms and "[A] said." in said and "not judged: a; b (why)" in said


def test_bad_input_is_one_line(folder: Path, zipf: tuple[ArtifactStore, Experiment], tmp_path: Path,
                               capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    store = zipf[0].url
    for arguments, words in {
        ("profile", "nobody"): "not found in",
        ("power", "--difference", "0"): "give one above 0",
        ("pack", "--out", str(tmp_path / "pack.tar")): "ends in .zip",
        ("pack", "--verify", str(tmp_path / "gone.zip")): "is no file",
    }.items():
        assert exit_code([*arguments, "--store", store]) == 2
        said = capsys.readouterr()
        assert words in said.err and said.err.count("\n") == 1 and not said.out
    assert list(tmp_path.iterdir()) == []


def test_a_report_without_a_profile_is_told_how_to_get_one(tmp_path: Path) -> None:
    store, record = finished(tmp_path / "store", "gaussian-demo", *GAUSSIAN, "generations=2", report=False)
    stage = next(s for s in record.stages if s.role == "report")
    with store.build(stage.kind, stage.key) as draft:
        (draft.path / "table.json").write_text("{}")
        draft.commit(stage_version=2, content={}, parents={}, metrics={}, provenance={})
    with pytest.raises(InputError, match=r"fortifai resume"):
        profiling.read_profile(store, record)


# ------------------------------------------------------------------------------------------ the pack


def test_a_pack_is_verified_and_compared_with_a_second_run(
    gaussian: tuple[ArtifactStore, Experiment], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, record = gaussian
    file = tmp_path / "pack.zip"
    assert exit_code(["pack", record.label, "--out", str(file), "--store", store.url]) == 0
    capsys.readouterr()
    again = tmp_path / "again"
    finished(again, "gaussian-demo", *GAUSSIAN, report=False)
    assert exit_code(["pack", "--verify", str(file), "--store", str(again), "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)
    assert (checked["label"], checked["problems"], checked["different"], checked["absent"]) == (record.label, [], [], 0)
    assert checked["equal"] > 0 and checked["stages"] == len(record.stages)
    # another seed is another experiment: none of its stages is in the pack
    other = finished(tmp_path / "other", "gaussian-demo", *GAUSSIAN, "seeds=[2]", report=False)[0]
    assert packing.verify(file, other).equal == 0


def test_the_configuration_in_a_pack_runs_again(gaussian: tuple[ArtifactStore, Experiment], tmp_path: Path) -> None:
    store, record = gaussian
    file = packing.pack(store, record, tmp_path / "pack.zip")
    with zipfile.ZipFile(file) as packed:
        packed.extract("config.yaml", tmp_path)
        checklist = packed.read("checklist.md").decode()
        names = set(packed.namelist())
    made = prepare_experiment(load_any_config(str(tmp_path / "config.yaml"), []), store=str(tmp_path / "new"))
    assert made.record_id == record.label
    assert {"report/report.html", "report/profile.json", "report/figures/profile.png", "data.json"} <= names
    assert "[{" not in checklist and "git: " in checklist
    assert "ONE SEED" in checklist and "Apache-2.0" not in checklist and "collapsed by variance (M12)" in checklist
    assert packing.pack(store, record, tmp_path / "twin.zip").read_bytes() == file.read_bytes()


def changed(file: Path, target: Path, name: str, content: bytes, *, keep_sums: bool = True) -> Path:
    """A copy of a pack in which one file has another content; `keep_sums`: its digest is left as it was."""
    import hashlib

    with zipfile.ZipFile(file) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.namelist():
            data = content if entry == name else old.read(entry)
            if entry == packing.SUMS and not keep_sums:
                lines = data.decode().splitlines()
                digest = hashlib.sha256(content).hexdigest()
                data = "".join(f"{digest}  {name}\n" if line.endswith(f"  {name}") else f"{line}\n"
                               for line in lines).encode()  # fmt: skip
            new.writestr(entry, data)
    return target


def test_what_was_changed_in_a_pack_is_found(gaussian: tuple[ArtifactStore, Experiment], tmp_path: Path) -> None:
    store, record = gaussian
    file = packing.pack(store, record, tmp_path / "pack.zip")
    table = changed(file, tmp_path / "table.zip", "report/tables/results.csv", b"arm,value\nce,1\n")
    assert packing.verify(table).problems == ("report/tables/results.csv was changed",)
    with zipfile.ZipFile(file) as packed:
        experiment = json.loads(packed.read("experiment.json"))
        config = packed.read("config.yaml")
    # whoever changes the settings of a stage and the list of digests with them is betrayed by the key
    experiment["stages"][0]["stage_version"] += 1
    forged = changed(file, tmp_path / "forged.zip", "experiment.json", json.dumps(experiment).encode(), keep_sums=False)
    (problem,) = packing.verify(forged).problems
    assert "its key is not that of its settings" in problem
    other = changed(file, tmp_path / "other.zip", "config.yaml", config.replace(b"2000", b"2001"), keep_sums=False)
    assert packing.verify(other).problems == ("config.yaml is not the configuration of this experiment",)
    assert exit_code(["pack", "--verify", str(other)]) == 1


def test_what_is_no_pack_is_refused(gaussian: tuple[ArtifactStore, Experiment], tmp_path: Path) -> None:
    (tmp_path / "words.zip").write_text("no zip")
    with pytest.raises(DataError, match=r"no readable zip"):
        packing.verify(tmp_path / "words.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as made:
        made.writestr("a", "b")
    with pytest.raises(DataError, match=r"SHA256SUMS"):
        packing.verify(tmp_path / "empty.zip")
    whole = packing.pack(*gaussian, tmp_path / "pack.zip")
    for length in (200, 5000):
        (tmp_path / "cut.zip").write_bytes(whole.read_bytes()[:length])
        with pytest.raises(DataError, match=r"no readable zip"):
            packing.verify(tmp_path / "cut.zip")


def test_a_damaged_byte_is_a_file_that_was_changed(gaussian: tuple[ArtifactStore, Experiment], tmp_path: Path) -> None:
    """Wherever it is: in compressed data zlib finds it before any digest does."""
    whole = packing.pack(*gaussian, tmp_path / "pack.zip")
    with zipfile.ZipFile(whole) as packed:
        places = {name: packed.getinfo(name).header_offset for name in ("report/report.html", packing.SUMS)}
    said = {}
    for name, offset in places.items():
        content = bytearray(whole.read_bytes())
        start = offset + 30 + len(name)
        content[start : start + 40] = bytes(40 * [0xFF])
        (tmp_path / "damaged.zip").write_bytes(content)
        try:
            said[name] = packing.verify(tmp_path / "damaged.zip").problems
        except DataError as error:
            said[name] = (str(error),)
    assert said["report/report.html"] == ("report/report.html was changed",)
    assert "no readable zip" in said[packing.SUMS][0]


def test_arms_that_are_alike_say_nothing_of_what_would_be_told() -> None:
    row = {"arm": "b", "against": "a", "measure": "m", "runs": 3, "clusters": 0, "logarithmic": False, "margin": 0.05,
           "spread": 0.01, "freedom": 2.0, "shared": True}  # fmt: skip
    rows = [{**row, "error": error} for error in (0.0, None, 0.01)]
    (found,) = powering.told({"profile_differences": rows, "level": 0.05})
    assert found.smallest > 0.01
