"""A store on object storage, through fsspec: manifests go up last, and a local copy is read."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fortifai_core.errors import ArtifactDamaged, FortifaiError, StageFailed, StoreError, without_secrets
from fortifai_core.parsing import local_path, refusing
from storage.store import durable
from storage.store.manifest import MANIFEST_NAME, Address, Manifest, is_address
from storage.store.tree import Artifact, Tree, check_file


def cache_directory(url: str) -> Path:
    """Where the local copy of a remote store lies: below FORTIFAI_CACHE, or ~/.cache/fortifai."""
    base = os.environ.get("FORTIFAI_CACHE")
    root = local_path(base, "FORTIFAI_CACHE") if base else Path.home() / ".cache" / "fortifai"
    return root / hashlib.sha256(url.encode()).hexdigest()[:16]


class Remote:
    """The objects below one URL. Names are relative to it and use `/`.

    Whatever the storage says of itself (it is away, it refuses us) is a `StoreError`, each implementation of fsspec
    having errors of its own.
    """

    def __init__(self, url: str) -> None:
        """Connect to `url`.

        Raises:
            StoreError: unknown protocol, or its package is not installed.
        """
        import fsspec

        self.url = url.rstrip("/")
        with refusing("store", url, "use a directory, or a URL that fsspec can open", error=StoreError):
            self.fs, root = fsspec.core.url_to_fs(self.url)
        self.root = str(root).rstrip("/")
        self.fs.dircache.use_listings_cache = False  # others write here too: a listing is old at once

    # --- objects (what storage.store.locks asks for) ---

    def create(self, name: str, data: bytes) -> bool:
        """Create an object, by a conditional write; False when there is another one already.

        Args:
            data: what nobody else writes there: whoever finds it has written it, though the answer was lost.
        """
        path = self._path(name)
        with self._asked():
            try:
                self._with_parent(path, partial(self.fs.pipe_file, path, data, mode="create"))
            except FileExistsError:
                return self.read(name) == data
            except OSError as error:
                # some S3 servers answer a failed condition without naming it; s3fs then says EINVAL
                there = self.read(name)
                if there is None and "ConditionalRequestConflict" not in str(error.__cause__):
                    raise
                return there == data
        return True

    def write(self, name: str, data: bytes) -> None:
        """Create or overwrite an object."""
        path = self._path(name)
        with self._asked():
            self._with_parent(path, partial(self.fs.pipe_file, path, data))

    def read(self, name: str) -> bytes | None:
        """An object's bytes, or None when there is none."""
        with self._asked():
            try:
                data: bytes = self.fs.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return data

    def names(self, directory: str) -> list[str]:
        """The last parts of the names below a directory; none when it is not there."""
        with self._asked():
            try:
                names: list[str] = self.fs.ls(self._path(directory), detail=False)
            except FileNotFoundError:
                return []
            return [str(name).rstrip("/").rsplit("/", 1)[-1] for name in names]

    def read_many(self, names: list[str]) -> dict[str, bytes]:
        """Several objects at once, without those that are not there; one after another would take minutes."""
        paths = {self._path(name): name for name in names}
        with self._asked():
            contents = self.fs.cat(list(paths), on_error="return") if paths else {}
            found = {}
            # fsspec answers with the paths it was given, without a protocol
            for path, data in contents.items():
                if isinstance(data, FileNotFoundError):
                    continue
                if isinstance(data, Exception):
                    raise data
                found[paths[path]] = data
            return found

    def objects(self, directory: str) -> dict[str, dict[str, Any]]:
        """Every object below a directory, by its name relative to it, with what the storage says of it."""
        base = self._path(directory)
        with self._asked():
            objects: dict[str, dict[str, Any]] = self.fs.find(base, detail=True)
        return {str(path)[len(base) :].lstrip("/"): info for path, info in objects.items()}

    def listing(self, directory: str) -> dict[str, int]:
        """Every object below a directory, by its name relative to it, with its size."""
        return {name: int(info["size"]) for name, info in self.objects(directory).items()}

    def digest(self, name: str) -> str:
        """sha256 of an object, which is read for it."""
        with self._asked(), self.fs.open(self._path(name), "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()

    def delete(self, name: str) -> None:
        """Delete an object if it is there."""
        with self._asked():
            try:
                self.fs.rm_file(self._path(name))
            except FileNotFoundError:
                return

    def clear(self) -> None:
        """Delete every object of the store."""
        with self._asked():
            if self.fs.exists(self.root):
                self.fs.rm(self.root, recursive=True)

    def address(self, name: str) -> str:
        """Full URL of an object."""
        return str(self.fs.unstrip_protocol(self._path(name)))

    def name(self, name: str) -> str:
        """The same for people: without a password."""
        return without_secrets(self.address(name))

    # --- artifacts ---

    def manifest(self, kind: str, key: str) -> Manifest | None:
        """As `Tree.manifest`, from the remote store."""
        name = f"artifacts/{kind}/{key}/{MANIFEST_NAME}"
        text = self.read(name)
        return None if text is None else Manifest.from_json(text, where=self.name(name), address=(kind, key))

    def check(self, manifest: Manifest, *, verify: bool = False) -> None:
        """Compare the sizes of the remote objects with the manifest, with `verify` their digests too.

        Raises:
            ArtifactDamaged: names the object that is missing or different.
        """
        for entry in manifest.files:
            name = f"artifacts/{manifest.kind}/{manifest.key}/{entry['name']}"
            path, problem = self._path(name), ""
            try:
                with self._asked():
                    size = self.fs.info(path)["size"]
                if size != entry["size"]:
                    problem = f"has {size} bytes, its manifest says {entry['size']}"
                elif verify and self.digest(name) != entry["sha256"]:
                    problem = "does not have the sha256 that its manifest says"
            except FileNotFoundError:
                problem = "is missing"
            if problem:
                raise ArtifactDamaged(f"{self.name(name)} {problem}", file=entry["name"])

    def verify(self, kind: str, key: str) -> None:
        """As `Tree.verify`; every object is read."""
        manifest = self.manifest(kind, key)
        if manifest is not None:
            self.check(manifest, verify=True)
        elif self.names(base := f"artifacts/{kind}/{key}"):
            raise ArtifactDamaged(f"{self.name(base)} is unfinished: it has no manifest", file=MANIFEST_NAME)

    def addresses(self, kind: str | None = None) -> Iterator[Address]:
        """(kind, key) of every artifact, whether finished or not."""
        yield from (address for address in addresses_of(self.listing("artifacts")) if kind in (None, address[0]))

    def manifests(self, addresses: Iterable[Address]) -> Iterator[tuple[Address, str, bytes]]:
        """As `Tree.manifests`."""
        names = {f"artifacts/{kind}/{key}/{MANIFEST_NAME}": (kind, key) for kind, key in addresses}
        for name, text in sorted(self.read_many(list(names)).items()):
            yield names[name], self.name(name), text

    def download(self, manifest: Manifest, tree: Tree) -> Artifact:
        """Bring an artifact into the local copy; every digest is checked on the way.

        Raises:
            ArtifactDamaged: what arrived is not what the manifest says.
        """
        draft = tree.root / "work" / f"{manifest.kind}-{manifest.key}.download"
        durable.remove_tree(draft)
        draft.mkdir(parents=True)
        try:
            with durable.naming_full_disk(draft):
                for entry in manifest.files:
                    target = draft / entry["name"]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    name = f"artifacts/{manifest.kind}/{manifest.key}/{entry['name']}"
                    try:
                        with self._asked():
                            self.fs.get_file(self._path(name), str(target))
                    except FileNotFoundError as error:
                        raise ArtifactDamaged(f"{self.name(name)} is missing") from error
                    check_file(draft, entry, verify=True)
                return tree.commit(draft, manifest)
        finally:
            durable.remove_tree(draft)

    def upload(self, artifact: Artifact) -> None:
        """Publish an artifact: an old manifest goes first, the new one comes last, and only where there is none.

        Raises:
            StageFailed: another builder has published it meanwhile.
        """
        base = f"artifacts/{artifact.kind}/{artifact.key}"
        self.remove(artifact.kind, artifact.key)
        for entry in artifact.manifest.files:
            local, path = str(artifact.path / entry["name"]), self._path(f"{base}/{entry['name']}")
            with self._asked():
                self._with_parent(path, partial(self.fs.put_file, local, path))
        self.check(artifact.manifest)
        if not self.create(f"{base}/{MANIFEST_NAME}", artifact.manifest.to_json().encode()):
            raise StageFailed(f"{self.name(base)} was published by another builder; run again to take its result")

    def remove(self, kind: str, key: str) -> None:
        """Delete an artifact, its manifest first."""
        base = f"artifacts/{kind}/{key}"
        self.delete(f"{base}/{MANIFEST_NAME}")
        if self.names(base):
            with self._asked():
                self.fs.rm(self._path(base), recursive=True)

    def set_aside(self, kind: str, key: str) -> str:
        """Move a damaged artifact out of the way; its manifest leaves first."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        target = f"damaged/{stamp}-{kind}-{key}-{uuid.uuid4().hex[:8]}"
        base = f"artifacts/{kind}/{key}"
        manifest = self.read(f"{base}/{MANIFEST_NAME}")
        if manifest is not None:
            self.write(f"{target}/{MANIFEST_NAME}", manifest)
        self.delete(f"{base}/{MANIFEST_NAME}")
        for path in self.listing(base):
            here, there = self._path(f"{base}/{path}"), self._path(f"{target}/{path}")
            with self._asked():
                self._with_parent(there, partial(self.fs.mv, here, there))
        return self.name(target)

    # --- details ---

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def _with_parent(self, path: str, write: Callable[[], object]) -> None:
        """Write to a path, whose folder is made where there are folders; asking first would double every write."""
        try:
            write()
        except FileNotFoundError:
            self.fs.makedirs(self.fs._parent(path), exist_ok=True)
            try:
                write()
            except FileNotFoundError as error:  # there is no place to write to, as when its bucket is gone
                raise self._unusable(error) from error

    @contextmanager
    def _asked(self) -> Iterator[None]:
        try:
            yield
        except (FortifaiError, FileNotFoundError):
            raise
        except Exception as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> StoreError:
        said = without_secrets(f"{type(error).__name__}: {error}")
        remedy = f"cannot be used ({said}): choose a place where you may read and write"
        return StoreError("store", without_secrets(self.url), remedy)


def addresses_of(names: Iterable[str]) -> list[Address]:
    """(kind, key) of every artifact, sorted, from the names of all objects relative to `artifacts`."""
    parts = (name.split("/", 2) for name in names)
    seen = {(part[0], part[1]) for part in parts if len(part) == 3}
    return sorted(address for address in seen if is_address(*address))
