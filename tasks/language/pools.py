"""Arms that read each other's text: which belong together, and what is refused before any compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fortifai_core.config.experiment import Arm
from fortifai_core.corpus.schedule import regenerated
from fortifai_core.errors import ConfigError


def pools_of(arms: Sequence[Arm]) -> dict[str, str]:
    """The first of all arms that an arm is bound to, by who reads whom; no arm that is alone."""
    first = {arm.label: arm.label for arm in arms}
    for arm in arms:
        met = {first[arm.label], *(first[name] for name in arm.pool)}
        earliest = next(label for label in first if label in met)
        first = {label: earliest if one in met else one for label, one in first.items()}
    found = list(first.values())
    return {label: one for label, one in first.items() if found.count(one) > 1}


def check_pools(arms: Sequence[Arm], vocabularies: Mapping[str, str]) -> None:
    """Refuse a pool of arms that cannot read each other.

    Args:
        vocabularies: of each arm, what is the same for arms with the same tokenizer.

    Raises:
        ConfigError: naming the field, its value and the remedy.
    """
    named = {arm.label: arm for arm in arms}
    for index, arm in enumerate(arms):
        for name, share in arm.pool.items():
            field, other = f"arms.{index}.pool.{name}", named[name]
            if vocabularies[name] != vocabularies[arm.label]:
                remedy = f"has another tokenizer than {arm.label}, which could not read its tokens: give both the same "
                raise ConfigError(field, share, f"{remedy}model.vocabulary, or pretrained models of one tokenizer")
            for i in range(arm.experiment.generations - 1):
                read, written = (regenerated(one.experiment.reading, i) for one in (arm, other))
                missing = [version for version in read if version not in written]
                if missing:
                    text = f"D{missing[0].split}^({missing[0].version + 1})"
                    remedy = f"does not write {text}, which {arm.label} reads: give both the same regime"
                    raise ConfigError(field, share, remedy)
