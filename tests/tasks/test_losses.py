"""Each configured loss becomes the kernels' loss of that kind, under its arm's name."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from fortifai_core.config.custom_code import ALLOWED
from fortifai_core.config.custom_loss import LOSSES
from fortifai_core.config.loss import (
    CrossEntropyLoss,
    CustomLoss,
    DynamicLoss,
    EntropyLoss,
    EntropyTruncatedLoss,
    FocalLoss,
    LabelSmoothingLoss,
    Loss,
    TailLoss,
    TruncatedCrossEntropyLoss,
    UntemperedLoss,
    ZLoss,
)
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


@pytest.mark.parametrize(
    ("config", "label", "same"),
    [
        (LabelSmoothingLoss(epsilon=0.2), "smoothing-0.2", losses.label_smoothing(0.2)),
        (ZLoss(weight=0.01), "z-0.01", losses.z_loss(0.01)),
        (DynamicLoss(), "dft", losses.dft()),
        (EntropyTruncatedLoss(factor=1.5), "tce-entropy-1.5", losses.truncated_by_entropy(1.5)),
        (EntropyLoss(alpha=2.0), "eaft-2", losses.eaft(2.0)),
        (UntemperedLoss(temperature=0.5), "untempered-0.5", losses.undo_temperature(0.5)),
        (UntemperedLoss(temperature=0.5, ceiling=1.5), "untempered-0.5-1.5", losses.undo_temperature(0.5, ceiling=1.5)),
        (TailLoss(drop=0.5), "tail-0.5", losses.tail(0.5)),
    ],
)
def test_a_loss_of_more_than_nll_computes_what_the_kernels_do(config: Loss, label: str, same: losses.TokenLoss) -> None:
    found = {}
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(4, 5, 8, generator=generator), torch.randn(13, 8, generator=generator)
    targets = torch.randint(13, (4, 5), generator=generator)
    for name, loss in (("configured", token_loss(config)), ("same", same), ("ce", losses.cross_entropy())):
        leaf = hidden.clone().requires_grad_()
        linear_cross_entropy(leaf, weight, targets, loss=loss).loss.backward()
        found[name] = leaf.grad
    assert token_loss(config).name == label
    assert torch.equal(found["configured"], found["same"]) and not torch.allclose(found["same"], found["ce"])


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "losses_of_mine.py").write_text(
        "def power(nll, exponent=1.0):\n    return nll ** exponent\ndef average(nll):\n    return nll.mean()\n"
        "def doubtful(nll, entropy, floor=0.0):\n    return nll * (floor + entropy)\n"
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


def test_a_custom_loss_is_given_the_entropy_where_it_names_it(user_module: str) -> None:
    named = CustomLoss(function=f"{user_module}:doubtful", name="doubtful", options={"floor": 0.5})
    functions = token_loss(named)
    assert functions.needs == ("entropy",) and losses.RowStatistics._fields[1:-1] == LOSSES.given
    logits, targets = torch.randn(5, 7, dtype=torch.float64), torch.arange(5)
    loss = linear_cross_entropy(logits, torch.eye(7, dtype=torch.float64), targets, loss=functions).loss
    nll = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(loss, (nll * (0.5 + entropy)).mean())
