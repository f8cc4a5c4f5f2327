"""Reads KR-test questions, checks every one of them, and finds the document each belongs to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fortifai_core.corpus.documents import Question
from fortifai_core.errors import DataError
from storage.sources.textfiles import check_file, file_format, json_lines, open_content

KEYS = ("context", "sentence_true", "sentence_false", "location")


@dataclass(frozen=True)
class Item:
    """A question as its file states it; `place` is where, for messages."""

    context: str
    true_answer: str
    false_answer: str
    location: int | str
    place: str


def read_items(path: Path, *, field: str) -> list[Item]:
    """All questions of a file: a JSON list (the authors' format) or JSONL, each also as .gz.

    Every question is an object {context, sentence_true, sentence_false, location}.

    Raises:
        DataError: naming file and line (JSONL) or index (JSON) of the first question that is not valid.
    """
    check_file(path, field=field)
    rows = _from_lines(path, field=field) if file_format(path) == ".jsonl" else _from_list(path, field=field)
    items = [_item(row, field=field, place=place) for place, row in rows]
    if not items:
        raise DataError(field, str(path), "the file holds no question: add some, or leave `questions` out")
    return items


def attach(
    items: Iterable[Item], *, locate: Callable[[int | str], str | None], prefix: str, meaning: str, field: str
) -> list[Question]:
    """Give each question the document that its location names.

    Args:
        locate: the document's id, or None for a location that is nowhere in the corpus.
        prefix: of the questions' ids, which count from 0 in the file's order.
        meaning: what a location is in this corpus, for the message.

    Raises:
        DataError: a question points nowhere.
    """
    questions = []
    for index, item in enumerate(items):
        document = locate(item.location)
        if document is None:
            raise DataError(
                field,
                item.place,
                f"location {item.location!r} is nowhere in the corpus: it must be {meaning}",
            )
        questions.append(Question(f"{prefix}:{index}", document, item.context, item.true_answer, item.false_answer))
    return questions


def _from_lines(path: Path, *, field: str) -> Iterator[tuple[str, object]]:
    for number, row in json_lines(path, field=field):
        yield f"{path}:{number}", row


def _from_list(path: Path, *, field: str) -> Iterator[tuple[str, object]]:
    with open_content(path, field=field) as stream:
        content = stream.read()
    try:
        rows = json.loads(content.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DataError(
            field, f"{path}:{error.lineno}", f"not JSON ({error.msg}): correct it, or name the file .jsonl"
        ) from error
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(field, f"{path}:{line}", f"not UTF-8 ({error.reason}): convert the file to UTF-8") from error
    if not isinstance(rows, list):
        raise DataError(field, str(path), f"holds a JSON {type(rows).__name__}: it must be a list of questions")
    for index, row in enumerate(rows):
        yield f"{path}[{index}]", row


def _item(row: Any, *, field: str, place: str) -> Item:
    if not isinstance(row, dict):
        raise DataError(field, place, f"the question is {row!r}: it must be an object with {', '.join(KEYS)}")
    missing = [key for key in KEYS if key not in row]
    if missing:
        raise DataError(field, place, f"the question has no {', '.join(missing)}: it needs {', '.join(KEYS)}")
    for key in KEYS[:3]:
        if not isinstance(row[key], str) or not row[key].strip():
            raise DataError(field, place, f"{key} is {row[key]!r}: it must be a text that is not blank")
    if row["sentence_true"].strip() == row["sentence_false"].strip():
        raise DataError(field, place, "the true and the false answer are the same: change or remove the question")
    location = row["location"]
    if isinstance(location, bool) or not isinstance(location, (int, str)):
        raise DataError(field, place, f"location is {location!r}: it must be a whole number or a document's id")
    return Item(row["context"], row["sentence_true"], row["sentence_false"], location, place)
