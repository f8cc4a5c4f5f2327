"""The local mirror: the folder that FORTIFAI_DATA points at, used in place of the hub."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fortifai_core import parsing
from fortifai_core.errors import DataError, Unusable, within
from storage.sources.textfiles import check_file, content_digest, json_lines, numbered_lines, open_content

VARIABLE = "FORTIFAI_DATA"


@dataclass(frozen=True)
class MirrorFile:
    """One split of one dataset in the mirror.

    Attributes:
        path: inside the mirror.
        rows: how many it holds; a file with another number is damaged.
        total: how many the dataset's own split has. Where that is more, the file is a part of it.
        part: which part, in words.
    """

    path: str
    rows: int
    total: int
    part: str = ""

    @property
    def complete(self) -> bool:
        return self.rows == self.total


@dataclass(frozen=True)
class MirrorDataset:
    """A dataset's splits in the mirror, and the names by which it is asked for."""

    names: set[str]
    configs: set[str | None]
    splits: dict[str, MirrorFile]


def _whole(path: str, rows: int) -> MirrorFile:
    return MirrorFile(path, rows, rows)


_WIKITEXT = {"wikitext", "salesforce/wikitext"}
_DATASETS = [
    MirrorDataset(
        _WIKITEXT,
        {"wikitext-2-v1"},
        {
            "train": _whole("wikitext-2-v1/train.txt.gz", 36_718),
            "validation": _whole("wikitext-2-v1/validation.txt.gz", 3_760),
            "test": _whole("wikitext-2-v1/test.txt.gz", 4_358),
        },
    ),
    MirrorDataset(
        _WIKITEXT,
        {"wikitext-2-raw-v1"},
        {
            "train": MirrorFile(
                "wikitext-2-raw-v1/train_prefix_1MB.txt.gz", 3_279, 36_718, "the first 3,279 of 36,718 lines"
            ),
            "validation": _whole("wikitext-2-raw-v1/validation.txt.gz", 3_760),
            "test": _whole("wikitext-2-raw-v1/test.txt.gz", 4_358),
        },
    ),
    MirrorDataset(
        {"gsm8k", "openai/gsm8k"},
        {None, "main"},
        {"train": _whole("gsm8k/train.jsonl.gz", 7_473), "test": _whole("gsm8k/test.jsonl.gz", 1_319)},
    ),
    MirrorDataset(
        {"hellaswag", "rowan/hellaswag"},
        {None, "default"},
        {
            "train": MirrorFile("hellaswag/train_first3368.jsonl.gz", 3_368, 39_905, "the first 3,368 of 39,905 items"),
            "validation": MirrorFile(
                "hellaswag/validation_original_subset1000.jsonl.gz", 1_000, 10_042, "1,000 of 10,042 items"
            ),
        },
    ),
    MirrorDataset(
        {"hellaswag_text"}, {None}, {"validation": _whole("hellaswag/validation_from_text.jsonl.gz", 10_042)}
    ),
]
_BLIMP = {"blimp", "nyu-mll/blimp"}
_BLIMP_PARADIGM = re.compile(r"[A-Za-z0-9_]+")
KR_QUESTIONS = MirrorFile("kr-test/wikitext-2.json", 4_975, 4_975)


def root() -> Path | None:
    """The mirror's folder, or None where none is set up.

    Raises:
        DataError: FORTIFAI_DATA is set to something that is not a folder.
    """
    value = os.environ.get(VARIABLE, "").strip()
    if not value:
        return None
    remedy = "point it at the mirror, or unset it to use the hub"
    try:
        folder = parsing.local_path(value)
    except Unusable as error:
        raise DataError(VARIABLE, value, f"{error.remedy}; {remedy}") from error
    if not folder.is_dir():
        raise DataError(VARIABLE, value, f"is not a folder: {remedy}")
    return folder


def splits(folder: Path, dataset: str, config: str | None) -> dict[str, MirrorFile]:
    """What the mirror has of a dataset, by the name of its own split; every file was found and is not empty.

    A mirror that lacks the dataset is an error: the network is not asked behind the user's back.

    Raises:
        Unusable: the mirror's layout does not know the dataset or this configuration of it, or holds
            none of its files.
    """
    named = [d for d in _datasets(config) if dataset.casefold() in d.names]
    if not named:
        raise Unusable(dataset, f"the local mirror does not know it: {_remedy(dataset)}", "dataset")
    entry = next((d for d in named if config in d.configs), None)
    if entry is None:
        known = sorted(str(c) for d in named for c in d.configs if c)
        raise Unusable(config, f"the local mirror has {dataset} as {', '.join(known)}: choose one of these", "config")
    present = {name: file for name, file in entry.splits.items() if (folder / file.path).exists()}
    if not present:
        names = ", ".join(file.path for file in entry.splits.values())
        raise Unusable(dataset, f"{VARIABLE} lacks {names}: {_remedy(dataset)}", "dataset")
    return present


def find(folder: Path, dataset: str, config: str | None, split: str) -> MirrorFile:
    """The mirror's file for one split.

    Raises:
        Unusable: it has none, or the file is empty.
    """
    present = splits(folder, dataset, config)
    if split not in present:
        remedy = f"choose one of these, or unset {VARIABLE} to load it from the hub"
        raise Unusable(split, f"the local mirror has only {', '.join(present)} of {dataset}: {remedy}", "split")
    with within("dataset"):
        check_file(folder / present[split].path)
    return present[split]


def read_rows(folder: Path, file: MirrorFile) -> list[dict[str, Any]]:
    """All rows of a mirror's file; lines of text as {"text": line}, as `datasets` gives them.

    Raises:
        Unusable: the file is damaged, or does not hold the rows that it should.
    """
    path = folder / file.path
    with within("dataset"):
        if ".txt" in path.suffixes:
            rows: list[dict[str, Any]] = [{"text": line} for _, line in numbered_lines(path)]
        else:
            rows = [row for _, row in json_lines(path)]
        if len(rows) != file.rows:
            raise _damaged(file, len(rows))
    return rows


def kr_questions() -> Path:
    """The authors' KR-test for WikiText-2 in the mirror.

    Raises:
        Unusable: there is no mirror, it lacks the file, or the file does not hold 4,975 questions.
    """
    folder = root()
    remedy = f"set {VARIABLE} to a mirror that holds {KR_QUESTIONS.path}, or give the path of the authors' file"
    if folder is None:
        raise Unusable("wikitext-2", remedy)
    path = folder / KR_QUESTIONS.path
    if not path.is_file():
        raise Unusable("wikitext-2", f"the local mirror lacks it: {remedy}")
    damaged = parsing.refusing(str(path), KR_QUESTIONS.path, "the file is damaged: copy it anew")
    with open_content(path) as stream, damaged:
        count = len(parsing.load_json(stream.read().decode()))
    if count != KR_QUESTIONS.rows:
        raise _damaged(KR_QUESTIONS, count)
    return path


def digest(folder: Path, file: MirrorFile) -> str:
    """sha256 of the unpacked content of a mirror's file."""
    with within("dataset"):
        return content_digest(folder / file.path)


def _datasets(config: str | None) -> list[MirrorDataset]:
    if config is None or not _BLIMP_PARADIGM.fullmatch(config):
        return [*_DATASETS, MirrorDataset(_BLIMP, {"one of its 67 paradigms"}, {})]
    blimp = MirrorDataset(_BLIMP, {config}, {"train": _whole(f"blimp/{config}.jsonl.gz", 1_000)})
    return [*_DATASETS, blimp]


def _damaged(file: MirrorFile, rows: int) -> Unusable:
    problem = f"the mirror's file holds {rows:,} rows, not {file.rows:,}"
    return Unusable(file.path, f"{problem}: it is damaged, copy it anew")


def _remedy(dataset: str) -> str:
    return f"add {dataset} to the folder that {VARIABLE} names, or unset {VARIABLE} to load it from the hub"
