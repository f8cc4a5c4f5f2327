"""Experiments on families: configuration, plan and keys, time to failure, intervals, arrays on disk."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from flows.load import load_any_config, load_experiment_config, validate
from flows.prepare import plan_for
from fortifai_core.errors import ArtifactDamaged, ConfigError, DataError
from fortifai_core.families.registry import FamilyExperiment
from fortifai_core.report.family_analysis import estimate, median_estimate, spread
from fortifai_core.wording import number
from storage.tables.arrays import read_arrays, read_parameters, write_arrays, write_parameters
from tasks.engine.plans import Plan
from tasks.engine.stages import Reference, Stage
from tasks.families.specs import SegmentSpec


def plan(preset: str, *overrides: str) -> Plan:
    made = plan_for(load_any_config(preset, overrides))
    assert isinstance(made.config, FamilyExperiment)
    return made


def keys(p: Plan, *, report: bool = False) -> set[str]:
    return {s.key for s in p.stages() if report or s.role != "report"}


def segment(stage: Stage) -> SegmentSpec:
    assert isinstance(stage.spec, SegmentSpec)
    return stage.spec


# ------------------------------------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("preset", "override", "field", "said"),
    [
        ("gmm", "family.type=gnn", "family", "'gaussian', 'gmm'"),
        ("gmm", "family.componens=3", "family.componens", "did you mean `components`"),
        ("gmm", "family.components=0", "family.components", "greater than or equal to 1"),
        ("gmm", "family.components=150", "family.components", "raise family.data.samples"),
        ("gmm", "arms.1.gamma=1.5", "arms.1.gamma", "less than or equal to 1"),
        ("gmm", "arms.1={type: adaptive}", "arms.1.type", "a gmm has the arms none, threshold"),
        ("gmm", "arms=[{type: none}, {type: none}]", "arms", "two arms are the same"),
        ("gmm", "seeds=[1, 1]", "seeds", "different"),
        ("gmm", "generations=0", "generations", "greater than or equal to 1"),
        ("gmm", "regime=paper", "regime", "'replace'"),
        ("gmm", "failure.metric=kr-split-0", "failure.metric", "choose one of covariance-trace"),
        ("gmm", "losses=[]", "losses", "no such field"),
        ("gmm", "family.data={type: table, file: /nowhere/a.csv}", "family.data.file", "no such file"),
        ("gaussian", "regime=accumulate", "regime", "set replace"),
        ("gaussian", "arms.1.gamma=0.001", "arms.tce-0.001.gamma", "samples of 10000"),
        ("vae", "family.warmup_epochs=40", "family.warmup_epochs", "raise epochs"),
    ],
)
def test_bad_fields_are_named_before_anything_runs(preset: str, override: str, field: str, said: str) -> None:
    with pytest.raises((ConfigError, DataError)) as caught:
        plan(preset, override)
    assert caught.value.field == field
    assert said in str(caught.value)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_family_is_no_language_model() -> None:
    with pytest.raises(ConfigError, match="on the family gmm"):
        load_experiment_config("gmm")
    assert isinstance(validate({"family": {"type": "gmm"}}), FamilyExperiment)


def test_mnist_is_looked_for_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORTIFAI_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"mnist/train-images-idx3-ubyte\.gz.*mirror lacks it"):
        plan("vae-mnist")


# ------------------------------------------------------------------------------------------------ keys


@pytest.mark.parametrize("preset", ["gmm", "gaussian", "vae"])
def test_planning_twice_gives_the_same_keys_and_runtime_is_in_none(preset: str) -> None:
    first = plan(preset)
    assert [s.key for s in first.uses()] == [s.key for s in plan(preset).uses()]
    for override in ("runtime.workers=7", "runtime.threads=3"):
        assert keys(plan(preset, override), report=True) == keys(first, report=True)


@pytest.mark.parametrize("preset", ["gmm", "gaussian", "vae"])
def test_parents_come_before_children_and_stages_survive_json(preset: str) -> None:
    done: set[Reference] = set()
    for one in plan(preset).stages():
        assert set(one.parents.values()) <= done
        done.add(one.reference)
        assert Stage.from_json(json.loads(json.dumps(one.to_json()))) == one


@pytest.mark.parametrize(
    ("preset", "few", "many"), [("gmm", 100, 200), ("vae", 5, 10), ("zipf", 50, 60), ("gaussian", 500, 1000)]
)
def test_raising_generations_computes_only_the_new_ones(preset: str, few: int, many: int) -> None:
    short, long = plan(preset, f"generations={few}"), plan(preset, f"generations={many}")
    assert keys(short) < keys(long)
    new = [s for s in long.stages() if s.key not in keys(short) and s.role != "report"]
    assert min(s.spec.first for s in new if isinstance(s.spec, SegmentSpec)) == few
    assert min(s.generation or 0 for s in new) >= few


@pytest.mark.parametrize(
    ("preset", "few", "many", "cut"), [("gaussian", 300, 1000, (250, 299)), ("gmm", 60, 200, (50, 59))]
)
def test_a_segment_that_is_cut_short_is_the_only_one_computed_anew(
    preset: str, few: int, many: int, cut: tuple[int, int]
) -> None:
    short, long = plan(preset, f"generations={few}"), plan(preset, f"generations={many}")
    lost = [segment(s) for s in short.stages() if s.key not in keys(long) and s.role == "segment"]
    assert {(spec.first, spec.last) for spec in lost} == {cut}


@pytest.mark.parametrize("preset", ["gmm", "vae", "zipf", "diffusion", "gaussian"])
@pytest.mark.parametrize("size", [1, 4, 100])
def test_segments_follow_each_other_without_gap_or_overlap(preset: str, size: int) -> None:
    for run in plan(preset, f"family.segment={size}", "generations=10").runs:
        made = [i for step in run.generations for i in range(step.first, step.last + 1)]
        assert made == list(range(10))
        assert all(step.last - step.first < size for step in run.generations)
        specs = [segment(step.train) for step in run.generations]
        assert [(spec.first, spec.last) for spec in specs] == [(step.first, step.last) for step in run.generations]


@pytest.mark.parametrize("regime", ["replace", "accumulate"])
def test_what_each_segment_is_trained_on(regime: str) -> None:
    p = plan("gmm", f"regime={regime}", "generations=7", "family.segment=2")
    for run in p.runs:
        segments = [step.train.reference for step in run.generations]
        assert [(step.first, step.last) for step in run.generations] == [(0, 1), (2, 3), (4, 5), (6, 6)]
        for index, spec in enumerate(segment(step.train) for step in run.generations):
            before = segments[:index]
            assert run.data is not None and spec.data == run.data.reference
            assert list(spec.earlier) == (before if regime == "accumulate" else before[-1:])
            assert spec.start == (segments[0] if before else None)
            assert set(spec.parents().values()) == {spec.data, *spec.earlier, *segments[: min(index, 1)]}


@pytest.mark.parametrize("preset", ["gmm", "vae"])
def test_arms_share_the_real_data_and_nothing_else(preset: str) -> None:
    first, second = plan(preset, "seeds=[1]", "generations=2").runs[:2]
    assert first.data == second.data is not None
    assert not {s.key for g in first.generations for s in g.stages} & {
        s.key for g in second.generations for s in g.stages
    }


@pytest.mark.parametrize(
    ("preset", "override", "roles"),
    [
        ("gmm", "family.projections=64", {"segment", "failure"}),
        ("gmm", "family.data.noise=0.1", {"data", "segment", "failure"}),
        ("gmm", "failure.threshold=0.4", {"failure"}),
        ("gmm", "arms.1.gamma=0.7", {"segment", "failure"}),
        ("vae", "family.neighbours=3", {"segment"}),
        ("gaussian", "family.sampling_bias=0.95", {"segment", "failure"}),
    ],
)
def test_a_changed_field_is_felt_where_it_is_read(preset: str, override: str, roles: set[str]) -> None:
    before, after = plan(preset), plan(preset, override)
    assert {s.role for s in after.stages() if s.key not in keys(before, report=True)} - {"report"} == roles


def test_a_new_seed_or_arm_leaves_the_others_as_they_are() -> None:
    two = "arms=[{type: none}, {type: threshold, gamma: 0.8}]"
    three = "arms=[{type: none}, {type: threshold, gamma: 0.8}, {type: threshold, gamma: 0.5}]"
    one = plan("gmm", "seeds=[1]", "generations=3", two)
    for changes in ([two, "seeds=[1, 2]"], [three, "seeds=[1]"]):
        assert keys(one) < keys(plan("gmm", "generations=3", *changes))


def test_a_table_stands_in_a_key_by_its_digest_and_never_by_its_path(tmp_path: Path) -> None:
    rows = "\n".join(f"{i},{(7 * i) % 13}" for i in range(60))
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text(f"x,y\n{rows}\n")
    one, two = (
        plan("gmm", f"family.data={{type: table, file: {tmp_path / name}}}", "family.components=2", "generations=2")
        for name in ("a.csv", "b.csv")
    )
    assert keys(one) == keys(two)
    (tmp_path / "b.csv").write_text(f"x,y\n{rows}\n1,2\n")
    again = plan("gmm", f"family.data={{type: table, file: {tmp_path}/b.csv}}", "family.components=2", "generations=2")
    assert not keys(one) & keys(again)


# ------------------------------------------------------------------------------------------------ intervals


def test_intervals_over_runs_are_students() -> None:
    from scipy import stats

    values = [1.0, 2.0, 4.0, 4.5]
    one = estimate(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (one.estimate, one.low, one.high) == (pytest.approx(2.875), pytest.approx(low), pytest.approx(high))
    assert not estimate([1.0]).known and not estimate([1.0]).excludes_zero


def test_the_interval_of_a_median_covers_it_as_often_as_it_says() -> None:
    from scipy.stats import binom

    rng = np.random.default_rng(0)
    n, worlds = 20, 4000
    draws = rng.exponential(size=(worlds, n))  # a skewed law, its median ln 2
    covered = 0
    for row in draws:
        one = median_estimate(row.tolist())
        covered += one.low <= math.log(2) <= one.high
    exact = 1 - 2 * float(binom.cdf(5, n, 0.5))  # x_(6) to x_(15), since P(B ≤ 5) = 0.021 and P(B ≤ 6) = 0.058
    assert exact >= 0.95
    assert covered / worlds == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / worlds))
    assert not median_estimate([1.0, 2.0, 3.0]).known  # three replicates cannot give 95%


def test_numbers_and_choices_for_a_page() -> None:
    assert [number(v) for v in (0.0123456, -3.0, 4321.7, 1.84e-46)] == ["0.0123", "−3", "4,322", "1.84e−46"]
    assert spread(range(16), 7)[0] == 0 and spread(range(16), 7)[-1] == 15 and len(spread(range(16), 7)) <= 7
    assert spread(range(1000), 7) == (0, 167, 334, 501, 668, 835, 999)
    assert spread([0, 1, 2], 7) == (0, 1, 2)


# ------------------------------------------------------------------------------------------------ arrays on disk


def test_arrays_come_back_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "x": rng.normal(size=(50, 3)),
        "pixels": rng.integers(0, 256, size=(50, 8, 8), dtype=np.uint8),
        "label": np.arange(50, dtype=np.int64),
        "flag": np.arange(50) % 2 == 0,
    }
    assert write_arrays(tmp_path / "a.parquet", arrays) == 50
    found = read_arrays(tmp_path / "a.parquet")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    write_arrays(tmp_path / "b.parquet", arrays)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_arrays_that_cannot_be_kept_or_read_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with pytest.raises(DataError, match="one length"):
        write_arrays(path, {"x": np.zeros(3), "y": np.zeros(4)})
    with pytest.raises(DataError, match="at least one row"):
        write_arrays(path, {"x": np.zeros((0, 2))})
    with pytest.raises(DataError, match="numbers or bools"):
        write_arrays(path, {"x": np.array(["a"])})
    assert not path.exists()
    with pytest.raises(ArtifactDamaged, match="missing"):
        read_arrays(path)
    path.write_bytes(b"no parquet")
    with pytest.raises(ArtifactDamaged, match="cannot be read"):
        read_arrays(path)


def test_parameters_are_the_same_bytes_in_any_order(tmp_path: Path) -> None:
    one, two = np.ones((2, 2)), np.arange(3, dtype=np.int64)
    write_parameters(tmp_path / "a", {"one": one, "two": two})
    write_parameters(tmp_path / "b", {"two": two, "one": one.T})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert np.array_equal(read_parameters(tmp_path / "a")["two"], two)
    (tmp_path / "a").write_bytes(b"\x00")
    with pytest.raises(ArtifactDamaged):
        read_parameters(tmp_path / "a")


def test_mnist_from_the_hub_is_kept_as_the_files_that_the_mirror_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fortifai_core.families.images.idx import read_mnist
    from storage.sources import family_data, hub

    images, labels = np.arange(2 * 28 * 28, dtype=np.uint8).reshape(2, 28, 28), np.array([3, 7], dtype=np.uint8)
    asked: list[str] = []

    def load(split: str) -> tuple[np.ndarray, np.ndarray]:
        asked.append(split)
        return images, labels

    monkeypatch.delenv("FORTIFAI_DATA", raising=False)
    monkeypatch.setenv("FORTIFAI_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "load_mnist", load)
    for _ in range(2):
        folder = family_data.mnist_folder()
        for part in ("train", "t10k"):
            found = read_mnist(folder, part)
            assert np.array_equal(found[0], images) and np.array_equal(found[1], labels)
    assert asked == ["train", "test"]
