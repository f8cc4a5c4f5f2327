"""From a configured loss to the functions that the loss head takes; `kernels.losses` has the formulas."""

from __future__ import annotations

from dataclasses import replace

from fortifai_core.config.custom_loss import check_elementwise, load_custom
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
from kernels import losses


def token_loss(loss: Loss) -> losses.TokenLoss:
    """The functions of one arm's loss, under the arm's name.

    Raises:
        ConfigError: a custom loss that cannot be loaded, or is not elementwise and finite.
    """
    match loss:
        case CrossEntropyLoss():
            functions = losses.cross_entropy()
        case TruncatedCrossEntropyLoss():
            functions = losses.truncated(loss.gamma, denominator=loss.denominator)
        case EntropyTruncatedLoss():
            functions = losses.truncated_by_entropy(loss.factor)
        case FocalLoss():
            functions = losses.focal(loss.gamma)
        case LabelSmoothingLoss():
            functions = losses.label_smoothing(loss.epsilon)
        case ZLoss():
            functions = losses.z_loss(loss.weight)
        case DynamicLoss():
            functions = losses.dft()
        case EntropyLoss():
            functions = losses.eaft(loss.alpha)
        case UntemperedLoss():
            functions = losses.undo_temperature(loss.temperature, ceiling=loss.ceiling)
        case TailLoss():
            functions = losses.tail(loss.drop)
        case CustomLoss():
            function = load_custom(loss.function, loss.options)
            check_elementwise(loss.function, function)
            functions = losses.custom(function)
    return replace(functions, name=loss.label)
