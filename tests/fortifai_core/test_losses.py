"""The losses of the arms: their definitions, their agreement with the kernels' own, and custom ones."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fortifai_core.config.loss import CrossEntropyLoss, CustomLoss, FocalLoss, TruncatedCrossEntropyLoss
from fortifai_core.errors import ConfigError
from fortifai_core.losses import focal_derivative, load_custom, loss_from_config, truncated, truncated_derivative
from kernels import linear_cross_entropy
from kernels import losses as kernel_losses

NLL = torch.tensor([0.0, 1e-30, 1e-9, 1e-4, 0.01, 0.1, -math.log(0.9), 0.5, 1.0, 5.0, 40.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("config", "kernel"),
    [
        (CrossEntropyLoss(), kernel_losses.cross_entropy()),
        (TruncatedCrossEntropyLoss(gamma=0.9), kernel_losses.truncated(0.9)),
        (
            TruncatedCrossEntropyLoss(gamma=0.5, denominator="live"),
            kernel_losses.truncated(0.5, denominator="live"),
        ),
        (TruncatedCrossEntropyLoss(gamma=1.0), kernel_losses.truncated(1.0)),
        (FocalLoss(gamma=2.0), kernel_losses.focal(2.0)),
        (FocalLoss(gamma=0.3), kernel_losses.focal(0.3)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_the_kernels_to_the_bit(
    config: object, kernel: kernel_losses.TokenLoss, dtype: torch.dtype
) -> None:
    functions = loss_from_config(config)  # type: ignore[arg-type]
    nll = NLL.to(dtype)
    assert torch.equal(functions.value(nll), kernel.value(nll))
    assert functions.derivative is not None and kernel.derivative is not None
    assert torch.equal(functions.derivative(nll), kernel.derivative(nll))
    assert functions.denominator == kernel.denominator
    assert functions.name == config.label  # type: ignore[attr-defined]


def test_truncation_keeps_the_threshold_itself_and_what_is_less_probable() -> None:
    assert truncated(NLL, gamma=0.9).eq(0).tolist() == [True] * 6 + [False] * 5
    assert torch.equal(truncated_derivative(NLL, gamma=0.9), NLL.ge(-math.log(0.9)).double())


def test_focal_derivative_against_the_notes_formula() -> None:
    # (1-p)^g - g p (1-p)^(g-1) log p, in double precision and away from p = 1, where the plain form is exact enough
    p = torch.linspace(0.01, 0.95, 40, dtype=torch.float64)
    for gamma in (0.5, 1.0, 2.0, 5.0):
        plain = (1 - p) ** gamma - gamma * p * (1 - p) ** (gamma - 1) * p.log()
        torch.testing.assert_close(focal_derivative(-p.log(), gamma=gamma), plain)


def test_focal_keeps_its_precision_near_p_equal_one() -> None:
    # f(nll) ~ nll^(g+1), so f' ~ (g+1) nll^g: for g = 2 that is 3e-12 at nll = 1e-6
    nll = torch.tensor([1e-6])
    torch.testing.assert_close(focal_derivative(nll, gamma=2.0), torch.tensor([3e-12]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_truncated_refuses_gamma(gamma: float) -> None:
    with pytest.raises(ConfigError, match="gamma"):
        truncated(NLL, gamma=gamma)


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "my_losses.py").write_text(
        "import torch\n"
        "def power(nll, exponent=1.0):\n    return nll ** exponent\n"
        "def average(nll):\n    return nll.mean()\n"
        "def centred(nll):\n    return nll - nll.mean()\n"
        "def logarithm(nll):\n    return nll.log()\n"
        "number = 3\n"
    )
    (tmp_path / "broken_losses.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return "my_losses"


def test_a_custom_loss_trains(user_module: str) -> None:
    functions = loss_from_config(CustomLoss(function=f"{user_module}:power", name="power-2", options={"exponent": 2.0}))
    assert functions.name == "power-2" and functions.derivative is None
    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 4, dtype=torch.float64)
    targets = torch.arange(5)
    loss = linear_cross_entropy(hidden, weight, targets, loss=functions).loss
    nll = torch.nn.functional.cross_entropy(hidden @ weight.T, targets, reduction="none")
    torch.testing.assert_close(loss, nll.square().mean())
    (wanted,) = torch.autograd.grad(nll.square().mean(), hidden)
    (found,) = torch.autograd.grad(loss, hidden)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        ("no_such_module_here:f", {}, "No module named 'no_such_module_here'"),
        ("broken_losses:f", {}, "a_module_that_is_not_there"),
        ("my_losses:missing", {}, "has no 'missing'"),
        ("my_losses:number", {}, "not a function"),
        ("my_losses:power", {"base": 2}, "losses.options.*unexpected keyword"),
        ("my_losses", {}, "module:function"),
    ],
)
def test_load_custom_says_what_is_wrong(
    user_module: str, function: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_custom(function, options)


@pytest.mark.parametrize(
    ("name", "message"),
    [("average", "one loss for each token"), ("centred", "not elementwise"), ("logarithm", "not finite")],
)
def test_a_custom_loss_that_is_none_is_refused(user_module: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        loss_from_config(CustomLoss(function=f"{user_module}:{name}", name="mine"))


def test_checking_a_configuration_needs_no_torch() -> None:
    code = "import sys, fortifai_core.losses; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
