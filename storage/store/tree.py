"""One directory of artifacts on a local disk: reading, checking, committing and setting aside."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from fortifai_core.errors import ArtifactDamaged, StoreError
from storage.store import durable
from storage.store.digests import digest_of
from storage.store.keys import file_digest
from storage.store.manifest import (
    MANIFEST_NAME,
    Address,
    FileEntry,
    Manifest,
    Removal,
    check_address,
    check_name,
    is_address,
    now,
)
from storage.store.states import states_of

# what a disk answers that cannot read what was written there
_BROKEN = (errno.EIO, errno.EUCLEAN, errno.EBADMSG) if hasattr(errno, "EUCLEAN") else (errno.EIO, errno.EBADMSG)
_LEFTOVER = re.compile(r"(?P<kind>[a-z][a-z0-9-]*)-(?P<key>[0-9a-f]{64})(\.draft(\.before)?)?")
# in a workspace: the digest of the manifest that its builder was to replace
_REPLACES = ".replaces"
_STRAYS = ("Thumbs.db", "desktop.ini", "lost+found")


@dataclass(frozen=True)
class Artifact:
    """A finished artifact whose files lie in a local directory. Never write there."""

    kind: str
    key: str
    path: Path
    manifest: Manifest

    def has(self, name: str) -> bool:
        """Whether the artifact was made with a file of that name."""
        return any(entry["name"] == name for entry in self.manifest.files)

    def file(self, name: str) -> Path:
        """Path of one file.

        Raises:
            ArtifactDamaged: the manifest does not list it, or it is gone.
        """
        if not self.has(name):
            names = [entry["name"] for entry in self.manifest.files]
            raise ArtifactDamaged(f"{self.kind} {self.key[:12]} has no file {name!r}, only {', '.join(names)}")
        path = self.path / name
        if not path.is_file():
            raise ArtifactDamaged(f"{path} is gone: run again to have it rebuilt")
        return path

    def files(self, pattern: str = "*") -> list[Path]:
        """Paths of the files whose names match a glob pattern, in the order of their names; at least one.

        Raises:
            ArtifactDamaged: none matches, or one is gone.
        """
        from fnmatch import fnmatchcase

        names = sorted(e["name"] for e in self.manifest.files if fnmatchcase(e["name"], pattern))
        if not names:
            raise ArtifactDamaged(f"{self.kind} {self.key[:12]} has no file that matches {pattern!r}")
        return [self.file(name) for name in names]


@dataclass(frozen=True)
class Tree:
    """The layout of a store on a local disk; also of the local copy of a remote one."""

    root: Path

    def place(self, kind: str, key: str) -> Path:
        """Where an artifact lies, or would lie."""
        check_address(kind, key)
        return self.root / "artifacts" / kind / key

    def draft(self, kind: str, key: str) -> Path:
        """Where an artifact is being made; on the same filesystem, so that a rename commits it."""
        return self._named("work", kind, key, ".draft")

    def workspace(self, kind: str, key: str) -> Path:
        """Where a builder keeps what should survive a crash."""
        return self._named("work", kind, key)

    def lock(self, kind: str, key: str) -> Path:
        """The lock file of an artifact's builder."""
        return self._named("locks", kind, key, ".lock")

    def _named(self, folder: str, kind: str, key: str, suffix: str = "") -> Path:
        check_address(kind, key)
        return self.root / folder / f"{kind}-{key}{suffix}"

    def manifest(self, kind: str, key: str) -> Manifest | None:
        """The manifest alone; None when there is no artifact.

        Raises:
            ArtifactDamaged: there is one, but it makes no sense or belongs to another artifact.
            NewerRelease: a newer release wrote it.
            StoreError: the place may not be read.
        """
        path = self.place(kind, key) / MANIFEST_NAME
        try:
            with reading(path, MANIFEST_NAME):
                text = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Manifest.from_json(text, where=str(path), address=(kind, key))

    def read(self, kind: str, key: str, *, verify: bool = False) -> Artifact | None:
        """The artifact, its sizes checked, with `verify` its digests too; None when there is none.

        Raises:
            ArtifactDamaged: names the file that is missing or different; with `verify`, or that was put there since.
        """
        manifest = self.manifest(kind, key)
        if manifest is None:
            return None
        place = self.place(kind, key)
        for entry in manifest.files:
            check_file(place, entry, verify=verify)
        if verify:
            gone = manifest.removed["files"] if manifest.removed else []  # a kill may have left some of them
            listed = {entry["name"] for entry in [*manifest.files, *gone]} | {MANIFEST_NAME}
            for path in plain_files(place):
                name = path.relative_to(place).as_posix()
                if name not in listed:
                    raise ArtifactDamaged(f"{path} is no file of this artifact: its manifest has none", file=name)
        return Artifact(kind, key, place, manifest)

    def verify(self, kind: str, key: str) -> None:
        """Check every digest of an artifact, where there is one.

        Raises:
            ArtifactDamaged: names the file that is missing or different; a manifest that was never written is missing.
        """
        place = self.place(kind, key)
        if place.is_dir() and self.read(kind, key, verify=True) is None:
            raise ArtifactDamaged(f"{place} is unfinished: it has no manifest", file=MANIFEST_NAME)

    def addresses(
        self, kind: str | None = None, *, but: Mapping[str, Collection[str]] = MappingProxyType({})
    ) -> Iterator[Address]:
        """(kind, key) of every artifact directory (of a kind), finished or not, `but` of those with these keys."""
        for kind_dir in sorted_directories(self.root / "artifacts"):
            if kind in (None, kind_dir.name):
                for key_dir in sorted_directories(kind_dir, but=but.get(kind_dir.name, ())):
                    if is_address(kind_dir.name, key_dir.name):
                        yield kind_dir.name, key_dir.name

    def manifests(self, addresses: Iterable[Address]) -> Iterator[tuple[Address, str, bytes]]:
        """(kind, key), path and text of the manifest of each of these that has one."""
        for address in addresses:
            path = self.place(*address) / MANIFEST_NAME
            try:
                yield address, str(path), path.read_bytes()
            except (FileNotFoundError, IsADirectoryError):
                continue  # unfinished, or removed in this moment
            except OSError as error:
                if error.errno not in _BROKEN:
                    raise
                yield address, str(path), b""  # which is no manifest either

    def states(
        self, kind: str, keys: Sequence[str], names: Sequence[str], *, before: int | None
    ) -> Iterator[int | None]:
        """What the file system says of these artifacts, each as one number: see `storage.store.states`.

        Args:
            names: of the files of each, without its manifest's.
        """
        ends = [f"/{name}" for name in (MANIFEST_NAME, *names)]
        return states_of(self.root / "artifacts" / kind, keys, ends, before=before)

    def describe(self, draft: Path) -> list[FileEntry]:
        """Size and digest of every file below a draft.

        Raises:
            ArtifactDamaged: nothing was written, or something that is not a plain file.
        """
        entries: list[FileEntry] = []
        for path in sorted(plain_files(draft)):
            if path.is_symlink() or not path.is_file():
                raise ArtifactDamaged(f"{path} is not a plain file: an artifact holds nothing else")
            name = path.relative_to(draft).as_posix()
            check_name(name)
            entries.append({"name": name, "size": path.stat().st_size, "sha256": file_digest(path)})
        if not entries:
            raise ArtifactDamaged(f"{draft} is empty: an artifact has at least one file")
        return entries

    def commit(self, draft: Path, manifest: Manifest) -> Artifact:
        """Files on disk, then the directory in its place, then the manifest, each durable before the next.

        What was there before is replaced as a whole, when the new one is on disk with its manifest: there is no
        moment in which a file of the one stands beside a file of the other.
        """
        place = self.place(manifest.kind, manifest.key)
        durable.fsync_tree(draft)
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            os.rename(draft, place)
            durable.fsync_path(place.parent)
            durable.write_bytes(place / MANIFEST_NAME, manifest.to_json().encode())
            return Artifact(manifest.kind, manifest.key, place, manifest)
        durable.write_bytes(draft / MANIFEST_NAME, manifest.to_json().encode())
        before = self._before(draft)
        durable.remove_tree(before)
        os.rename(place, before)
        os.rename(draft, place)
        durable.fsync_path(place.parent)
        durable.remove_tree(before)
        return Artifact(manifest.kind, manifest.key, place, manifest)

    @staticmethod
    def _before(draft: Path) -> Path:
        """Where what a draft replaces lies between its two renames."""
        return draft.with_name(f"{draft.name}.before")

    def begin_anew(self, kind: str, key: str) -> None:
        """Empty the workspace, unless it is of a builder that was to replace what is there now and was stopped.

        The mark that tells it lies in the workspace, and goes with it.
        """
        workspace, manifest = self.workspace(kind, key), self.place(kind, key) / MANIFEST_NAME
        mark = workspace / _REPLACES
        replaced = file_digest(manifest) if manifest.is_file() else "nothing"
        with contextlib.suppress(OSError):
            if mark.read_text() == replaced:
                return
        durable.remove_tree(workspace)
        durable.write_bytes(mark, replaced.encode())

    def settle(self, kind: str, key: str) -> None:
        """Undo what a process left that was killed between the two renames of a replacing commit; it held the lock."""
        before, place = self._before(self.draft(kind, key)), self.place(kind, key)
        if not before.exists():
            return
        if place.exists():
            durable.remove_tree(before)
        else:
            os.rename(before, place)
            durable.fsync_path(place.parent)

    def strip(self, manifest: Manifest, going: Sequence[FileEntry], *, by: str) -> int:
        """Take files out of an artifact: first its manifest says so, then they go. The bytes that this frees.

        Args:
            going: some of the manifest's files, or of those that it says are removed.
        """
        place = self.place(manifest.kind, manifest.key)
        leaving = [entry for entry in manifest.files if entry in going]
        if leaving:
            before = manifest.removed["files"] if manifest.removed else []
            removed: Removal = {"by": by, "at": now(), "files": [*before, *leaving]}
            files = [entry for entry in manifest.files if entry not in going]
            durable.write_bytes(
                place / MANIFEST_NAME, replace(manifest, files=files, removed=removed).to_json().encode()
            )
        freed = 0
        for entry in going:
            check_name(entry["name"])
            with contextlib.suppress(FileNotFoundError):
                freed += (place / entry["name"]).stat().st_size
                (place / entry["name"]).unlink()
        return freed

    def leftovers(self) -> Iterator[tuple[str, str, Path]]:
        """(kind, key) and folder of every workspace and draft below `work`."""
        for entry in sorted_directories(self.root / "work"):
            found = _LEFTOVER.fullmatch(entry.name)
            if found is not None:
                yield found["kind"], found["key"], Path(entry.path)

    def discard(self, place: Path) -> None:
        """Remove an artifact's directory; its manifest goes first: no half of it is taken for whole."""
        if not place.exists():
            return
        (place / MANIFEST_NAME).unlink(missing_ok=True)
        durable.fsync_path(place)
        shutil.rmtree(place)

    def set_aside(self, kind: str, key: str) -> Path:
        """Move a damaged artifact out of the way, for whoever wants to look at it."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        target = self.root / "damaged" / f"{stamp}-{kind}-{key}"
        if target.exists():
            target = target.with_name(f"{target.name}-{uuid.uuid4().hex[:8]}")
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(self.place(kind, key), target)
        durable.fsync_path(self.place(kind, key).parent)
        return target


def check_file(place: Path, entry: FileEntry, *, verify: bool) -> None:
    """Compare one file with its entry in the manifest.

    Raises:
        ArtifactDamaged: missing, of another size, or (with `verify`) of another digest.
    """
    name = entry["name"]
    check_name(name)
    path = place / name
    try:
        with reading(path, name):
            size = path.stat().st_size
            if size != entry["size"]:
                raise ArtifactDamaged(f"{path} has {size} bytes, its manifest says {entry['size']}", file=name)
            if verify and digest_of(path) != entry["sha256"]:
                raise ArtifactDamaged(f"{path} does not have the sha256 that its manifest says", file=name)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ArtifactDamaged(f"{path} is missing", file=name) from error


@contextmanager
def reading(path: Path, name: str) -> Iterator[None]:
    """Say in one line why a file cannot be read: the disk is broken there, or we may not. Absence is the caller's."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise
    except OSError as error:
        if error.errno in _BROKEN:
            raise ArtifactDamaged(f"{path} cannot be read: {error.strerror}", file=name) from error
        remedy = "choose a place where you may read and write"
        raise StoreError(str(path), error.strerror or str(error), remedy) from error


def is_stray(name: str) -> bool:
    """Whether an entry is what file managers, editors and file servers leave behind: `.DS_Store`, `@eaDir`, `x~`."""
    return name.startswith((".", "@", "#")) or name.endswith("~") or name in _STRAYS


def plain_files(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is no folder, without strays."""
    for directory, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(directory, name))]
        folders[:] = [name for name in folders if name not in links and not is_stray(name)]
        yield from (Path(directory) / name for name in [*names, *links] if not is_stray(name))


def sorted_directories(path: str | os.PathLike[str], *, but: Collection[str] = ()) -> list[os.DirEntry[str]]:
    """The directories in a directory, by name, `but` those of these names; none when it is not there."""
    try:
        with os.scandir(path) as entries:
            return sorted((e for e in entries if e.name not in but and e.is_dir()), key=lambda e: e.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
