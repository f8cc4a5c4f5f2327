"""The Gaussian's figures: from a library's arrays and from an experiment's results, the same files, the same bytes."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from fortifai_core.errors import DataError
from fortifai_core.families.base import Generation, Mask, NoMask, Results, Run, ThresholdMask
from fortifai_core.families.gaussian.chain import Chain, predict, run_chain, summary
from fortifai_core.families.gaussian.config import AdaptiveMask, GaussianConfig, NoisyEstimator
from fortifai_core.families.gaussian.figures import (
    draw,
    draw_gamma,
    draw_spread,
    from_results,
)

CONFIG = GaussianConfig(samples=1000, replicates=3, method="central-limit")
MASKS: list[Mask] = [NoMask(), ThresholdMask(gamma=0.85), AdaptiveMask(), NoisyEstimator()]
GENERATIONS = 14


@pytest.fixture(scope="module")
def chains() -> dict[tuple[str, int], Chain]:
    return {
        (mask.label, seed): run_chain(CONFIG, mask, seed=seed, generations=GENERATIONS)
        for mask in MASKS
        for seed in (0, 1)
    }


def results_of(chains: dict[tuple[str, int], Chain], *, parameters: bool = True, masks: list[Mask] = MASKS) -> Results:
    runs = []
    for mask in masks:
        for seed in (1, 0):
            arrays = chains[mask.label, seed].arrays
            measures = summary(arrays, config=CONFIG, mask=mask)
            generations = tuple(
                Generation(
                    generation=g,
                    metrics={name: float(values[g]) for name, values in measures.items()},
                    parameters={name: arrays[name][g] for name in ("mean", "sigma")} if parameters else {},
                )
                for g in range(GENERATIONS)
            )
            runs.append(Run(arm=mask.label, seed=seed, generations=generations))
    return Results(config=CONFIG, arms=tuple(mask.label for mask in masks), real={}, runs=tuple(runs))


def test_results_give_the_series_of_their_arrays_with_all_seeds(chains: dict[tuple[str, int], Chain]) -> None:
    for mask, series in zip(MASKS, from_results(results_of(chains)), strict=True):
        first, other = (chains[mask.label, seed].arrays for seed in (0, 1))
        prediction = predict(CONFIG, mask, generations=GENERATIONS)
        assert series.seed == 0 and series.label == mask.label
        assert np.array_equal(series.sigma, np.concatenate([first["sigma"], other["sigma"]], axis=1))
        assert np.array_equal(series.gamma, np.median(first["gamma"], axis=1))
        if isinstance(mask, AdaptiveMask):
            assert series.predicted is None and prediction is None
        else:
            assert series.predicted is not None and np.array_equal(series.predicted, prediction.median)


def test_an_experiments_figures(chains: dict[tuple[str, int], Chain], tmp_path: Path) -> None:
    figures = draw(results_of(chains), tmp_path)
    names = ["gaussian-estimators", "gaussian-variance", "gaussian-histograms", "gaussian-gamma", "gaussian-stability"]
    assert [figure.name for figure in figures] == names
    for figure in figures:
        assert [path.suffix for path in figure.paths] == [".svg", ".png"]
        text = "".join(ET.parse(figure.paths[0]).getroot().itertext())
        assert "TCE 0.85" in text or figure.name == "gaussian-estimators"
        assert figure.paths[1].read_bytes().startswith(b"\x89PNG")
    assert all(figure.paper for figure in figures[:3])


def test_the_same_data_give_the_same_bytes(chains: dict[tuple[str, int], Chain], tmp_path: Path) -> None:
    series = from_results(results_of(chains))
    for one_figure in (draw_spread, draw_gamma):
        one, other = (one_figure(CONFIG, series, tmp_path / name) for name in ("one", "other"))
        for path, same in zip(one.paths, other.paths, strict=True):
            assert path.read_bytes() == same.read_bytes()


def test_only_the_figures_that_an_experiment_has_are_drawn(
    chains: dict[tuple[str, int], Chain], tmp_path: Path
) -> None:
    names = [figure.name for figure in draw(results_of(chains, masks=MASKS[:2]), tmp_path)]
    assert names == ["gaussian-variance", "gaussian-histograms", "gaussian-stability"]
    names = [figure.name for figure in draw(results_of(chains, masks=[MASKS[0], MASKS[3]]), tmp_path)]
    assert names == ["gaussian-estimators", "gaussian-histograms"]


def test_results_without_the_models_are_refused(chains: dict[tuple[str, int], Chain], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs mean and sigma"):
        draw(results_of(chains, parameters=False), tmp_path)
