"""What a model says of some text, and what it writes: forward passes that leave the training as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fortifai_core.language.decoding import decode, evaluating
from fortifai_core.language.parts import LOGITS_AT_ONCE
from fortifai_core.language.scoring import text_setting
from fortifai_core.outcomes.resampling import Floats

# The baseline's distribution is kept by its likeliest tokens and the mass of all the others, for KL.
TOP = 64
_LEAST = 1e-12  # of the mass of all other tokens, which rounding may take below zero


@contextmanager
def undisturbed(model: Any) -> Iterator[Any]:
    """The model in evaluation mode without gradients; afterwards modes and random states are as they were found.

    Not `torch.inference_mode`: a buffer that a model computes anew within it could not be used in training afterwards.
    """
    python, numbers = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with evaluating(model) as core, torch.random.fork_rng(devices=devices), torch.no_grad():
            yield core
    finally:
        random.setstate(python)
        np.random.set_state(numbers)


@dataclass(frozen=True)
class Sampling:
    """How a model writes its own text: from its own distribution, nothing cut off."""

    temperature: float = 1.0
    decoding: str = "sample"
    top_p: float = 1.0
    top_k: int = 0
    beams: int = 1
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class TopTokens:
    """A baseline's likeliest tokens at every position of the held-out text: int32 and float32 [positions, TOP]."""

    ids: np.ndarray
    log_p: np.ndarray


@dataclass(frozen=True)
class Predictions:
    """What a model predicts for every window: sums over its positions, float64 [windows], and how many there are."""

    nll: Floats
    entropy: Floats
    top_mass: Floats
    positions: Floats
    kl: Floats | None
    top: TopTokens | None


def predict(
    core: Any,
    windows: Sequence[Sequence[int]],
    *,
    given: Sequence[int] | None = None,
    against: TopTokens | None = None,
    keep: bool = False,
) -> Predictions:
    """Read every window once.

    KL is D(baseline ‖ model) with all but the baseline's `TOP` likeliest tokens counted as one: never more than the KL
    of the whole distributions, and equal to it where the vocabulary is no larger.

    Args:
        given: tokens at the beginning of each window that are not predicted; one by default.
        against: the baseline's tokens, for KL.
        keep: return this model's, as a baseline.
    """
    sums = np.zeros((4, len(windows)))
    kl = np.zeros(len(windows)) if against is not None else None
    ids: list[np.ndarray] = []
    logs: list[np.ndarray] = []
    place = 0
    for rows, ids_of in _groups(core, windows):
        log_p = core(input_ids=ids_of).logits[:, :-1].float().log_softmax(-1)
        for offset, row in enumerate(rows):
            first, last = (given[row] if given is not None else 1) - 1, len(windows[row]) - 1
            of_row, count = log_p[offset, first:last], last - first
            targets = ids_of[offset, first + 1 : last + 1]
            p = of_row.exp()
            sums[0, row] = -float(of_row.gather(-1, targets[:, None]).double().sum())
            sums[1, row] = float(torch.special.entr(p).sum(-1).double().sum())
            sums[2, row] = float(p.amax(-1).double().sum())
            sums[3, row] = count
            if against is not None and kl is not None:
                kl[row] = _kl(against, of_row, place)
            if keep:
                top = of_row.topk(min(TOP, of_row.shape[-1]))
                ids.append(top.indices.int().cpu().numpy())
                logs.append(top.values.cpu().numpy())
            place += count
    top_tokens = TopTokens(np.concatenate(ids), np.concatenate(logs)) if keep else None
    return Predictions(sums[0], sums[1], sums[2], sums[3], kl, top_tokens)


def _groups(core: Any, windows: Sequence[Sequence[int]]) -> Iterator[tuple[range, torch.Tensor]]:
    """Windows, as many at a time as their logits allow, padded behind, where a causal model does not look."""
    longest = max(map(len, windows))
    size = max(1, LOGITS_AT_ONCE // (longest * (text_setting(core, "vocab_size") or 1)))
    device = next((parameter.device for parameter in core.parameters()), torch.device("cpu"))
    for start in range(0, len(windows), size):
        rows = range(start, min(start + size, len(windows)))
        given = torch.zeros((len(rows), max(len(windows[row]) for row in rows)), dtype=torch.long)
        for offset, row in enumerate(rows):
            given[offset, : len(windows[row])] = torch.as_tensor(windows[row])
        yield rows, given.to(device)


def _kl(against: TopTokens, log_q: torch.Tensor, place: int) -> float:
    ids = torch.as_tensor(against.ids[place : place + len(log_q)].astype(np.int64), device=log_q.device)
    log_p = torch.as_tensor(against.log_p[place : place + len(log_q)], device=log_q.device).double()
    p, chosen = log_p.exp(), log_q.gather(-1, ids).double()
    rest_p, rest_q = (1 - p.sum(-1)).clamp_min(_LEAST), (1 - chosen.exp().sum(-1)).clamp_min(_LEAST)
    terms = torch.where(p > 0, p * (log_p - chosen), torch.zeros_like(p)).sum(-1)
    return float((terms + rest_p * (rest_p / rest_q).log()).sum())


def write(
    core: Any,
    prompts: Sequence[Sequence[int]],
    uniforms: np.ndarray,
    *,
    suppress: Sequence[int],
    pad_id: int,
    how: Sampling | None = None,
) -> list[list[int]]:
    """What the model writes after each prompt, as many tokens as there are uniforms: float64 [prompts, tokens].

    The draws are the uniforms' alone, so that two models are given the same luck. Special tokens are never drawn: each
    sample has the same length.

    Raises:
        StageFailed: the model's logits are not finite.
    """
    steps = uniforms.shape[1]
    drawn = decode(core, prompts, steps, how or Sampling(), suppress=suppress, pad_id=pad_id, uniforms=uniforms)
    return [row.tolist() for row in drawn]


def live_in_batch(
    core: Any, batch: dict[str, torch.Tensor], *, gamma: float, tokens: int, piece: int = 128
) -> Floats | None:
    """How many targets of a batch have p ≤ gamma, and how many there are: float64 [pieces, 2].

    Args:
        batch: `input_ids` [rows, length]; `labels` with −100 where nothing is learned, `attention_mask` and
            `position_ids` where there are any.
        tokens: of the batch that are read, at most; rows from the first on.
        piece: positions of a row that are one piece, for the interval.

    Returns:
        None where the batch has no target.
    """
    length = min(batch["input_ids"].shape[1], max(2, tokens))
    rows = max(1, tokens // length)
    cut = {name: tensor[:rows, :length] for name, tensor in batch.items() if tensor.dim() == 2}
    ids = cut["input_ids"]
    if (labels := cut.pop("labels", None)) is None:
        labels = ids if "attention_mask" not in cut else ids.masked_fill(cut["attention_mask"] == 0, -100)
    targets = labels[:, 1:]
    counts = []
    for row in range(len(ids)):  # a row's logits at a time
        asked = targets[row] != -100
        if not bool(asked.any()):
            continue
        given = {name: tensor[row : row + 1] for name, tensor in cut.items()}
        log_p = core(**given).logits[0, :-1][asked].float().log_softmax(-1)
        live = (log_p.gather(-1, targets[row][asked][:, None])[:, 0] <= np.log(gamma)).double().cpu().numpy()
        pieces = torch.nonzero(asked)[:, 0].cpu().numpy() // piece
        for number in np.unique(pieces):
            counts.append((live[pieces == number].sum(), np.sum(pieces == number)))
    return np.array(counts, dtype=float) if counts else None
