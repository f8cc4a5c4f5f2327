"""How synthetic is a text? The share of its documents that a model wrote, from how confident the model is of them.

With c(·) the mean over documents of log p per token, a mixture of documents has

    c(text) = (1 − share) · c(real) + share · c(own),   so   share = (c(text) − c(real)) / (c(own) − c(real)).

This needs real text of the same kind, and own text that was written as the unknown text's synthetic part was. Where
either is something else the estimate is wrong, and nothing in the text says so: docs/watch.md has how wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fortifai_core.corpus.tokenization import automatic_bos
from fortifai_core.errors import InputError
from fortifai_core.interval import Interval
from fortifai_core.language.scoring import text_setting
from fortifai_core.outcomes.resampling import Floats, cluster_weights
from fortifai_core.seeds import derive_seed
from fortifai_core.watch.reading import Sampling, predict, undisturbed, write

LEAST = 16  # documents of each kind
WIDEST = 0.5  # an interval that is wider tells nothing
DRAWS = 1000
PROMPT = 16  # tokens of a real document that the model's own text goes on from


@dataclass(frozen=True)
class SyntheticShare:
    """What can be said of a text.

    Attributes:
        share: of its documents, with a 95% interval within [0, 1].
        gap: c(own) − c(real), nats a token, with its interval.
        told: whether anything can be told: the gap is above zero, and the interval no wider than `WIDEST`.
        documents: of the text, of the real text, of the model's own.
    """

    share: Interval
    gap: Interval
    told: bool
    documents: tuple[int, int, int]

    def __str__(self) -> str:
        """`synthetic: 24% (15% to 33%)`, or why nothing can be told."""
        low, high = f"{self.share.low:.0%}", f"{self.share.high:.0%}"
        if self.told:
            return f"synthetic: {self.share.estimate:.0%} ({low} to {high})"
        if not self.gap.low > 0:
            ends = f"{self.gap.low:+.3f} to {self.gap.high:+.3f}"
            return f"cannot tell: the model is no more confident of its own text than of real text ({ends} nats)"
        return f"cannot tell: anything from {low} to {high}"


def share_of(text: Floats, real: Floats, own: Floats, *, seed: int = 0, level: float = 0.95) -> SyntheticShare:
    """The share of synthetic documents, from each document's mean log p per token.

    Args:
        text, real, own: float64 [documents], nats; of the text at hand, of real text, of the model's own.

    Raises:
        InputError: fewer than 16 documents of a kind.
    """
    for name, scores in (("text", text), ("real", real), ("own", own)):
        if len(scores) < LEAST:
            raise InputError(name, f"{len(scores)} documents", f"give {LEAST} at least, better some hundred")
    rng = np.random.default_rng(seed)
    drawn = [_means(rng, scores) for scores in (text, real, own)]
    seen = [float(np.mean(scores)) for scores in (text, real, own)]
    tails = [(1 - level) / 2, (1 + level) / 2]
    gaps = drawn[2] - drawn[1]
    gap_low, gap_high = (float(q) for q in np.quantile(gaps, tails))
    gap = Interval(seen[2] - seen[1], gap_low, gap_high, level)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.clip((drawn[0] - drawn[1]) / gaps, 0, 1)
    estimate = float(np.clip((seen[0] - seen[1]) / gap.estimate, 0, 1)) if gap.estimate else float("nan")
    low, high = (float(q) for q in np.nanquantile(shares, tails))
    told = gap.low > 0 and high - low <= WIDEST
    return SyntheticShare(Interval(estimate, low, high, level), gap, told, (len(text), len(real), len(own)))


def _means(rng: np.random.Generator, scores: Floats) -> Floats:
    return cluster_weights(rng, DRAWS, len(scores)) @ np.asarray(scores, float) / len(scores)


class Confidence:
    """How confident a model is of documents, each by a window of one length.

    Args:
        tokens: of a document that are looked at; shorter ones are left out, for the beginning of a text is less
            certain than the rest of it.
        temperature: at which the model writes its own text.
    """

    def __init__(self, model: Any, tokenizer: Any, *, tokens: int = 96, temperature: float = 1.0) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._tokens, self._temperature = tokens, temperature
        bos = automatic_bos(tokenizer)
        self._prefix = [] if bos is None else [bos]
        if tokens < 2 * PROMPT:
            raise InputError("tokens", tokens, f"give {2 * PROMPT} at least")

    def windows(self, texts: Sequence[str]) -> list[list[int]]:
        """The beginnings of the documents that are long enough."""
        encoded = [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return [self._prefix + ids[: self._tokens] for ids in encoded if len(ids) >= self._tokens]

    def of(self, windows: Sequence[Sequence[int]]) -> Floats:
        """Mean log p per token of each window after its first `PROMPT` tokens, which own text has from real text."""
        given = [PROMPT + len(self._prefix)] * len(windows)
        if not windows:
            return np.zeros(0)
        with undisturbed(self._model) as core:
            seen = predict(core, windows, given=given)
        return -seen.nll / seen.positions

    def own(self, windows: Sequence[Sequence[int]], *, seed: int = 0) -> list[list[int]]:
        """What the model writes in the place of real documents, each after its first `PROMPT` tokens."""
        start = PROMPT + len(self._prefix)
        uniforms = np.random.default_rng(derive_seed("watch", "own", seed)).random(
            (len(windows), self._tokens - PROMPT)
        )
        tokenizer = self._tokenizer
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
        with undisturbed(self._model) as core:
            vocabulary = text_setting(core, "vocab_size") or 0
            never = sorted({*tokenizer.all_special_ids, *range(len(tokenizer), vocabulary)})
            prompts = [window[:start] for window in windows]
            how = Sampling(temperature=self._temperature)
            samples = write(core, prompts, uniforms, suppress=never, pad_id=pad, how=how)
        return [[*prompt, *sample] for prompt, sample in zip(prompts, samples, strict=True)]
