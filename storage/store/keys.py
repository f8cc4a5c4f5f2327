"""Artifact keys: sha256 over canonical JSON of everything that changes a result, and of nothing else.

The encoding is exact or refused. Integers and floats stay apart (`1` and `1.0` are different keys: a float is
written as its shortest `repr`, which always holds a point, an exponent, or both), a tuple equals a list, an
enum of strings equals its string, and dictionaries are ordered by key. Whatever else comes along (NaN, sets,
arrays, NumPy scalars, pydantic models, paths) raises `EncodingError` with the place where it was found.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from fortifai_core.errors import FortifaiError
from fortifai_core.parsing import is_text

# Part of every key: raise it when the encoding below changes.
KEY_SCHEMA = 1
MAX_BITS = 4096  # of an integer: Python writes one of thousands of digits slowly or not at all


class EncodingError(FortifaiError, TypeError):
    """A value that cannot be written exactly as canonical JSON."""


def canonical_json(value: object, *, path: str = "content") -> str:
    """The one text that stands for `value`.

    Raises:
        EncodingError: names the place (`content.losses[1].gamma`), the type, and what is accepted.
    """
    # Exact types, not isinstance: numpy.float64 is a float and numpy.str_ a str by inheritance.
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if type(value) is int:
        if value.bit_length() > MAX_BITS:
            raise EncodingError(f"{path} is an integer of {value.bit_length():,} bits: a key holds {MAX_BITS:,}")
        return str(value)
    if type(value) is float:
        if not math.isfinite(value):
            raise EncodingError(f"{path} = {value!r}: a key cannot hold NaN or infinity")
        return repr(value)
    if type(value) is str or isinstance(value, StrEnum):
        return _text(str(value), path)
    if type(value) in (list, tuple):
        assert isinstance(value, (list, tuple))
        return "[" + ",".join(canonical_json(v, path=f"{path}[{i}]") for i, v in enumerate(value)) + "]"
    if type(value) is dict:
        for name in value:
            if not (type(name) is str or isinstance(name, StrEnum)):
                raise EncodingError(f"{path}: the name {name!r} is a {type(name).__name__}; names must be strings")
        items = sorted(((str(name), v) for name, v in value.items()), key=lambda item: item[0])
        return "{" + ",".join(f"{_text(k, path)}:{canonical_json(v, path=f'{path}.{k}')}" for k, v in items) + "}"
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise EncodingError(
        f"{path} is a {kind}, which has no exact encoding: use None, bool, int, finite float, str, list, "
        "tuple or dict (for a pydantic model, model_dump(mode='json'))"
    )


def _text(value: str, path: str) -> str:
    if not is_text(value):  # two halves of a pair would be written as the one character that they are not
        raise EncodingError(f"{path} = {value!r}: half a surrogate pair is no text")
    return json.dumps(value)


def artifact_key(
    kind: str, *, version: int, content: Mapping[str, object], parents: Sequence[str] | Mapping[str, str] = ()
) -> str:
    """The key of an artifact: 64 hexadecimal digits.

    Args:
        kind: what it is (`model`, `split`, `evaluation`, …).
        version: the `version` of the spec of the stage that makes it; raise that to invalidate on purpose.
        content: the part of the configuration that changes the result. Never paths, hosts, worker counts,
            batch sizes of inference, or the number of generations asked for.
        parents: keys of the artifacts it is made from, in order or by role.

    Raises:
        EncodingError: for a value without an exact encoding.
    """
    if type(version) is not int:
        raise EncodingError(f"version = {version!r}: the version of a stage is an integer")
    if isinstance(parents, str):
        raise EncodingError(f"parents = {parents!r}: give a list of keys, or a mapping from role to key")
    plain = dict(parents) if isinstance(parents, Mapping) else list(parents)
    for key in plain.values() if isinstance(plain, dict) else plain:
        if type(key) is not str:
            raise EncodingError(f"parents hold {key!r}: a parent is named by its key, a string")
    body = {"schema": KEY_SCHEMA, "kind": kind, "version": version, "content": dict(content), "parents": plain}
    # Walked part by part, so that an error names `content.…` and not the wrapper around it.
    try:
        fields = ",".join(f"{json.dumps(name)}:{canonical_json(body[name], path=name)}" for name in sorted(body))
    except RecursionError as error:
        raise EncodingError("content is nested too deeply, or holds itself") from error
    return hashlib.sha256(f"{{{fields}}}".encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """sha256 of a file's bytes, read as a stream."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
