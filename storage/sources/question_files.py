"""Question files of the KR-test from people and LLMs: written, and read line by line with everything that is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fortifai_core.errors import DataError
from storage.sources.questions import Item, _item
from storage.sources.textfiles import check_file, file_format, open_content
from storage.store import durable

FORMATS = (".json", ".jsonl")


def write_questions(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write questions as the authors' JSON list (.json) or one a line (.jsonl), atomically; returns how many.

    Raises:
        DataError: another ending.
    """
    made = [dict(row) for row in rows]
    match path.suffix:
        case ".json":
            text = json.dumps(made, indent=1, ensure_ascii=False) + "\n"
        case ".jsonl":
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
        case _:
            raise DataError("--out", str(path), "the name must end in .json (one list) or .jsonl (one question a line)")
    durable.write_bytes(path, text.encode())
    return len(made)


def read_with_problems(path: Path, *, field: str) -> tuple[list[tuple[int, Item]], list[tuple[int, str]]]:
    """Every valid question with its line, and (line, what is wrong) for every other; lines count from 1.

    Raises:
        DataError: the file is missing, empty, or not UTF-8.
    """
    check_file(path, field=field)
    with open_content(path, field=field) as stream:
        content = stream.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(field, f"{path}:{line}", f"not UTF-8 ({error.reason}): convert the file to UTF-8") from error
    rows, problems = (_lines if file_format(path) == ".jsonl" else _list)(text)
    items = []
    for line, row in rows:
        try:
            items.append((line, _item(row, field=field, place=f"{path}:{line}")))
        except DataError as error:
            problems.append((line, error.remedy))
    return items, sorted(problems)


def _lines(text: str) -> tuple[list[tuple[int, Any]], list[tuple[int, str]]]:
    rows, problems = [], []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line)))
        except json.JSONDecodeError as error:
            problems.append((number, f"not JSON, column {error.colno}: {error.msg}"))
    return rows, problems


def _list(text: str) -> tuple[list[tuple[int, Any]], list[tuple[int, str]]]:
    """Elements of a JSON list with the lines on which they begin, as far as it can be read."""
    rows: list[tuple[int, Any]] = []
    decoder = json.JSONDecoder()

    def line_of(position: int) -> int:
        return text.count("\n", 0, position) + 1

    def skip(position: int) -> int:
        while position < len(text) and text[position].isspace():
            position += 1
        return position

    position = skip(0)
    if text[position : position + 1] != "[":
        return rows, [(line_of(position), "it must be one JSON list […], or be named .jsonl")]
    position = skip(position + 1)
    while text[position : position + 1] != "]":
        try:
            row, after = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            return rows, [(error.lineno, f"not JSON, column {error.colno}: {error.msg}; what follows was not read")]
        rows.append((line_of(position), row))
        position = skip(after)
        if text[position : position + 1] == ",":
            position = skip(position + 1)
        elif text[position : position + 1] != "]":
            found = text[position : position + 1] or "the end of the file"
            return rows, [(line_of(position), f"found {found!r} where a comma or ] belongs; what follows was not read")]
    return rows, []
