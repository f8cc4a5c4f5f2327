"""The losses as functions of nll: where they mask, and their derivatives, also next to p = 1."""

from __future__ import annotations

import math

import torch

from kernels import losses

NLL = torch.tensor([0.0, 1e-30, 1e-9, 1e-4, 0.01, 0.1, -math.log(0.9), 0.5, 1.0, 5.0, 40.0], dtype=torch.float64)


def test_truncation_keeps_the_threshold_itself_and_what_is_less_probable() -> None:
    loss = losses.truncated(0.9)
    assert loss.value(NLL).eq(0).tolist() == [True] * 6 + [False] * 5
    assert torch.equal(losses.derivative_of(loss, NLL), NLL.ge(-math.log(0.9)).double())


def test_focal_derivative_against_the_notes_formula() -> None:
    # (1-p)^g - g p (1-p)^(g-1) log p, in double precision and away from p = 1, where the plain form is exact enough
    p = torch.linspace(0.01, 0.95, 40, dtype=torch.float64)
    for gamma in (0.5, 1.0, 2.0, 5.0):
        plain = (1 - p) ** gamma - gamma * p * (1 - p) ** (gamma - 1) * p.log()
        torch.testing.assert_close(losses.derivative_of(losses.focal(gamma), -p.log()), plain)


def test_focal_keeps_its_precision_near_p_equal_one() -> None:
    # f(nll) ~ nll^(g+1), so f' ~ (g+1) nll^g: for g = 2 that is 3e-12 at nll = 1e-6
    slope = losses.derivative_of(losses.focal(2.0), torch.tensor([1e-6]))
    torch.testing.assert_close(slope, torch.tensor([3e-12]), rtol=1e-4, atol=0)
