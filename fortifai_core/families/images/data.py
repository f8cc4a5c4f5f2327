"""The real images of the VAE family: scikit-learn's digits, or MNIST from a folder, cut into train and test."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fortifai_core.errors import DataError
from fortifai_core.families.base import Arrays
from fortifai_core.families.images.config import DigitsData, ImageData, MnistData
from fortifai_core.families.images.idx import read_mnist
from fortifai_core.seeds import derive_seed

if TYPE_CHECKING:
    from torch import Tensor


class RealImages(NamedTuple):
    """{"pixels": (n, side, side) uint8, 255 is ink; "label": (n,) int64}, for training and held out."""

    train: Arrays
    test: Arrays


@lru_cache(maxsize=2)
def load(data: ImageData, folder: Path | None) -> RealImages:
    """The real images; the same for all runs of an experiment.

    Args:
        folder: where MNIST's four files lie; not read for the digits.

    Raises:
        DataError: MNIST without a folder, or one whose files are missing or damaged.
    """
    if isinstance(data, DigitsData):
        return _digits(data)
    if folder is None:
        raise DataError("family.data", "mnist", "no folder was given; point FORTIFAI_DATA at one that holds mnist/")
    parts = []
    for part, count in (("train", data.train), ("t10k", data.test)):
        images, labels = read_mnist(folder, part)
        if images.shape[1:] != (28, 28):
            raise DataError(str(folder), images.shape, "MNIST's images have 28×28 pixels")
        if count > len(images):
            raise DataError(str(folder), f"{len(images)} images", f"{count} of part {part} are asked for; lower it")
        parts.append(_subset(images, labels.astype("int64"), count, data))
    return RealImages(*parts)


def _digits(data: DigitsData) -> RealImages:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype("uint8")
    labels = digits.target.astype("int64")
    order = np.random.default_rng(derive_seed("digits", data.seed)).permutation(len(labels))
    held_out = np.zeros(len(labels), bool)
    for label in range(10):
        of_class = order[labels[order] == label]
        held_out[of_class[: round(data.test_fraction * len(of_class))]] = True
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    return RealImages(
        {"pixels": pixels[train], "label": labels[train]}, {"pixels": pixels[test], "label": labels[test]}
    )


def _subset(images: NDArray[Any], labels: NDArray[Any], count: int, data: MnistData) -> Arrays:
    if data.selection == "first" or count == len(labels):
        kept = np.arange(count)
    else:
        order = np.random.default_rng(derive_seed("mnist", data.seed)).permutation(len(labels))
        shares = np.bincount(labels, minlength=10) * count / len(labels)
        wanted = np.floor(shares).astype(int)
        # Largest remainders, so that the parts add up to `count`.
        wanted[np.argsort(wanted - shares, kind="stable")[: count - wanted.sum()]] += 1
        kept = np.sort(np.concatenate([order[labels[order] == c][: wanted[c]] for c in range(len(wanted))]))
    return {"pixels": images[kept], "label": labels[kept]}


def to_images(data: Arrays, *, side: int | None = None) -> Tensor:
    """{"pixels": (n, side, side) uint8} as (n, 1, side, side) float32 in [0, 1]; `side` None takes any size.

    Raises:
        DataError: pixels of another type or size, or none.
    """
    import torch

    pixels = data.get("pixels")
    wanted = (side, side) if side else pixels.shape[1:] if pixels is not None else ()
    if pixels is None or pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[1:] != wanted or not len(pixels):
        given = sorted(data) if pixels is None else f"{pixels.dtype}, {pixels.shape}"
        raise DataError("pixels", given, f"must be uint8 images of shape (n, {side}, {side}), at least one")
    images = torch.from_numpy(pixels.astype(np.float32) / 255).unsqueeze(1)
    return images.contiguous(memory_format=torch.channels_last)


def to_pixels(images: Tensor) -> NDArray[Any]:
    """(n, 1, side, side) in [0, 1] as (n, side, side) uint8: rounded to the nearest of 256 levels."""
    import torch

    return (images.squeeze(1) * 255).round().to(torch.uint8).numpy()
