"""Reads a user's own files: .txt, .jsonl and .parquet, each also as .gz; every error names file and line.

What cannot be used is `Unusable`; the field of the configuration is named by whoever asks (`within`).
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, cast

from fortifai_core import parsing
from fortifai_core.errors import FortifaiError, Unusable
from storage.store.tree import is_stray

FORMATS = (".txt", ".jsonl", ".parquet")
MAX_DOCUMENT = 64 * 2**20  # bytes of a line, characters of a document: forty times a long novel
MAX_CONTENT = 8 * 2**30  # bytes of one file's text, unpacked
BATCH_ROWS = 256  # of a Parquet file in memory at a time


_TOO_LONG = f"is longer than a document may be ({MAX_DOCUMENT // 2**20} MiB): divide it into several documents"
_TOO_LARGE = f"holds more text than one file may ({MAX_CONTENT // 2**30} GiB unpacked): divide it into several files"


@dataclass(frozen=True)
class RawDocument:
    """A text as it was found; `id` only where the file gives one."""

    id: str | None
    text: str


def file_format(path: Path) -> str:
    """The suffix that decides how a file is read, without a final `.gz`."""
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def check_file(path: Path) -> None:
    """That a file is there, readable and not empty.

    Raises:
        Unusable: with the path and the remedy.
    """
    try:
        there, is_file = path.exists(), path.is_file()
    except OSError as error:  # a folder on the way that may not be entered, links in a circle
        raise Unusable(str(path), f"cannot be read ({parsing.said(error)}): correct the path") from error
    if not there:
        raise Unusable(str(path), "there is no such file: correct the path")
    if not is_file:
        raise Unusable(str(path), "is not a file: name the files themselves, not their folder")
    with open_content(path) as stream:
        if not stream.read(1):
            raise Unusable(str(path), "the file is empty: put text into it, or leave it out")


@contextmanager
def open_content(path: Path) -> Iterator[BinaryIO]:
    """A file's bytes, unpacked when its name ends in `.gz`; a damaged or unreadable file is `Unusable`."""
    with _readable(path), gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as stream:
        yield cast(BinaryIO, stream)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise Unusable(str(path), f"the gzip file is damaged ({error}): get it again") from error
    except OSError as error:
        raise Unusable(str(path), f"cannot be read ({error.strerror or error})") from error


def content_digest(path: Path) -> str:
    """sha256 of a file's unpacked content: packing a file does not change what is computed from it."""
    digest = hashlib.sha256()
    with open_content(path) as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def folder_digest(folder: Path) -> str:
    """sha256 over the names and bytes of all files in a folder, however deep; of a file that is named instead, its own.

    What file managers and version control leave there (`.DS_Store`, `.git`) is left out.
    """
    if folder.is_file():
        return content_digest(folder)
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if not any(is_stray(part) for part in name.parts):
            with _readable(path), path.open("rb") as stream:
                digest.update(f"{name.as_posix()}\0{hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def numbered_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line without its end), UTF-8.

    Only `\\n` and `\\r\\n` end a line: the other separators of Unicode occur inside running text.
    """
    with open_content(path) as stream:
        number = size = 0
        while raw := stream.readline(MAX_DOCUMENT + 1):
            number, size = number + 1, size + len(raw)
            if len(raw) > MAX_DOCUMENT:
                raise Unusable(f"{path}:{number}", f"the line {_TOO_LONG}")
            if size > MAX_CONTENT:
                raise Unusable(str(path), _TOO_LARGE)
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                remedy = f"the line is not UTF-8 ({error.reason}): convert the file to UTF-8"
                raise Unusable(f"{path}:{number}", remedy) from error
            yield number, line.rstrip("\r\n")


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) for every line of a JSONL file that is not blank."""
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            row = parsing.load_json(line)
        except parsing.Malformed as error:
            raise Unusable(f"{path}:{number}", f"the line is not JSON ({error}): correct or remove it") from error
        if not isinstance(row, dict):
            raise Unusable(f"{path}:{number}", "the line is not a JSON object: write one {…} a line")
        yield number, row


def read_documents(path: Path, *, text_field: str) -> list[RawDocument]:
    """All documents of one file, in its order; see `iter_documents`."""
    return list(iter_documents(path, text_field=text_field))


def iter_documents(path: Path, *, text_field: str) -> Iterator[RawDocument]:
    """All documents of one file, in its order, one after the other; a `.parquet.gz` alone is in memory as a whole.

    Args:
        path: a .txt (blank lines divide documents), .jsonl or .parquet file, each also as .gz.
        text_field: the column that holds the text; a column `id`, where there is one, names the document.

    Raises:
        Unusable: the file is missing, empty, damaged or of an unknown format, or one of its rows is bad.
    """
    check_file(path)
    match file_format(path):
        case ".txt":
            documents = _from_text(path)
        case ".jsonl":
            documents = (_document(row, text_field, place=f"{path}:{number}") for number, row in json_lines(path))
        case ".parquet":
            documents = (
                _document(row, text_field, place=f"{path}[{index}]")
                for index, row in enumerate(_from_parquet(path, text_field))
            )
        case _:
            check_format(path)
            raise AssertionError("check_format accepts what iter_documents cannot read")
    empty = True
    for document in documents:
        empty = False
        yield document
    if empty:
        raise Unusable(str(path), "the file holds no document: put text into it, or leave it out")


def check_format(path: Path) -> None:
    """That the file's name says how it is to be read."""
    if file_format(path) not in FORMATS:
        raise Unusable(str(path), f"the name must end in {', '.join(FORMATS)}, or one of these and .gz")


def _from_text(path: Path) -> Iterator[RawDocument]:
    for written, together in groupby(numbered_lines(path), key=lambda numbered: bool(numbered[1].strip())):
        if not written:
            continue
        lines, size = list[str](), 0
        for number, line in together:
            lines.append(line)
            size += len(line) + 1
            if size > MAX_DOCUMENT + 1:
                raise Unusable(f"{path}:{number}", f"the document that goes on here {_TOO_LONG}, by blank lines")
        yield RawDocument(None, "\n".join(lines))


def _from_parquet(path: Path, text_field: str) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with open_content(path) as stream, unreadable(path, "Parquet"):
        source: Any = stream
        if path.suffix.lower() == ".gz":  # which cannot be read from its end
            content = stream.read(MAX_CONTENT + 1)
            if len(content) > MAX_CONTENT:
                raise Unusable(str(path), _TOO_LARGE)
            source = pa.BufferReader(content)
        table = pq.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False)
        names = table.schema_arrow.names
        if text_field not in names:
            raise Unusable(str(path), _no_column(text_field, names))
        wanted = sorted({"id", text_field} & set(names))
        groups = [table.metadata.row_group(index) for index in range(table.metadata.num_row_groups)]
        columns = [group.column(index) for group in groups for index in range(group.num_columns)]
        if sum(c.total_uncompressed_size for c in columns if c.path_in_schema in wanted) > MAX_CONTENT:
            raise Unusable(str(path), _TOO_LARGE)
        read = 0
        for batch in table.iter_batches(BATCH_ROWS, columns=wanted):
            texts = batch.column(text_field)
            if pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type):
                longest = pc.max(pc.binary_length(texts)).as_py() or 0
                if longest > MAX_DOCUMENT:  # before Python has a second copy of it
                    index = read + pc.index(pc.binary_length(texts), longest).as_py()
                    raise Unusable(f"{path}[{index}]", f"the text {_TOO_LONG}")
            read += batch.num_rows
            yield from batch.to_pylist()


@contextmanager
def unreadable(path: Path, format_name: str) -> Iterator[None]:
    """Whatever a reader of another package raises of a file is `Unusable`; text that is no UTF-8 among it."""
    try:
        yield
    except FortifaiError:
        raise
    except Exception as error:
        remedy = f"is not a readable {format_name} file ({parsing.said(error)}): write it anew"
        raise Unusable(str(path), remedy) from error


def _document(row: dict[str, Any], text_field: str, *, place: str) -> RawDocument:
    if text_field not in row:
        raise Unusable(place, _no_column(text_field, list(row)))
    text, name = row[text_field], row.get("id")
    if not isinstance(text, str) or not text.strip():
        raise Unusable(place, f"{text_field!r} must be a text that is not blank: correct or remove the row")
    if not parsing.is_text(text) or not parsing.is_text(str(name)):
        raise Unusable(place, "half a surrogate pair stands in the text: correct or remove the row")
    if name is not None and (isinstance(name, bool) or not isinstance(name, (str, int))):
        raise Unusable(place, f"'id' is {name!r}: it must be a string or a whole number")
    return RawDocument(None if name is None else str(name), text)


def _no_column(text_field: str, names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:10])) + (", …" if len(names) > 10 else "")
    return f"there is no {text_field!r} in it, only {shown or 'nothing'}: set text_field"
