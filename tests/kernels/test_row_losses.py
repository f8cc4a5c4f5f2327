"""The losses that ask for more than nll: each against its formula written out on all logits, on every implementation.

Also what goes with them: nll and entropy for each token, and sequences that are left out. The Triton kernels run as in
test_kernels.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from kernels import cross_entropy, linear_cross_entropy, losses

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = [pytest.mark.cuda] if DEVICE == "cuda" else []

FUSED = ["chunked", "triton"]
IMPLEMENTATIONS = ["torch", *FUSED]
Formula = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def nll_of(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(z, t, reduction="none")


def entropy_of(z: torch.Tensor) -> torch.Tensor:
    p = z.detach().softmax(1)
    return -(p * p.log()).sum(1)


def untempered_weight(z: torch.Tensor, t: torch.Tensor, temperature: float) -> torch.Tensor:
    """How much likelier a target is at temperature 1 than at the given one."""
    z = z.detach()
    return (z.softmax(1) / (z / temperature).softmax(1)).gather(1, t[:, None]).squeeze(1)


# Those whose weight is a constant for the gradient: the loss is weight * nll.
WEIGHTED: dict[str, tuple[losses.TokenLoss, Formula]] = {
    "dft": (losses.dft(), lambda z, t: nll_of(z.detach(), t).neg().exp()),
    "eaft": (losses.eaft(), lambda z, t: (entropy_of(z) / math.log(20)).clamp(max=1)),
    "eaft-2": (losses.eaft(2.0), lambda z, t: (entropy_of(z) / math.log(20)).clamp(max=1) ** 2),
    "cool": (losses.undo_temperature(0.7), lambda z, t: untempered_weight(z, t, 0.7)),
    "hot": (losses.undo_temperature(1.5, ceiling=1.2), lambda z, t: untempered_weight(z, t, 1.5).clamp(max=1.2)),
}
# Those whose weight is 0 or 1: of a masked row nothing is computed.
MASKED: dict[str, tuple[losses.TokenLoss, Formula]] = {
    "typical": (losses.truncated_by_entropy(), lambda z, t: (nll_of(z.detach(), t) >= entropy_of(z)).double()),
    "typical-half": (
        losses.truncated_by_entropy(0.5),
        lambda z, t: (nll_of(z.detach(), t) >= 0.5 * entropy_of(z)).double(),
    ),
}
# Those of which all takes part in the gradient.
CARRIED: dict[str, tuple[losses.TokenLoss, Formula]] = {
    "smoothing": (
        losses.label_smoothing(0.2),
        lambda z, t: F.cross_entropy(z, t, reduction="none", label_smoothing=0.2),
    ),
    "z": (losses.z_loss(0.05), lambda z, t: nll_of(z, t) + 0.05 * z.logsumexp(1) ** 2),
    "z-focal": (
        losses.z_loss(0.05, losses.focal(2.0)),
        lambda z, t: (1 - nll_of(z, t).neg().exp()) ** 2 * nll_of(z, t) + 0.05 * z.logsumexp(1) ** 2,
    ),
    "custom-lse": (
        losses.custom(lambda nll, lse: nll * torch.sigmoid(lse)),
        lambda z, t: nll_of(z, t) * z.logsumexp(1).sigmoid(),
    ),
    "custom-smooth": (
        losses.custom(lambda nll, smooth: nll * smooth),
        lambda z, t: nll_of(z, t) * -z.log_softmax(1).mean(1),
    ),
}
# A user's own: the entropy is a constant, the factor nll is not.
MIXED: dict[str, tuple[losses.TokenLoss, Formula]] = {
    "custom-entropy": (
        losses.custom(lambda nll, entropy: (1 + entropy) * nll**2),
        lambda z, t: (1 + entropy_of(z)) * nll_of(z, t) ** 2,
    ),
}


def weighted(name: str) -> tuple[losses.TokenLoss, Formula]:
    loss, weight = {**WEIGHTED, **MASKED}[name]
    return loss, lambda z, t: weight(z, t) * nll_of(z, t)


ALL = {**{name: weighted(name) for name in (*WEIGHTED, *MASKED)}, **CARRIED, **MIXED}


@dataclass
class Batch:
    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    targets: torch.Tensor

    def leaves(self) -> list[torch.Tensor]:
        return [t.detach().clone().requires_grad_() for t in (self.hidden, self.weight, self.bias)]


def make(rows: int = 23, width: int = 8, vocabulary: int = 13, *, dtype: torch.dtype = torch.float64) -> Batch:
    """Target probabilities over (0, 1), entropies over (0, log vocabulary), every fifth row ignored."""
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, width, generator=g, dtype=torch.float64)
    targets = torch.randint(vocabulary, (rows,), generator=g)
    pull = 3 * torch.rand(rows, 1, generator=g, dtype=torch.float64)
    hidden = (torch.randn(rows, width, generator=g, dtype=torch.float64) + pull * weight[targets]) / width**0.5
    bias = torch.randn(vocabulary, generator=g, dtype=torch.float64) / 4
    targets[4::5] = -100
    return Batch(hidden.to(DEVICE, dtype), weight.to(DEVICE, dtype), bias.to(DEVICE, dtype), targets.to(DEVICE))


def by_formula(
    batch: Batch, formula: Formula, *, reduction: str, softcap: float | None, scale: float, weights: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    h, w, b = batch.leaves()
    keep = batch.targets != -100
    z = F.linear(h[keep], w, b) * scale
    z = z if softcap is None else softcap * torch.tanh(z / softcap)
    rows = h.new_zeros(len(h)).index_put((keep,), formula(z, batch.targets[keep]) * weights[keep])
    loss = rows if reduction == "none" else rows.sum() / (keep.sum() if reduction == "mean" else 1)
    loss.backward(upstream_of(loss))
    return loss.detach(), [leaf.grad for leaf in (h, w, b) if leaf.grad is not None]


def upstream_of(loss: torch.Tensor) -> torch.Tensor | None:
    return torch.linspace(-1, 2, loss.numel(), dtype=loss.dtype, device=DEVICE) if loss.ndim else None


# ------------------------------------------------------------------------------------------ worked by hand


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_two_tokens_worked_by_hand(impl: str) -> None:
    # logits 0 and log 3: p = 1/4 and 3/4, Z = 4
    hidden = torch.tensor([[0.0, math.log(3)]] * 2, dtype=torch.float64, device=DEVICE)
    identity, targets = torch.eye(2, dtype=torch.float64, device=DEVICE), torch.tensor([0, 1], device=DEVICE)
    rare, common = math.log(4), math.log(4 / 3)
    entropy = rare / 4 + 3 * common / 4
    gate = entropy / math.log(20)
    expected = {
        losses.label_smoothing(0.2): [0.8 * rare + 0.1 * (rare + common), 0.8 * common + 0.1 * (rare + common)],
        losses.z_loss(0.5): [rare + 0.5 * rare**2, common + 0.5 * rare**2],
        # p = 1/4 <= 0.5 stays, 3/4 is masked; the added term is not
        losses.z_loss(0.5, losses.truncated(0.5)): [rare + 0.5 * rare**2, 0.5 * rare**2],
        losses.dft(): [rare / 4, 3 * common / 4],
        # log 4/3 < entropy = 0.56 < log 4 < 3 * 0.56
        losses.truncated_by_entropy(): [rare, 0.0],
        losses.truncated_by_entropy(3.0): [0.0, 0.0],
        losses.truncated_by_entropy(0.0): [rare, common],
        losses.eaft(): [gate * rare, gate * common],
        losses.eaft(2.0): [gate**2 * rare, gate**2 * common],
        # at T = 1/2: p^2 = 1/16 and 9/16, so q = 1/10 and 9/10
        losses.undo_temperature(0.5): [2.5 * rare, 0.75 / 0.9 * common],
        losses.undo_temperature(0.5, ceiling=2.0): [2 * rare, 0.75 / 0.9 * common],
        losses.undo_temperature(1.0): [rare, common],
        losses.custom(lambda nll, entropy: nll + entropy): [rare + entropy, common + entropy],
    }
    for loss, rows in expected.items():
        output = linear_cross_entropy(hidden, identity, targets, loss=loss, reduction="none", impl=impl, entropy=True)
        wanted = torch.tensor(rows, dtype=torch.float64, device=DEVICE)
        torch.testing.assert_close(output.loss, wanted, msg=loss.name)
        torch.testing.assert_close(output.statistics.nll, wanted.new_tensor([rare, common]))
        torch.testing.assert_close(output.statistics.entropy, wanted.new_tensor([entropy, entropy]))


# ------------------------------------------------------------------------------------ against the formulas


# the interpreter is slow: there one loss of each kind, and one size of chunk
INTERPRETED = ["smoothing", "z-focal", "eaft", "typical", "cool"]
EACH = [(impl, name) for impl in IMPLEMENTATIONS for name in ALL if impl != "triton" or name in INTERPRETED]
each_loss = pytest.mark.parametrize(("impl", "name"), EACH)


# 1: one row a chunk; 18: the rows that are not ignored exactly; 17: a last chunk of one row
CHUNKS: list[tuple[int | None, float | None]] = [(17, 4.0), (1, None), (18, 4.0), (None, None)]
CHUNKED = [(impl, name, *chunk) for impl, name in EACH for chunk in (CHUNKS if impl == "chunked" else CHUNKS[:1])]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("impl", "name", "chunk_rows", "softcap"), CHUNKED)
def test_every_loss_is_its_formula(
    impl: str, name: str, reduction: str, chunk_rows: int | None, softcap: float | None
) -> None:
    batch, (loss, formula) = make(22), ALL[name]
    assert int((batch.targets != -100).sum()) == 18
    weights = torch.linspace(0.0, 2.0, 22, dtype=torch.float64, device=DEVICE)
    wanted, gradients = by_formula(batch, formula, reduction=reduction, softcap=softcap, scale=0.7, weights=weights)
    h, w, b = batch.leaves()
    output = linear_cross_entropy(
        h, w, batch.targets, bias=b, loss=loss, impl=impl, reduction=reduction, chunk_rows=chunk_rows,
        softcap=softcap, logit_scale=0.7, token_weights=weights,
    )  # fmt: skip
    output.loss.backward(upstream_of(output.loss))
    torch.testing.assert_close(output.loss.detach(), wanted)
    torch.testing.assert_close([h.grad, w.grad, b.grad], gradients)
    share = output.statistics.live_fraction
    assert 0 < share < 1 if name in MASKED else share == 1


@pytest.mark.parametrize(("impl", "name"), [(impl, name) for impl, name in EACH if impl != "chunked"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_every_loss_is_its_formula_on_logits(impl: Any, name: str, reduction: str) -> None:
    batch, (loss, formula) = make(), ALL[name]
    logits = F.linear(batch.hidden, batch.weight, batch.bias)
    flat = Batch(logits, torch.eye(13, dtype=torch.float64, device=DEVICE), batch.bias * 0, batch.targets)
    ones = torch.ones(23, dtype=torch.float64, device=DEVICE)
    wanted, gradients = by_formula(flat, formula, reduction=reduction, softcap=5.0, scale=1.0, weights=ones)
    leaf = logits.clone().requires_grad_()
    output = cross_entropy(leaf, batch.targets, loss=loss, impl=impl, reduction=reduction, softcap=5.0)
    output.loss.backward(upstream_of(output.loss))
    torch.testing.assert_close(output.loss.detach(), wanted)
    torch.testing.assert_close(leaf.grad, gradients[0])


@pytest.mark.parametrize(("impl", "name"), [(impl, name) for impl, name in EACH if name in CARRIED])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck_where_all_takes_part(impl: str, name: str, reduction: str) -> None:
    batch = make(7, 3, 5)

    def f(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(
            h,
            w,
            batch.targets,
            bias=b,
            loss=CARRIED[name][0],
            impl=impl,
            reduction=reduction,
            chunk_rows=3,
            softcap=4.0,
        ).loss

    assert torch.autograd.gradcheck(f, batch.leaves(), fast_mode=True)


@pytest.mark.parametrize(("impl", "name"), [(i, n) for i, n in EACH if n in WEIGHTED and (i, n) != ("triton", "cool")])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck_where_the_weight_is_a_constant(impl: str, name: str, reduction: str) -> None:
    """The gradient is that of weight * nll with the weight held where it is; and not that of the whole."""
    batch, (loss, weight) = make(7, 3, 5), WEIGHTED[name]
    options: dict[str, Any] = {"impl": impl, "reduction": reduction, "chunk_rows": 3}
    keep = batch.targets != -100
    held = torch.zeros(7, dtype=torch.float64, device=DEVICE)
    held[keep] = weight(F.linear(batch.hidden[keep], batch.weight, batch.bias), batch.targets[keep])

    def frozen(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(h, w, batch.targets, bias=b, token_weights=held, **options).loss

    def whole(h: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(h, w, batch.targets, bias=b, loss=loss, **options).loss

    assert torch.autograd.gradcheck(frozen, batch.leaves(), fast_mode=True)
    gradients = []
    for f in (frozen, whole):
        leaves = batch.leaves()
        f(*leaves).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(gradients[1], gradients[0])
    if impl == "triton":  # slow, and the gradients are the same
        return
    assert not torch.autograd.gradcheck(whole, batch.leaves(), fast_mode=True, raise_exception=False)


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize(("dtype", "softcap"), [(torch.bfloat16, None), (torch.bfloat16, 30.0), (torch.float16, 30.0)])
@pytest.mark.parametrize("name", ["smoothing", "z", "eaft", "cool"])
def test_short_floats_err_no_more_than_the_reference(
    impl: str, dtype: torch.dtype, name: str, softcap: float | None
) -> None:
    exact = make(80, 32, 257, dtype=torch.float32)
    short = Batch(exact.hidden.to(dtype), exact.weight.to(dtype), exact.bias.to(dtype), exact.targets)
    exact = Batch(short.hidden.float(), short.weight.float(), short.bias.float(), exact.targets)
    found = {}
    for which, batch, by in (("exact", exact, "torch"), ("reference", short, "torch"), ("ours", short, impl)):
        leaves = batch.leaves()
        output = linear_cross_entropy(
            leaves[0], leaves[1], batch.targets, bias=leaves[2], loss=ALL[name][0], impl=by, chunk_rows=40,
            softcap=softcap, entropy=True,
        )  # fmt: skip
        output.loss.backward()
        assert output.statistics.entropy is not None and output.statistics.entropy.dtype == torch.float32
        assert all(leaf.grad.dtype == batch.hidden.dtype for leaf in leaves)
        found[which] = [output.loss.detach(), output.statistics.entropy, *(leaf.grad.float() for leaf in leaves)]
    for truth, reference, ours in zip(found["exact"], found["reference"], found["ours"], strict=True):
        assert (ours - truth).norm() <= (reference - truth).norm() * 1.05 + 1e-4 * truth.norm()


@pytest.mark.parametrize("name", ["smoothing", "z", "eaft"])
def test_a_large_vocabulary_in_bfloat16_errs_no_more_than_a_dense_head(name: str) -> None:
    # rows are few against the vocabulary: the weight's gradient is summed in bfloat16
    g = torch.Generator().manual_seed(3)
    hidden, weight = torch.randn(256, 64, generator=g) * 2, torch.randn(4096, 64, generator=g) / 8
    targets = torch.multinomial((hidden @ weight.T).softmax(1), 1, generator=g).squeeze(1)
    found = {}
    for which, impl, dtype in (
        ("exact", "torch", torch.float64),
        ("dense", "torch", torch.bfloat16),
        ("ours", "chunked", torch.bfloat16),
    ):
        leaf = weight.to(torch.bfloat16).to(dtype).requires_grad_()
        given = hidden.to(torch.bfloat16).to(dtype)
        linear_cross_entropy(given, leaf, targets, loss=ALL[name][0], impl=impl, chunk_rows=64).loss.backward()
        found[which] = leaf.grad.double()
    error, allowed = ((found[which] - found["exact"]).norm() for which in ("ours", "dense"))
    assert 0 < error <= 1.05 * allowed


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("temperature", [0.6, 1.7])
def test_weighted_text_of_a_temperature_teaches_what_text_of_temperature_one_does(
    impl: str, temperature: float
) -> None:
    """Every token as often as it is drawn: at temperature 1 a model has nothing to learn from its own text."""
    g = torch.Generator().manual_seed(5)
    logits = torch.randn(1, 11, generator=g, dtype=torch.float64).to(DEVICE)
    drawn = (logits / temperature).softmax(1).squeeze(0)
    left = {}
    for name, loss in (("weighted", losses.undo_temperature(temperature)), ("as it is", losses.cross_entropy())):
        leaf = logits.clone().requires_grad_()
        identity, every = torch.eye(11, dtype=torch.float64, device=DEVICE), torch.arange(11, device=DEVICE)
        output = linear_cross_entropy(
            leaf.expand(11, 11), identity, every, loss=loss, token_weights=drawn, reduction="sum", impl=impl
        )
        output.loss.backward()
        left[name] = leaf.grad.abs().max()
    assert left["weighted"] < 1e-12 and left["as it is"] > 0.01


# ----------------------------------------------------------------------------------------- live and dead


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_what_a_gate_shuts_is_dead_and_what_z_loss_adds_keeps_every_token_alive(impl: str) -> None:
    hidden = torch.tensor([[2000.0, 0.0], [0.3, 0.0]], device=DEVICE, requires_grad=True)  # entropy 0, and some
    weight, targets = torch.eye(2, device=DEVICE), torch.tensor([1, 1], device=DEVICE)
    output = linear_cross_entropy(hidden, weight, targets, loss=losses.eaft(), impl=impl)
    output.loss.backward()
    assert output.statistics.live_fraction == 0.5 and output.loss > 0
    assert hidden.grad[0].eq(0).all() and hidden.grad[1].ne(0).all()
    for loss, live in ((losses.truncated(0.3), 0.5), (losses.z_loss(0.1, losses.truncated(0.3)), 1.0)):
        output = linear_cross_entropy(hidden.detach(), weight, targets, loss=loss, impl=impl)
        assert output.statistics.live_fraction == live


@each_loss
def test_nan_is_never_masked_away(impl: str, name: str) -> None:
    batch = make(dtype=torch.float32)
    batch.hidden[1] = math.nan
    h, w, b = batch.leaves()
    output = linear_cross_entropy(h, w, batch.targets, bias=b, loss=ALL[name][0], impl=impl, entropy=True)
    output.loss.backward()
    assert output.loss.isnan() and h.grad[1].isnan().any() and output.statistics.entropy[1].isnan()


# ------------------------------------------------------------------------------- nll and entropy of tokens


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nll_and_entropy_of_every_token(impl: str, reduction: str) -> None:
    batch = make(24)
    z = F.linear(batch.hidden, batch.weight, batch.bias)
    keep = batch.targets != -100
    shaped = (batch.hidden.view(2, 12, 8), batch.weight, batch.targets.view(2, 12))
    options: dict[str, Any] = {"bias": batch.bias, "impl": impl, "reduction": reduction, "chunk_rows": 5}
    statistics = linear_cross_entropy(*shaped, entropy=True, **options).statistics
    nll = F.cross_entropy(z, batch.targets, reduction="none")
    torch.testing.assert_close(statistics.nll, nll.view(2, 12))
    torch.testing.assert_close(statistics.entropy, entropy_of(z).masked_fill(~keep, 0).view(2, 12))
    assert not statistics.nll.requires_grad and not statistics.entropy.requires_grad
    plain = linear_cross_entropy(*shaped, **options)
    assert plain.statistics.entropy is None
    assert torch.equal(plain.statistics.nll, statistics.nll)  # the same to the bit, whatever is asked for beside it


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_entropy_where_tokens_are_shut_out(impl: str) -> None:
    # a logit of minus infinity: p = 0, which adds nothing to the entropy
    batch = make(9, dtype=torch.float32)
    batch.bias[3:] = -math.inf
    batch.targets.clamp_(max=2)
    output = linear_cross_entropy(
        batch.hidden, batch.weight, batch.targets, bias=batch.bias, entropy=True, impl=impl, ignore_index=-100
    )
    wanted = entropy_of(F.linear(batch.hidden, batch.weight, batch.bias)[:, :3])
    wanted = wanted.masked_fill(batch.targets == -100, 0)
    torch.testing.assert_close(output.statistics.entropy, wanted)


@pytest.mark.parametrize("impl", FUSED)
def test_no_more_logits_than_a_chunk_for_any_of_them(impl: str) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, torch.Tensor) and tensor.dtype != torch.uint8:
                    self.numel = max(self.numel, tensor.numel())
            return out

    batch = make(100, 4, 100, dtype=torch.float32)
    for loss in (losses.label_smoothing(), losses.z_loss(), losses.undo_temperature(0.5), losses.tail(0.5)):
        h, w, b = batch.leaves()
        with Largest() as largest:
            given = (h.view(4, 25, 4), w, batch.targets.view(4, 25))
            linear_cross_entropy(*given, bias=b, loss=loss, entropy=True, impl=impl, chunk_rows=20).loss.backward()
        assert largest.numel <= 20 * 100, loss.name


# -------------------------------------------------------------------------------------------- sequences


def sequences() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Four sequences of five tokens, of mean nll log 2, log 4, log 8 and log 16; the third has one token only."""
    p = torch.tensor([1 / 2, 1 / 4, 1 / 8, 1 / 16], dtype=torch.float64)
    hidden = torch.stack([p.log(), (1 - p).log()], 1)[:, None].expand(4, 5, 2).clone()
    targets = torch.zeros(4, 5, dtype=torch.int64)
    targets[2, 1:] = -100
    return hidden.to(DEVICE), torch.eye(2, dtype=torch.float64, device=DEVICE), targets.to(DEVICE)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_sequences_that_are_fit_drop_out(impl: str) -> None:
    hidden, weight, targets = sequences()
    bits = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64, device=DEVICE) * math.log(2)
    lengths = torch.tensor([5, 5, 1, 5], device=DEVICE)
    for drop, left in ((0.25, [1, 2, 3]), (0.5, [2, 3]), (0.6, [2, 3]), (0.62, [2, 3]), (0.63, [3]), (0.99, [3])):
        h = hidden.clone().requires_grad_()
        output = linear_cross_entropy(h, weight, targets, loss=losses.tail(drop), impl=impl, chunk_rows=3)
        output.loss.backward()
        torch.testing.assert_close(output.loss.detach(), (bits * lengths)[left].sum() / lengths[left].sum())
        assert sorted(h.grad.abs().sum((1, 2)).nonzero().squeeze(1).tolist()) == left
        assert output.statistics.live_fraction.item() == pytest.approx(lengths[left].sum().item() / 16)
        # the gradient is that of cross entropy over what is left
        only = hidden[left].clone().requires_grad_()
        linear_cross_entropy(only, weight, targets[left], impl="torch").loss.backward()
        torch.testing.assert_close(h.grad[left], only.grad)
    # how far each has risen: by -2.5, -2, 2 and 0 bits
    baseline = torch.tensor([3.5, 4, 1, 4], dtype=torch.float64, device=DEVICE) * math.log(2)
    options: dict[str, Any] = {"impl": impl, "sequence_baseline": baseline}
    kept = linear_cross_entropy(hidden, weight, targets, loss=losses.tail(0.5), **options).loss
    torch.testing.assert_close(kept, (bits[2] + 5 * bits[3]) / 6)
    rows = linear_cross_entropy(hidden, weight, targets, loss=losses.tail(0.25), reduction="none", **options).loss
    assert rows.abs().sum(1).ne(0).tolist() == [False, True, True, True]
    total = linear_cross_entropy(hidden, weight, targets, loss=losses.tail(0.25), denominator=50, impl=impl).loss
    torch.testing.assert_close(total, (5 * bits[1] + bits[2] + 5 * bits[3]) / 50)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def test_a_lone_sequence_stays_and_one_without_targets_is_none(impl: str) -> None:
    hidden, weight, targets = sequences()
    alone = linear_cross_entropy(hidden[:1], weight, targets[:1], loss=losses.tail(0.9), impl=impl).loss
    torch.testing.assert_close(alone, alone.new_tensor(math.log(2)))
    targets[0] = -100
    # half of three, rounded, is two; the first is no sequence
    left = linear_cross_entropy(hidden, weight, targets, loss=losses.tail(0.5), impl=impl).loss
    torch.testing.assert_close(left, alone.new_tensor(4 * math.log(2)))
    targets[:] = -100
    h = hidden.clone().requires_grad_()
    nothing = linear_cross_entropy(h, weight, targets, loss=losses.tail(0.5), impl=impl).loss
    nothing.backward()
    assert nothing == 0 and h.grad.eq(0).all()


def test_other_losses_over_the_sequences_that_are_left() -> None:
    hidden, weight, targets = sequences()
    loss = losses.tail(0.5, losses.dft())
    output = linear_cross_entropy(hidden, weight, targets, loss=loss)
    wanted = (3 * math.log(2) / 8 + 5 * 4 * math.log(2) / 16) / 6
    torch.testing.assert_close(output.loss, output.loss.new_tensor(wanted))
    assert loss.name == "dft-tail-0.5"
    # z-loss keeps dropping what it was given to add to
    added = losses.z_loss(0.5, losses.tail(0.5))
    assert linear_cross_entropy(hidden, weight, targets, loss=added).statistics.live_fraction == 6 / 16


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("make_loss", "message"),
    [
        (lambda: losses.label_smoothing(1.0), r"epsilon = 1.0: must lie in \[0, 1\)"),
        (lambda: losses.label_smoothing(-0.1), "epsilon"),
        (lambda: losses.z_loss(-1.0), "weight = -1.0"),
        (lambda: losses.z_loss(math.inf), "weight = inf"),
        (lambda: losses.truncated_by_entropy(-1.0), "factor = -1.0"),
        (lambda: losses.truncated_by_entropy(math.inf), "factor = inf"),
        (lambda: losses.eaft(-1.0), "alpha = -1.0"),
        (lambda: losses.eaft(math.nan), "alpha = nan"),
        (lambda: losses.undo_temperature(0.0), "temperature = 0.0: must be positive"),
        (lambda: losses.undo_temperature(1.0, ceiling=0.0), "ceiling = 0.0"),
        (lambda: losses.tail(1.0), "drop = 1.0"),
        (lambda: losses.tail(-0.1), "drop = -0.1"),
    ],
)
def test_a_loss_refuses_what_it_cannot_be(make_loss: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_loss()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": losses.tail(0.5)}, r"targets: a loss that drops sequences needs \(sequences, length\), got \(4,\)"),
        ({"sequence_baseline": torch.zeros(4)}, "sequence_baseline: has no meaning"),
        ({"loss": replace(losses.dft(), needs=("entropie",))}, "loss.needs: 'entropie' is unknown; there are entropy"),
        ({"loss": losses.custom(lambda nll, entropy: entropy.mean())}, "loss.value: expected shape"),
        ({"loss": losses.custom(lambda nll, lse: lse.mean())}, "loss.value: expected shape"),
    ],
)
def test_arguments_that_do_not_fit_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        linear_cross_entropy(torch.ones(4, 8), torch.ones(13, 8), torch.arange(4), **options)
    with pytest.raises(ValueError, match=f"^{message}"):
        cross_entropy(torch.ones(4, 13), torch.arange(4), **options)


def test_a_baseline_of_another_shape_is_named() -> None:
    hidden, weight, targets = sequences()
    with pytest.raises(ValueError, match=r"^sequence_baseline: expected shape \(4,\), got \(5,\)"):
        linear_cross_entropy(hidden, weight, targets, loss=losses.tail(0.5), sequence_baseline=torch.zeros(5))


def test_a_function_is_given_what_its_parameters_name() -> None:
    assert losses.custom(lambda nll: nll).needs == ()
    assert losses.custom(lambda nll, entropy: nll).needs == ("entropy",)
    assert losses.custom(lambda nll, lse, entropy, smooth: nll).needs == ("lse", "entropy", "smooth")
    assert losses.custom(lambda nll, entropy=0.5: nll).needs == ()  # a setting of its own
    assert losses.custom(torch.log1p).needs == ()
