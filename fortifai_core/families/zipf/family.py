"""A discrete family: a Zipf vocabulary re-estimated from its own samples, as unigrams or as bigrams.

Does the paper's claim travel to a model without shared parameters? Here a model is a table of probabilities, so the
two ways of masking what is confident come apart (`masking`):

    capped    where gradient descent on truncated cross entropy comes to rest. A type whose p lies above gamma has no
              pull of its own, so the others' push it down to gamma, where its pull is back: it stays at gamma. All
              others share the rest in proportion to their counts. `capped` solves that exactly.
    dropped   what Algorithm 2 does to a mixture: items above gamma are left out of the sample, and the rest is
              counted. A density that is fitted to the tails still covers the middle; a table does not: what is
              dropped is gone for good.

gamma = 1 is maximum likelihood to the bit. Where k types were seen and k gamma ≤ 1, all of them end above gamma, all
are masked, and where descent stops depends on where it began: `capped` takes equal shares.

Each generation is sampled with a temperature (below 1: the common becomes commoner, the counterpart of the Gaussian's
λ). A type that is not sampled has probability 0 from then on.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fortifai_core.errors import ConfigError, DataError
from fortifai_core.families.base import Arrays, FamilyConfig, Fitted, Mask, NoMask, Progress, ThresholdMask
from fortifai_core.seeds import derive_seed
from fortifai_core.settings import Inconsistent

Floats = NDArray[np.float64]

# Share of the real tokens that the common types make up; every other type is in the tail.
_HEAD_MASS = 0.9
# Entries of the largest table of bigrams: 128 MB of float64.
_LARGEST_TABLE = 16_000_000


class ZipfConfig(FamilyConfig):
    """A vocabulary with Zipf frequencies, as unigrams or bigrams."""

    plain_label: ClassVar[str] = "ce"
    data_fields: ClassVar[frozenset[str]] = frozenset({"order", "vocabulary", "exponent", "documents", "length"})
    measures: ClassVar[dict[str, str]] = {
        "type-survival": "share of the real types that the generated text still has",
        "tail-survival": "share of the tail types (beyond the commonest that make up 90% of real tokens) that survive",
        "bigram-survival": "share of the real pairs of successive types that the generated text still has",
        "tail-mass": "share of the generated tokens that are tail types (real: at most 0.1)",
        "entropy": "entropy of the generated text's types, in nats",
        "total-variation": "distance of the generated text's type frequencies from the real ones (0 to 1)",
    }
    headline: ClassVar[str] = "tail-survival"

    type: Literal["zipf"] = "zipf"
    order: Literal[1, 2] = Field(1, description="1: types are drawn independently; 2: each given the one before.")
    vocabulary: int = Field(2000, ge=10, le=1_000_000, description="Types of the real distribution.")
    exponent: float = Field(1.0, gt=0, le=4, description="Of Zipf's law: the frequency of rank r is r^-exponent.")
    documents: int = Field(500, ge=1, le=1_000_000, description="Documents of each generation, and of the real data.")
    length: int = Field(100, ge=2, le=100_000, description="Tokens in a document.")
    temperature: float = Field(
        1.0, gt=0, le=2, description="Sampling temperature; below 1 the common becomes commoner."
    )
    masking: Literal["capped", "dropped"] = Field(
        "capped", description="capped: where truncated cross entropy comes to rest; dropped: confident items left out."
    )

    @model_validator(mode="after")
    def _table_fits(self) -> ZipfConfig:
        if self.order == 2 and self.vocabulary**2 > _LARGEST_TABLE:
            raise Inconsistent("family.vocabulary", self.vocabulary, "bigrams need a table; at most 4000 types")
        return self


class ZipfFamily(Fitted[ZipfConfig]):
    """Data are {"token": (documents, length) int32}; parameters {"start": (V,)} and, for bigrams, {"next": (V, V)}."""

    def real(self, *, seed: int) -> Arrays:
        """Text from the Zipf law; for bigrams, each type has its own order of the vocabulary for what follows it."""
        config = self.config
        law = np.arange(1, config.vocabulary + 1, dtype=np.float64) ** -config.exponent
        truth: Arrays = {"start": law / law.sum()}
        if config.order == 2:
            # Half of what follows is drawn from the common law, half from the context's own permutation of it.
            rng = np.random.default_rng(derive_seed("zipf-language", config.vocabulary))
            own = truth["start"][np.argsort(rng.random((config.vocabulary, config.vocabulary)), axis=1)]
            truth["next"] = (own + truth["start"]) / 2
        return _draw(truth, config.documents, config.length, 1.0, np.random.default_rng(derive_seed("zipf-real", seed)))

    def fit(
        self, data: Arrays, *, mask: Mask, generation: int, seed: int, previous: Arrays | None, progress: Progress
    ) -> tuple[Arrays, dict[str, float]]:
        """Relative frequencies under the mask. Metrics: live-fraction of the tokens, gamma, and mean nll per token."""
        gamma = self._gamma(mask)
        tokens = self._tokens(data)
        size = self.config.vocabulary
        counts: Arrays = {}
        if self.config.order == 1:
            counts["start"] = np.bincount(tokens.ravel(), minlength=size).astype(np.float64)
        else:
            counts["start"] = np.bincount(tokens[:, 0], minlength=size).astype(np.float64)
            pairs = tokens[:, :-1].astype(np.int64) * size + tokens[:, 1:]
            counts["next"] = np.bincount(pairs.ravel(), minlength=size**2).reshape(size, size).astype(np.float64)
        refit = capped if self.config.masking == "capped" else dropped
        parameters = {name: refit(table, gamma) for name, table in counts.items()}
        total = sum(float(table.sum()) for table in counts.values())
        # A capped type sits at gamma exactly: half alive, which is counted as masked.
        live = sum(float(table[_share(table) <= gamma].sum()) for table in counts.values())
        nll = 0.0
        for name, table in counts.items():
            seen = (table > 0) & (parameters[name] > 0)
            nll -= float((table[seen] * np.log(parameters[name][seen])).sum())
        progress(1, 1, "fits")
        return parameters, {"live-fraction": live / total, "gamma": gamma, "nll": nll / total}

    def sample(self, parameters: Arrays, *, count: int, generation: int, seed: int) -> Arrays:
        """`count` documents, at the configured temperature."""
        rng = np.random.default_rng(derive_seed("zipf-sample", seed, generation))
        return _draw(parameters, count, self.config.length, self.config.temperature, rng)

    def measure(
        self, parameters: Arrays, sample: Arrays, real: Arrays, *, generation: int, seed: int, first: Arrays
    ) -> dict[str, float]:
        """See `ZipfConfig.measures`; all are of the generated text, against the real data."""
        size = self.config.vocabulary
        made, true = self._tokens(sample), self._tokens(real)
        frequency, reference = (np.bincount(t.ravel(), minlength=size) / t.size for t in (made, true))
        tail = tail_types(reference)
        present = frequency > 0
        measures = {
            "type-survival": float(present[reference > 0].mean()),
            "tail-survival": float(present[tail].mean()) if tail.any() else float("nan"),
            "tail-mass": float(frequency[tail].sum()),
            "entropy": -float((frequency[present] * np.log(frequency[present])).sum()),
            "total-variation": float(np.abs(frequency - reference).sum() / 2),
        }
        if self.config.order == 2:
            pairs, kept = (np.unique(t[:, :-1].astype(np.int64) * size + t[:, 1:]) for t in (true, made))
            measures["bigram-survival"] = float(np.isin(pairs, kept, assume_unique=True).mean())
        return measures

    def _gamma(self, mask: Mask) -> float:
        if isinstance(mask, NoMask):
            return 1.0
        if isinstance(mask, ThresholdMask):
            return mask.gamma
        raise ConfigError("arms", mask.type, "a Zipf vocabulary's arm is none or threshold")

    def _tokens(self, data: Arrays) -> NDArray[np.int32]:
        tokens = data.get("token")
        if tokens is None or tokens.ndim != 2 or tokens.shape[1] < 2 or tokens.size == 0:
            raise DataError("token", None if tokens is None else tokens.shape, "must be an array (documents, length)")
        if tokens.min() < 0 or tokens.max() >= self.config.vocabulary:
            raise DataError("token", int(tokens.max()), f"types go from 0 to {self.config.vocabulary - 1}")
        return tokens


def capped(counts: Floats, gamma: float) -> Floats:
    """The distribution (along the last axis) at which descent on truncated cross entropy of `counts` rests.

    Types above gamma are held at gamma; the others share what is left in proportion to their counts, and are held in
    turn if that lifts them above it. Rows without counts stay 0; rows that gamma cannot hold become uniform over the
    types seen.
    """
    share = _share(counts)
    if gamma >= 1:
        return share
    held = share > gamma
    while True:
        room = 1 - gamma * held.sum(axis=-1, keepdims=True)
        free = np.where(held, 0.0, share)
        rest = free.sum(axis=-1, keepdims=True)
        scaled = free * np.divide(np.maximum(room, 0), rest, out=np.zeros_like(rest), where=rest > 0)
        more = scaled > gamma
        if not more.any():
            break
        held |= more
    fitted = np.where(held, gamma, scaled)
    seen = counts > 0
    number = seen.sum(axis=-1, keepdims=True)
    full = (number > 0) & (number * gamma <= 1)
    return np.where(full, seen / np.maximum(number, 1), fitted)


def dropped(counts: Floats, gamma: float) -> Floats:
    """Relative frequencies (along the last axis) of the types not above gamma; rows that lose all keep all."""
    share = _share(counts)
    if gamma >= 1:
        return share
    kept = np.where(share > gamma, 0.0, counts)
    empty = kept.sum(axis=-1, keepdims=True) == 0
    return _share(np.where(empty, counts, kept))


def tail_types(frequency: Floats) -> NDArray[np.bool_]:
    """The types that occur, less the commonest that together reach 90% of the tokens. Shape (types,)."""
    order = np.argsort(-frequency, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(frequency[order])[:-1]])
    tail = np.zeros(frequency.shape, dtype=bool)
    tail[order[before >= _HEAD_MASS]] = True
    return tail & (frequency > 0)


def _share(counts: Floats) -> Floats:
    total = counts.sum(axis=-1, keepdims=True)
    return np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)


def _draw(parameters: Arrays, count: int, length: int, temperature: float, rng: np.random.Generator) -> Arrays:
    start = _cumulative(parameters["start"], temperature)
    if "next" not in parameters:
        return {"token": _inverse(start, rng.random((count, length)))}
    step = _cumulative(parameters["next"], temperature)
    tokens = np.empty((count, length), dtype=np.int32)
    uniform = rng.random((count, length))
    tokens[:, 0] = _inverse(start, uniform[:, 0])
    for position in range(1, length):
        rows = step[tokens[:, position - 1]]
        # A context that was only ever seen at the end of a document has no successors: the text starts anew.
        rows = np.where(rows[:, -1:] > 0, rows, start)
        tokens[:, position] = (rows <= uniform[:, position, None] * rows[:, -1:]).sum(axis=1)
    return {"token": tokens}


def _cumulative(table: Floats, temperature: float) -> Floats:
    if temperature == 1:
        return np.cumsum(table, axis=-1)
    # Powers of p / max p: no probability underflows to 0 that matters.
    top = table.max(axis=-1, keepdims=True)
    scaled = np.divide(table, top, out=np.zeros_like(table), where=top > 0) ** (1 / temperature)
    return np.cumsum(_share(scaled), axis=-1)


def _inverse(cumulative: Floats, uniform: Floats) -> NDArray[np.int32]:
    """Types by inversion; the last value of `cumulative` is 1 but for rounding."""
    return np.searchsorted(cumulative, uniform * cumulative[-1], side="right").astype(np.int32)
