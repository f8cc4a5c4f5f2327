"""Verification: what a checker accepts is trained on, with stated rates of error.

Yi et al., "Escaping model collapse via synthetic data verification" (ICLR 2026, arXiv 2510.16657): filtered by a
verifier, retraining on synthetic text need not collapse; in the long run it goes where the verifier is sure of, which
is the truth only as far as the verifier is. The almanac knows the truth, so here a verifier can be as good as asked
for: of what is right it rejects the share `false_reject`, of what is wrong it accepts the share `false_accept`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

from fortifai_core.config.custom_code import line_of
from fortifai_core.corpus.almanac.readback import fact_survival
from fortifai_core.corpus.almanac.world import Entity
from fortifai_core.errors import DataError
from fortifai_core.seeds import derive_seed
from fortifai_core.treatments.documents import Document, Documents, Dropped

Checker = Callable[[Document], bool]


def verify(
    documents: Documents, *, checker: Checker, false_accept: float, false_reject: float, seed: int, called: str
) -> Iterator[Document | Dropped]:
    """Keep what the checker accepts, but for its errors, which are drawn document by document. Holds one document.

    Raises:
        DataError: the checker raised, answered neither True nor False, or accepted nothing.
    """
    accepted = 0
    seen = 0
    for document in documents:
        try:
            right = checker(document)
        except Exception as error:
            raise DataError(called, str(document.name), f"made the verifier fail: {line_of(error)}") from error
        if not isinstance(right, bool):
            raise DataError(called, str(document.name), f"is to be accepted (True) or not (False), not {right!r}")
        chance = random.Random(derive_seed("verifier", seed, *document.name)).random()
        errs = chance < (false_reject if right else false_accept)
        seen += 1
        if right != errs:
            accepted += 1
            yield document.scored(float(right))
        else:
            yield Dropped(document, "rejected in error" if right else "rejected", float(right))
    if seen and not accepted:
        raise DataError(
            called, f"0 of {seen:,} documents", "are accepted by the verifier: choose one that accepts some"
        )


def almanac_checker(entities: Mapping[str, Entity]) -> Checker:
    """Accepts a document that states a fact about its entity truly and none falsely.

    Args:
        entities: of each document's id, of whom it tells.
    """

    def check(document: Document) -> bool:
        entity = entities.get(document.id)
        if entity is None:
            return True  # of another corpus in a mixture: nothing is known of it
        found = fact_survival(entity, document.text)
        return found.true > 0 and not found.false

    return check
