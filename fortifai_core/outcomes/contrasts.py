"""Contrasts: what some arms have more than others, seed by seed, such as an effect under one condition and another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fortifai_core.outcomes.inference import Effect, Sampled, effect_of


@dataclass(frozen=True)
class Contrast:
    """The sum of some arms' values less that of others: two arms and two give the difference of two differences.

    Attributes:
        name: in a word or two.
        plus, minus: labels of arms.
    """

    name: str
    plus: tuple[str, ...]
    minus: tuple[str, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        return (*self.plus, *self.minus)

    @property
    def words(self) -> str:
        """`a + b − c − d`."""
        return " + ".join(self.plus) + "".join(f" − {arm}" for arm in self.minus)

    def effect(self, values: Mapping[str, Mapping[int, float]], *, share: bool = False) -> Effect | None:
        """The mean over the seeds that all its arms have, with Student's error of that mean; None without such a seed.

        Args:
            values: arm → seed → value.
            share: they are shares: seeds that are all alike do not show that there is no difference (`effect_of`).
        """
        seeds = set.intersection(*(set(values.get(arm, {})) for arm in self.arms))

        def summed(arms: tuple[str, ...]) -> dict[int, Sampled]:
            return {seed: Sampled(sum(values[arm][seed] for arm in arms)) for seed in seeds}

        return effect_of(summed(self.plus), summed(self.minus), share=share)
