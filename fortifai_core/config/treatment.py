"""What may be done to synthetic text between rewriting and training, as configured."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fortifai_core.settings import Frozen


class Deduplicate(Frozen):
    """Drops documents whose text is that of an earlier one."""

    type: Literal["deduplicate"] = "deduplicate"

    @property
    def label(self) -> str:
        return "deduplicate"


class CustomTreatment(Frozen):
    """A user's own, or one that an installed package offers."""

    type: Literal["custom"] = "custom"
    function: str = Field(
        pattern=r"^([\w.]+:\w+|[\w-]{1,63})$",
        description="A name of the entry points `fortifai.treatments`, or `module:function`.",
    )
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,62}$", description="How it is called.")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for the function.")

    @property
    def label(self) -> str:
        return self.name


# Every treatment is registered here: `type` tells them apart, `label` is how one is called.
Treatment = Annotated[Deduplicate | CustomTreatment, Field(discriminator="type")]
