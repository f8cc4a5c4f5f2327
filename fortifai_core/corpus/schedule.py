"""Which split versions each generation trains on, rewrites and is tested on, for every data regime.

D_k^(j) is split k after j regenerations; j = 0 is real text. M_i is the model of generation i.

=====================  =====================================================================================
paper                  [D_0^(i), D_1^(i-1), …, D_i^(0)]: all older splits, each rewritten again, plus one new
replace                [D_0^(i)]: one split, each generation's text replacing the last (Shumailov et al. 2024)
accumulate             [D_0^(0), D_0^(1), …, D_0^(i)]: nothing is thrown away (Gerstgrasser et al. 2024)
accumulate-subsample   the same union, sampled down to the size of one split (Kazdan et al. 2025)
fresh-mix              [D_0^(i), D_i^(0)]: half synthetic, half new real text, at constant size
=====================  =====================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

from fortifai_core.config.stages import Regime


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


def training_set(regime: Regime, generation: int) -> list[SplitVersion]:
    """The split versions that M_generation is trained on, in the order in which they are read."""
    i = generation
    match regime:
        case Regime.PAPER:
            return [SplitVersion(k, i - k) for k in range(i + 1)]
        case Regime.REPLACE:
            return [SplitVersion(0, i)]
        case Regime.ACCUMULATE | Regime.ACCUMULATE_SUBSAMPLE:
            return [SplitVersion(0, j) for j in range(i + 1)]
        case Regime.FRESH_MIX:
            return [SplitVersion(0, i)] + ([SplitVersion(i, 0)] if i else [])


def subsample_splits(regime: Regime) -> int | None:
    """To how many splits' worth of text the training set is sampled down; None: it is used whole."""
    return 1 if regime is Regime.ACCUMULATE_SUBSAMPLE else None


def regenerated(regime: Regime, generation: int) -> list[SplitVersion]:
    """The split versions that M_generation rewrites, each into the version after it."""
    return sorted(
        SplitVersion(v.split, v.version - 1)
        for v in training_set(regime, generation + 1)
        if v not in training_set(regime, generation) and not v.real
    )


def splits_seen(regime: Regime, generation: int) -> list[int]:
    """The splits of which some version has been trained on by generation `generation`: those it is tested on."""
    return sorted({v.split for i in range(generation + 1) for v in training_set(regime, i)})


def training_splits(regime: Regime, generation: int) -> tuple[float, float]:
    """Splits' worth of text read in generation `generation`: (all of it, the synthetic part of it)."""
    versions = training_set(regime, generation)
    total, synthetic = float(len(versions)), float(sum(not v.real for v in versions))
    limit = subsample_splits(regime)
    if limit is not None and total > limit:
        return float(limit), synthetic * limit / total
    return total, synthetic
