"""The loss kernels against a plain reference, finite differences, and the invariants of a loss.

All of it also for the Triton kernels: on the GPU where there is one, else in triton's interpreter (see conftest.py).
"""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kernels import cross_entropy, linear_cross_entropy, losses

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.cuda] if DEVICE == "cuda" else []

FUSED = ["chunked", "triton"]
IMPLEMENTATIONS = ["torch", *FUSED]
LOSSES = {
    "ce": losses.cross_entropy(),
    "tce": losses.truncated(0.9),
    "tce-live": losses.truncated(0.5, denominator="live"),
    "focal": losses.focal(2.0),
    "focal-half": losses.focal(0.5),
    "custom": losses.custom(lambda nll: torch.log1p(nll) ** 2),
}
GAMMA_THAT_MASKS_HALF = 0.35


@dataclass
class Batch:
    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    targets: torch.Tensor


def make(
    rows: int = 23, width: int = 8, vocabulary: int = 13, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Batch:
    """A batch whose target probabilities spread over (0, 1), with every fifth row ignored."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocabulary, width, generator=g, dtype=torch.float64)
    targets = torch.randint(vocabulary, (rows,), generator=g)
    pull = 3 * torch.rand(rows, 1, generator=g, dtype=torch.float64)
    hidden = torch.randn(rows, width, generator=g, dtype=torch.float64) / width**0.5
    hidden = hidden + pull * weight[targets] / width**0.5
    targets[4::5] = -100
    bias = torch.randn(vocabulary, generator=g, dtype=torch.float64) / 4
    return Batch(hidden.to(DEVICE, dtype), weight.to(DEVICE, dtype), bias.to(DEVICE, dtype), targets.to(DEVICE))


def leaves(batch: Batch) -> list[torch.Tensor]:
    return [t.detach().clone().requires_grad_() for t in (batch.hidden, batch.weight, batch.bias)]


def run(batch: Batch, **options: Any) -> tuple[torch.Tensor, Any, list[torch.Tensor]]:
    """Loss, statistics, and gradients of hidden, weight and bias."""
    h, w, b = leaves(batch)
    options = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    upstream = options.pop("upstream", None)
    loss, statistics = linear_cross_entropy(h, w, batch.targets, bias=b, **options)
    loss.backward(upstream)
    return loss.detach(), statistics, [h.grad, w.grad, b.grad]


# ------------------------------------------------------------------------------------------ derivatives


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck(impl: str, name: str, reduction: str) -> None:
    batch = make(7, 3, 5)
    weights = torch.linspace(0.0, 2.0, 7, dtype=torch.float64, device=DEVICE)

    def f(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(
            h, w, batch.targets, bias=b, loss=LOSSES[name], impl=impl, reduction=reduction, chunk_rows=3,
            softcap=4.0, logit_scale=0.7, token_weights=weights,
        ).loss  # fmt: skip

    # no token sits on the threshold of a truncated loss, where finite differences would see a jump
    # (the interpreter is slow: random directions there instead of every entry)
    assert torch.autograd.gradcheck(f, leaves(batch), fast_mode=impl == "triton")


@pytest.mark.parametrize("name", LOSSES)
def test_stated_derivative_is_that_of_the_value(name: str) -> None:
    loss = LOSSES[name]
    nll = torch.tensor([1e-12, 1e-7, 1e-3, 0.02, 0.3, 1.0, 4.0, 30.0], dtype=torch.float64, requires_grad=True)
    (wanted,) = torch.autograd.grad(loss.value(nll).sum(), nll)
    torch.testing.assert_close(losses.derivative_of(loss, nll), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.25, 1.0, 2.0])
def test_focal_is_finite_where_p_is_one(gamma: float) -> None:
    nll = torch.tensor([-1e-9, 0.0, 1e-45, 1e-38, 1e-10], requires_grad=True)
    loss = losses.focal(gamma)
    value = loss.value(nll)
    value.sum().backward()
    assert value.isfinite().all() and nll.grad.isfinite().all()
    slope = losses.derivative_of(loss, nll)
    assert slope.isfinite().all()
    assert slope[1] == (1.0 if gamma == 0 else 0.0)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_against_the_textbook(impl: str, gamma: float) -> None:
    batch = make()
    h, w, b = leaves(batch)
    keep = batch.targets != -100
    p = F.softmax(F.linear(h[keep], w, b), 1).gather(1, batch.targets[keep, None])
    ((1 - p) ** gamma * -p.log()).mean().backward()
    _, _, grads = run(batch, loss=losses.focal(gamma), impl=impl, chunk_rows=5)
    for grad, leaf in zip(grads, (h, w, b), strict=True):
        torch.testing.assert_close(grad, leaf.grad, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------- cross entropy, TCE


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(1, 8, 257), (23, 8, 13), (33, 16, 257)])
def test_cross_entropy_is_torchs(impl: str, shape: tuple[int, int, int]) -> None:
    batch = make(*shape, dtype=torch.float32)
    h, w, b = leaves(batch)
    wanted = F.cross_entropy(F.linear(h, w, b), batch.targets)
    wanted.backward()
    loss, _, grads = run(batch, impl=impl, chunk_rows=32)
    torch.testing.assert_close(loss, wanted.detach(), rtol=1e-6, atol=1e-6)
    for grad, leaf in zip(grads, (h, w, b), strict=True):
        torch.testing.assert_close(grad, leaf.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_gamma_one_is_cross_entropy_to_the_bit(impl: str) -> None:
    batch = make(64, 8, 13, dtype=torch.float32)
    batch.hidden[:8] = 200 * batch.weight[batch.targets[:8].clamp_min(0)]  # p rounds to 1, nll to 0
    ce, tce = (run(batch, loss=loss, impl=impl) for loss in (losses.cross_entropy(), losses.truncated(1.0)))
    assert torch.equal(ce[0], tce[0]) and tce[1].live_fraction == 1
    assert all(torch.equal(x, y) for x, y in zip(ce[2], tce[2], strict=True))
    edge = torch.tensor([0.0, -0.0, -1e-7, 1e-45])
    assert torch.equal(losses.truncated(1.0).value(edge), edge)
    assert losses.derivative_of(losses.truncated(1.0), edge).eq(1).all()
    logits = F.linear(batch.hidden, batch.weight)
    kept = cross_entropy(logits, batch.targets, loss=losses.truncated(1.0), reduction="none").loss
    assert torch.equal(kept, F.cross_entropy(logits, batch.targets, reduction="none"))


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_truncated_masks_what_is_above_gamma_and_still_counts_it(impl: str) -> None:
    batch = make(200, dtype=torch.float32)
    gamma = GAMMA_THAT_MASKS_HALF
    keep = batch.targets != -100
    nll = F.cross_entropy(F.linear(batch.hidden, batch.weight, batch.bias).double(), batch.targets, reduction="none")
    live = keep & (nll.neg().exp() <= gamma)
    assert 0.2 < live.sum() / keep.sum() < 0.8
    loss, statistics, (d_hidden, _, _) = run(batch, loss=losses.truncated(gamma), impl=impl, chunk_rows=32)
    torch.testing.assert_close(loss.double(), nll[live].sum() / keep.sum(), rtol=1e-5, atol=1e-6)
    assert torch.equal(d_hidden.abs().sum(1) > 0, live)
    torch.testing.assert_close(statistics.live_fraction, live.sum() / keep.sum())
    assert statistics.tokens == keep.sum()
    torch.testing.assert_close(statistics.mean_confidence.double(), nll[keep].neg().exp().mean())
    right = F.linear(batch.hidden, batch.weight, batch.bias).argmax(1) == batch.targets
    torch.testing.assert_close(statistics.token_accuracy, right.sum() / keep.sum())

    over_live, _, _ = run(batch, loss=losses.truncated(gamma, denominator="live"), impl=impl)
    torch.testing.assert_close(over_live.double(), nll[live].mean(), rtol=1e-5, atol=1e-6)


def test_gamma_next_to_one_is_told_apart_in_log_space() -> None:
    loss = losses.truncated(0.99)
    nll = torch.tensor([-math.log(0.9899), -math.log(0.9901)])
    assert loss.value(nll).ne(0).tolist() == [True, False]


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_nan_is_never_masked_away(impl: str) -> None:
    batch = make(dtype=torch.float32)
    batch.hidden[1] = math.nan
    loss, _, (d_hidden, _, _) = run(batch, loss=losses.truncated(0.5), impl=impl)
    assert loss.isnan() and d_hidden[1].isnan().any()


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.01, math.nan])
def test_truncated_refuses_gamma(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma"):
        losses.truncated(gamma)


@pytest.mark.parametrize("gamma", [-1.0, math.inf, math.nan])
def test_focal_refuses_gamma(gamma: float) -> None:
    with pytest.raises(ValueError, match="gamma"):
        losses.focal(gamma)


# --------------------------------------------------------------------------------------- fused = reference


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
# 1: one row a chunk; 18: the 18 rows that are not ignored exactly; 17: a last chunk of one row; None: one chunk
@pytest.mark.parametrize("chunk_rows", [1, 17, 18, None])
def test_fused_is_the_reference_for_any_chunk(impl: str, name: str, reduction: str, chunk_rows: int | None) -> None:
    batch = make(22)
    assert int((batch.targets != -100).sum()) == 18
    options: dict[str, Any] = {
        "loss": LOSSES[name],
        "reduction": reduction,
        "softcap": 5.0,
        "token_weights": torch.rand(22, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
        "upstream": torch.linspace(-1, 2, 22, dtype=torch.float64) if reduction == "none" else None,
    }
    loss, statistics, grads = run(batch, impl=impl, chunk_rows=chunk_rows, **options)
    wanted_loss, wanted_statistics, wanted_grads = run(batch, impl="torch", **options)
    torch.testing.assert_close(loss, wanted_loss)
    torch.testing.assert_close(tuple(statistics), tuple(wanted_statistics))
    torch.testing.assert_close(grads, wanted_grads)


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("name", LOSSES)
def test_upstream_gradient_with_a_zero_first_row(impl: str, name: str) -> None:
    # gradients summed over rows in the forward pass cannot be put right afterwards: fused losses fail here silently
    batch = make()
    upstream = torch.ones(23, dtype=torch.float64)
    upstream[0] = 0
    options: dict[str, Any] = {"loss": LOSSES[name], "reduction": "none", "upstream": upstream}
    _, _, grads = run(batch, impl=impl, chunk_rows=4, **options)
    _, _, wanted = run(batch, impl="torch", **options)
    torch.testing.assert_close(grads, wanted)
    assert grads[0][0].eq(0).all()
    ignoring = make()
    ignoring.targets[0] = -100
    _, _, without = run(ignoring, impl=impl, loss=LOSSES[name], reduction="sum")
    torch.testing.assert_close(grads[1], without[1])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_ignored_rows_change_nothing(impl: str) -> None:
    batch = make(dtype=torch.float32)
    padded = Batch(
        torch.cat([batch.hidden, torch.full((9, 8), math.inf, device=DEVICE)]),
        batch.weight,
        batch.bias,
        torch.cat([batch.targets, torch.full((9,), -100, device=DEVICE)]),
    )
    loss, statistics, grads = run(batch, loss=LOSSES["tce"], impl=impl)
    padded_loss, padded_statistics, padded_grads = run(padded, loss=LOSSES["tce"], impl=impl)
    # a sum over more rows, zeros though they be, may round in its last bit
    torch.testing.assert_close(padded_loss, loss, rtol=2e-7, atol=0)
    torch.testing.assert_close(padded_statistics[:3], statistics[:3], rtol=2e-7, atol=0)
    assert torch.equal(padded_grads[0][:23], grads[0]) and padded_grads[0][23:].eq(0).all()
    assert torch.equal(padded_grads[1], grads[1])


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("why", ["ignored", "masked", "empty"])
def test_nothing_to_learn_is_a_connected_zero(impl: str, reduction: str, why: str) -> None:
    batch = make(0 if why == "empty" else 23)
    loss = losses.truncated(1e-9 if why == "masked" else 0.9, denominator="live")
    if why == "ignored":
        batch.targets[:] = -100
    value, statistics, grads = run(
        batch, loss=loss, impl=impl, reduction=reduction, upstream=None if reduction != "none" else torch.ones(
            len(batch.targets), dtype=torch.float64
        ),
    )  # fmt: skip
    assert value.eq(0).all() and statistics.live_fraction == 0
    assert all(grad.eq(0).all() for grad in grads)


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["ce", "tce", "focal"])
def test_short_floats_err_no_more_than_the_reference(impl: str, dtype: torch.dtype, name: str) -> None:
    batch = make(160, 32, 257, dtype=torch.float32)
    short = Batch(batch.hidden.to(dtype), batch.weight.to(dtype), batch.bias.to(dtype), batch.targets.clone())
    exact = Batch(short.hidden.float(), short.weight.float(), short.bias.float(), short.targets)
    if name == "tce":
        # Band around gamma: logits of the short type are off by up to half a unit in their last place (of values
        # below 64), so nll by twice that. Tokens that near to the threshold may fall on either side: left out.
        nll = F.cross_entropy(F.linear(exact.hidden, exact.weight, exact.bias), exact.targets, reduction="none")
        band = 64 * torch.finfo(dtype).eps
        near = (nll + math.log(0.9)).abs() < band
        assert near.float().mean() < 0.9
        short.targets[near] = exact.targets[near] = -100
    truth = run(exact, loss=LOSSES[name], impl="torch")
    reference = run(short, loss=LOSSES[name], impl="torch")
    ours = run(short, loss=LOSSES[name], impl=impl, chunk_rows=64)
    assert ours[0].dtype == torch.float32 and all(g.dtype == dtype for g in ours[2])
    assert (ours[0] - truth[0]).abs() <= (reference[0] - truth[0]).abs() + 1e-4
    for mine, theirs, exactly in zip(ours[2], reference[2], truth[2], strict=True):
        error, allowed = ((g.float() - exactly).norm() for g in (mine, theirs))
        assert error <= allowed * 1.05 + 1e-6


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("chunks", [1, 2, 8, 20])
@pytest.mark.parametrize("upstream", [1.0, 1 / 3])
@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0], ids=["very hesitant", "hesitant", "confident"])
def test_weight_gradient_in_bfloat16_errs_no_more_than_a_dense_heads(
    chunks: int, upstream: float, spread: float, autocast: bool
) -> None:
    """A vocabulary that is large against a chunk, frequent and rare tokens, targets that the model itself expects."""
    hidden, weight, targets = zipf_head(1024, 64, 4096, spread)
    found = {}
    for name, impl, dtype in (
        ("exact", "torch", torch.float64),
        ("dense", "torch", torch.bfloat16),
        ("ours", "chunked", torch.bfloat16),
    ):
        kept = torch.float32 if autocast and dtype == torch.bfloat16 else dtype
        leaf = weight.to(kept, copy=True).requires_grad_()
        rows = -(-len(targets) // chunks) if impl == "chunked" else None
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=autocast and dtype == torch.bfloat16):
            output = linear_cross_entropy(hidden.to(kept), leaf, targets, impl=impl, chunk_rows=rows)
        (output.loss * upstream).backward()
        assert leaf.grad.dtype == kept
        found[name] = leaf.grad.double()
    error, allowed = ((found[name] - found["exact"]).norm() for name in ("ours", "dense"))
    assert 0 < error <= 1.02 * allowed


def test_weight_gradient_in_bfloat16_where_the_first_rows_are_of_another_kind() -> None:
    hidden, weight, targets = zipf_head(1024, 64, 4096, 0.3, others=128)
    found = {}
    for impl, dtype in (("torch", torch.float64), ("torch", torch.bfloat16), ("chunked", torch.bfloat16)):
        leaf = weight.to(dtype, copy=True).requires_grad_()
        rows = 128 if impl == "chunked" else None
        linear_cross_entropy(hidden.to(dtype), leaf, targets, impl=impl, chunk_rows=rows).loss.backward()
        found[impl, dtype] = leaf.grad.double()
    exact, dense, ours = found.values()
    assert 0 < (ours - exact).norm() <= 1.05 * (dense - exact).norm()


def zipf_head(
    n: int, width: int, vocabulary: int, spread: float, others: int = 0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden (n, width) and weight (vocabulary, width) in bfloat16, and targets (n,) drawn from their softmax.

    Hidden states share a component, along which the weight says how frequent a token is; the first `others` share
    another, along which other tokens are frequent.
    """
    g, mean = torch.Generator().manual_seed(0), 5.0
    common = torch.linalg.qr(torch.randn(width, 2, generator=g)).Q.T
    weight = torch.randn(vocabulary, width, generator=g) * width**-0.5
    hidden = torch.randn(n, width, generator=g) * spread
    kind = (torch.arange(n) < others).long()
    for number, along in enumerate(common):
        ranks = torch.randperm(vocabulary, generator=g)
        frequency = -torch.log(ranks + 3.0)
        weight += torch.outer((frequency - frequency.mean()) / mean - weight @ along, along)
        hidden += torch.outer(torch.where(kind == number, mean, 0.0) - hidden @ along, along)
    weight, hidden = weight.to(DEVICE, torch.bfloat16), hidden.to(DEVICE, torch.bfloat16)
    p = (hidden.float() @ weight.float().T).softmax(1).cpu()
    return hidden, weight, torch.multinomial(p, 1, generator=g).squeeze(1).to(DEVICE)


def test_autocast_computes_in_its_type_and_returns_gradients_in_theirs() -> None:
    batch = make(64, 32, 257, dtype=torch.float32)
    results = {}
    for impl in IMPLEMENTATIONS:
        h, w, b = leaves(batch)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            loss = linear_cross_entropy(h, w, batch.targets, bias=b, impl=impl).loss
        loss.backward()
        assert loss.dtype == torch.float32 and w.grad.dtype == torch.float32
        results[impl] = loss.detach(), w.grad
    exact = run(batch, impl="torch")
    allowed = (results["torch"][1] - exact[2][1]).norm()
    for impl in FUSED:
        assert 0 < (results[impl][0] - exact[0]).abs() < 0.02
        assert (results[impl][1] - exact[2][1]).norm() <= allowed * 1.05


# ------------------------------------------------------------------------------------------ the contract


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_inputs_are_never_written_to_and_results_repeat(impl: str) -> None:
    batch = make(50, dtype=torch.float32)
    before = [t.clone() for t in (batch.hidden, batch.weight, batch.bias, batch.targets)]
    runs = []
    for reduction in ("mean", "none"):
        for _ in range(2):
            upstream = torch.ones(50) if reduction == "none" else None
            options = {"loss": LOSSES["tce"], "softcap": 9.0, "reduction": reduction, "upstream": upstream}
            runs.append(run(batch, impl=impl, chunk_rows=12, **options))
        h = batch.hidden.requires_grad_()
        output = linear_cross_entropy(
            h, batch.weight, batch.targets, loss=LOSSES["focal"], reduction=reduction, impl=impl
        )
        output.loss.sum().backward()
        assert all(torch.equal(x, y) for x, y in zip(runs[-1][2], runs[-2][2], strict=True))
    after = (batch.hidden.detach(), batch.weight, batch.bias, batch.targets)
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_leading_shape_denominator_and_int32_targets() -> None:
    batch = make(24, dtype=torch.float32)
    flat = linear_cross_entropy(batch.hidden, batch.weight, batch.targets, reduction="sum").loss
    folded = (batch.hidden.view(2, 3, 4, 8), batch.weight, batch.targets.view(2, 3, 4).int())
    rows = linear_cross_entropy(*folded, reduction="none").loss
    assert rows.shape == (2, 3, 4)
    torch.testing.assert_close(rows.sum(), flat)
    for number in (7, 7.0, torch.tensor(7, device=DEVICE), torch.tensor([7.0], device=DEVICE)):
        torch.testing.assert_close(linear_cross_entropy(*folded, denominator=number).loss, flat / 7)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_tied_weight_gets_both_gradients(impl: str) -> None:
    table = make(dtype=torch.float64).weight.requires_grad_()
    tokens = torch.arange(12, device=DEVICE)

    def f(w: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(w[tokens].tanh(), w, tokens + 1, loss=LOSSES["focal"], impl=impl).loss

    assert torch.autograd.gradcheck(f, [table], fast_mode=impl == "triton")


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_argument_costs_nothing_and_alters_nothing(impl: str, frozen: int) -> None:
    batch = make()
    _, _, wanted = run(batch, impl="torch")
    args = leaves(batch)
    args[frozen].requires_grad_(False)
    linear_cross_entropy(args[0], args[1], batch.targets, bias=args[2], impl=impl).loss.backward()
    assert args[frozen].grad is None
    torch.testing.assert_close(args[1 - frozen].grad, wanted[1 - frozen])
    with torch.no_grad():
        assert not linear_cross_entropy(args[0], args[1], batch.targets, impl=impl).loss.requires_grad


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_second_backward_and_second_derivative_are_refused(impl: str, reduction: str) -> None:
    batch = make()
    h, w, _ = leaves(batch)
    loss = linear_cross_entropy(h, w, batch.targets, impl=impl, reduction=reduction).loss.sum()
    with pytest.raises(RuntimeError, match=r"second derivative.*impl = 'torch'"):
        torch.autograd.grad(loss, h, create_graph=True)
    # as often as the graph is kept, also when what was handed out is written to, as optimizers and clipping do
    first = torch.autograd.grad(loss, (h, w), retain_graph=True)
    wanted = [g.clone() for g in first]
    for g in first:
        g.zero_()
    loss.backward(retain_graph=True)
    torch.testing.assert_close([h.grad, w.grad], wanted)
    h.grad.zero_(), w.grad.zero_()
    again = torch.autograd.grad(3 * loss, (h, w))
    torch.testing.assert_close(list(again), [3 * g for g in wanted])
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_logits_never_exceed_a_chunk() -> None:
    # the largest tensor that any operation makes, seen from below
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                # bytes: triton's interpreter looks at the same memory in that way
                if isinstance(tensor, torch.Tensor) and tensor.dtype != torch.uint8:
                    self.numel = max(self.numel, tensor.numel())
            return out

    batch = make(100, 4, 100, dtype=torch.float32)
    assert (batch.targets != -100).sum() == 80
    sizes = {}
    for impl in IMPLEMENTATIONS:
        with Largest() as largest:
            run(batch, impl=impl, chunk_rows=20, loss=LOSSES["tce"])
        sizes[impl] = largest.numel
    assert sizes["torch"] >= 80 * 100
    # rows of logits begin at multiples of 16 bytes: 100 logits do
    assert all(sizes[impl] <= 20 * 100 for impl in FUSED)


@pytest.mark.parametrize("impl", FUSED)
def test_backward_gemms_see_live_rows_only(impl: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    def product(_: Any, a: Any, b: Any, **__: Any) -> int:
        return 2 * a[0] * a[1] * b[1]

    def into(a: Any, b: Any, **__: Any) -> int:
        return product(None, a, b)

    # not counted by default
    in_place = {torch.ops.aten.addmm_: product, torch.ops.aten.mm.out: into}

    batch = make(150, 8, 100, dtype=torch.float32)
    flops = {}
    for gamma in (1.0, GAMMA_THAT_MASKS_HALF):
        with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
            _, statistics, _ = run(batch, loss=losses.truncated(gamma), impl=impl, chunk_rows=64)
        flops[gamma] = counter.get_total_flops()
    f = float(statistics.live_fraction)
    assert 0.05 < f < 0.9
    # one GEMM forward and two backward, the latter over the live share
    assert flops[GAMMA_THAT_MASKS_HALF] / flops[1.0] == pytest.approx((1 + 2 * f) / 3, rel=1e-6)


@pytest.mark.parametrize("impl", FUSED)
def test_a_loss_is_any_object_with_the_three_attributes(impl: str) -> None:
    batch = make()
    duck = SimpleNamespace(value=lambda nll: nll**2, derivative=lambda nll: 2 * nll, denominator="all")
    torch.testing.assert_close(
        run(batch, loss=duck, impl=impl)[2], run(batch, loss=losses.custom(lambda nll: nll**2), impl="torch")[2]
    )
    constant = losses.custom(lambda nll: torch.full_like(nll, 3.0))
    value, statistics, grads = run(batch, loss=constant, impl=impl)
    assert value == 3 and statistics.live_fraction == 0 and grads[1].eq(0).all()


BAD: list[tuple[str, dict[str, Any], type[Exception]]] = [
    ("hidden", {"hidden": torch.zeros(4, 9)}, ValueError),
    ("hidden", {"hidden": torch.zeros(4, 8, dtype=torch.int64)}, TypeError),
    ("weight", {"weight": torch.zeros(13)}, ValueError),
    ("weight", {"weight": torch.zeros(13, 8, dtype=torch.float64)}, TypeError),
    ("weight", {"weight": torch.zeros(13, 8, device="meta")}, ValueError),
    ("bias", {"bias": torch.zeros(12)}, ValueError),
    ("targets", {"targets": torch.zeros(5, dtype=torch.int64)}, ValueError),
    ("targets", {"targets": torch.zeros(4)}, TypeError),
    ("targets: 13", {"targets": torch.tensor([0, 1, 13, 2])}, ValueError),
    ("targets: -1", {"targets": torch.tensor([0, -1, 3, 2])}, ValueError),
    ("token_weights", {"token_weights": torch.ones(3)}, ValueError),
    ("token_weights", {"token_weights": torch.ones(4, requires_grad=True)}, ValueError),
    ("softcap", {"softcap": 0.0}, ValueError),
    ("logit_scale", {"logit_scale": math.inf}, ValueError),
    ("chunk_rows", {"chunk_rows": 0}, ValueError),
    ("reduction", {"reduction": "average"}, ValueError),
    ("denominator", {"denominator": 0}, ValueError),
    ("denominator", {"denominator": torch.ones(2)}, ValueError),
    ("denominator", {"denominator": 3, "reduction": "sum"}, ValueError),
    ("loss", {"loss": object()}, TypeError),
    ("loss.denominator", {"loss": SimpleNamespace(value=abs, derivative=None, denominator="some")}, ValueError),
    ("loss.value", {"loss": losses.custom(lambda nll: nll.mean())}, ValueError),
    ("impl = 'cuda' is unknown here; available: auto, torch, chunked, triton", {"impl": "cuda"}, ValueError),
]


@pytest.mark.parametrize(("message", "change", "error"), BAD)
def test_bad_arguments_are_named(message: str, change: dict[str, Any], error: type[Exception]) -> None:
    arguments: dict[str, Any] = {
        "hidden": torch.ones(4, 8),
        "weight": torch.ones(13, 8),
        "targets": torch.arange(4),
        **change,
    }
    with pytest.raises(error, match=f"^{message}"):
        linear_cross_entropy(**arguments)


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, kernels; assert 'torch' not in sys.modules; assert not hasattr(kernels, '__version__');"
        "import kernels.dispatch; from kernels import linear_cross_entropy, cross_entropy, install_loss_head;"
        "assert callable(linear_cross_entropy) and callable(cross_entropy); assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
