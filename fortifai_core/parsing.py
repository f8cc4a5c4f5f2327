"""The one boundary behind which what comes from outside is parsed: configurations, questions, JSON, paths.

Whatever a parser raises leaves as one `InputError`: field or file, value, what is wrong, what to do. Size, depth and
the length of integers are limited, so that hostile input ends at a limit and not at the reader's patience.

YAML is read by the core schema of YAML 1.2, written plainly: `010` is ten, `yes` and `1:30` are text. A tag, a name
that stands twice, an integer beyond 64 bits are refused; an alias is read as what it names, written out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from fortifai_core.errors import DataError, FortifaiError, InputError, Unusable

MAX_CONFIG_BYTES = 256 * 1024
MAX_QUESTION_BYTES = 256 * 1024 * 1024
MAX_DEPTH = 64
MAX_VALUES = 8_000  # in one configuration, aliases written out
MAX_DIGITS = 40  # more than 64 bits have, and few enough to be converted in no time
MAX_PATH_BYTES, MAX_NAME_BYTES, MAX_PATH_PARTS = 4095, 255, 255
INTEGERS = range(-(2**63), 2**63)  # what tables, other programs and JavaScript's forms can hold


class Malformed(ValueError):
    """What was parsed is not what it should be; the message says where, and what to do."""


@contextmanager
def refusing(field: str, value: object, remedy: str, *, error: type[InputError] = DataError) -> Iterator[None]:
    """Whatever goes wrong in the block becomes one line: field, value, what was wrong and the remedy.

    Args:
        error: its type; what is raised on purpose in the block passes unchanged.
    """
    try:
        yield
    except FortifaiError:
        raise
    except Exception as cause:
        raise error(field, value, f"{said(cause)}: {remedy}") from cause


def said(error: BaseException, most: int = 200) -> str:
    """What an error says, on one line."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, UnicodeError):
        return f"it is not UTF-8 ({getattr(error, 'reason', error)})"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 1] + "…"


# ------------------------------------------------------------------------------------------------ text


def is_text(value: str) -> bool:
    """Whether it can be written as UTF-8: half a surrogate pair, as of a name in another encoding, cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_argument(field: str, value: str) -> None:
    """Refuse an argument or an environment variable that is no text.

    Raises:
        InputError: it is not UTF-8, or holds a NUL.
    """
    if not is_text(value) or "\0" in value:
        raise InputError(field, value, "is not UTF-8 text: write it so, and set a UTF-8 locale (LANG=C.UTF-8)")


def local_path(value: str | Path, field: str = "") -> Path:
    """The path that a user wrote, `~` resolved; whether something is there is for the caller to see.

    Raises:
        Unusable: it is empty, not UTF-8, longer than a file system takes, or begins with the home of nobody.
    """
    text = str(value)
    if not text or "\0" in text or not is_text(text):
        raise Unusable(repr(text), "is no path: write one in UTF-8", field)
    parts = Path(text).parts
    longest = max((len(part.encode()) for part in parts), default=0)
    if len(text.encode()) > MAX_PATH_BYTES or longest > MAX_NAME_BYTES or len(parts) > MAX_PATH_PARTS:
        raise Unusable(
            f"{text[:60]}…",
            f"is longer than a path can be ({MAX_NAME_BYTES} bytes a name, {MAX_PATH_PARTS} names): shorten it",
            field,
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise Unusable(text, "there is no such user's home: write the path out", field) from error


# ------------------------------------------------------------------------------------------------ JSON


def load_json(text: str) -> Any:
    """One JSON value: no name twice in an object, no integer beyond 64 bits.

    Raises:
        Malformed: what is wrong, with the column where that is known.
    """
    with _malformed():
        return _JSON.decode(text)


def json_at(text: str, position: int) -> tuple[Any, int]:
    """The JSON value that begins at `position`, and where it ends. Raises as `load_json`, or `JSONDecodeError`."""
    try:
        return _JSON.raw_decode(text, position)
    except json.JSONDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise Malformed(said(error)) from error


@contextmanager
def _malformed() -> Iterator[None]:
    try:
        yield
    except json.JSONDecodeError as error:
        raise Malformed(f"column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise Malformed(said(error)) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {_shortened(twice)!r} stands twice in one object")
    return made


def _integer(text: str) -> int:
    """An integer of at most 64 bits; `text` is a decimal, or begins with 0o or 0x."""
    if len(text) <= MAX_DIGITS:
        number = int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if number in INTEGERS:
            return number
    raise ValueError(f"{_shortened(text)} is beyond 64 bits: give an integer from -2^63 to 2^63-1")


_JSON = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)


# ------------------------------------------------------------------------------------------------ YAML


def read_config(path: Path) -> str:
    """The text of a configuration's file.

    Raises:
        Malformed: it is too large, not UTF-8, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
        if len(content) > MAX_CONFIG_BYTES:
            raise Malformed(f"is larger than a configuration may be ({MAX_CONFIG_BYTES // 1024} KiB)")
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise Malformed(f"cannot be read as text ({said(error)})") from error


def load_yaml(text: str) -> Any:
    """The one value of a YAML text: None, bool, int, float, str, lists and dictionaries with names of text.

    Raises:
        Malformed: it is no YAML, or something of it is not read here; with the line.
    """
    if len(text) > MAX_CONFIG_BYTES:
        raise Malformed(f"is larger than a configuration may be ({MAX_CONFIG_BYTES // 1024} KiB)")
    try:
        node = _Loader(text).get_single_node()
        return None if node is None else _Values().of(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise Malformed(f"is not valid YAML ({where}{' '.join(str(problem).split())})") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, Malformed):
            raise
        raise Malformed(f"is not valid YAML ({said(error)})") from error


class _Loader(yaml.SafeLoader):
    """PyYAML's scanner and parser, with its tree of nodes limited in depth and without tags."""

    depth = nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if getattr(event, "tag", None):
            raise _at(event, f"the tag {_shortened(event.tag)} is not read: write the value plainly")
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH:
            raise _at(event, f"nested more than {MAX_DEPTH} deep: write it flatter")
        if self.nodes > 2 * MAX_VALUES:  # names are nodes too
            raise _at(event, f"more than {MAX_VALUES:,} values: write less")
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


# What plain scalars mean: YAML 1.2, 10.3.2. Everything else is text.
_NULL = re.compile(r"~|null|Null|NULL|")
_TRUE, _FALSE = re.compile(r"true|True|TRUE"), re.compile(r"false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_OTHER_FLOAT = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class _Values:
    """From nodes to values; an alias is followed each time that it is met, and counted."""

    def __init__(self) -> None:
        self.left = MAX_VALUES

    def of(self, node: Any, depth: int = 0) -> Any:
        self.left -= 1
        if self.left < 0:
            raise _at(node, f"more than {MAX_VALUES:,} values, aliases written out: write less, or no aliases")
        if depth > MAX_DEPTH:
            raise _at(node, f"nested more than {MAX_DEPTH} deep, aliases written out: write it flatter")
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node)
        if isinstance(node, yaml.SequenceNode):
            return [self.of(item, depth + 1) for item in node.value]
        made: dict[str, Any] = {}
        for name, value in node.value:
            if not isinstance(name, yaml.ScalarNode):
                raise _at(name, "a field's name must be text")
            if name.value in made:
                raise _at(name, f"the field {_shortened(name.value)!r} stands twice: remove one")
            self.text(name)
            made[name.value] = self.of(value, depth + 1)
        return made

    def scalar(self, node: yaml.ScalarNode) -> Any:
        text = self.text(node)
        if node.style is not None:  # in quotes, or a block
            return text
        if _NULL.fullmatch(text):
            return None
        if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
            return bool(_TRUE.fullmatch(text))
        if _INT.fullmatch(text):
            try:
                return _integer(text)
            except ValueError as error:
                raise _at(node, str(error)) from None
        if _FLOAT.fullmatch(text) or _OTHER_FLOAT.fullmatch(text):
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return text

    def text(self, node: yaml.ScalarNode) -> str:
        text: str = node.value
        if not is_text(text):
            raise _at(node, "half a surrogate pair is no text: write the whole character")
        return text


def _at(place: Any, problem: str) -> Malformed:
    return Malformed(f"line {place.start_mark.line + 1}: {problem}")


def _shortened(text: str, most: int = 40) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
