"""How far a model has moved from another, and how confident it is: model KL, and histograms of p over target tokens.

**Model KL.** The paper's figures compare token frequencies (`measures.text_counts`). A model's own distributions
tell more: on held-out real text,

    D(M_0 ‖ M_i) = mean over positions of Σ_v p_0(v | context) ln(p_0(v | context) / p_i(v | context)),   in nats.

M_0 is that *of the same arm*, not the base model: it has learned its first split from real text only, so what is
measured is the recursion and not that learning. This direction sees what was forgotten: a token that M_0 holds
possible and M_i no longer does is expensive.

**Confidence** (the paper's Figure 1): the distribution of p, the probability of the token that comes, over real, seen
and self-generated text. The share of tokens with p ≤ gamma is what TCE leaves alive.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fortifai_core.errors import DataError, StageFailed
from fortifai_core.language.scoring import LOGITS_AT_ONCE, log_probabilities, text_setting
from fortifai_core.language.shared_contexts import ScoredSequence
from fortifai_core.measures.text_counts import windows

# Hundredths, and thousandths above 0.99: the thresholds that people choose are edges.
EDGES = np.concatenate([np.arange(100) / 100, np.arange(991, 1001) / 1000])


def sample_windows(sequences: Iterable[Sequence[int]], *, length: int, tokens: int, seed: int) -> list[list[int]]:
    """Windows of `length` tokens drawn evenly from all, about `tokens` in sum; in the text's order.

    Reads the text once and holds the sample only (reservoir sampling). The same text and seed give the same sample. A
    text that is not larger is taken whole. Windows of one token, which predict nothing, are left out.
    """
    if length < 2 or tokens < length:
        raise ValueError(f"a sample of {tokens} tokens in windows of {length}")
    draw = random.Random(seed)
    wanted = tokens // length
    kept: list[tuple[int, list[int]]] = []
    for number, window in enumerate(windows(sequences, length)):
        place = number if number < wanted else draw.randrange(number + 1)
        if number < wanted:
            kept.append((number, list(window)))
        elif place < wanted:
            kept[place] = (number, list(window))
    return [window for _, window in sorted(kept)]


def target_log_probabilities(model: Any, sample: Sequence[Sequence[int]], *, batch: int) -> np.ndarray:
    """log p of every token of the sample but the first of each window: float64 [targets], in nats.

    Raises:
        DataError: the sample is empty.
        StageFailed: the model's logits are not numbers.
    """
    if not sample:
        raise DataError("sample", 0, "there is no text of two tokens to measure confidence on")
    scored = [ScoredSequence(window, len(window) - 1) for window in sample]
    return np.concatenate(log_probabilities(model, scored, batch=batch, shared=False))


def confidence_histogram(log_probabilities: np.ndarray) -> np.ndarray:
    """How many target tokens have p in (EDGES[b], EDGES[b+1]], int64 [len(EDGES) − 1]; p = 0 is in the first bin."""
    # compared in log space, as the loss does: near 1 a rounded p would fall on the wrong side of an edge
    edges = np.log(EDGES[1:])
    place = np.searchsorted(edges, log_probabilities, side="left")
    return np.bincount(np.minimum(place, len(edges) - 1), minlength=len(edges)).astype(np.int64)


def live_fraction(log_probabilities: np.ndarray, *, gamma: float) -> float:
    """Share of target tokens with p ≤ gamma: those that TCE with this threshold learns from.

    Raises:
        DataError: there are no tokens.
    """
    if not len(log_probabilities):
        raise DataError("tokens", 0, "a share of no tokens")
    return float(np.mean(log_probabilities <= np.log(gamma)))


def live_fraction_of(counts: Sequence[int], *, gamma: float) -> float | None:
    """The same from a histogram over `EDGES`; None where gamma is not one of the edges."""
    edge = np.flatnonzero(np.isclose(EDGES, gamma, rtol=0, atol=1e-9))
    total = sum(counts)
    if not len(edge) or not total:
        return None
    return sum(counts[: int(edge[0])]) / total


@dataclass(frozen=True)
class ByWindow:
    """Of each window of a sample, summed over its positions: float64 [window], in nats.

    Attributes:
        divergence: D(first ‖ model). entropy: of the model's own predictions. positions: how many.
    """

    divergence: np.ndarray
    entropy: np.ndarray
    positions: np.ndarray

    @property
    def kl(self) -> float:
        """The mean over all positions."""
        return max(0.0, float(self.divergence.sum() / self.positions.sum()))


def model_kl_by_window(first: Any, model: Any, sample: Sequence[Sequence[int]], *, batch: int) -> ByWindow:
    """D(first ‖ model) and the model's entropy on every window; see the module's formula.

    Both read the same tokens. Distributions are taken in float32 and summed in float64. Where both are one model it is
    asked once, and the divergence is 0.

    Args:
        first, model: M_0 and M_i, token ids [rows, length] → object with `.logits`; of one vocabulary.
        batch: windows at a time, fewer where their logits would be large.

    Raises:
        DataError: the sample is empty, or the vocabularies differ.
        StageFailed: the logits of either are not numbers.
    """
    import torch

    from fortifai_core.language.decoding import inference

    if not sample:
        raise DataError("sample", 0, "model KL needs a text of two tokens at least")
    divergence, entropy = np.zeros(len(sample)), np.zeros(len(sample))
    positions = np.array([len(window) - 1 for window in sample], dtype=np.float64)
    with inference(first) as core_0, inference(model) as core_i:
        sizes = [text_setting(core, "vocab_size") for core in (core_0, core_i)]
        if sizes[0] != sizes[1]:
            raise DataError("vocabulary", sizes[1], f"the first model's has {sizes[0]} entries")
        device = next((p.device for p in core_i.parameters()), torch.device("cpu"))
        longest = max(map(len, sample))
        rows = max(1, min(batch, LOGITS_AT_ONCE // (longest * (sizes[0] or 1))))
        for start in range(0, len(sample), rows):
            group = sample[start : start + rows]
            ids = torch.zeros((len(group), max(map(len, group)) - 1), dtype=torch.long)
            real = torch.zeros(ids.shape, dtype=torch.bool)
            for row, window in enumerate(group):
                ids[row, : len(window) - 1] = torch.as_tensor(window[:-1], dtype=torch.long)
                real[row, : len(window) - 1] = True
            ids, real = ids.to(device), real.to(device)
            log_q = core_i(input_ids=ids).logits.float().log_softmax(-1)[real]
            log_p = log_q if core_0 is core_i else core_0(input_ids=ids).logits.float().log_softmax(-1)[real]
            window_of = real.nonzero()[:, 0].cpu().numpy() + start
            for sums, logs in ((divergence, log_p - log_q), (entropy, -log_q)):
                weights = (log_p if sums is divergence else log_q).exp()
                # 0 · ln 0 is 0, also where both logarithms are −inf
                terms = torch.where(weights > 0, weights * logs, torch.zeros_like(weights))
                np.add.at(sums, window_of, terms.sum(-1).double().cpu().numpy())
    if np.isnan(divergence.sum() + entropy.sum()):
        raise StageFailed("model KL: a model's logits are not numbers; its training has diverged")
    return ByWindow(divergence, entropy, positions)
