"""A store's artifacts as a file system that DuckDB reads and cannot write: `fortifai:///artifacts/KIND/KEY/NAME`."""

from __future__ import annotations

import io
import os
import re
import threading
from datetime import UTC, datetime
from typing import Any, BinaryIO

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from fortifai_core.errors import ArtifactDamaged
from storage.store.manifest import FileEntry
from storage.store.store import REMEDY, ArtifactStore
from storage.store.tree import check_file
from storage.tables.parquet import SCHEMAS, arrow_schema

PROTOCOL = "fortifai"
CATALOG = f"{PROTOCOL}:///catalog.duckdb"
FOLDER = f"{PROTOCOL}:///artifacts/"
_EMPTY = "/artifacts/.empty/"  # no kind of artifact is called so


def empty_file(view: str) -> str:
    """Address of a file with a view's columns and no rows; it is made when it is read."""
    return f"{PROTOCOL}://{_EMPTY}{view}.parquet"


def _empty(view: str) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    written = pa.BufferOutputStream()
    pq.write_table(arrow_schema(view.replace("_", "-")).empty_table(), written)
    return bytes(written.getvalue().to_pybytes())


class _Shared(io.RawIOBase):
    """A file that threads share, each with a place of its own: DuckDB seeks and reads in two calls."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._lock = file, threading.Lock()
        self._places: dict[int, int] = {}
        self._last = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if whence == os.SEEK_CUR:
            offset += self.tell()
        elif whence == os.SEEK_END:
            with self._lock:
                offset = self._file.seek(offset, whence)
        self._places[threading.get_ident()] = self._last = offset
        return offset

    def tell(self) -> int:
        return self._places.get(threading.get_ident(), self._last)

    def read(self, size: int = -1) -> bytes:
        place = self.tell()
        with self._lock:
            self._file.seek(place)
            data = self._file.read(size)
        self.seek(place + len(data))
        return data

    def close(self) -> None:
        self._file.close()
        super().close()


class ReadOnlyStore(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Single files below a store's `artifacts`. Whatever DuckDB asks of a file system besides reading raises an error.

    A name that leaves the artifacts, by `..` or by a link, is not found; nothing is listed. Of a local store each file
    is compared with its digest when it is opened, once by this process: a disk tells nobody that it lost a bit. An
    object storage compares what it holds itself.

    Attributes:
        store: whose files these are.
        damage: the first file that was not what its manifest says. DuckDB makes an error of its own of the exception.
    """

    protocol = PROTOCOL
    cachable = False

    def __init__(self, store: ArtifactStore) -> None:
        super().__init__()
        self.store = store
        self.damage: ArtifactDamaged | None = None
        self._entries: dict[tuple[str, str], dict[str, FileEntry]] = {}

    def _open(self, path: str, mode: str = "rb", *_: Any, **__: Any) -> Any:
        if mode != "rb":
            raise PermissionError(f"{path}: the store is read only")
        empty = self._empty_view(path)
        if empty is not None:
            return _Shared(io.BytesIO(_empty(empty)))
        files, place = self._place(path)
        if self.store.remote is None and place != str(self.store.catalog):
            try:
                self._compare(*place.rsplit("/artifacts/", 1)[1].split("/", 2))
            except ArtifactDamaged as error:
                self.damage = self.damage or error
                raise
        return _Shared(files.open(place, "rb"))

    def _compare(self, kind: str, key: str, name: str) -> None:
        if (kind, key) not in self._entries:
            manifest = self.store.peek(kind, key)
            self._entries[kind, key] = {entry["name"]: entry for entry in manifest.files} if manifest else {}
        entry = self._entries[kind, key].get(name)
        if entry is None:
            raise FileNotFoundError(f"{name} is no file of {kind} {key[:12]}")
        try:
            check_file(self.store.tree.place(kind, key), entry, verify=True)
        except ArtifactDamaged as error:
            message = f"1 damaged artifact in {self.store.name}: {kind} {key[:12]}: {error}; {REMEDY}"
            raise ArtifactDamaged(message, file=name) from error

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, size and type of a file."""
        empty = self._empty_view(path)
        if empty is not None:
            return {"name": path, "size": len(_empty(empty)), "type": "file"}
        files, place = self._place(path)
        return {**files.info(place), "name": path}

    def modified(self, path: str) -> datetime:
        """Always the same: an artifact's files never change."""
        return datetime.fromtimestamp(0, UTC)

    def glob(self, path: str, **_: Any) -> list[str]:
        """The file itself, where it is there: `views.literal_glob` undone; a pattern matches nothing."""
        name = re.sub(r"\[([*?\[])\]", r"\1", path)
        return [name] if self.exists(name) else []

    def _empty_view(self, path: str) -> str | None:
        name = str(self._strip_protocol(path))
        view = name.removeprefix(_EMPTY).removesuffix(".parquet")
        return view if name == f"{_EMPTY}{view}.parquet" and view.replace("_", "-") in SCHEMAS else None

    def _place(self, path: str) -> tuple[AbstractFileSystem, str]:
        """The file system that a file lies in, and its name there."""
        store, name = self.store, str(self._strip_protocol(path))
        if name == "/catalog.duckdb":
            return LocalFileSystem(), str(store.catalog)
        folder = f"{store.root if store.remote is None else store.remote.root}/artifacts"
        place = f"{folder}/{name.removeprefix('/artifacts/')}"
        inside = store.remote is not None or os.path.realpath(place).startswith(os.path.realpath(folder) + os.sep)
        if not inside or ".." in name.split("/"):
            raise FileNotFoundError(f"{path} is no file of the store's artifacts")
        return (LocalFileSystem() if store.remote is None else store.remote.fs), place
