"""An arm as configured: a name, what it does otherwise than the experiment, whom it reads; and that in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from fortifai_core.config.loss import Loss
from fortifai_core.config.stages import Regime
from fortifai_core.config.treatment import Treatment
from fortifai_core.settings import Frozen

Share = Annotated[float, Field(gt=0, le=1)]
NAME = r"^[a-z0-9][a-z0-9.-]{0,62}$"
LONGEST = 6  # differences that a sentence lists


class ArmSettings(Frozen):
    """One arm. A loss, a regime and treatments stand for the experiment's; of the sections only the fields given do."""

    later: ClassVar[frozenset[str]] = frozenset(
        {"loss", "regime", "mixture", "treatments", "training", "regeneration", "model", "pool"}
    )

    name: str = Field(pattern=NAME, description="How the arm is called: lower case, digits, dots, dashes.")
    loss: Loss | None = Field(None, description="Instead of the experiment's.")
    regime: Regime | None = Field(None, description="Instead of the experiment's regime and mixture.")
    mixture: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the mixture; where there is one, instead of any regime."
    )
    treatments: tuple[Treatment, ...] | None = Field(None, description="All of this arm's, in order; [] for none.")
    training: dict[str, Any] = Field(default_factory=dict, description="Fields of the training.")
    regeneration: dict[str, Any] = Field(default_factory=dict, description="Fields of the rewriting: decoding.")
    model: dict[str, Any] = Field(
        default_factory=dict, description="Fields of the model; with another type, a whole model."
    )
    pool: dict[str, Share] = Field(
        default_factory=dict,
        description="Arms, itself among them or not, and the share of documents that it reads as each rewrote them.",
    )

    @property
    def pool_label(self) -> str | None:
        """In words: `50% small, 50% large`; None for an arm that reads itself alone."""
        return ", ".join(f"{100 * share:.4g}% {name}" for name, share in self.pool.items()) or None

    def over(self, experiment: Mapping[str, Any]) -> dict[str, Any]:
        """An experiment's fields with this arm's in their places, but for whom it reads, which is between arms.

        Args:
            experiment: as `model_dump` gives it.
        """
        data: dict[str, Any] = {**experiment, "arms": []}
        if self.loss is not None:
            data["losses"] = [self.loss.model_dump()]
        if self.regime is not None:
            data |= {"regime": self.regime, "mixture": None}
        if self.mixture:
            data |= {"regime": Regime.PAPER, "mixture": {**(data.get("mixture") or {}), **self.mixture}}
        if self.treatments is not None:
            data["treatments"] = [treatment.model_dump() for treatment in self.treatments]
        for section in ("training", "regeneration", "model"):
            given: dict[str, Any] = getattr(self, section)
            other = given.get("type", data[section].get("type")) != data[section].get("type")
            data[section] = given if other else {**data[section], **given}
        return data


def difference(arm: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    """How an arm differs from the first, in one line.

    >>> difference({"loss": "tce-0.9", "training": {"epochs": 3}}, {"loss": "ce", "training": {"epochs": 12}})
    'loss tce-0.9 (first: ce); training.epochs 3 (first: 12)'
    """
    mine, theirs = dict(_leaves(arm)), dict(_leaves(first))
    names = [name for name in {**theirs, **mine} if mine.get(name) != theirs.get(name)]
    parts = [f"{name} {_written(mine.get(name))} (first: {_written(theirs.get(name))})" for name in names]
    more = f"; and {len(parts) - LONGEST} more" if len(parts) > LONGEST else ""
    return "; ".join(parts[:LONGEST]) + more


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Frozen):
        value = dict(value)
    if isinstance(value, Mapping):
        for field, part in value.items():
            yield from _leaves(part, f"{name}.{field}" if name else str(field))
    else:
        yield name, value


def _written(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)
