"""The manifest: what an artifact is, what it was made from, and the digest of every file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any, TypedDict

from fortifai_core.errors import ArtifactDamaged, NewerRelease
from storage.store.keys import canonical_json

MANIFEST_NAME = "manifest.json"
WHOLE, PARTLY_REMOVED = 1, 2
MANIFEST_SCHEMA = PARTLY_REMOVED  # the newest that is read
SEAL = "manifest_sha256"
Address = tuple[str, str]  # kind and key of an artifact


class FileEntry(TypedDict):
    """One file of an artifact: path inside it (with `/`), bytes, sha256."""

    name: str
    size: int
    sha256: str


class Removal(TypedDict):
    """Files that were taken out of an artifact on purpose, to be made again when they are needed.

    by: the command; at: ISO 8601, UTC; files: as they were.
    """

    by: str
    at: str
    files: list[FileEntry]


@dataclass(frozen=True)
class Manifest:
    """Everything that is known about one artifact.

    Attributes:
        kind, key: its address in the store.
        stage_version: the `version` of the spec of the stage that made it.
        content: the part of the configuration in its key.
        parents: keys of the artifacts it was made from, by role.
        files: every file that is there.
        metrics: scalars worth seeing without opening a file.
        provenance: code, packages and hardware (`storage.store.provenance`); not part of the key.
        created: ISO 8601, UTC.
        seconds: wall time of the build.
        removed: what was taken out of it since, if anything; written in a schema of its own.
    """

    kind: str
    key: str
    stage_version: int
    content: dict[str, Any]
    parents: dict[str, str]
    files: list[FileEntry]
    metrics: dict[str, float | int | str] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    seconds: float = 0.0
    removed: Removal | None = None

    @property
    def size(self) -> int:
        """Bytes of all files that are there."""
        return sum(entry["size"] for entry in self.files)

    @property
    def lost(self) -> str:
        """In a word, what was taken out of it."""
        names = [entry["name"] for entry in self.removed["files"]] if self.removed else []
        return "weights" if any(name.endswith(".safetensors") for name in names) else "text"

    @property
    def removal(self) -> str:
        """Who took what out of it, as `fortifai gc removed its weights`; empty where all of it is there."""
        return f"{self.removed['by']} removed its {self.lost}" if self.removed else ""

    def to_json(self) -> str:
        """The text of `manifest.json`, sealed with a digest of itself so that a flipped bit in it shows.

        Raises:
            EncodingError: for a value that JSON cannot hold exactly (NaN, a NumPy scalar, …).
        """
        body = asdict(self)
        for name in ("content", "parents", "metrics", "provenance"):
            canonical_json(body[name], path=name)
        schema = PARTLY_REMOVED if self.removed else WHOLE
        if schema == WHOLE:
            del body["removed"]
        return json.dumps({"manifest_schema": schema, **body, SEAL: _seal(body, schema)}, indent=1) + "\n"

    @classmethod
    def from_json(
        cls, text: str | bytes, *, where: str = MANIFEST_NAME, address: tuple[str, str] | None = None
    ) -> Manifest:
        """Read a manifest back; of the artifact at `address`, if given.

        Raises:
            ArtifactDamaged: not JSON, sealed with another digest, with fields missing or unknown, or another's.
            NewerRelease: its schema is a newer one.
        """
        try:
            body = json.loads(text)
            if not isinstance(body, dict):
                raise ValueError(f"a JSON {type(body).__name__}")
            schema = body.pop("manifest_schema")
            seal = body.pop(SEAL, None)
        except (ValueError, KeyError, RecursionError) as error:
            message = f"{where}: not a manifest ({type(error).__name__}: {error})"
            raise ArtifactDamaged(message, file=MANIFEST_NAME) from error
        # sealed as of this schema, only its number was altered
        known = (WHOLE, PARTLY_REMOVED)
        if type(schema) is int and schema > MANIFEST_SCHEMA and seal not in [_seal(body, of) for of in known]:
            raise _newer(where, schema, body)
        if schema not in known:
            message = f"{where}: manifest_schema = {schema!r}, this release reads {MANIFEST_SCHEMA} and before"
            raise ArtifactDamaged(message, file=MANIFEST_NAME)
        if seal != _seal(body, schema):
            raise ArtifactDamaged(f"{where}: its text does not match its own digest", file=MANIFEST_NAME)
        try:
            manifest = cls(**body)
            manifest._check()
        except (TypeError, ValueError, KeyError) as error:
            raise ArtifactDamaged(f"{where}: {error}", file=MANIFEST_NAME) from error
        if address not in (None, (manifest.kind, manifest.key)):
            raise ArtifactDamaged(f"{where}: it belongs to {manifest.kind} {manifest.key}", file=MANIFEST_NAME)
        return manifest

    def _check(self) -> None:
        """That every field is of its type, whoever sealed it."""
        types: dict[str, Any] = {
            "created": str,
            "seconds": (int, float),
            "files": list,
            "stage_version": int,
            "kind": str,
            "key": str,
        }
        types |= dict.fromkeys(("content", "parents", "metrics", "provenance"), dict)
        wrong = [name for name, kind in types.items() if not isinstance(getattr(self, name), kind)]
        if not wrong:
            wrong = [f"files.{index}" for index, entry in enumerate(self.files) if not _is_entry(entry)]
            wrong += [f"parents.{name}" for name, key in self.parents.items() if not isinstance(key, str)]
            wrong += [] if self.removed is None or _is_removal(self.removed) else ["removed"]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} cannot be so in a manifest")
        check_address(self.kind, self.key)
        for entry in [*self.files, *(self.removed["files"] if self.removed else [])]:
            check_name(entry["name"])
        if self.created:
            datetime.fromisoformat(self.created)


def now() -> str:
    """This moment as ISO 8601 in UTC, to the microsecond; such texts sort by time."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


_KIND = re.compile(r"[a-z][a-z0-9-]{0,62}")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")


def is_address(kind: str, key: str) -> bool:
    """Whether both are plain file names as artifacts have them."""
    return bool(_KIND.fullmatch(kind) and _KEY.fullmatch(key))


def check_address(kind: str, key: str) -> None:
    """Refuse a kind or key that is not a plain file name, before it becomes a path.

    Raises:
        ValueError: names the offender.
    """
    if not _KIND.fullmatch(kind):
        raise ValueError(f"kind = {kind!r}: lower case letters, digits and dashes")
    if not _KEY.fullmatch(key):
        raise ValueError(f"key = {key!r}: letters, digits, dashes and underscores, as storage.store.keys makes them")


def check_name(name: str) -> None:
    """Refuse a file name that would leave the artifact's directory.

    Raises:
        ArtifactDamaged: absolute, empty, with `..`, or the manifest's own.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or name == MANIFEST_NAME or "\\" in name:
        raise ArtifactDamaged(f"{name!r} cannot be the name of a file in an artifact")


def seal_of(body: Mapping[str, Any]) -> str:
    """The digest of a JSON object, whatever its layout: kept inside it, it shows a flipped bit."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _seal(body: Mapping[str, Any], schema: int) -> str:
    return seal_of({"manifest_schema": schema, **body})


def _is_removal(removed: Any) -> bool:
    return (
        isinstance(removed, dict)
        and removed.keys() == Removal.__annotations__.keys()
        and isinstance(removed["by"], str)
        and isinstance(removed["at"], str)
        and bool(datetime.fromisoformat(removed["at"]))
        and isinstance(removed["files"], list)
        and all(_is_entry(entry) for entry in removed["files"])
    )


def _is_entry(entry: Any) -> bool:
    types = {"name": str, "size": int, "sha256": str}
    return (
        isinstance(entry, dict)
        and entry.keys() == types.keys()
        and all(isinstance(entry[name], kind) for name, kind in types.items())
    )


def _newer(where: str, schema: int, body: Mapping[str, Any]) -> NewerRelease:
    provenance = body.get("provenance")
    by = provenance.get("release") if isinstance(provenance, dict) else None
    needed = f"release {by}" if isinstance(by, str) else f"a release that reads manifest_schema {schema}"
    remedy = f"a newer release wrote it: install {needed} (this one reads {MANIFEST_SCHEMA}), or choose another store"
    return NewerRelease(f"{where}: manifest_schema", schema, remedy)
