"""The paper's table for the same kind of text beside the measured one, row by row; quoted numbers say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fortifai_core.report.analysis import Analysis
from fortifai_core.wording import arm_title

# Shown folded where the paper has no experiment on such text: its main table.
_MAIN = "Table D2"
_MODELS = {"llama-3.2-1b": "Llama-3.2-1B", "gemma-3-1b-pt": "Gemma-3-1B"}
_DATASETS = {"wikitext": "WikiText-2", "imagination": "Imagination of Web"}


@dataclass(frozen=True)
class PaperRow:
    """One curve: of this experiment, or quoted from one of the paper's tables."""

    method: str
    source: str
    quoted: bool
    retention: tuple[float, ...]
    failure: str
    ratio: str


@dataclass(frozen=True)
class BesideThePaper:
    """The rows, and the dataset's name; None where the paper has no experiment on text of this kind."""

    dataset: str | None
    rows: tuple[PaperRow, ...]
    generations: int


def dataset_of(config: Mapping[str, Any]) -> str | None:
    """Which of the paper's datasets an experiment's corpus is (a part of): `wikitext`, `imagination`, or none."""
    corpus = config.get("corpus") or {}
    if corpus.get("type") == "huggingface" and "wikitext" in str(corpus.get("dataset", "")).lower():
        return "wikitext"
    names = [str(part.get("dataset", "")).lower() for part in corpus.get("parts", [])]
    both = ("wikitext", "hellaswag", "gsm8k")
    if names and all(any(word in name for name in names) for word in both):
        return "imagination"
    return None


def beside_the_paper(analysis: Analysis) -> BesideThePaper | None:
    """Measured and quoted retention of split 0, the same losses together; None where nothing is quoted."""
    dataset = dataset_of(analysis.data.config)
    quoted = [
        arm for arm in analysis.data.quoted if (arm.dataset == dataset if dataset is not None else arm.table == _MAIN)
    ]
    if not quoted:
        return None
    measured = [arm for arm in analysis.arms if arm.split0] if dataset is not None else []
    rows = []
    for method in dict.fromkeys([*(arm.arm.label for arm in measured), *(arm.method for arm in quoted)]):
        for arm in measured:
            if arm.arm.label == method:
                retention = tuple(interval.estimate for interval in arm.split0)
                failure = arm.failure.describe() if arm.failure is not None and analysis.data.by_retention else "–"
                ratio = arm.ratios.get("generations")
                factor = ratio.describe() if ratio is not None and ratio.value is not None else ""
                rows.append(PaperRow(arm_title(method), "measured here", False, retention, failure, factor))
        for said in quoted:
            if said.method == method:
                dataset_name = _DATASETS.get(said.dataset, said.dataset)
                where = f"{said.table}: {_MODELS.get(said.model, said.model)}, {dataset_name}"
                ratio = said.absolute_ratios.get("generations")
                factor = ratio.describe() if ratio is not None else ""
                rows.append(PaperRow(arm_title(method), where, True, said.retention, said.absolute.describe(), factor))
    name = None if dataset is None else _DATASETS[dataset]
    return BesideThePaper(name, tuple(rows), max(len(row.retention) for row in rows))
