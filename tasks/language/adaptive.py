"""Losses that choose their gamma: whether there is text to choose it by. No torch; `tasks.language.gamma` chooses."""

from __future__ import annotations

from collections.abc import Sequence

from fortifai_core.config.experiment import Arm
from fortifai_core.config.loss import ADAPTIVE, GapTruncatedLoss
from fortifai_core.corpus.schedule import training_set
from fortifai_core.errors import ConfigError


def check_losses(arms: Sequence[Arm], *, named: bool) -> None:
    """Refuse a loss that chooses its gamma by text which no generation, or not each, reads.

    Args:
        named: the arms have names; otherwise they are the list `losses`.

    Raises:
        ConfigError: naming the field, its value and the remedy.
    """
    for index, arm in enumerate(arms):
        if not isinstance(arm.loss, ADAPTIVE):
            continue
        field, reading = f"arms.{index}.loss" if named else f"losses.{index}", arm.experiment.reading
        origins = [{v.real for v in training_set(reading, i)} for i in range(arm.experiment.generations)]
        if not any(False in of for of in origins):
            remedy = "has no gamma to choose, for no generation reads synthetic text: raise generations, or take tce"
            raise ConfigError(field, arm.loss.label, remedy)
        if isinstance(arm.loss, GapTruncatedLoss) and {False} in origins:
            remedy = f"compares synthetic with real text, and M_{origins.index({False})} reads none that is real"
            raise ConfigError(field, arm.loss.label, f"{remedy}: choose another regime, as paper or fresh-mix")
