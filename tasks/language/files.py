"""Where a spec's texts and models lie: files of splits, real or rewritten, and the folder of M_-1 under an adapter."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tasks.engine.context import Context
from tasks.engine.stages import Reference
from tasks.language.specs import VersionedText

Rows = list[dict[str, Any]]


def split_file(split: int) -> str:
    """The file of D_k^(0) in a corpus artifact."""
    return f"split-{split:05d}.parquet"


def text_files(context: Context[Any], corpus: Reference, text: VersionedText) -> list[Path]:
    """The Parquet files of a text: of the corpus if it is real, of its own artifact if a model wrote it."""
    if text.artifact is None:
        return [context.artifact(corpus).file(split_file(text.split))]
    return context.artifact(text.artifact).files("part-*.parquet")


def treated_file(place: int) -> str:
    """The file, in an artifact of treated text, of the text that stands in this place of what a generation reads."""
    return f"text-{place:05d}.parquet"


def treated_files(context: Context[Any], treated: Reference, place: int) -> list[Path]:
    """The file of one text after its treatment; none where the treatment left nothing of it."""
    artifact = context.artifact(treated)
    return [artifact.file(treated_file(place))] if artifact.has(treated_file(place)) else []


def trained_texts(context: Context[Any]) -> list[tuple[VersionedText, list[Path]]]:
    """What a generation is trained on, text by text, with its files: treated where treatments did so."""
    spec = context.spec
    if spec.treated is None:
        return [(text, text_files(context, spec.corpus, text)) for text in spec.text]
    return [(text, treated_files(context, spec.treated, place)) for place, text in enumerate(spec.text)]


def trained_files(context: Context[Any]) -> list[Path]:
    """The same files, in order."""
    return [path for _, paths in trained_texts(context) for path in paths]


def never_drawn(tokenizer: Any, model: Any) -> list[int]:
    """Ids that no model is to write: special tokens, and the entries by which some models' vocabularies are padded."""
    entries = range(len(tokenizer), model.config.get_text_config().vocab_size)
    return sorted({*tokenizer.all_special_ids, *entries})


def base_folder(context: Context[Any], base: Reference | None) -> Path | None:
    """Where M_-1 is, for a model that is only an adapter of it; None for any other."""
    return None if base is None else context.artifact(base).path


def metric_row(name: str, split: int | None, value: float, count: int) -> dict[str, Any]:
    """A row of metrics.parquet; `split` is None for a measure over all of them."""
    return {"metric": name, "split": split, "value": float(value), "count": int(count)}


CLUSTERS = "clusters.parquet"


def cluster_rows(measure: str, names: Iterable[Any], sums: Iterable[float], counts: Iterable[float]) -> Rows:
    """Rows of clusters.parquet: what a measure is the mean of; clusters that count nothing are left out."""
    rows = zip(names, sums, counts, strict=True)
    return [
        {"measure": measure, "cluster": str(name), "total": float(total), "count": float(count)}
        for name, total, count in rows
        if count
    ]
