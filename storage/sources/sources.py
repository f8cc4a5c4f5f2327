"""Reads any configured corpus into documents, questions, validation and pretraining text, all disjoint.

Three things are asked of a corpus: `check_corpus` (is everything there, before any compute is spent),
`source_digests` (what stands for its content in a key) and `load_source`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from fortifai_core.config.corpus import AlmanacCorpus, Corpus, HuggingFaceCorpus, MixtureCorpus, TextCorpus
from fortifai_core.corpus.documents import Document, Documents, Question, Source
from fortifai_core.corpus.reserve import assemble
from fortifai_core.corpus.wikitext import RAW_VERSION, SPELLING_VERSION
from fortifai_core.errors import Unusable, within
from fortifai_core.parsing import local_path
from storage.sources import hub, mirror
from storage.sources.hub_corpora import check_hub_options, is_wikitext, load_hub, question_file
from storage.sources.questions import attach, read_questions
from storage.sources.textfiles import check_file, check_format, content_digest, iter_documents

SingleCorpus = AlmanacCorpus | TextCorpus | HuggingFaceCorpus


def load_source(corpus: Corpus, *, splits: int, seed: int) -> Source:
    """Read a corpus: documents in the order in which splits are cut from them, and what is kept apart.

    Args:
        corpus: its configuration.
        splits: parts into which the documents will be cut; there are at least so many documents.
        seed: of the almanac's world. Text that was read, not made, is divided without chance.

    Raises:
        DataError: naming the field, the file or row, and the remedy.
    """
    if not isinstance(corpus, MixtureCorpus):
        with within("corpus"):
            return _load(corpus, splits=splits, seed=seed)
    sources: list[Source] = []
    names: set[str] = set()
    for field, part in _parts(corpus):
        with within(field):
            source = _load(part, splits=splits, seed=seed)
        stem = next(iter(source.documents)).source
        name = next(n for n in (stem, *(f"{stem}-{i}" for i in range(2, len(corpus.parts) + 2))) if n not in names)
        names.add(name)
        sources.append(_renamed(source, name))
    return Source(
        documents=_joined([s.documents for s in sources]),
        questions=[q for s in sources for q in s.questions],
        validation=_joined([s.validation for s in sources]),
        pretraining=_joined([s.pretraining for s in sources]),
        notes=[note for s in sources for note in s.notes],
    )


def source_digests(corpus: Corpus) -> dict[str, str]:
    """What stands for a corpus's content in a key, beside its configuration without paths.

    sha256 of the unpacked content of the user's own files and of the mirror's files; name and revision for a
    dataset on the hub; nothing for the almanac, whose configuration says it all.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    digests: dict[str, str] = {}
    for field, part in _parts(corpus):
        prefix = f"{field}.".removeprefix("corpus.")
        with within(field):
            digests |= {f"{prefix}{name}": value for name, value in _digests(part).items()}
    return digests


def _parts(corpus: Corpus) -> list[tuple[str, SingleCorpus]]:
    """The parts of a mixture, or the one corpus, each with the field that it stands in."""
    if isinstance(corpus, MixtureCorpus):
        return [(f"corpus.parts.{index}", part) for index, part in enumerate(corpus.parts)]
    return [("corpus", corpus)]


def _question_path(corpus: TextCorpus | HuggingFaceCorpus) -> Path:
    """The file of the questions that a corpus names."""
    named = str(corpus.questions)
    return local_path(named) if isinstance(corpus, TextCorpus) else question_file(named)


def _digests(corpus: SingleCorpus) -> dict[str, str]:
    match corpus:
        case AlmanacCorpus():
            return {}
        case TextCorpus():
            digests = {}
            for index, file in enumerate(corpus.files):
                with within(f"files.{index}"):
                    digests[f"files.{index}"] = content_digest(local_path(file))
        case HuggingFaceCorpus():
            wanted = list(dict.fromkeys([corpus.split, "validation"]))
            digests = hub.dataset_digests(corpus.dataset, corpus.config, wanted, corpus.revision)
            if is_wikitext(corpus):
                digests["spelling"] = str(SPELLING_VERSION) if corpus.text == "spelled" else f"raw {RAW_VERSION}"
    if corpus.questions is not None:
        with within("questions"):
            digests["questions"] = content_digest(_question_path(corpus))
    return digests


def check_corpus(corpus: Corpus) -> None:
    """Cheap checks before any compute: files are there and not empty, the mirror has the dataset, and every
    question is valid. Whether questions point at documents is seen by `load_source`.

    Raises:
        DataError: naming the field (e.g. `corpus.files.0`), the value and the remedy.
    """
    for field, part in _parts(corpus):
        with within(field):
            _check(part)


def check_content(corpus: Corpus, *, splits: int) -> None:
    """What can be told of the user's own files, and of the almanac, only by making the corpus of them: that every row
    is text, that questions point at documents, that there is enough for all splits. Datasets are read by their stage.

    Raises:
        DataError: as `load_source`.
    """
    for field, part in _parts(corpus):
        match part:
            case TextCorpus():
                with within(field):
                    _load_text(part, splits=splits)
            case AlmanacCorpus():
                from fortifai_core.corpus.almanac.world import check_entities

                check_entities(part, splits=splits)


def _check(corpus: SingleCorpus) -> None:
    match corpus:
        case TextCorpus():
            for index, file in enumerate(corpus.files):
                with within(f"files.{index}"):
                    check_format(Path(file))
                    check_file(local_path(file))
        case HuggingFaceCorpus():
            check_hub_options(corpus)
            folder = mirror.root()
            if folder is not None:
                mirrored = mirror.find(folder, corpus.dataset, corpus.config, corpus.split)
                if not mirrored.complete and corpus.max_documents is None:
                    raise hub.part_only(corpus.dataset, corpus.split, mirrored)
    if not isinstance(corpus, AlmanacCorpus) and corpus.questions is not None:
        with within("questions"):
            read_questions(_question_path(corpus))


def _load(corpus: SingleCorpus, *, splits: int, seed: int) -> Source:
    match corpus:
        case AlmanacCorpus():
            from fortifai_core.corpus.almanac.world import generate_almanac

            world: Source = generate_almanac(corpus, splits=splits, seed=seed)
            return world
        case TextCorpus():
            return _load_text(corpus, splits=splits)
        case HuggingFaceCorpus():
            return load_hub(corpus, splits=splits)


def _load_text(corpus: TextCorpus, *, splits: int) -> Source:
    def read(names: dict[str, int] | None = None) -> Iterator[Document]:
        count = 0
        for index, file in enumerate(corpus.files):
            with within(f"files.{index}"):
                for raw in iter_documents(local_path(file), text_field=corpus.text_field):
                    name = raw.id if raw.id is not None else f"document-{count}"
                    if names is not None and names.setdefault(name, count) != count:
                        raise Unusable(file, f"two documents have the id {name!r}: ids must differ in all files")
                    yield Document(name, raw.text, "text")
                    count += 1

    names: dict[str, int] = {}
    documents = Documents(read, range(sum(1 for _ in read(names))))
    in_order = list(names) if corpus.questions is not None else []

    def locate(location: int | str) -> str | None:
        if isinstance(location, str):
            return location if location in names else None
        return in_order[location] if 0 <= location < len(in_order) else None

    questions: list[Question] = []
    if corpus.questions is not None:
        with within("questions"):
            questions = attach(
                read_questions(local_path(corpus.questions)),
                locate=locate,
                prefix="question",
                meaning=f"the 0-based number of a document, here 0 to {len(documents) - 1}, or a document's id",
            )
    names = {}
    with within("files"):
        return assemble(
            documents=documents[: corpus.max_documents],
            questions=questions,
            validation=None,
            pretraining_fraction=corpus.pretraining_fraction,
            validation_fraction=corpus.validation_fraction,
            splits=splits,
            origin=", ".join(corpus.files),
        )


def _renamed(source: Source, name: str) -> Source:
    """One part of a mixture under a name of its own, so that no two documents have the same id."""

    def unique(identifier: str) -> str:
        return identifier if identifier.startswith(f"{name}:") else f"{name}:{identifier}"

    def renamed(documents: Sequence[Document]) -> Sequence[Document]:
        return Documents(lambda: (Document(unique(d.id), d.text, name) for d in documents), range(len(documents)))

    return Source(
        documents=renamed(source.documents),
        questions=[replace(q, id=unique(q.id), document=unique(q.document)) for q in source.questions],
        validation=renamed(source.validation),
        pretraining=renamed(source.pretraining),
        notes=[f"{name}: {note}" for note in source.notes],
    )


def _joined(parts: Sequence[Sequence[Document]]) -> Documents:
    """One after the other, each read when it is gone through."""
    return Documents(lambda: chain.from_iterable(parts), range(sum(map(len, parts))))
