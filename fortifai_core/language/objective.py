"""What a training may aim at besides the token that stands there: a whole distribution, or weights to stay near."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fortifai_core.errors import ConfigError

# How transformers calls what a block adds to the residual stream, in the architectures that it has.
_ATTENTION = ("self_attn", "self_attention", "attn", "attention")
_FEED_FORWARD = ("mlp", "ffn", "feed_forward")
_BRANCHES = (*_ATTENTION, *_FEED_FORWARD)


@dataclass(frozen=True)
class Objective:
    """An aim beyond the loss of the drawn token.

    Attributes:
        smoothing: ε of label smoothing (Szegedy et al. 2016): the target is (1 − ε) one-hot + ε uniform.
        teacher: whose whole distribution is the target on synthetic rows; `weight`: how much of it, the rest one-hot
            (Hinton et al. 2015, at temperature 1).
        anchor: λ of λ/2 · ‖θ − θ_before‖², added to the loss (L2-SP; Li et al. 2018).
        before: θ_before, by the names of the model's parameters.
    """

    smoothing: float = 0.0
    teacher: nn.Module | None = None
    weight: float = 0.0
    anchor: float = 0.0
    before: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def soft(self) -> bool:
        """Whether the target is a distribution, so that the model's own logits are needed."""
        return self.smoothing > 0 or self.teacher is not None

    def loss(self, model: nn.Module, inputs: Mapping[str, Any], synthetic: Tensor | None, items: Any) -> Tensor:
        """The mean over target tokens of the cross entropy to the soft target.

        Args:
            inputs: `input_ids`, `attention_mask`, `labels`, each (batch, tokens).
            synthetic: (batch,) whether a model wrote the row; None: it did not.
            items: target tokens of the whole accumulated batch; None: those of this one.
        """
        given = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
        targets = inputs["labels"][:, 1:]
        logits = model(**given).logits[:, :-1]
        taught: Tensor | None = None
        weight: Tensor | None = None
        if self.teacher is not None and synthetic is not None and bool(synthetic.any()):
            with torch.no_grad():
                taught = self.teacher(**given).logits[:, :-1]
            weight = self.weight * synthetic.to(torch.float32)
        tokens = soft_cross_entropy(logits, targets, smoothing=self.smoothing, taught=taught, weight=weight)
        return tokens.sum() / ((targets != -100).sum() if items is None else items)

    def penalty(self, model: nn.Module) -> Tensor | float:
        """λ/2 · ‖θ − θ_before‖² over the weights that are trained."""
        if not self.anchor:
            return 0.0
        moved = [
            (weight - self.before[name].to(weight)).square().sum()
            for name, weight in model.named_parameters()
            if weight.requires_grad
        ]
        return self.anchor / 2 * torch.stack(moved).sum()


def soft_cross_entropy(
    logits: Tensor, targets: Tensor, *, smoothing: float, taught: Tensor | None = None, weight: Tensor | None = None
) -> Tensor:
    """−Σ_v q_v log p_v of each token, with q = (1 − w) [(1 − ε) one-hot + ε uniform] + w softmax(taught).

    Args:
        logits: (batch, tokens, vocabulary); `taught` likewise, the teacher's.
        targets: (batch, tokens); −100 counts for nothing.
        weight: (batch,) w of each row.

    Returns:
        (batch, tokens) float32, 0 where there is no target.
    """
    logs = logits.float().log_softmax(-1)
    drawn = -logs.gather(-1, targets.clamp_min(0)[..., None])[..., 0]
    loss = (1 - smoothing) * drawn - smoothing * logs.mean(-1) if smoothing else drawn
    if taught is not None and weight is not None:
        whole = -(taught.float().softmax(-1) * logs).sum(-1)
        loss = (1 - weight[:, None]) * loss + weight[:, None] * whole
    return loss.masked_fill(targets == -100, 0.0)


@contextmanager
def residual_dropout(model: nn.Module, rate: float) -> Iterator[None]:
    """Dropout of what every attention and feed-forward block adds to the residual stream, while the model trains.

    As in Vaswani et al. (2017), Section 5.4; models of today are made without.

    Raises:
        ConfigError: a model without attention or without feed-forward blocks of these names.
    """
    if not rate:
        yield
        return
    found = {
        name: module
        for name, module in model.named_modules()
        # of one within another, as attn.attention, the outer one is what a block adds
        if (path := name.split("."))[-1] in _BRANCHES and not set(path[:-1]) & set(_BRANCHES)
    }
    for kind in (_ATTENTION, _FEED_FORWARD):
        if not any(name.rpartition(".")[2] in kind for name in found):
            remedy = f"{type(model).__name__} has no blocks named {', '.join(kind)}: set it to 0"
            raise ConfigError("training.dropout", rate, remedy)

    def drop(module: nn.Module, inputs: Any, output: Any) -> Any:
        first, *rest = output if isinstance(output, tuple) else (output,)
        first = nn.functional.dropout(first, rate, training=module.training)
        return (first, *rest) if isinstance(output, tuple) else first

    hooks = [module.register_forward_hook(drop) for module in found.values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights, by name."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def average_with(model: nn.Module, other: Mapping[str, Tensor], share: float) -> None:
    """(1 − share) · θ + share · θ_other, in place; over the generations a moving average of the weights."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(1 - share).add_(other[name].to(weight), alpha=share)
