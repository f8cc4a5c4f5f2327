"""The watch's measures as tasks of lm-eval: what their definitions in `lm_eval/` name as functions.

lm-eval gives text and no logits, so that entropy, top mass, KL and live fraction are not among them; what is counted is
words rather than tokens.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fortifai_core.errors import DataError, within
from fortifai_core.measures.text_drift import words
from fortifai_core.parsing import local_path
from fortifai_core.watch.probe import of_samples
from storage.sources.textfiles import read_documents

FOLDER = Path(__file__).parent / "lm_eval"
VARIABLE = "FORTIFAI_WATCH_TEXT"
BEGINNING = 12  # words of a document that a sample goes on from


def documents(text: str | None = None, text_field: str = "text", **_: Any) -> Any:
    """The `custom_dataset` of both tasks: the documents of a file, with the beginning of each.

    Args:
        text: the file, as `--metadata '{"text": "held-out.txt"}'` names it; by default FORTIFAI_WATCH_TEXT.

    Raises:
        DataError: no file is named, or it cannot be read, or none of its documents is long enough.
    """
    from datasets import Dataset

    name = text or os.environ.get(VARIABLE, "")
    if not name:
        raise DataError(VARIABLE, name, "name a file of held-out documents (.txt, .jsonl, .parquet)")
    with within(VARIABLE):
        found = [document.text for document in read_documents(local_path(name), text_field=text_field)]
    rows = [
        {"text": whole, "beginning": " ".join(whole.split()[:BEGINNING])}
        for whole in found
        if len(whole.split()) > BEGINNING
    ]
    if not rows:
        raise DataError(VARIABLE, name, f"no document has more than {BEGINNING} words: give longer ones")
    return {"test": Dataset.from_list(rows)}


def process_results(_: dict[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """Of one sample: its repetition, and its text, which is measured together with others."""
    (text,) = results
    repeated = _measured([text]).get("repeated-4-grams")
    return {
        "repeated_4_grams": 0.0 if repeated is None else float(repeated[0, 0]),
        "distinct_2": text,
        "compression_ratio": text,
    }


def distinct_2(texts: Sequence[str]) -> float:
    """Share of different pairs of words among all, a mean over groups of samples."""
    return _ratio(texts, "distinct-2")


def compression_ratio(texts: Sequence[str]) -> float:
    """Bytes over compressed bytes, of groups of samples."""
    return _ratio(texts, "compression-ratio")


def _measured(texts: Sequence[str]) -> dict[str, Any]:
    known: dict[str, int] = {}
    return of_samples([[known.setdefault(word, len(known)) for word in words(text)] for text in texts], texts)


def _ratio(texts: Sequence[str], name: str) -> float:
    columns = _measured(texts).get(name)
    return float("nan") if columns is None else float(columns[:, 0].sum() / columns[:, 1].sum())
