"""Builders of what all arms share: the texts, the tokenizer, and the corpus cut into splits."""

from __future__ import annotations

from collections.abc import Iterable
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


def _text_rows(documents: list[Document]) -> list[dict[str, Any]]:
    return [{"document": d.id, "text": d.text, "source": d.source} for d in documents]


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

        documents = pretraining_text(corpus)
    else:
        documents = load_source(corpus, splits=context.spec.splits, seed=0).pretraining
        _refuse_change(corpus, context.spec.digests)
    parquet.write_table(context.directory / "pretraining.parquet", _text_rows(documents), schema="documents")
    return {"documents": len(documents), "characters": sum(len(d.text) for d in documents)}


def build_source(context: Context[SourceSpec]) -> dict[str, Any]:
    """The corpus as it was read: documents, questions, validation text."""
    from storage.sources.sources import load_source

    spec = context.spec
    source = load_source(spec.corpus, splits=spec.splits, seed=spec.world)
    _refuse_change(spec.corpus, spec.digests)
    parquet.write_table(context.directory / "documents.parquet", _text_rows(source.documents), schema="documents")
    parquet.write_table(context.directory / "validation.parquet", _text_rows(source.validation), schema="documents")
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
    """D_k^(0) for every k: the corpus tokenised and cut into equal splits at document boundaries."""
    from fortifai_core.corpus.splitting import assign_questions, cut
    from fortifai_core.corpus.tokenization import encode_documents
    from storage.tables.models import load_tokenizer

    splits = context.spec.splits
    source = context.artifact(context.spec.source)
    tokenizer = load_tokenizer(context.artifact(context.spec.tokenizer).path)
    texts = parquet.read_rows(source.file("documents.parquet"))
    tokens = encode_documents(tokenizer, [row["text"] for row in texts])
    split_of = cut([len(t) for t in tokens], splits=splits, group=[row["source"] for row in texts])
    for split in range(splits):
        rows = ((row, ids) for row, ids, k in zip(texts, tokens, split_of, strict=True) if k == split)
        _write_text(context.directory / split_file(split), rows)
    held_out = parquet.read_rows(source.file("validation.parquet"))
    encoded = encode_documents(tokenizer, [row["text"] for row in held_out])
    _write_text(context.directory / "validation.parquet", zip(held_out, encoded, strict=True))
    counts: dict[str, Any] = {"tokens": sum(len(t) for t in tokens), "documents": len(texts)}
    if source.has("questions.parquet"):
        document_split = {row["document"]: k for row, k in zip(texts, split_of, strict=True)}
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
