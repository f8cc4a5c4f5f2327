"""Measures of generated digits against closed forms and cases worked out by hand; the classifier that they use."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg
import torch

from fortifai_core.families.images import data, measures
from fortifai_core.families.images.classifier import train_classifier
from fortifai_core.families.images.config import DigitsData
from fortifai_core.families.images.data import to_images


def test_frechet_of_two_lines() -> None:
    """In one dimension: (difference of means)² + (difference of sigmas)²."""
    one = np.ones((1, 1))
    assert measures.frechet_gaussians(np.array([1.0]), 4 * one, np.array([4.0]), 9 * one) == pytest.approx(9 + 1)


def test_frechet_of_commuting_and_of_general_covariances() -> None:
    rng = np.random.default_rng(0)
    a, b = np.diag([1.0, 4.0, 9.0]), np.diag([4.0, 4.0, 0.0])
    zero = np.zeros(3)
    assert measures.frechet_gaussians(zero, a, zero, b) == pytest.approx(1 + 0 + 9)
    assert measures.frechet_gaussians(zero, a, zero, a) == pytest.approx(0, abs=1e-12)
    general = [x @ x.T for x in rng.normal(size=(2, 5, 5))]
    means = rng.normal(size=(2, 5))
    root = scipy.linalg.sqrtm(general[0] @ general[1]).real
    expected = np.square(means[0] - means[1]).sum() + np.trace(general[0] + general[1] - 2 * root)
    assert measures.frechet_gaussians(means[0], general[0], means[1], general[1]) == pytest.approx(expected)


def test_frechet_of_samples_approaches_that_of_their_gaussians() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, (40_000, 2)), rng.normal((3, 0), (1, 2), (30_000, 2))
    assert measures.frechet(a, b) == pytest.approx(9 + 1, rel=0.02)
    assert measures.frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_coverage_and_entropy_of_known_shares() -> None:
    labels = np.array([0] * 50 + [1] * 49 + [2])
    shares = measures.class_shares(labels)
    assert shares.tolist() == pytest.approx([0.5, 0.49, 0.01] + [0] * 7)
    assert measures.coverage(shares, floor=0.02) == pytest.approx(0.2)
    assert measures.coverage(shares, floor=0.01) == pytest.approx(0.3)
    assert measures.class_entropy(np.full(10, 0.1)) == pytest.approx(1)
    assert measures.class_entropy(np.eye(10)[3]) == 0
    assert measures.class_entropy(np.array([0.5, 0.5] + [0] * 8)) == pytest.approx(math.log(2) / math.log(10))


def test_precision_and_recall_on_a_line() -> None:
    """Real 0, 1, …, 9; each one's ball for k = 1 has radius 1. Made: two on top of each other at 4.2, and 100."""
    real, made = np.arange(10.0)[:, None], np.array([[4.2], [4.2], [100.0]])
    precision, recall = measures.precision_recall(real, made, neighbours=1)
    assert precision == pytest.approx(2 / 3)
    # Balls of the made ones: radius 0 twice, and 95.8 around 100, which reaches from 4.2 on.
    assert recall == pytest.approx(5 / 10)
    assert measures.precision_recall(real, real, neighbours=1) == (1, 1)
    with pytest.raises(ValueError, match="neighbours need more points"):
        measures.precision_recall(real, made, neighbours=3)


def test_collapse_to_one_mode_keeps_precision_and_loses_recall() -> None:
    rng = np.random.default_rng(2)
    real = np.concatenate([rng.normal(0, 1, (200, 2)), rng.normal(20, 1, (200, 2))])
    precision, recall = measures.precision_recall(real, rng.normal(0, 1, (400, 2)), neighbours=5)
    assert precision > 0.95
    assert 0.4 < recall <= 0.5


def test_pixel_spread() -> None:
    rng = np.random.default_rng(3)
    real = rng.integers(0, 256, (50, 4, 4)).astype("uint8")
    assert measures.pixel_spread(real, real) == pytest.approx(1)
    assert measures.pixel_spread(real // 2 * 1.0, real // 2 * 2.0) == pytest.approx(0.25)
    assert measures.pixel_spread(np.repeat(real[:1], 7, axis=0), real) == 0


def test_latent_use_follows_the_law_of_total_variance() -> None:
    """One dimension carries everything, one is the prior whatever the image, one hardly moves."""
    rng = np.random.default_rng(4)
    means = np.stack([rng.normal(0, 0.8, 20_000), np.zeros(20_000), rng.normal(0, 0.05, 20_000)], axis=1)
    variances = np.broadcast_to([0.36, 1.0, 0.25], means.shape)
    found = measures.latent_use(means, variances)
    assert found["active-units"] == 1
    assert found["latent-spread"] == pytest.approx((0.64 + 0 + 0.0025) / 3, rel=0.03)
    drawn = means + np.sqrt(variances) * rng.normal(size=means.shape)
    assert found["latent-variance"] == pytest.approx(drawn.var(axis=0).mean(), rel=0.03)


def test_digits_are_cut_by_class_and_nothing_is_in_both_parts() -> None:
    real = data.load(DigitsData(), None)
    assert len(real.train["label"]) + len(real.test["label"]) == 1797
    for label in range(10):
        held_out, kept = (int((part["label"] == label).sum()) for part in (real.test, real.train))
        assert held_out == pytest.approx(0.2 * (held_out + kept), abs=0.5)
    parts = [{image.tobytes() for image in part["pixels"]} for part in (real.train, real.test)]
    assert not parts[0] & parts[1]
    assert data.load(DigitsData(seed=1), None).test["pixels"].tobytes() != real.test["pixels"].tobytes()


def test_the_classifier_reads_held_out_digits_and_is_the_same_twice() -> None:
    real = data.load(DigitsData(), None)
    train, test = to_images(real.train), to_images(real.test)
    short = [train_classifier(train, real.train["label"], epochs=1, seed=0).read(test) for _ in range(2)]
    assert short[0].probabilities.tobytes() == short[1].probabilities.tobytes()
    known = measures.instrument(DigitsData(), None, 15)
    assert known.accuracy > 0.95
    assert known.test.probabilities.sum(axis=1) == pytest.approx(1)
    # Features are what the head reads: the class follows from them.
    logits = known.classifier.head(torch.from_numpy(known.test.features).float())
    assert (logits.argmax(dim=1).numpy() == known.test.labels).all()
    assert known.floor < measures.frechet(known.test.features * 0.8, known.train.features)
