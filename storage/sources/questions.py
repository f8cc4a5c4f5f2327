"""KR-test questions in files: written, read with everything that is wrong, and given the documents they ask about."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fortifai_core import parsing
from fortifai_core.corpus.documents import FileQuestion, Question
from fortifai_core.errors import DataError, Unusable, shown
from storage.sources.textfiles import check_file, file_format, open_content
from storage.store import durable

KEYS = ("context", "sentence_true", "sentence_false", "location")


class Problem(NamedTuple):
    """What is wrong with one question of a file: its line from 1, its place for messages, and the remedy."""

    line: int
    place: str
    remedy: str


class _Element(NamedTuple):
    """One element of a JSON list, or line of a JSONL file, that is JSON."""

    line: int
    place: str
    value: Any


def read_questions(path: Path) -> list[FileQuestion]:
    """All questions of a file: a JSON list (the authors' format) or JSONL, each also as .gz.

    Every question is an object {context, sentence_true, sentence_false, location}.

    Raises:
        Unusable: naming line (JSONL) or index (JSON) of the first question that is not valid.
    """
    questions, problems = read_with_problems(path)
    if problems:
        raise Unusable(problems[0].place, problems[0].remedy)
    if not questions:
        raise Unusable(str(path), "the file holds no question: add some, or leave `questions` out")
    return questions


def read_with_problems(path: Path) -> tuple[list[FileQuestion], list[Problem]]:
    """Every valid question of a file, and what is wrong with every other, both in the file's order.

    Raises:
        Unusable: the file is missing, empty, or not UTF-8.
    """
    check_file(path)
    with open_content(path) as stream:
        content = stream.read(parsing.MAX_QUESTION_BYTES + 1)
    if len(content) > parsing.MAX_QUESTION_BYTES:
        limit = f"{parsing.MAX_QUESTION_BYTES // 2**20} MiB"
        raise Unusable(str(path), f"is larger than a file of questions may be ({limit}, unpacked): divide it")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        remedy = f"not UTF-8 ({error.reason}): convert the file to UTF-8"
        raise Unusable(f"{path}:{line}", remedy) from error
    questions: list[FileQuestion] = []
    problems: list[Problem] = []
    for element in (_lines if file_format(path) == ".jsonl" else _elements)(path, text):
        if isinstance(element, _Element):
            remedy = _remedy(element.value)
            if not remedy:
                row = element.value
                texts = (row["context"], row["sentence_true"], row["sentence_false"])
                questions.append(FileQuestion(*texts, row["location"], element.line, element.place))
                continue
            element = Problem(element.line, element.place, remedy)
        problems.append(element)
    return questions, problems


def attach(
    questions: Iterable[FileQuestion], *, locate: Callable[[int | str], str | None], prefix: str, meaning: str
) -> list[Question]:
    """Give each question the document that its location names.

    Args:
        locate: the document's id, or None for a location that is nowhere in the corpus.
        prefix: of the questions' ids, which count from 0 in the file's order.
        meaning: what a location is in this corpus, for the message.

    Raises:
        Unusable: a question points nowhere.
    """
    attached = []
    for index, question in enumerate(questions):
        document = locate(question.location)
        if document is None:
            remedy = f"location {question.location!r} is nowhere in the corpus: it must be {meaning}"
            raise Unusable(question.place, remedy)
        answers = (question.true_answer, question.false_answer)
        attached.append(Question(f"{prefix}:{index}", document, question.context, *answers))
    return attached


def write_questions(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write questions as the authors' JSON list (.json) or one a line (.jsonl), atomically.

    Raises:
        DataError: another ending.
    """
    match path.suffix:
        case ".json":
            text = json.dumps([dict(row) for row in rows], indent=1, ensure_ascii=False) + "\n"
        case ".jsonl":
            text = "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
        case _:
            raise DataError("--out", str(path), "the name must end in .json (one list) or .jsonl (one question a line)")
    durable.write_bytes(path, text.encode())


def _remedy(row: Any) -> str:
    """What is wrong with one question and what to do about it; nothing where it is valid."""
    if not isinstance(row, dict):
        return f"the question is {shown(row)}: it must be an object with {', '.join(KEYS)}"
    missing = [key for key in KEYS if key not in row]
    if missing:
        return f"the question has no {', '.join(missing)}: it needs {', '.join(KEYS)}"
    for key in KEYS[:3]:
        if not isinstance(row[key], str) or not row[key].strip():
            return f"{key} is {shown(row[key])}: it must be a text that is not blank"
        if not parsing.is_text(row[key]):
            return f"{key} is {shown(row[key])}: half a surrogate pair is no text; write the whole character"
    if row["sentence_true"].strip() == row["sentence_false"].strip():
        return "the true and the false answer are the same: change or remove the question"
    location = row["location"]
    if isinstance(location, bool) or not isinstance(location, (int, str)) or not parsing.is_text(str(location)):
        return f"location is {shown(location)}: it must be a whole number or a document's id"
    return ""


def _lines(path: Path, text: str) -> Iterator[_Element | Problem]:
    # only these end a line: the other separators of Unicode occur inside running text
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        place = f"{path}:{number}"
        if line.strip():
            try:
                yield _Element(number, place, parsing.load_json(line))
            except parsing.Malformed as error:
                yield Problem(number, place, f"not JSON, {error}; correct or remove the line")


def _elements(path: Path, text: str) -> Iterator[_Element | Problem]:
    """Elements of a JSON list with the lines on which they begin, as far as it can be read."""
    position, line = 0, 1

    def advance(to: int) -> None:
        nonlocal position, line
        line += text.count("\n", position, to)
        position = to

    def skip() -> str:
        """Go to the next character that is no space; it, or nothing at the end."""
        start = position
        while start < len(text) and text[start].isspace():
            start += 1
        advance(start)
        return text[position : position + 1]

    def broken(remedy: str) -> Problem:
        return Problem(line, f"{path}:{line}", remedy)

    if skip() != "[":
        yield broken("it must be one JSON list […] of questions, or be named .jsonl")
        return
    advance(position + 1)
    index = 0
    while skip() != "]":
        try:
            row, after = parsing.json_at(text, position)
        except parsing.Malformed as error:
            yield broken(f"{error}; what follows was not read: correct it")
            return
        except json.JSONDecodeError as error:
            remedy = f"not JSON, column {error.colno}: {error.msg}; what follows was not read: correct it"
            yield Problem(error.lineno, f"{path}:{error.lineno}", remedy)
            return
        yield _Element(line, f"{path}[{index}]", row)
        index += 1
        advance(after)
        following = skip()
        if following == ",":
            advance(position + 1)
        elif following != "]":
            said = repr(following) if following else "the end of the file"
            yield broken(f"{said} stands where a comma or ] belongs; what follows was not read: correct it")
            return
