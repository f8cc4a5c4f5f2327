"""Text that mixtures and treatments leave at most: less than one batch is refused before any compute."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.config.treatment import CustomTreatment, Detector, SurpriseFilter, Treatment
from fortifai_core.corpus.schedule import text_shares, training_set
from fortifai_core.corpus.tokenization import encode_documents
from fortifai_core.errors import ConfigError
from tasks.language.plan import world_of
from tasks.language.sizes import Lengths, is_at_hand, read_sizes, tokenizer_for
from tasks.language.treatments import treatments_field

# A token has fewer bytes than this on average, in any text that trains a model.
BYTES = 16


class Held(NamedTuple):
    """A document of a generation's text."""

    tokens: int
    real: bool


def check_amounts(config: ExperimentConfig) -> None:
    """Refuse an arm whose mixture or treatments cannot leave one batch of text, however they choose.

    A corpus that is not on this machine yet is not looked at. Its bytes are counted first, which are not fewer than its
    tokens: a text that is large by far needs no tokenizer.

    Raises:
        ConfigError: naming the field, its value and the remedy.
    """
    if not is_at_hand(config.corpus):
        return
    for index, arm in enumerate(config.resolved_arms()):
        under = arm.experiment
        if not (under.treatments or under.mixture):
            continue
        field = treatments_field(config, index) if under.treatments else "mixture"
        field = f"arms.{index}.mixture" if field == "mixture" and config.arms and config.arms[index].mixture else field
        for world in dict.fromkeys(world_of(config, seed) for seed in config.seeds):
            _check_arm(under, world, field)


def _check_arm(config: ExperimentConfig, world: int, field: str) -> None:
    least = config.training.batch_size

    def in_bytes(texts: Sequence[str]) -> list[int]:
        return [len(text.encode(errors="surrogatepass")) for text in texts]

    if all(rows >= BYTES * least for _, rows in _rows(config, world, in_bytes)):
        return
    tokenizer = tokenizer_for(config.model, config.corpus, splits=config.splits)
    for generation, rows in _rows(
        config, world, lambda texts: [len(one) for one in encode_documents(tokenizer, texts)]
    ):
        if rows < least:
            told = ", ".join(one.label for one in config.treatments) or (config.mixture and config.mixture.label)
            remedy = (
                f"leaves at most {rows} sequences of M_{generation}'s text, and training.batch_size is {least}: "
                "keep more text, shorten training.sequence_length, or lower the batch size"
            )
            raise ConfigError(field, told, remedy)


def _rows(config: ExperimentConfig, world: int, lengths: Lengths) -> Iterator[tuple[int, int]]:
    """Generation after generation, the training sequences that are left at most."""
    documents = read_sizes(config.corpus, splits=config.splits, world=world, lengths=lengths).documents
    for generation in range(1, config.generations):
        texts = training_set(config.reading, generation)
        if all(version.real for version in texts):
            continue
        held = [[Held(size, version.real) for size in documents[version.split]] for version in texts]
        found = most_rows(
            held,
            shares=text_shares(config.reading, generation),
            treatments=config.treatments,
            length=config.training.sequence_length,
            batch=config.training.batch_size,
        )
        if found is not None:
            yield generation, found


def most_rows(
    texts: Sequence[Sequence[Held]],
    *,
    shares: Sequence[float] | None,
    treatments: Sequence[Treatment],
    length: int,
    batch: int,
) -> int | None:
    """Sequences of `length` tokens that a generation is trained on at most; None: it cannot be said.

    Args:
        texts: the documents of each text that it reads; `shares`: how much of each, None: all.
        batch: where all of the text is less than one, no mixture is to blame.
    """
    whole = [_packed(text, length) for text in texts]
    if not treatments:
        if shares is None or sum(whole) < batch:
            return None
        # as training draws them; of each text one at least
        return sum(max(1, round(share * rows)) for share, rows in zip(shares, whole, strict=True))
    left = [one for text in texts for one in text]
    for treatment in treatments:
        most = _left(treatment, left)
        if most is None:
            return None
        left = most
    return _packed(left, length) + len(texts) - 1  # texts that are read in part have a last sequence each


def _packed(documents: Sequence[Held], length: int) -> int:
    tokens = sum(one.tokens + 1 for one in documents)  # and what ends each
    return tokens // length + (tokens % length > 1)


def _left(treatment: Treatment, documents: Sequence[Held]) -> list[Held] | None:
    """The longest documents that a treatment could leave; None: it may add text."""
    if isinstance(treatment, CustomTreatment):
        return None
    treated = [one for one in documents if treatment.of in ("all", "real" if one.real else "synthetic")]
    others = [one for one in documents if treatment.of not in ("all", "real" if one.real else "synthetic")]
    longest = sorted(treated, reverse=True)
    if isinstance(treatment, SurpriseFilter):
        return others + longest[: math.ceil(treatment.keep * len(treated))]
    if isinstance(treatment, Detector):
        copies = [one for one in longest for _ in range(treatment.max_repeats)]
        return others + copies[: round(len(treated) * treatment.upsample)]
    return list(documents)
