"""A probe: the same held-out text, prompts and random numbers for every model, and everything that is measured on them.

Distinct pairs and compression are taken over groups of samples, and groups are what is resampled: they fall and rise
with the amount of text, and a sample that is drawn twice would count as a repetition.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch

from fortifai_core.corpus.tokenization import automatic_bos
from fortifai_core.errors import InputError, StageFailed
from fortifai_core.language.scoring import text_setting
from fortifai_core.measures.text_counts import distinct_n
from fortifai_core.measures.text_drift import rare_words, repeated_ngrams, words
from fortifai_core.outcomes.resampling import Floats
from fortifai_core.seeds import derive_seed
from fortifai_core.watch.reading import TopTokens, live_in_batch, predict, undisturbed, write

GROUP = 4  # samples that are taken together
LEAST = 8  # windows; an interval over fewer says nothing
SHORTEST = 8  # tokens of a window


@dataclass(frozen=True)
class Size:
    """How much a probe looks at. The defaults are about 10,000 tokens read and 2,300 written.

    Attributes:
        windows: of held-out text, each of `window_tokens` at most; the beginning of each is a sample's prompt too.
        prompt_tokens, sample_tokens: of each sample.
        batch_tokens: of the training's batch that are read for the live fraction.
        gamma: tokens with p ≤ gamma are live.
    """

    windows: int = 48
    window_tokens: int = 128
    prompt_tokens: int = 16
    sample_tokens: int = 48
    batch_tokens: int = 2048
    gamma: float = 0.9
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"windows": LEAST, "window_tokens": SHORTEST, "prompt_tokens": 1, "sample_tokens": 8, "batch_tokens": 2}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "gamma":
                if not isinstance(value, (int, float)) or not 0 < value <= 1:
                    raise InputError("gamma", value, "give a probability above 0 and at most 1")
            elif type(value) is not int or value < least.get(field.name, 0):
                raise InputError(field.name, value, f"give a whole number from {least.get(field.name, 0)}")


@dataclass(frozen=True)
class Reading:
    """One model, read: by signal, float64 [clusters, 2]: what is counted, and what it is counted over.

    Attributes:
        top: the likeliest tokens at every position, where the reading was to be a baseline.
        texts: what the model wrote.
    """

    columns: dict[str, Floats]
    top: TopTokens | None = None
    texts: tuple[str, ...] = ()


class Probe:
    """Questions that are put to every model alike.

    Args:
        tokenizer: of the models.
        texts: held-out documents, which no training reads. Windows are taken from as many documents as there are.

    Raises:
        InputError: a size that makes no sense, or too little text.
    """

    def __init__(self, tokenizer: Any, texts: Sequence[str], size: Size | None = None) -> None:
        self.tokenizer, self.size = tokenizer, size or Size()
        self.windows = self._cut(texts)
        prompt = min(self.size.prompt_tokens, self.size.window_tokens - 1)
        self.prompts = [window[: max(1, min(prompt, len(window) - 1))] for window in self.windows]
        draw = np.random.default_rng(derive_seed("watch", "samples", self.size.seed))
        self.uniforms = draw.random((len(self.windows), self.size.sample_tokens))
        self._rare = self._rare_words(texts)

    def _cut(self, texts: Sequence[str]) -> list[list[int]]:
        """First windows of documents before second ones, so that they are of as many documents as there are."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InputError("texts", type(texts).__name__, "give a list of documents, each a text")
        bos = automatic_bos(self.tokenizer)
        prefix = [] if bos is None else [bos]
        room = self.size.window_tokens - len(prefix)
        order = np.random.default_rng(derive_seed("watch", "windows", self.size.seed)).permutation(len(texts))
        places: list[tuple[int, int, list[int]]] = []
        firsts = 0
        for turn, number in enumerate(order):
            if firsts >= self.size.windows:
                break  # enough documents: the rest need not be tokenised
            tokens = self.tokenizer(texts[number], add_special_tokens=False)["input_ids"]
            cuts = [tokens[start : start + room] for start in range(0, len(tokens), room)]
            kept = [prefix + cut for cut in cuts if len(cut) >= SHORTEST]
            places += [(nth, turn, window) for nth, window in enumerate(kept[: self.size.windows])]
            firsts += bool(kept)
        windows = [window for _, _, window in sorted(places)[: self.size.windows]]
        if len(windows) < LEAST:
            remedy = (
                f"has {len(windows)} windows of {SHORTEST} tokens or more: give at least {LEAST}, 48 or more is good"
            )
            raise InputError("texts", f"{len(texts)} documents", remedy)
        return windows

    def _rare_words(self, texts: Sequence[str]) -> frozenset[str]:
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(words(text))
        return frozenset(rare_words(counts)) if counts else frozenset()

    @property
    def digest(self) -> str:
        """Of all that a reading depends on but the model."""
        asked = json.dumps([asdict(self.size), self.windows, sorted(self._rare)])
        return hashlib.sha256(asked.encode()).hexdigest()

    def check(self, model: Any) -> None:
        """Refuse a model that cannot be asked.

        Raises:
            InputError: its vocabulary is smaller than the tokenizer's, or it reads less than a window.
        """
        core = model.get_base_model() if hasattr(model, "get_base_model") else model
        vocabulary, longest = (text_setting(core, name) for name in ("vocab_size", "max_position_embeddings"))
        highest = max(max(window) for window in self.windows)
        if vocabulary is not None and highest >= vocabulary:
            raise InputError(
                "tokenizer", f"id {highest}", f"the model knows {vocabulary} tokens: take its own tokenizer"
            )
        needed = max(max(map(len, self.windows)), max(map(len, self.prompts)) + self.size.sample_tokens)
        if longest is not None and needed > longest:
            raise InputError(
                "window_tokens", needed, f"the model reads {longest} tokens: take smaller windows or samples"
            )

    def read(
        self,
        model: Any,
        *,
        batch: Mapping[str, torch.Tensor] | None = None,
        baseline: Reading | None = None,
        keep: bool = False,
    ) -> Reading:
        """Measure everything of one model. Its modes, gradients and the random states are as they were, afterwards.

        Args:
            batch: what the training has just read, for the live fraction; see `live_in_batch`.
            baseline: an earlier reading that was kept, for KL.
            keep: keep what a baseline needs.
        """
        columns: dict[str, Floats] = {}
        with undisturbed(model) as core:
            against = baseline.top if baseline is not None else None
            seen = predict(core, self.windows, against=against, keep=keep)
            columns["held-out-perplexity"] = _over(seen.nll, seen.positions)
            columns["entropy"] = _over(seen.entropy, seen.positions)
            columns["top-mass"] = _over(seen.top_mass, seen.positions)
            if seen.kl is not None:
                columns["kl"] = _over(seen.kl, seen.positions)
            if batch:
                live = live_in_batch(core, dict(batch), gamma=self.size.gamma, tokens=self.size.batch_tokens)
                if live is not None:
                    columns["live-fraction"] = live
            texts: list[str] = []
            if np.isfinite(seen.nll).all():
                vocabulary = text_setting(core, "vocab_size") or 0
                never = {*self.tokenizer.all_special_ids, *range(len(self.tokenizer), vocabulary)}
                pad = self.tokenizer.pad_token_id
                pad = pad if pad is not None else (self.tokenizer.eos_token_id or 0)
                try:
                    samples = write(core, self.prompts, self.uniforms, suppress=sorted(never), pad_id=pad)
                except StageFailed:
                    samples = []  # logits that are not finite: the perplexity of the next probe says so
                if samples:
                    columns["own-perplexity"] = self._own(core, samples)
                    texts = [str(text) for text in self.tokenizer.batch_decode(samples)]
                    columns |= of_samples(samples, texts, rare=self._rare)
        return Reading(columns, seen.top, tuple(texts))

    def _own(self, core: Any, samples: Sequence[Sequence[int]]) -> Floats:
        """Of every sample, −log p of its tokens given its prompt, in nats, and how many they are."""
        whole = [[*prompt, *sample] for prompt, sample in zip(self.prompts, samples, strict=True)]
        given = [len(prompt) for prompt in self.prompts]
        return _over(predict(core, whole, given=given).nll, np.array([float(len(sample)) for sample in samples]))


def _over(counted: Floats, over: Floats) -> Floats:
    return np.stack([counted, over], axis=1)


def of_samples(
    samples: Sequence[Sequence[int]], texts: Sequence[str], *, rare: frozenset[str] = frozenset()
) -> dict[str, Floats]:
    """The signals of written text: by name, float64 [clusters, 2].

    Args:
        samples: token ids, of one length each.
        texts: the same as text.
        rare: words whose share is counted.
    """
    columns: dict[str, Floats] = {}
    groups = [range(start, min(start + GROUP, len(samples))) for start in range(0, len(samples), GROUP)]
    if len(groups) > 1 and len(groups[-1]) < GROUP:
        groups.pop()  # a smaller group has fewer tokens, and so more distinct ones
    pairs, sizes = [], []
    for group in groups:
        chosen = [samples[number] for number in group if len(samples[number]) > 1]
        if chosen:
            pairs.append((distinct_n(chosen, n=2), 1.0))
        text = "\n".join(texts[number] for number in group).encode()
        if text:
            sizes.append((float(len(text)), float(len(zlib.compress(text, 9)))))
    for name, found in (("distinct-2", pairs), ("compression-ratio", sizes)):
        if found:
            columns[name] = np.array(found)
    long = [sample for sample in samples if len(sample) >= 4]
    if long:
        columns["repeated-4-grams"] = np.array([(repeated_ngrams([sample], n=4), 1.0) for sample in long])
    if rare:
        spoken = [words(text) for text in texts]
        columns["tail-mass"] = np.array(
            [(sum(word in rare for word in each), len(each)) for each in spoken], dtype=float
        )
    return columns
