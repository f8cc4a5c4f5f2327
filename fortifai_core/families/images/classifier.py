"""A small classifier of digits, trained once on real images: the instrument with which generated ones are measured."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fortifai_core.seeds import derive_seed

CLASSES = 10
FEATURES = 64
_BATCH = 512


class Reading(NamedTuple):
    """What the classifier makes of n images: probabilities (n, 10) and features (n, 64), both float64."""

    probabilities: NDArray[np.float64]
    features: NDArray[np.float64]

    @property
    def labels(self) -> NDArray[np.int64]:
        return self.probabilities.argmax(axis=1)


class DigitsClassifier(nn.Module):
    """Two convolutions with pooling, one hidden layer, whose activations are the features."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * (side // 4) ** 2, FEATURES),
            nn.ReLU(),
        )
        self.head = nn.Linear(FEATURES, CLASSES)

    def read(self, images: Tensor) -> Reading:
        """Probabilities and features of images (n, 1, side, side) in [0, 1]."""
        probabilities, features = [], []
        with torch.inference_mode():
            for batch in images.split(_BATCH):
                own = self.body(batch)
                features.append(own.double())
                probabilities.append(functional.softmax(self.head(own).double(), dim=1))
        return Reading(torch.cat(probabilities).numpy(), torch.cat(features).numpy())


def train_classifier(images: Tensor, labels: NDArray[Any], *, epochs: int, seed: int) -> DigitsClassifier:
    """A classifier trained with Adam (1e-3, batches of 64); the same bits for the same seed and thread count.

    Args:
        images: (n, 1, side, side) in [0, 1]. labels: (n,), 0 to 9.
    """
    generator = torch.Generator().manual_seed(derive_seed("digits-classifier", seed))
    with torch.device("meta"):
        model = DigitsClassifier(images.shape[-1])
    model = model.to_empty(device="cpu")
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    targets = torch.as_tensor(labels, dtype=torch.int64)
    for _ in range(epochs):
        for chosen in torch.randperm(len(images), generator=generator).split(64):
            loss = functional.cross_entropy(model.head(model.body(images[chosen])), targets[chosen])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return model.eval()
