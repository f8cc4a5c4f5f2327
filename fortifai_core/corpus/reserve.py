"""Divides a corpus's documents into real text, validation and pretraining, disjoint and without chance."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence

from fortifai_core.corpus.documents import Document, Question, Source, chosen
from fortifai_core.corpus.questions.baselines import baseline, unigram_score, unseen_words, word_counts
from fortifai_core.errors import Unusable

_FAR = 2.58  # standard errors, of guessing: one in a hundred by chance


def assemble(
    *,
    documents: Sequence[Document],
    questions: Sequence[Question],
    validation: Sequence[Document] | None,
    pretraining_fraction: float,
    validation_fraction: float,
    splits: int,
    origin: str,
    notes: Sequence[str] = (),
) -> Source:
    """A Source from documents that were read, with a share of them kept apart.

    Kept documents lie at even distances, and those without questions (and whose text occurs only once) are taken
    first; questions about kept documents, or about documents that are not used, are left out, and a note says how
    many. A kept document whose text is also in the corpus is dropped.

    Args:
        documents: those that are used, in order.
        questions: each names a document, used or not.
        validation: the dataset's own validation text; None: `validation_fraction` of the documents is held out.
        splits: parts into which the rest will be cut.
        origin: the files or the dataset that the documents were read from, named where there is too little text.

    Raises:
        Unusable: fewer documents are left than splits, or none to validate on or to pretrain with.
    """
    asked = {q.document for q in questions}
    ids: list[str] = []
    digests: list[bytes] = []  # in the place of the texts, which may be larger than memory
    for document in documents:
        ids.append(document.id)
        digests.append(_digest(document))
    occurrences = Counter(digests)
    needed = [name in asked or occurrences[digest] > 1 for name, digest in zip(ids, digests, strict=True)]

    rest = list(range(len(documents)))
    kept: dict[str, list[int]] = {}
    wanted = {"pretraining": pretraining_fraction, "validation": 0.0 if validation is not None else validation_fraction}
    for purpose, fraction in wanted.items():
        count = max(1, round(fraction * len(documents))) if fraction else 0
        picked = set(_pick(rest, count, avoid=[i for i in rest if needed[i]]))
        kept[purpose] = sorted(picked)
        rest = [i for i in rest if i not in picked]
    if len(rest) < splits:
        raise Unusable(
            origin,
            f"of {len(documents)} documents {len(rest)} are left for {splits} splits, after "
            f"{len(kept['pretraining'])} for pretraining and {len(kept['validation'])} for validation: add "
            "documents (a blank line divides them in .txt files), or lower splits, pretraining_fraction "
            "or validation_fraction",
        )
    real = chosen(documents, rest)
    said = [*notes]
    texts = {digests[i] for i in rest}
    kept_texts = [i for i in kept["pretraining"] if digests[i] not in texts]
    pretraining = chosen(documents, kept_texts)
    texts |= {digests[i] for i in kept_texts}
    if validation is None:
        tuning = [i for i in kept["validation"] if digests[i] not in texts]
        held_out, given = chosen(documents, tuning), len(kept["validation"])
    else:
        tuning = [i for i, document in enumerate(validation) if _digest(document) not in texts]
        held_out, given = chosen(validation, tuning), len(validation)
    dropped = len(kept["pretraining"]) - len(pretraining) + given - len(held_out)
    if dropped:
        said.append(f"{dropped:,} kept documents were dropped: the same text occurs elsewhere in the corpus.")
    for purpose, left, expected in (
        ("pretraining", pretraining, bool(pretraining_fraction)),
        ("validation", held_out, True),
    ):
        if expected and not left:
            raise Unusable(origin, f"no text is left for {purpose} that is not also elsewhere: add documents")
    left_ids = {ids[i] for i in rest} if questions else set()
    remaining = [q for q in questions if q.document in left_ids]
    said += _question_notes(
        questions,
        remaining,
        documents,
        used=set(ids) if questions else set(),
        kept=len(kept["pretraining"]) + len(kept["validation"]),
    )
    return Source(documents=real, questions=remaining, validation=held_out, pretraining=pretraining, notes=said)


def _pick(candidates: Sequence[int], count: int, *, avoid: Sequence[int]) -> list[int]:
    """`count` of the candidates at even distances, first of those that need not be avoided."""
    avoided = set(avoid)
    free = [i for i in candidates if i not in avoided]
    if count <= len(free):
        return _evenly(free, count)
    return free + _evenly(list(avoid), min(count - len(free), len(avoid)))


def _evenly(items: Sequence[int], count: int) -> list[int]:
    return [items[(2 * j + 1) * len(items) // (2 * count)] for j in range(count)]


def _digest(document: Document) -> bytes:
    return hashlib.blake2b(document.text.encode(errors="surrogatepass"), digest_size=16).digest()


def _question_notes(
    questions: Sequence[Question],
    remaining: Sequence[Question],
    documents: Sequence[Document],
    *,
    used: set[str],
    kept: int,
) -> list[str]:
    notes = []
    unused = sum(q.document not in used for q in questions)
    if unused:
        notes.append(f"{unused:,} of {len(questions):,} questions are about documents that are not used: left out.")
    reserved = len(questions) - unused - len(remaining)
    if reserved:
        notes.append(
            f"{reserved:,} of {len(questions):,} questions are about the {kept:,} documents kept for "
            f"pretraining or validation: left out, {len(remaining):,} are asked."
        )
    if remaining:
        unseen, of_true = unseen_words(remaining, (d.text for d in documents))
        if unseen:
            notes.append(
                f"Ceiling: in {unseen:,} of {len(remaining):,} questions ({unseen / len(remaining):.1%}) a "
                "word that separates the true from the false answer never occurs in the corpus "
                f"(in {of_true:,} a word of the true answer): this text alone cannot teach them all."
            )
        pairs = [(q.true_answer, q.false_answer) for q in remaining]
        share = baseline(pairs, unigram_score(word_counts(d.text for d in documents))).share
        if abs(share - 0.5) > _FAR * 0.5 / math.sqrt(len(remaining)):
            notes.append(
                f"Baseline: by word frequencies alone the true answer is the likelier one in {share:.0%} of the "
                f"{len(remaining):,} questions, not in half of them. A model that has learned nothing else scores that."
            )
    return notes
