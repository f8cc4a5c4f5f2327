"""gamma of a generation whose loss chooses it by what M_(i-1) makes of the text that M_i is to read.

**By the gap** (`tce-gap`): where synthetic tokens are told best from real ones by M_(i-1)'s confidence in them.

**By the balance** (`tce-balance`): `outcomes.balance`, with mean entropies in nats on the synthetic text for spreads,

    contraction   = mean −log p of the text under M_(i-1) / mean entropy of M_(i-1) there,
    amplification = mean entropy of M_i there / mean −log p of the text under M_(i-1).

The first is 1 for text that M_(i-1) sampled at temperature 1, and less below; their product is the share of entropy
that is left. The controller's state lies beside the weights.

Both are measured on a sample of stated size of each text.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fortifai_core.config.loss import ADAPTIVE, BalancedTruncatedLoss, Loss, TruncatedCrossEntropyLoss
from fortifai_core.outcomes import balance
from fortifai_core.seeds import derive_seed
from storage.store import durable
from storage.tables import parquet
from tasks.engine.context import Context
from tasks.language.specs import TrainSpec, VersionedText

SAMPLE = 16_384  # tokens
_LEAST = 1e-9  # nats: a spread is not less, so that ratios of them have logarithms
STATE = "balance.json"
Sample = list[list[int]]


@dataclass(frozen=True)
class Chosen:
    """What a generation is trained with.

    Attributes:
        loss: with its gamma.
        synthetic: the sample of what models wrote; none unless it is needed again.
        spreads: on it, mean −log p of the text and mean entropy of M_(i-1), in nats.
        state: of the controller, before this generation.
    """

    loss: Loss
    synthetic: Sample | None = None
    spreads: tuple[float, float] = (0.0, 0.0)
    state: balance.BalanceState | None = None


def chosen(context: Context[TrainSpec], model: Any, texts: list[tuple[VersionedText, list[Path]]]) -> Chosen:
    """The loss that M_i is trained under; `model` is M_(i-1), and is left as it was but for its device."""
    from fortifai_core.measures.model_drift import gap_gamma, target_log_probabilities

    loss = context.spec.loss
    if not isinstance(loss, ADAPTIVE):
        return Chosen(loss)
    synthetic = _sample(context, [path for text, paths in texts if text.version > 0 for path in paths])
    model.to(context.device)
    batch = _batch(context)
    confidence = target_log_probabilities(model, synthetic, batch=batch)
    if not isinstance(loss, BalancedTruncatedLoss):
        real = _sample(context, [path for text, paths in texts if text.version == 0 for path in paths])
        gamma = gap_gamma(confidence, target_log_probabilities(model, real, batch=batch))
        return Chosen(TruncatedCrossEntropyLoss(gamma=gamma))
    previous = context.artifact(context.spec.model)
    state = balance.start(_settings(loss))
    if previous.has(STATE):
        state = balance.BalanceState.from_arrays(json.loads(previous.file(STATE).read_text(encoding="utf-8")))
    spreads = (max(_LEAST, -float(np.mean(confidence))), _entropy(model, synthetic, batch=batch))
    return Chosen(TruncatedCrossEntropyLoss(gamma=float(state.gamma)), synthetic, spreads, state)


def observed(context: Context[TrainSpec], model: Any, choice: Chosen) -> dict[str, float]:
    """Keep what the controller has seen of this generation; `model` is M_i. What there is to say of gamma."""
    loss, state = context.spec.loss, choice.state
    if not isinstance(loss, ADAPTIVE) or not isinstance(choice.loss, TruncatedCrossEntropyLoss):
        return {}
    told = {"gamma": choice.loss.gamma}
    if state is None or choice.synthetic is None or not isinstance(loss, BalancedTruncatedLoss):
        return told
    of_text, before = choice.spreads
    after = _entropy(model.to(context.device), choice.synthetic, batch=_batch(context))
    contraction, amplification = of_text / before, after / of_text
    seen = balance.observe(_settings(loss), state, contraction=contraction, amplification=amplification)
    arrays = {name: array.tolist() for name, array in seen.arrays().items()}
    durable.write_bytes(context.directory / STATE, json.dumps(arrays, indent=1).encode())
    return {**told, "contraction": contraction, "amplification": amplification}


def _settings(loss: BalancedTruncatedLoss) -> balance.BalanceSettings:
    return balance.BalanceSettings(start=loss.start, low=loss.low, rate=loss.rate, restore=loss.restore)


def _sample(context: Context[TrainSpec], paths: list[Path]) -> Sample:
    from fortifai_core.measures.model_drift import sample_windows

    length = context.spec.training.sequence_length
    seed = derive_seed("gamma", context.spec.seed, context.spec.generation)
    return sample_windows(parquet.iter_column(paths, "tokens"), length=length, tokens=max(SAMPLE, length), seed=seed)


def _entropy(model: Any, sample: Sample, *, batch: int) -> float:
    from fortifai_core.measures.model_drift import model_kl_by_window

    windows = model_kl_by_window(model, model, sample, batch=batch)
    return max(_LEAST, float(windows.entropy.sum() / windows.positions.sum()))


def _batch(context: Context[TrainSpec]) -> int:
    return max(1, context.runtime.inference_batch // 8)
