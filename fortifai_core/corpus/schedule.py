"""Which split versions each generation trains on, rewrites and is tested on, for every data regime.

D_k^(j) is split k after j regenerations; j = 0 is real text. M_i is the model of generation i.

=====================  =====================================================================================
paper                  [D_0^(i), D_1^(i-1), …, D_i^(0)]: all older splits, each rewritten again, plus one new
replace                [D_0^(i)]: one split, each generation's text replacing the last (Shumailov et al. 2024)
accumulate             [D_0^(0), D_0^(1), …, D_0^(i)]: nothing is thrown away (Gerstgrasser et al. 2024)
accumulate-subsample   the same union, sampled down to the size of one split (Kazdan et al. 2025)
fresh-mix              [D_0^(i), D_i^(0)]: half synthetic, half new real text, at constant size
=====================  =====================================================================================

A `Mixture` reads parts of [D_0^(i), D_i^(0) or D_0^(0)] that add up to a stated share of synthetic text; `replace` and
`fresh-mix` are settings of it, the other regimes have a share that grows with i.
"""

from __future__ import annotations

from dataclasses import dataclass

from fortifai_core.config.stages import SETTINGS, Mixture, Reading, Regime


@dataclass(frozen=True, order=True)
class SplitVersion:
    """D_k^(j): split `split` after `version` regenerations."""

    split: int
    version: int

    @property
    def real(self) -> bool:
        return self.version == 0

    def __str__(self) -> str:
        return f"D{self.split}^({self.version})"


def mixture_of(reading: Reading) -> Mixture | None:
    """The mixture that a regime is a setting of, if it is."""
    return reading if isinstance(reading, Mixture) else SETTINGS.get(reading)


def training_set(reading: Reading, generation: int) -> list[SplitVersion]:
    """The split versions that M_generation is trained on, in the order in which they are read."""
    i = generation
    mixture = mixture_of(reading)
    if mixture is not None:
        return list(_mixed(mixture, i))
    if reading is Regime.PAPER:
        return [SplitVersion(k, i - k) for k in range(i + 1)]
    return [SplitVersion(0, j) for j in range(i + 1)]


def _mixed(mixture: Mixture, i: int) -> dict[SplitVersion, float]:
    """What M_i reads, and how much of each, in splits. M_0 reads split 0, whole."""
    if i == 0:
        return {SplitVersion(0, 0): 1.0}
    written = round(mixture.splits * mixture.synthetic, 12)
    real = SplitVersion(i if mixture.real == "fresh" else 0, 0)
    parts = {SplitVersion(0, i): written, real: round(mixture.splits - written, 12)}
    return {version: part for version, part in parts.items() if part > 0}


def text_shares(reading: Reading, generation: int) -> tuple[float, ...] | None:
    """How much of each of `training_set` is read; None: all of it (or an even draw from the union, which see)."""
    mixture = mixture_of(reading)
    shares = () if mixture is None else tuple(_mixed(mixture, generation).values())
    return None if all(share == 1 for share in shares) else shares


def subsample_splits(regime: Reading) -> int | None:
    """To how many splits' worth of text the training set is sampled down; None: it is used whole."""
    return 1 if regime is Regime.ACCUMULATE_SUBSAMPLE else None


def regenerated(reading: Reading, generation: int) -> list[SplitVersion]:
    """The split versions that M_generation rewrites, each into the version after it.

    Under a mixture that is split 0 in every generation, also where the share of synthetic text is 0: what a model
    writes is measured whether or not the next one reads it.
    """
    if mixture_of(reading) is not None:
        return [SplitVersion(0, generation)]
    return sorted(
        SplitVersion(v.split, v.version - 1)
        for v in training_set(reading, generation + 1)
        if v not in training_set(reading, generation) and not v.real
    )


def splits_seen(reading: Reading, generation: int) -> list[int]:
    """The splits of which some version has been trained on by generation `generation`: those it is tested on."""
    return sorted({v.split for i in range(generation + 1) for v in training_set(reading, i)})


def training_splits(reading: Reading, generation: int) -> tuple[float, float]:
    """Splits' worth of text read in generation `generation`: (all of it, the synthetic part of it)."""
    mixture = mixture_of(reading)
    if mixture is not None:
        parts = _mixed(mixture, generation)
        return sum(parts.values()), sum((part for version, part in parts.items() if not version.real), 0.0)
    versions = training_set(reading, generation)
    total, synthetic = float(len(versions)), float(sum(not v.real for v in versions))
    limit = subsample_splits(reading)
    if limit is not None and total > limit:
        return float(limit), synthetic * limit / total
    return total, synthetic
