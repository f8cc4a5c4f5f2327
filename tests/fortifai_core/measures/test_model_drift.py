"""Drift of a model: KL against scipy and by hand, histograms and live fractions at their edges, fair samples."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from fortifai_core.errors import DataError, StageFailed
from fortifai_core.measures.model_drift import (
    EDGES,
    confidence_histogram,
    live_fraction,
    live_fraction_of,
    model_kl_by_window,
    sample_windows,
    target_log_probabilities,
)


def model_kl(first: Any, model: Any, sample: Any, *, batch: int) -> tuple[float, int]:
    found = model_kl_by_window(first, model, sample, batch=batch)
    return found.kl, int(found.positions.sum())


class Table(torch.nn.Module):
    """A model whose next-token distribution is looked up by the last token."""

    def __init__(self, probabilities: Any) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.as_tensor(probabilities, dtype=torch.float32).log())

    def forward(self, input_ids: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.logits[input_ids])


P = [[0.5, 0.25, 0.25], [0.1, 0.1, 0.8], [0.2, 0.4, 0.4]]
Q = [[0.25, 0.5, 0.25], [0.3, 0.3, 0.4], [0.2, 0.4, 0.4]]


def test_kl_by_hand_and_scipys() -> None:
    # contexts: 0, 1, 1, 2 of the first window, 0 of the second; the last token of a window predicts nothing here
    value, positions = model_kl(Table(P), Table(Q), [[0, 1, 1, 2, 0], [0, 2]], batch=1)
    expected = [stats.entropy(P[c], Q[c]) for c in (0, 1, 1, 2, 0)]
    assert positions == 5 and value == pytest.approx(np.mean(expected), rel=1e-6)
    by_hand = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert model_kl(Table(P), Table(Q), [[0, 2]], batch=1)[0] == pytest.approx(by_hand, rel=1e-6)


def test_kl_has_a_direction_and_is_zero_for_the_same_model() -> None:
    forwards = model_kl(Table(P), Table(Q), [[1, 0]], batch=1)[0]
    assert forwards != pytest.approx(model_kl(Table(Q), Table(P), [[1, 0]], batch=1)[0], rel=0.01)
    assert model_kl(Table(P), Table(P), [[0, 1, 2]], batch=1)[0] == 0


def test_kl_does_not_see_batches_or_padding() -> None:
    sample = [[0, 1, 2, 1], [2, 0], [1, 1, 0]]
    alone = model_kl(Table(P), Table(Q), sample, batch=1)
    together = model_kl(Table(P), Table(Q), sample, batch=3)
    assert alone[1] == together[1] == 6 and alone[0] == pytest.approx(together[0], rel=1e-9)


def test_a_token_that_the_reference_excludes_costs_nothing_and_one_that_the_model_excludes_everything() -> None:
    never = [[0.5, 0.5, 0.0]] * 3
    assert math.isfinite(model_kl(Table(never), Table(P), [[0, 1]], batch=1)[0])
    assert model_kl(Table(P), Table(never), [[0, 1]], batch=1)[0] == math.inf


def test_kl_of_nothing_and_of_a_diverged_model_are_errors() -> None:
    with pytest.raises(DataError, match="two tokens"):
        model_kl(Table(P), Table(Q), [], batch=1)
    with pytest.raises(StageFailed, match="diverged"):
        model_kl(Table(P), Table(np.full((3, 3), np.nan)), [[0, 1]], batch=1)


# --------------------------------------------------------------------------------------------- confidence


def test_target_probabilities_are_those_of_the_tokens_that_come() -> None:
    logs = target_log_probabilities(Table(P), [[0, 1, 2], [2, 1]], batch=2)
    assert np.exp(logs) == pytest.approx([P[0][1], P[1][2], P[2][1]])


def test_a_histogram_has_every_token_once_and_edges_belong_below() -> None:
    p = np.array([0.0, 0.005, 0.5, 0.9, 0.9000001, 0.9905, 0.9995, 1.0])
    with np.errstate(divide="ignore"):
        counts = confidence_histogram(np.log(p))
    assert counts.sum() == len(p) and len(counts) == len(EDGES) - 1
    filled = {round(float(EDGES[bin + 1]), 4): int(counts[bin]) for bin in np.flatnonzero(counts)}
    assert filled == {0.01: 2, 0.5: 1, 0.9: 1, 0.91: 1, 0.991: 1, 1.0: 2}


@pytest.mark.parametrize("gamma", [0.01, 0.5, 0.9, 0.99, 0.999, 1.0])
def test_the_live_fraction_of_the_histogram_is_that_of_the_tokens(gamma: float) -> None:
    logs = -(np.random.default_rng(0).exponential(0.3, 5000) ** 3)
    logs[:3] = np.log(gamma)  # on the edge: alive
    counts = confidence_histogram(logs).tolist()
    assert live_fraction_of(counts, gamma=gamma) == pytest.approx(live_fraction(logs, gamma=gamma), abs=1e-12)


def test_live_fraction_by_hand_and_off_the_edges() -> None:
    assert live_fraction(np.log([0.2, 0.9, 0.95, 1.0]), gamma=0.9) == 0.5
    assert live_fraction_of([1] * (len(EDGES) - 1), gamma=0.8765) is None
    with pytest.raises(DataError):
        live_fraction(np.empty(0), gamma=0.9)


# ------------------------------------------------------------------------------------------------ samples


def test_a_sample_is_of_whole_windows_in_order_and_the_same_each_time() -> None:
    text = [list(range(start, start + 100)) for start in range(0, 10_000, 100)]
    first = sample_windows(iter(text), length=10, tokens=200, seed=1)
    assert (
        first
        == sample_windows(text, length=10, tokens=200, seed=1)
        != sample_windows(text, length=10, tokens=200, seed=2)
    )
    assert len(first) == 20 and first == sorted(first)
    assert all(window == list(range(window[0], window[0] + 10)) and window[0] % 10 == 0 for window in first)


def test_a_sample_is_drawn_evenly_from_all_of_the_text() -> None:
    text = [list(range(1000))]
    starts = [w[0] for seed in range(200) for w in sample_windows(text, length=10, tokens=50, seed=seed)]
    assert len(starts) == 1000
    # ten tenths of the text, a hundred windows each but for chance (standard deviation 9.5)
    assert np.abs(np.histogram(starts, bins=10, range=(0, 1000))[0] - 100).max() < 45


def test_a_small_text_is_taken_whole_but_for_what_predicts_nothing() -> None:
    assert sample_windows([[1, 2, 3], [4], []], length=2, tokens=100, seed=0) == [[1, 2]]
