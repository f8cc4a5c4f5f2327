"""Each configured loss becomes the kernels' loss of that kind, under its arm's name."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from fortifai_core.config.custom_code import ALLOWED
from fortifai_core.config.loss import CrossEntropyLoss, CustomLoss, FocalLoss, Loss, TruncatedCrossEntropyLoss
from fortifai_core.errors import ConfigError
from kernels import linear_cross_entropy, losses
from tasks.language.losses import token_loss

NLL = torch.tensor([0.0, 1e-30, 1e-9, 1e-4, 0.01, 0.1, -math.log(0.9), 0.5, 1.0, 5.0, 40.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("config", "label", "same"),
    [
        (CrossEntropyLoss(), "ce", losses.cross_entropy()),
        (TruncatedCrossEntropyLoss(gamma=0.9), "tce-0.9", losses.truncated(0.9)),
        (
            TruncatedCrossEntropyLoss(gamma=0.5, denominator="live"),
            "tce-0.5-live",
            losses.truncated(0.5, denominator="live"),
        ),
        (TruncatedCrossEntropyLoss(gamma=1.0), "tce-1", losses.truncated(1.0)),
        (FocalLoss(gamma=0.3), "focal-0.3", losses.focal(0.3)),
    ],
)
def test_the_configuration_chooses_the_loss_its_gamma_and_its_denominator(
    config: Loss, label: str, same: losses.TokenLoss
) -> None:
    functions = token_loss(config)
    assert functions.derivative is not None and same.derivative is not None
    assert torch.equal(functions.value(NLL), same.value(NLL))
    assert torch.equal(functions.derivative(NLL), same.derivative(NLL))
    assert (functions.name, functions.denominator) == (label, same.denominator)


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "losses_of_mine.py").write_text(
        "def power(nll, exponent=1.0):\n    return nll ** exponent\ndef average(nll):\n    return nll.mean()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(ALLOWED, "losses_of_mine")
    return "losses_of_mine"


def test_a_custom_loss_trains(user_module: str) -> None:
    functions = token_loss(CustomLoss(function=f"{user_module}:power", name="power-2", options={"exponent": 2.0}))
    assert functions.name == "power-2" and functions.derivative is None
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 4, dtype=torch.float64)
    targets = torch.arange(5)
    loss = linear_cross_entropy(hidden, weight, targets, loss=functions).loss
    nll = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="none")
    torch.testing.assert_close(loss, nll.square().mean())
    (expected,) = torch.autograd.grad(nll.square().mean(), hidden)
    (gradient,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(gradient, expected)


def test_a_custom_loss_that_is_none_is_refused(user_module: str) -> None:
    with pytest.raises(ConfigError, match="one loss for each token"):
        token_loss(CustomLoss(function=f"{user_module}:average", name="mine"))
