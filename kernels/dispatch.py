"""The public functions: check the arguments, choose an implementation, reduce in one place.

from . import linear_cross_entropy, losses
output = linear_cross_entropy(hidden, model.lm_head.weight, targets, loss=losses.truncated(0.9))
output.loss.backward()
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from . import chunked, losses, plain
from .losses import LossFunctions
from .plain import Linear, Options, Rows, Terms

Reduction = Literal["mean", "sum", "none"]
Implementation = Literal["auto", "torch", "chunked", "triton"]
LogitsImplementation = Literal["auto", "torch", "triton"]

_IMPLEMENTATIONS = ("auto", "torch", "chunked", "triton")
_LOGITS_IMPLEMENTATIONS = ("auto", "torch", "triton")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class LossStatistics(NamedTuple):
    """Scalars on the device of the input, detached; reading one waits for the device, making them does not.

    live_fraction: share of target tokens with f' != 0. mean_confidence: mean probability of the target.
    token_accuracy: share of targets that no other token beats. tokens: target tokens, int64. All over the tokens
    that are not ignored, unweighted; 0 where there are none.

    And two of the targets' shape, 0 where ignored. nll: -log p of each target. entropy: of what is predicted for it,
    in nats; none unless it was asked for, or the loss needs it.
    """

    live_fraction: Tensor
    mean_confidence: Tensor
    token_accuracy: Tensor
    tokens: Tensor
    nll: Tensor
    entropy: Tensor | None


class LossOutput(NamedTuple):
    """loss: a scalar, or of the targets' shape for reduction = "none"; float32 (float64 for float64)."""

    loss: Tensor
    statistics: LossStatistics


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    loss: LossFunctions | None = None,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    token_weights: Tensor | None = None,
    reduction: Reduction = "mean",
    denominator: float | Tensor | None = None,
    impl: Implementation = "auto",
    chunk_rows: int | None = None,
    logit_scale: float = 1.0,
    entropy: bool = False,
    sequence_baseline: Tensor | None = None,
) -> LossOutput:
    """The loss of a language model's head, sum_i w_i f(-log softmax(z_i)[t_i]) / denominator, z = hidden weight^T.

    Args:
        hidden: (..., width), float16, bfloat16, float32 or float64. Never written to, like every argument.
        weight: (vocabulary, width), of the same type (any under autocast). May be tied to the embedding.
        targets: (...), int32 or int64: already shifted, so that hidden[i] predicts targets[i].
        loss: f and f', see `kernels.losses`; cross entropy by default.
        bias: (vocabulary,), or none.
        ignore_index: rows with this target count nowhere.
        softcap: z becomes softcap * tanh(z / softcap), as in Gemma 2; after the scale.
        token_weights: (...), constants w; they do not enter the denominator.
        reduction: "mean" divides by the denominator; "sum"; "none" keeps a loss for each token, 0 where ignored.
        denominator: for "mean". None: the number of tokens that are not ignored, or of live ones if the loss says
            so, and at least 1. Or a positive number or scalar tensor, such as Trainer's `num_items_in_batch`.
        impl: "torch" is plain autograd with all logits at once. "chunked" (plain torch) and "triton" (CUDA)
            never have more than a chunk of them and do gradients for live rows only, but have no second derivative.
            "auto": on CUDA "triton" where triton is installed, else "chunked".
        chunk_rows: the most rows in a chunk; None has the implementation choose by memory.
        logit_scale: z is multiplied by it.
        entropy: each token's entropy is wanted too, see `LossStatistics`.
        sequence_baseline: (...) without the last axis of targets: what each sequence's mean nll was before training,
            for a loss that drops sequences (`losses.tail`).

    A batch in which all is ignored or masked gives 0, with gradients of 0.

    Raises:
        ValueError, TypeError: an argument that does not fit, by name.
        RuntimeError: an implementation that is not available here.
    """
    loss = losses.cross_entropy() if loss is None else loss
    check_loss(loss)
    _check_options(softcap, logit_scale, chunk_rows, reduction, denominator)
    if weight.ndim != 2:
        raise ValueError(f"weight: expected (vocabulary, width), got shape {tuple(weight.shape)}")
    vocabulary, width = weight.shape
    if hidden.ndim < 1 or hidden.shape[-1] != width:
        raise ValueError(f"hidden: expected (..., {width}) as weight has it, got {tuple(hidden.shape)}")
    if bias is not None and bias.shape != (vocabulary,):
        raise ValueError(f"bias: expected ({vocabulary},) as weight has it, got {tuple(bias.shape)}")
    _check_float("hidden", hidden)
    mixed = torch.is_autocast_enabled(hidden.device.type)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None:
            _check_float(name, tensor)
            if tensor.dtype != hidden.dtype and not mixed:
                raise TypeError(f"{name}: {tensor.dtype}, but hidden is {hidden.dtype}")
    _check_targets(targets, hidden.shape[:-1], vocabulary, ignore_index)
    _check_token_weights(token_weights, targets)
    _check_sequences(loss, targets, sequence_baseline)
    of_tokens = (("targets", targets), ("token_weights", token_weights), ("sequence_baseline", sequence_baseline))
    for name, tensor in (("weight", weight), ("bias", bias), *of_tokens):
        _check_device(name, tensor, hidden, "hidden")
    linear = Linear(hidden.reshape(-1, width), weight, bias)
    options = Options(loss, ignore_index, softcap, float(logit_scale), chunk_rows, entropy=entropy)
    implementation = partial(linear_implementation(impl, hidden.device), linear)
    return _reduced(implementation, targets, token_weights, options, reduction, denominator, sequence_baseline)


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    *,
    loss: LossFunctions | None = None,
    ignore_index: int = -100,
    softcap: float | None = None,
    token_weights: Tensor | None = None,
    reduction: Reduction = "mean",
    denominator: float | Tensor | None = None,
    impl: LogitsImplementation = "auto",
    logit_scale: float = 1.0,
    entropy: bool = False,
    sequence_baseline: Tensor | None = None,
) -> LossOutput:
    """The same loss, from logits (..., vocabulary) that are there already. They are never written to.

    The arguments are those of `linear_cross_entropy`, which needs far less memory. impl: "torch" is plain autograd;
    "triton" (CUDA) reads the logits once, then in the backward pass those of live rows, and writes the gradient once.
    """
    loss = losses.cross_entropy() if loss is None else loss
    check_loss(loss)
    _check_options(softcap, logit_scale, None, reduction, denominator)
    if logits.ndim < 1:
        raise ValueError("logits: expected (..., vocabulary), got a scalar")
    _check_float("logits", logits)
    _check_targets(targets, logits.shape[:-1], logits.shape[-1], ignore_index)
    _check_token_weights(token_weights, targets)
    _check_sequences(loss, targets, sequence_baseline)
    of_tokens = (("targets", targets), ("token_weights", token_weights), ("sequence_baseline", sequence_baseline))
    for name, tensor in of_tokens:
        _check_device(name, tensor, logits, "logits")
    options = Options(loss, ignore_index, softcap, float(logit_scale), entropy=entropy)
    chosen = _chosen(impl, _LOGITS_IMPLEMENTATIONS, logits.device, otherwise="torch")
    terms = _fused(logits.device).logits_terms if chosen == "triton" else plain.logits_terms
    implementation = partial(terms, logits.reshape(-1, logits.shape[-1]))
    return _reduced(implementation, targets, token_weights, options, reduction, denominator, sequence_baseline)


def linear_implementation(impl: str, device: torch.device | None = None) -> Callable[..., Terms]:
    """The function behind `impl`; without a device, only whether there is such a one here is looked at.

    Raises:
        ValueError: no such name. RuntimeError: not available here.
    """
    impl = _chosen(impl, _IMPLEMENTATIONS, device, otherwise="chunked")
    if impl == "triton":
        return _fused(device).linear_terms
    return plain.linear_terms if impl == "torch" else chunked.linear_terms


def _chosen(impl: str, known: tuple[str, ...], device: torch.device | None, *, otherwise: str) -> str:
    if impl not in known:
        raise ValueError(f"impl = {impl!r} is unknown here; available: {', '.join(known)}")
    if impl != "auto":
        return impl
    return "triton" if device is not None and device.type == "cuda" and find_spec("triton") is not None else otherwise


def _fused(device: torch.device | None) -> Any:
    """The module of the Triton kernels, imported when it is first needed."""
    if find_spec("triton") is None:
        raise RuntimeError(
            "impl = 'triton' is not available here: triton is not installed (torch's builds for CUDA bring it along); "
            "use impl = 'chunked', or 'auto', which chooses by what is there"
        )
    from . import fused

    if device is not None:
        fused.check_device(device)
    return fused


def _denominator(
    targets: Tensor, options: Options, reduction: Reduction, denominator: float | Tensor | None
) -> Tensor | None:
    """What a mean divides by, a scalar on the device; None if that is nothing, or known only afterwards."""
    if reduction != "mean" or (denominator is None and options.loss.denominator == "live"):
        return None
    if denominator is None:
        return (targets != options.ignore_index).sum().clamp(min=1)
    return torch.as_tensor(denominator, device=targets.device).detach().reshape(())


def _reduced(
    implementation: Callable[[Rows, Options], Terms],
    targets: Tensor,
    token_weights: Tensor | None,
    options: Options,
    reduction: Reduction,
    denominator: float | Tensor | None,
    sequence_baseline: Tensor | None,
) -> LossOutput:
    """The loss by an implementation that has the head or the logits already, and what is told beside it."""
    drop: float = getattr(options.loss, "drop_sequences", 0.0)
    # Which sequences are left is known when all their rows are: so each row's loss is kept, and the backward pass
    # computes anew what is left.
    options = replace(options, reduce=reduction != "none" and not drop)
    shape, targets = targets.shape, targets.reshape(-1).long()
    by = _denominator(targets, options, reduction, denominator)
    live_mean = reduction == "mean" and by is None
    weights = None if token_weights is None else token_weights.reshape(-1)
    terms = implementation(Rows(targets, weights, None if drop else by), options)
    with torch.no_grad():
        valid = targets != options.ignore_index
        kept = _kept(terms.nll.view(shape), valid.view(shape), drop, sequence_baseline).reshape(-1) if drop else None
        tokens, live = valid.sum(), (terms.live if kept is None else terms.live & kept).sum()
        share = 1 / tokens.clamp(min=1).to(terms.nll.dtype)
        statistics = LossStatistics(
            live_fraction=live * share,
            mean_confidence=(-terms.nll).exp().masked_fill(~valid, 0).sum() * share,
            token_accuracy=terms.hits.sum() * share,
            tokens=tokens,
            nll=terms.nll.view(shape),
            entropy=None if terms.entropy is None else terms.entropy.view(shape),
        )
    loss = terms.loss if kept is None else terms.loss.masked_fill(~kept, 0)
    if reduction == "none":
        return LossOutput(loss.reshape(shape), statistics)
    if kept is not None:
        loss = loss.sum() if by is None else loss.sum() / by
    return LossOutput(loss / live.clamp(min=1) if live_mean else loss, statistics)


def _kept(nll: Tensor, valid: Tensor, drop: float, baseline: Tensor | None) -> Tensor:
    """Which tokens belong to sequences that are left: (..., length). nll, valid: (..., length); see `losses.tail`."""
    nll, flat = nll.reshape(-1, nll.shape[-1]), valid.reshape(-1, nll.shape[-1])
    tokens = flat.sum(1)
    margin = nll.masked_fill(~flat, 0).sum(1) / tokens.clamp(min=1)
    if baseline is not None:
        margin = margin - baseline.reshape(-1)
    margin = margin.masked_fill(tokens == 0, math.inf)  # no sequence, so none of those that are dropped
    sequences = int((tokens > 0).sum())
    dropped = max(0, min(math.floor(drop * sequences + 0.5), sequences - 1))
    left = torch.ones_like(tokens, dtype=torch.bool)
    left[margin.argsort(stable=True)[:dropped]] = False
    return left[:, None].expand(flat.shape).reshape(valid.shape)


def check_loss(loss: LossFunctions) -> None:
    """Raise TypeError or ValueError for what is no loss of a token."""
    for name in ("value", "derivative", "denominator"):
        if not hasattr(loss, name):
            raise TypeError(f"loss: {type(loss).__name__} has no attribute {name!r}; see kernels.losses.TokenLoss")
    if loss.denominator not in ("all", "live"):
        raise ValueError(f"loss.denominator = {loss.denominator!r}: must be 'all' or 'live'")
    known = losses.RowStatistics._fields[1:]
    for name in losses.needs_of(loss):
        if name not in known:
            raise ValueError(f"loss.needs: {name!r} is unknown; there are {', '.join(known)}")


def _check_options(
    softcap: float | None,
    logit_scale: float,
    chunk_rows: int | None,
    reduction: str,
    denominator: float | Tensor | None,
) -> None:
    if softcap is not None and not 0 < softcap < math.inf:
        raise ValueError(f"softcap = {softcap}: must be positive and finite, or None")
    if not math.isfinite(logit_scale):
        raise ValueError(f"logit_scale = {logit_scale}: must be finite")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows = {chunk_rows}: must be at least 1, or None")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction = {reduction!r}: must be 'mean', 'sum' or 'none'")
    if denominator is None:
        return
    if reduction != "mean":
        raise ValueError(f"denominator: has no meaning for reduction = {reduction!r}")
    if isinstance(denominator, Tensor):
        if denominator.numel() != 1:
            raise ValueError(f"denominator: expected one number, got shape {tuple(denominator.shape)}")
    elif not 0 < denominator < math.inf:
        raise ValueError(f"denominator = {denominator}: must be positive and finite")


def _check_float(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in _FLOATS:
        raise TypeError(f"{name}: {tensor.dtype}, expected float16, bfloat16, float32 or float64")


def _check_targets(targets: Tensor, shape: torch.Size, vocabulary: int, ignore_index: int) -> None:
    if targets.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"targets: {targets.dtype}, expected int32 or int64")
    if targets.shape != shape:
        raise ValueError(f"targets: expected shape {tuple(shape)}, got {tuple(targets.shape)}")
    # The one wait for the device: an index out of range would otherwise end in a device-side assertion.
    outside = (targets != ignore_index) & ((targets < 0) | (targets >= vocabulary))
    if bool(outside.any()):
        example = targets[outside].reshape(-1)[0].item()
        raise ValueError(
            f"targets: {example} lies outside 0..{vocabulary - 1} and is not ignore_index = {ignore_index}"
        )


def _check_token_weights(token_weights: Tensor | None, targets: Tensor) -> None:
    if token_weights is None:
        return
    if token_weights.shape != targets.shape:
        raise ValueError(f"token_weights: expected shape {tuple(targets.shape)}, got {tuple(token_weights.shape)}")
    _check_float("token_weights", token_weights)
    if token_weights.requires_grad:
        raise ValueError("token_weights: are constants and get no gradient; detach them")


def _check_sequences(loss: LossFunctions, targets: Tensor, baseline: Tensor | None) -> None:
    if not getattr(loss, "drop_sequences", 0.0):
        if baseline is not None:
            raise ValueError("sequence_baseline: has no meaning for a loss that drops no sequences; see losses.tail")
        return
    if targets.ndim < 2:
        raise ValueError(
            f"targets: a loss that drops sequences needs (sequences, length), got {tuple(targets.shape)}; fold the rows"
        )
    if baseline is not None:
        if baseline.shape != targets.shape[:-1]:
            expected, got = tuple(targets.shape[:-1]), tuple(baseline.shape)
            raise ValueError(f"sequence_baseline: expected shape {expected}, got {got}")
        _check_float("sequence_baseline", baseline)


def _check_device(name: str, tensor: Tensor | None, other: Tensor, other_name: str) -> None:
    if tensor is not None and tensor.device != other.device:
        raise ValueError(f"{name}: on {tensor.device}, but {other_name} is on {other.device}")
