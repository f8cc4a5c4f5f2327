"""The report's data: which arms get a live share that no drift stage measured."""

from __future__ import annotations

from flows.load import load_experiment_config
from tasks.language.report import _live_fraction, _reference_gamma


def test_what_masks_otherwise_than_by_a_gamma_is_not_given_the_share_of_one_that_does() -> None:
    losses = (
        "{type: cross-entropy}, {type: tce, gamma: 0.8}, {type: tce, gamma: 0.5}, {type: tce-entropy}, {type: tail}"
    )
    found = _reference_gamma(load_experiment_config("smoke", [f"losses=[{losses}]"]))
    assert found == {"ce": 0.8, "tce-0.8": 0.8, "tce-0.5": 0.8, "tce-entropy-1": None, "tail-0.2": None}
    assert _reference_gamma(load_experiment_config("smoke", ["losses=[{type: cross-entropy}]"])) == {"ce": None}
    arms = "{name: all, loss: {type: tce, gamma: 0.8}}, {name: part, training: {loss_on: real}}, {name: none}"
    found = _reference_gamma(load_experiment_config("smoke", ["losses=[{type: cross-entropy}]", f"arms=[{arms}]"]))
    assert found == {"all": 0.8, "part": None, "none": 0.8}


def test_the_share_is_of_what_the_model_has_seen() -> None:
    seen = {("generation", "seen"): [0] * 40 + [30] + [0] * 49 + [60] + [0] * 9 + [10] + [0] * 9}
    assert _live_fraction(0.8, seen) == 0.3 and _live_fraction(1.0, seen) == 1.0
    assert _live_fraction(0.805, seen) is None  # no edge of the histograms
    assert _live_fraction(None, seen) is None and _live_fraction(0.8, {}) is None
