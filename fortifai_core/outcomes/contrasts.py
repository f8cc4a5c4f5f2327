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

    def effect(self, values: Mapping[str, Mapping[int, float]]) -> Effect | None:
        """The mean over the seeds that all its arms have, with Student's error of that mean; None without such a seed.

        Args:
            values: arm → seed → value.
        """
        of_arms = [values.get(arm, {}) for arm in self.arms]
        seeds = set.intersection(*(set(one) for one in of_arms))
        sums = {
            seed: sum(values[arm][seed] for arm in self.plus) - sum(values[arm][seed] for arm in self.minus)
            for seed in sorted(seeds)
        }
        return effect_of({seed: Sampled(value) for seed, value in sums.items()})
