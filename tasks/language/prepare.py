"""Builders of what all arms share: the texts, the tokenizer, and the corpus cut into splits."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from fortifai_core.config.corpus import AlmanacCorpus, Corpus
from fortifai_core.corpus.documents import Document
from fortifai_core.errors import DataError
from storage.tables import parquet
from storage.tables.questions import read_questions, write_questions
from tasks.engine.context import Context
from tasks.language.files import split_file
from tasks.language.specs import CorpusSpec, PretrainedTokenizerSpec, PretrainingSpec, SourceSpec, TokenizerSpec


def _text_rows(documents: Iterable[Document]) -> Iterator[dict[str, Any]]:
    return ({"document": d.id, "text": d.text, "source": d.source} for d in documents)


def _refuse_change(corpus: Corpus, planned: dict[str, str]) -> None:
    """What was read must be what the key says: files may have been changed since the plan was made."""
    from storage.sources.sources import source_digests

    changed = [name for name, digest in source_digests(corpus).items() if planned.get(name) != digest]
    if changed:
        raise DataError(f"corpus.{changed[0]}", "changed", "was changed since this run began: run again")


def build_pretraining(context: Context[PretrainingSpec]) -> dict[str, Any]:
    """The text that the tokenizer and the base model are made from."""
    from storage.sources.sources import load_source

    corpus = context.spec.corpus
    if isinstance(corpus, AlmanacCorpus):
        from fortifai_core.corpus.almanac.world import pretraining_text

        documents: Sequence[Document] = pretraining_text(corpus)
    else:
        documents = load_source(corpus, splits=context.spec.splits, seed=0).pretraining
    path = context.directory / "pretraining.parquet"
    count = parquet.write_table(path, _text_rows(documents), schema="documents")
    _refuse_change(corpus, context.spec.digests)  # after all of it was read
    return {"documents": count, "characters": sum(len(text) for text in parquet.iter_column(path, "text"))}


def build_source(context: Context[SourceSpec]) -> dict[str, Any]:
    """The corpus as it was read: documents, questions, validation text."""
    from storage.sources.sources import load_source

    spec = context.spec
    source = load_source(spec.corpus, splits=spec.splits, seed=spec.world)
    parquet.write_table(context.directory / "documents.parquet", _text_rows(source.documents), schema="documents")
    parquet.write_table(context.directory / "validation.parquet", _text_rows(source.validation), schema="documents")
    _refuse_change(spec.corpus, spec.digests)  # after all of it was read
    if source.questions:
        write_questions(context.directory / "questions.parquet", source.questions)
    return {
        "documents": len(source.documents),
        "questions": len(source.questions),
        **{f"note-{index}": note for index, note in enumerate(source.notes)},
    }


def build_tokenizer(context: Context[TokenizerSpec]) -> dict[str, Any]:
    """A byte-level BPE tokenizer trained on the pretraining text."""
    from fortifai_core.corpus.tokenization import train_tokenizer

    texts = context.artifact(context.spec.pretraining).file("pretraining.parquet")
    tokenizer = train_tokenizer(parquet.iter_column(texts, "text"), vocabulary=context.spec.vocabulary)
    tokenizer.save_pretrained(context.directory)
    return {"vocabulary": len(tokenizer)}


def fetch_tokenizer(context: Context[PretrainedTokenizerSpec]) -> dict[str, Any]:
    """The pretrained model's own tokenizer."""
    from storage.sources.pretrained import Pretrained

    spec = context.spec
    tokenizer = Pretrained.find(spec.path, spec.revision, spec.gguf_file).fetch_tokenizer()
    tokenizer.save_pretrained(context.directory)
    return {"vocabulary": len(tokenizer)}


def build_corpus(context: Context[CorpusSpec]) -> dict[str, Any]:
    """D_k^(0) for every k: the corpus tokenised and cut into equal splits at document boundaries.

    Text and tokens are gone through as a stream; lengths, sources and names of the documents are in memory.
    """
    from fortifai_core.corpus.splitting import assign_questions, cut
    from fortifai_core.corpus.tokenization import iter_encoded
    from storage.tables.models import load_tokenizer

    splits = context.spec.splits
    source = context.artifact(context.spec.source)
    tokenizer = load_tokenizer(context.artifact(context.spec.tokenizer).path)
    texts = source.file("documents.parquet")
    encoded = context.workspace / "tokens.arrow"
    lengths, names = array("q"), dict[str, str]()

    def tokens() -> Iterator[list[int]]:
        for ids in iter_encoded(tokenizer, parquet.iter_column(texts, "text")):
            lengths.append(len(ids))
            yield ids

    parquet.write_tokens(encoded, tokens())
    group = [names.setdefault(name, name) for name in parquet.iter_column(texts, "source")]
    split_of = cut(lengths, splits=splits, group=group)

    def rows() -> Iterator[tuple[dict[str, Any], list[int], int]]:
        return zip(parquet.iter_rows(texts), parquet.iter_tokens(encoded), split_of, strict=True)

    if split_of == sorted(split_of):
        for split, of_it in groupby(rows(), key=itemgetter(2)):
            _write_text(context.directory / split_file(split), (row[:2] for row in of_it))
    else:  # a mixture, each of whose parts goes through all splits
        for split in range(splits):
            _write_text(context.directory / split_file(split), (row[:2] for row in rows() if row[2] == split))
    encoded.unlink()
    held_out = source.file("validation.parquet")
    ids = iter_encoded(tokenizer, parquet.iter_column(held_out, "text"))
    _write_text(context.directory / "validation.parquet", zip(parquet.iter_rows(held_out), ids, strict=True))
    counts: dict[str, Any] = {"tokens": sum(lengths), "documents": len(lengths)}
    if source.has("questions.parquet"):
        document_split = dict(zip(parquet.iter_column(texts, "document"), split_of, strict=True))
        questions = assign_questions(read_questions(source.file("questions.parquet")), document_split)
        counts["questions"] = write_questions(context.directory / "questions.parquet", questions)
    return counts


def _write_text(path: Path, documents: Iterable[tuple[dict[str, Any], list[int]]]) -> None:
    """Real text with its tokens, all of which are kept."""
    rows = (
        {"document": row["document"], "position": position, "text": row["text"], "tokens": ids, "kept": len(ids)}
        for position, (row, ids) in enumerate(documents)
    )
    parquet.write_table(path, rows, schema="split-text")
