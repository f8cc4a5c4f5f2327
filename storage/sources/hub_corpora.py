"""Makes documents of the hub's datasets: WikiText's articles, GSM8K, HellaSwag, and any column of texts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fortifai_core.config.corpus import HuggingFaceCorpus
from fortifai_core.corpus.documents import Document, Question, Source
from fortifai_core.corpus.reserve import assemble
from fortifai_core.corpus.wikitext import RAW_VERSION, SPELLING_VERSION, articles
from fortifai_core.errors import Unusable, within
from fortifai_core.parsing import local_path
from storage.sources import hub, mirror
from storage.sources.questions import attach, read_questions

KR_TEST = "wikitext-2"


def is_wikitext(corpus: HuggingFaceCorpus) -> bool:
    return _base_name(corpus) == "wikitext"


def question_file(questions: str) -> Path:
    """The file behind `questions`: a path, or the mirror's copy of the authors' KR-test."""
    return mirror.kr_questions() if questions == KR_TEST else local_path(questions)


def check_hub_options(corpus: HuggingFaceCorpus) -> None:
    """That the options fit each other.

    Raises:
        Unusable: WikiText without a configuration, the authors' questions with another text than theirs, or raw text
            of a dataset that is not tokenised.
    """
    if corpus.text == "raw" and not is_wikitext(corpus):
        raise Unusable(corpus.text, "only WikiText is tokenised, others are read as they are: remove it", "text")
    if is_wikitext(corpus) and corpus.config is None:
        raise Unusable(None, "WikiText needs one: wikitext-2-v1 or wikitext-2-raw-v1", "config")
    theirs = is_wikitext(corpus) and (corpus.config or "").startswith("wikitext-2-") and corpus.split == "train"
    if corpus.questions == KR_TEST and not theirs:
        remedy = (
            "use Salesforce/wikitext with config wikitext-2-v1 and split train, or name a questions file of your own"
        )
        raise Unusable(corpus.questions, f"these are about WikiText-2's train split: {remedy}", "questions")


def load_hub(corpus: HuggingFaceCorpus, *, splits: int) -> Source:
    """Read a dataset from the mirror or the hub.

    `fraction` and `max_documents` count documents: articles of WikiText, rows of all others (`fraction` 0.5
    of WikiText-2 is its first 300 articles: lines 1 to 18,205 of 36,718, where the paper's authors took
    half of the lines).

    Raises:
        Unusable: as `storage.sources.hub.load_dataset_rows`; a row cannot be read; a question points nowhere.
    """
    check_hub_options(corpus)
    notes: list[str] = []
    documents, locate, meaning = _documents(corpus, corpus.split, notes, whole=False)
    total = len(documents)
    limit = min(corpus.max_documents or total, max(1, int(corpus.fraction * total)))
    if limit < total:
        notes.append(f"Only the first {limit:,} documents are used.")
    questions: list[Question] = []
    if corpus.questions is not None:
        with within("questions"):
            questions = attach(
                read_questions(question_file(corpus.questions)),
                locate=locate,
                prefix=_source_name(corpus),
                meaning=meaning,
            )
    validation = None
    datasets_own = hub.dataset_splits(corpus.dataset, corpus.config, corpus.revision)
    if corpus.split != "validation" and "validation" in datasets_own:
        validation, _, _ = _documents(corpus, "validation", notes, whole=True)
    with within("dataset"):
        return assemble(
            documents=documents[:limit],
            questions=questions,
            validation=validation,
            pretraining_fraction=corpus.pretraining_fraction,
            validation_fraction=corpus.validation_fraction,
            splits=splits,
            origin=corpus.dataset,
            notes=notes,
        )


def _documents(
    corpus: HuggingFaceCorpus, split: str, notes: list[str], *, whole: bool
) -> tuple[list[Document], Callable[[int | str], str | None], str]:
    """Documents of one of the dataset's splits, what finds one of them, and what a location is.

    `whole`: the split is read as far as it is there, whatever `max_documents` says.
    """
    by_article = is_wikitext(corpus)
    source = _source_name(corpus) if split == corpus.split else f"{_source_name(corpus)}-{split}"
    limit = None if by_article or whole or corpus.fraction < 1 else corpus.max_documents
    part = hub.load_dataset_rows(
        corpus.dataset,
        corpus.config,
        split,
        corpus.revision,
        limit=limit,
        allow_part=whole or (by_article and corpus.max_documents is not None and corpus.fraction == 1),
    )
    if part.note:
        notes.append(part.note)
    if by_article:
        lines = [_text(row, "text", index, corpus) for index, row in enumerate(part.rows)]
        read = articles(lines, source=source, raw=corpus.text == "raw")
        documents = read.documents
        if not part.complete and not whole:
            documents = documents[:-1]  # the last article may go on after the part that is there
            if len(documents) < (corpus.max_documents or 0):
                remedy = f"the local mirror has only {len(documents)} whole articles of it: lower max_documents"
                raise Unusable(corpus.max_documents, remedy, "max_documents")
        if not whole:
            form = f"in ordinary spelling, version {SPELLING_VERSION}"
            if corpus.text == "raw":
                form = f"as raw text, version {RAW_VERSION}"
            notes.append(f"WikiText is read {form} (`half @-@ life ,` is `half-life,`).")
        meaning = f"a 0-based line of the split, here {read.starts[0]} to {read.lines - 1}" if read.starts else ""
        found: Callable[[int | str], str | None] = read.locate
    else:
        texts = [_row_text(row, index, corpus) for index, row in enumerate(part.rows)]
        documents = [Document(f"{source}:{index}", t, source) for index, t in enumerate(texts) if t.strip()]
        blank = len(texts) - len(documents)
        if blank:
            notes.append(f"{blank:,} blank rows of {split} were left out.")
        meaning = f"a 0-based row, here 0 to {len(part.rows) - 1}"
        ids = {d.id for d in documents}

        def row_of(location: int | str) -> str | None:
            name = location if isinstance(location, str) else f"{source}:{location}"
            return name if name in ids else None

        found = row_of

    if not documents:
        raise Unusable(corpus.dataset, f"no text was found in its split {split}: choose another", "dataset")

    def locate(location: int | str) -> str | None:
        # what comes after the part that was read is there, but not used
        after = isinstance(location, int) and location >= len(part.rows) and not part.complete
        return found(location) or (f"{source}:{location}" if after else None)

    return documents, locate, meaning


def _row_text(row: dict[str, Any], index: int, corpus: HuggingFaceCorpus) -> str:
    """One row as a text: GSM8K's question and answer, HellaSwag's context and right ending, or its `text`."""
    if {"question", "answer"} <= row.keys():
        return "\n".join(_text(row, name, index, corpus) for name in ("question", "answer"))
    if {"ctx", "endings", "label"} <= row.keys():
        try:
            ending = row["endings"][int(row["label"])]
        except (ValueError, IndexError, TypeError) as error:
            remedy = f"row {index} has the label {row['label']!r}, which is none of its endings: take a labelled split"
            raise Unusable(corpus.split, remedy, "split") from error
        return f"{_text(row, 'ctx', index, corpus)} {ending}"
    return _text(row, "text", index, corpus)


def _text(row: dict[str, Any], column: str, index: int, corpus: HuggingFaceCorpus) -> str:
    if column not in row:
        remedy = "save the texts as .jsonl or .parquet and use a corpus of type text"
        problem = f"its rows have no {column!r}, only {', '.join(map(repr, row))}"
        raise Unusable(corpus.dataset, f"{problem}: {remedy}", "dataset")
    if not isinstance(row[column], str):
        raise Unusable(corpus.dataset, f"row {index} has no text in {column!r}: {row[column]!r}", "dataset")
    return str(row[column])


def _base_name(corpus: HuggingFaceCorpus) -> str:
    return corpus.dataset.rsplit("/", 1)[-1].casefold()


def _source_name(corpus: HuggingFaceCorpus) -> str:
    if not is_wikitext(corpus):
        return _base_name(corpus)
    return (corpus.config or "wikitext").removesuffix("-v1").removesuffix("-raw")
