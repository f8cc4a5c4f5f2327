"""Gaussian mixtures: each measure against a closed form or a reference, and Algorithm 2 on data of every kind."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from fortifai_core.errors import DataError, StageFailed
from fortifai_core.families.base import Arrays, Generation, Mask, NoMask, Results, Run, ThresholdMask
from fortifai_core.families.mixture import mixture as mixtures
from fortifai_core.families.mixture.family import MEASURES, Blobs, Gmm, GmmConfig, Moons
from fortifai_core.families.mixture.family import Table as TableData
from fortifai_core.families.mixture.mixture import Mixture

SMALL = GmmConfig(data=Moons(samples=200), components=3)


def quiet(_done: int, _total: int, _unit: str) -> None:
    """Progress that nobody looks at."""


def two(apart: float) -> Mixture:
    """Two unit circles, `apart` from each other along the first axis."""
    return Mixture(np.array([0.25, 0.75]), np.array([[0.0, 0.0], [apart, 0.0]]), np.stack([np.eye(2)] * 2))


def fit(
    data: Arrays, mask: Mask, *, previous: Arrays | None = None, generation: int = 0
) -> tuple[Arrays, dict[str, float]]:
    return Gmm(SMALL).fit(data, mask=mask, generation=generation, seed=0, previous=previous, progress=quiet)


def test_density_is_scikit_learns_for_every_shape_of_covariance() -> None:
    from sklearn.mixture import GaussianMixture

    x = np.random.default_rng(0).normal(size=(150, 3)) @ np.diag([1.0, 2.0, 0.5])
    for shape in ("full", "tied", "diag", "spherical"):
        fitted, _ = mixtures.fit(
            x, components=2, covariance=shape, regularization=1e-6, iterations=50, restarts=1, seed=1
        )
        reference = GaussianMixture(2, covariance_type=shape, reg_covar=1e-6, max_iter=50, random_state=1).fit(x)
        np.testing.assert_allclose(mixtures.log_density(fitted, x), reference.score_samples(x), rtol=1e-9)


def test_moments_of_two_circles_are_those_of_the_formula_and_of_what_is_drawn() -> None:
    mixture = two(4.0)
    # within: 1; between: 0.25 · 0.75 · 4² = 3 along the first axis
    np.testing.assert_allclose(mixtures.total_covariance(mixture), [[4.0, 0.0], [0.0, 1.0]], atol=1e-12)
    drawn = mixtures.draw(mixture, count=200_000, generator=np.random.default_rng(3))
    np.testing.assert_allclose(np.cov(drawn.T), [[4.0, 0.0], [0.0, 1.0]], atol=0.03)
    np.testing.assert_allclose(drawn.mean(axis=0), [3.0, 0.0], atol=0.02)


def test_a_component_survives_within_the_radius_of_its_own_sigmas() -> None:
    first = Mixture(np.array([0.5, 0.5]), np.array([[0.0, 0.0], [100.0, 0.0]]), np.stack([np.diag([4.0, 1.0])] * 2))

    def at(x: float, y: float) -> Mixture:
        return Mixture(np.array([1.0]), np.array([[x, y]]), np.eye(2)[None] * 1e-6)

    # sigma is 2 along x and 1 along y: 3.9 and 1.9 lie within two of them, 4.1 and 2.1 do not
    inside = [mixtures.surviving(first, at(*p), radius=2.0) for p in ((3.9, 0.0), (0.0, 1.9), (100.0, 0.0))]
    outside = [mixtures.surviving(first, at(*p), radius=2.0) for p in ((4.1, 0.0), (0.0, 2.1), (50.0, 0.0))]
    assert (inside, outside) == ([1, 1, 1], [0, 0, 0])
    assert mixtures.surviving(first, first, radius=1e-9) == 2


def test_sliced_wasserstein_of_a_shift_is_its_mean_projection() -> None:
    x = np.random.default_rng(1).normal(size=(400, 2))
    along = mixtures.directions(20_000, dimensions=2, seed=5)
    np.testing.assert_allclose(np.linalg.norm(along, axis=1), 1.0)
    # a shift by (0, 3): mean of 3 |sin| over the circle = 6/pi
    shift = np.array([0.0, 3.0])
    assert np.abs(along @ shift).mean() == pytest.approx(6 / math.pi, rel=0.01)
    few = along[:50]
    assert mixtures.sliced_wasserstein(x, x + shift, along=few) == pytest.approx(float(np.abs(few @ shift).mean()))
    assert mixtures.sliced_wasserstein(x, np.concatenate([x, x]), along=few) == pytest.approx(0.0, abs=1e-12)


def test_in_one_dimension_there_is_one_direction() -> None:
    one, other = np.array([[0.0], [1.0]]), np.array([[2.0], [5.0]])
    along = mixtures.directions(64, dimensions=1, seed=0)
    assert along.shape == (1, 1)
    assert mixtures.sliced_wasserstein(one, other, along=along) == pytest.approx(3.0)  # (2 + 4) / 2


def test_the_mask_drops_the_most_likely_fifth_of_each_class_under_the_model_that_drew_it() -> None:
    family = Gmm(SMALL)
    first, metrics = fit(family.real(seed=0), ThresholdMask(gamma=0.8))
    assert metrics["live-fraction"] == 1.0  # M_0 sees all of the real data
    sample = family.sample(first, count=200, generation=0, seed=0)
    _, metrics = fit(sample, ThresholdMask(gamma=0.8), previous=first, generation=1)
    assert metrics["live-fraction"] == pytest.approx(0.8)
    kept = []
    for c in (0, 1):
        of_class = sample["x"][sample["label"] == c]
        density = mixtures.log_density(
            Mixture(first["weights"][c], first["means"][c], first["covariances"][c]), of_class
        )
        kept.append(of_class[np.argsort(density)[: math.ceil(0.8 * len(of_class))]])
    by_hand: Arrays = {"x": np.concatenate(kept), "label": np.repeat([0, 1], [len(part) for part in kept])}
    masked, _ = fit(sample, ThresholdMask(gamma=0.8), previous=first, generation=1)
    plain, _ = fit(by_hand, NoMask(), previous=first, generation=1)
    np.testing.assert_allclose(np.sort(masked["weights"]), np.sort(plain["weights"]), atol=1e-6)
    np.testing.assert_allclose(np.sort(masked["means"].sum(axis=2)), np.sort(plain["means"].sum(axis=2)), atol=1e-6)


def test_gamma_1_is_no_mask_bit_for_bit() -> None:
    family = Gmm(SMALL)
    first, _ = fit(family.real(seed=0), NoMask())
    sample = family.sample(first, count=200, generation=0, seed=0)
    plain, _ = fit(sample, NoMask(), previous=first, generation=1)
    masked, _ = fit(sample, ThresholdMask(gamma=1.0), previous=first, generation=1)
    assert all(np.array_equal(plain[name], masked[name]) for name in plain)


def test_real_data_measured_against_themselves() -> None:
    family = Gmm(SMALL)
    real = family.real(seed=0)
    first, _ = fit(real, NoMask())
    measured = family.measure(first, real, real, generation=0, seed=0, first=first)
    assert set(measured) == set(MEASURES)
    assert (measured["component-survival"], measured["class-agreement"]) == (1.0, 1.0)
    assert measured["sliced-wasserstein"] == pytest.approx(0.0, abs=1e-12)
    # by EM's own fixed point a mixture has the mean and the covariance of its data
    parts = [np.trace(np.cov(real["x"][real["label"] == c].T, bias=True)) for c in (0, 1)]
    assert measured["covariance-trace"] == pytest.approx(np.mean(parts), rel=1e-3)


def test_classes_keep_their_sizes_and_the_same_seed_gives_the_same_points() -> None:
    family = Gmm(GmmConfig(data=Blobs(samples=300, clusters=3, classes=2), components=2))
    real = family.real(seed=4)
    first, _ = family.fit(real, mask=NoMask(), generation=0, seed=4, previous=None, progress=quiet)
    one, again = (family.sample(first, count=300, generation=2, seed=4) for _ in range(2))
    assert np.array_equal(np.bincount(one["label"]), np.bincount(real["label"]))
    assert np.array_equal(one["x"], again["x"])
    assert not np.array_equal(one["x"], family.sample(first, count=300, generation=3, seed=4)["x"])
    assert not np.array_equal(real["x"], family.real(seed=5)["x"])


def test_one_gaussian_loses_variance_at_the_rate_of_the_finite_sample() -> None:
    """E[s²/σ²] = 1 − 1/n a generation: after 20 of n = 20 points, 0.95²⁰ = 0.358."""
    runs, n, generations = 400, 20, 20
    rng = np.random.default_rng(0)
    variance = np.ones(runs)
    for _ in range(generations):
        variance = (rng.normal(size=(runs, n)) * np.sqrt(variance)[:, None]).var(axis=1)
    family = Gmm(GmmConfig(data=Blobs(samples=20, clusters=1, classes=1, dimensions=1), components=1))
    traces = []
    for seed in range(40):
        parameters: Arrays = {
            "weights": np.ones((1, 1)),
            "means": np.zeros((1, 1, 1)),
            "covariances": np.ones((1, 1, 1, 1)),
            "share": np.ones(1),
        }
        for i in range(generations):
            sample = family.sample(parameters, count=n, generation=i, seed=seed)
            parameters, _ = family.fit(
                sample, mask=NoMask(), generation=i + 1, seed=seed, previous=parameters, progress=quiet
            )
        traces.append(float(parameters["covariances"][0, 0, 0, 0]))
    assert variance.mean() == pytest.approx(0.95**generations, rel=0.25)  # the law holds for numpy's own draws
    # compared in logs, where a mean of 40 is steady
    spread = np.log(variance).std()
    assert np.mean(np.log(traces)) == pytest.approx(np.log(variance).mean(), abs=4 * spread / math.sqrt(40))


def test_too_few_points_are_named() -> None:
    few: Arrays = {"x": np.zeros((4, 2)), "label": np.array([0, 0, 1, 1])}
    with pytest.raises(StageFailed, match=r"g3: 2 points of class 0 .*lower family\.components"):
        fit(few, NoMask(), generation=3)
    with pytest.raises(ValidationError, match="only 10 points"):
        GmmConfig(data=Moons(samples=20), components=8)


# ------------------------------------------------------------------------------------------------ a user's table


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "mine.csv"
    rng = np.random.default_rng(0)
    rows = [f"{rng.normal(5, 2):.4f},{rng.normal():.4f},{'ab'[i % 2]},row {i}" for i in range(60)]
    path.write_text("\n".join(["height,width,kind,note", *rows]) + "\n")
    return path


def config_of(path: Path, **changes: object) -> GmmConfig:
    return GmmConfig(data=TableData.model_validate({"file": str(path), "label": "kind", **changes}), components=2)


def test_a_table_is_read_standardised_and_its_digest_stands_for_it(table: Path) -> None:
    from storage.sources.family_data import data_digests, load_data

    arrays = load_data(config_of(table))
    assert arrays is not None
    assert arrays["x"].shape == (60, 2) and np.bincount(arrays["label"]).tolist() == [30, 30]
    np.testing.assert_allclose(arrays["x"].mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(arrays["x"].std(axis=0), 1)
    before = data_digests(config_of(table))
    copy = table.with_name("copy.csv")
    copy.write_bytes(table.read_bytes())
    assert data_digests(config_of(copy)) == before
    copy.write_text(copy.read_text().replace("row 7", "row seven"))
    assert data_digests(config_of(copy)) != before


@pytest.mark.parametrize(
    ("changes", "field", "said"),
    [
        ({"columns": ["height", "depth"]}, "family.data.columns", "there are height, width, kind, note"),
        ({"columns": ["note"]}, "family.data.columns", "not numbers"),
        ({"label": "colour"}, "family.data.label", "no such column"),
        ({"label": "note"}, "family.data.file", "lower family.components"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(table: Path, changes: dict[str, object], field: str, said: str) -> None:
    from storage.sources.family_data import load_data

    with pytest.raises(DataError, match=said) as caught:
        load_data(config_of(table, **changes))
    assert caught.value.field == field


def test_files_that_are_no_tables_are_refused_by_name(table: Path, tmp_path: Path) -> None:
    from storage.sources.family_data import data_digests, load_data

    with pytest.raises(DataError, match="no such file"):
        data_digests(config_of(tmp_path / "nowhere.csv"))
    with pytest.raises(DataError, match="is none of"):
        data_digests(config_of(tmp_path / "mine.xlsx"))
    holes = tmp_path / "holes.csv"
    holes.write_text(table.read_text(encoding="utf-8").replace("\n", "\n,1.0,a,hole\n", 1))
    with pytest.raises(DataError, match=r"height.*row 1 has no finite number"):
        load_data(config_of(holes))


# ------------------------------------------------------------------------------------------------ figures


def test_the_grid_shows_every_arm_and_is_the_same_each_time(tmp_path: Path) -> None:
    from fortifai_core.families.mixture import figures

    family = Gmm(SMALL)
    real = family.real(seed=0)
    first, _ = fit(real, NoMask())
    generations = tuple(
        Generation(i, {}, family.sample(first, count=100, generation=i, seed=0), first) for i in range(9)
    )
    runs = tuple(Run(arm, 0, generations[: 9 if arm == "ce" else 4]) for arm in ("ce", "tce-0.8"))
    results = Results(SMALL, ("ce", "tce-0.8"), real, runs)
    (figure,) = figures.draw(results, tmp_path / "one")
    (again,) = figures.draw(results, tmp_path / "two")
    assert [path.read_bytes() for path in figure.paths] == [path.read_bytes() for path in again.paths]
    drawn = figure.paths[0].read_text()
    assert all(text in drawn for text in (">real data<", ">M0<", ">M8<", ">TCE 0.8<", ">CE<"))
    assert "Figure 8" in figure.paper
    assert figures.chosen(list(range(9)), 6)[-1] == 8 and len(figures.chosen(list(range(500)), 6)) == 6
