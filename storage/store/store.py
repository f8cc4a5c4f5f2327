"""The artifact store, a directory or fsspec URL: find an artifact by its key, or be the one who builds it.

    <root>/artifacts/<kind>/<key>/…     the files, and manifest.json: without it there is no artifact
    <root>/experiments/<name>-<id>.json what was run (storage.store.experiments)
    <root>/catalog.duckdb               SQL over all of it; may be deleted at any time (storage.catalog.catalog)
    <root>/work                         drafts, and workspaces that survive a crash
    <root>/damaged                      artifacts whose files did not match their manifest
    <root>/locks, <root>/logs

A remote store has artifacts, experiments, damaged and locks; the rest is in its local copy.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fortifai_core.errors import ArtifactDamaged, FortifaiError, StoreError, without_secrets
from storage.store import digests, durable
from storage.store.draft import Draft
from storage.store.location import parse_location
from storage.store.locks import Lease, LeaseTimes, LockHeld, file_lock, lease
from storage.store.manifest import FileEntry, Manifest
from storage.store.remote import Remote, cache_directory
from storage.store.remote_digests import numbered, state_of
from storage.store.states import states_of
from storage.store.tree import Artifact, Tree, is_stray

__all__ = ["Artifact", "ArtifactDamagedWarning", "ArtifactStore", "Damage", "Draft", "Manifest", "Verification"]

REMEDY = "`fortifai verify` sets aside what is damaged, and `fortifai resume` builds it anew"

LITTLE_SPACE = 2e9  # bytes free; the demo's store needs a tenth of it


class ArtifactDamagedWarning(UserWarning):
    """A damaged artifact was set aside; whoever needs it builds it anew."""


@dataclass(frozen=True)
class Damage:
    """A damaged artifact that was set aside.

    Attributes:
        kind, key: the artifact.
        file: the first of its files that is wrong, by its name inside the artifact; its manifest may be the one.
        problem: what is wrong, in words.
        moved_to: where what was damaged lies now: the artifact, or our copy of a remote one.
    """

    kind: str
    key: str
    file: str | None
    problem: str
    moved_to: str


@dataclass(frozen=True)
class Verification:
    """What a look at every digest gave: how many artifacts are sound, and those that were not."""

    sound: int
    damaged: list[Damage]


class ArtifactStore:
    """Artifacts below one directory or URL.

    Args:
        url: a directory, `file://…`, or any URL that fsspec opens (`s3://bucket/prefix`, `memory://…`).
        cache: local copy of a remote store; by default below FORTIFAI_CACHE or ~/.cache/fortifai.
        lease_times: heartbeat and expiry of the lease on a remote store.

    Raises:
        StoreError: the place is none, or nothing here opens it.
    """

    def __init__(self, url: str | Path, *, cache: Path | None = None, lease_times: LeaseTimes | None = None) -> None:
        place = parse_location(str(url))
        self.remote = Remote(place) if isinstance(place, str) else None
        self.tree = Tree((cache or cache_directory(place)) if isinstance(place, str) else place)
        self.lease_times = lease_times

    def __repr__(self) -> str:
        return f"ArtifactStore({self.name!r})"

    @property
    def url(self) -> str:
        """What another process opens to see the same store: an absolute path or a URL."""
        return self.remote.url if self.remote else str(self.tree.root)

    @property
    def name(self) -> str:
        """The same for people: a URL without its password."""
        return without_secrets(self.url)

    @property
    def root(self) -> Path:
        """The local directory: of the store, or of the local copy of a remote one."""
        return self.tree.root

    @property
    def logs(self) -> Path:
        """Directory for log files; made when asked for."""
        path = self.root / "logs"
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def catalog(self) -> Path:
        """Where the DuckDB catalog lies, or will lie."""
        return self.root / "catalog.duckdb"

    def workspace(self, kind: str, key: str) -> Path:
        """A directory that survives a crash and goes when the artifact is committed; always the same one."""
        path = self.tree.workspace(kind, key)
        path.mkdir(parents=True, exist_ok=True)
        return path

    # --- reading: nothing is moved, and of a local store nothing is written ---

    def peek(self, kind: str, key: str) -> Manifest | None:
        """The manifest of an artifact whose sizes are right; downloads nothing, moves nothing.

        Raises:
            ArtifactDamaged: it is there and damaged.
            NewerRelease: a newer release wrote it.
        """
        if self.remote is None:
            artifact = self.tree.read(kind, key)
            return artifact.manifest if artifact else None
        self.tree.place(kind, key)  # refuses what is no address
        with self.asked():
            manifest = self.remote.manifest(kind, key)
            if manifest is not None:
                self.remote.check(manifest)
            return manifest

    def has(self, kind: str, key: str) -> bool:
        """Whether the artifact is there, every file in its size; what is damaged is not there.

        Raises:
            NewerRelease: a newer release wrote it.
        """
        try:
            return self.peek(kind, key) is not None
        except ArtifactDamaged:
            return False

    def addresses(self) -> set[tuple[str, str]]:
        """(kind, key) of every artifact, finished or not: where few are there, that is sooner known than one by one."""
        with self.asked():
            return set((self.remote or self.tree).addresses())

    def read(self, kind: str, key: str) -> Artifact | None:
        """The artifact with every digest checked, for whoever shows what is in it; None when there is none.

        Raises:
            ArtifactDamaged: it is there and damaged; the message says what to do.
            NewerRelease: a newer release wrote it.
        """
        try:
            return self._read(kind, key, verify=True)
        except ArtifactDamaged as error:
            raise ArtifactDamaged(f"{kind} {key[:12]} is damaged: {error}; {REMEDY}", file=error.file) from error

    def ls(self, kind: str | None = None) -> list[Manifest]:
        """The manifests of all artifacts (of a kind), oldest first; unreadable ones are warned about.

        Raises:
            NewerRelease: a newer release wrote one of them.
        """
        readable: list[Manifest] = []
        with self.asked():
            place = self.remote or self.tree
            found = list(place.manifests(place.addresses(kind)))
        for _, where, text in found:
            try:
                readable.append(Manifest.from_json(text, where=where))
            except ArtifactDamaged as error:
                warnings.warn(str(error), ArtifactDamagedWarning, stacklevel=2)
        return sorted(readable, key=lambda m: (m.created, m.kind, m.key))

    # --- looking after it: what is damaged is set aside ---

    def find(self, kind: str, key: str, *, verify: bool = False) -> Artifact | None:
        """The artifact, or None, for whoever can build it anew. Its sizes are checked, with `verify` its digests too.

        A damaged one is set aside with an `ArtifactDamagedWarning`, and None is returned.

        Raises:
            NewerRelease: a newer release wrote it.
        """
        try:
            return self._read(kind, key, verify=verify)
        except ArtifactDamaged:
            # Judged again under the lock: it may have been rebuilt between our two looks.
            with self._locked(kind, key):
                return self._read_or_set_aside(kind, key, verify=verify)

    def find_manifest(self, kind: str, key: str) -> Manifest | None:
        """As `find`, for whoever reads no file: of a remote store nothing is downloaded."""
        try:
            return self.peek(kind, key)
        except ArtifactDamaged:
            found = self.find(kind, key)
            return found.manifest if found is not None else None

    def verify(self) -> Verification:
        """Check every digest of every artifact, and set the damaged ones aside, so that the next run builds them anew.

        Of a remote store the objects themselves are read, and the files of our local copy too.

        Raises:
            NewerRelease: a newer release wrote one of them; then none is moved.
            StoreError: a damaged artifact cannot be moved.
        """
        digests.forget()
        addresses = list((self.remote or self.tree).addresses())
        suspects = [address for address in addresses if self._damages(*address)]
        sound, damaged = len(addresses) - len(suspects), []
        for kind, key in suspects:
            with self._locked(kind, key):
                # Judged again under the lock: somebody may have been committing it.
                damages = self._damages(kind, key)
                sound += not damages
                for place, error in damages:
                    moved_to = self._set_aside(place, kind, key, error)
                    damaged.append(Damage(kind, key, error.file, str(error), moved_to))
        return Verification(sound, damaged)

    # --- writing ---

    @contextmanager
    def build(self, kind: str, key: str, *, anew: bool = False) -> Iterator[Draft]:
        """Hold the builder lock. `draft.found` is set if the artifact exists as a whole, perhaps since we waited.

        A draft that is left without `commit` leaves no trace but its workspace.

        Args:
            anew: build it although it exists, and from the start, or from where a builder that was to replace the same
                one was stopped; who reads it has the old one until the commit.
        """
        self.tree.place(kind, key)
        with self._locked(kind, key) as held:
            draft_path = self.tree.draft(kind, key)
            self.tree.settle(kind, key)  # after a builder that died: we hold its lock
            durable.remove_tree(draft_path)
            existing = None
            if anew:
                with durable.naming_full_disk(draft_path):
                    self.tree.begin_anew(kind, key)
            else:
                existing = self._read_or_set_aside(kind, key, verify=False) or self._publish_copy(kind, key)
                if existing is not None and existing.manifest.removed:
                    existing = None  # what was taken out of it is wanted again
            draft = Draft(self.tree, self.remote, kind, key, held=held, found=existing)
            if existing is None:
                with durable.naming_full_disk(draft_path):
                    draft_path.mkdir(parents=True)
            try:
                yield draft
            finally:
                durable.remove_tree(draft_path)

    def remove(self, kind: str, key: str) -> None:
        """Delete an artifact and its workspace, if they are there."""
        with self._locked(kind, key):
            if self.remote is not None:
                self.remote.remove(kind, key)
            self.tree.discard(self.tree.place(kind, key))
            durable.remove_tree(self.tree.workspace(kind, key))

    # --- making room: files that can be made again go, manifests stay ---

    @contextmanager
    def registering(self) -> Iterator[None]:
        """Held while an experiment is put on record, and by whoever looks what no experiment needs and removes it.

        So an experiment is on record before that look, or finds afterwards what was removed. Of a local store only:
        from a remote one nothing is removed.
        """
        if self.remote is not None:
            yield
            return
        with file_lock(self.root / "locks" / "experiments.lock", what="the record of experiments"):
            yield

    def held(self, kind: str, key: str, goes: Callable[[str, str], bool]) -> list[FileEntry]:
        """The files of an artifact that lie here and may go, as `goes(kind, name)` says; none of a damaged one.

        Those are among them that an interrupted `strip` had declared to be removed.

        Raises:
            NewerRelease: a newer release wrote it.
        """
        try:
            manifest = self.peek(kind, key)
        except ArtifactDamaged:
            return []
        if manifest is None or self.remote is not None:
            return []
        place, gone = self.tree.place(kind, key), manifest.removed["files"] if manifest.removed else []
        return [e for e in [*manifest.files, *gone] if goes(kind, e["name"]) and (place / e["name"]).is_file()]

    def strip(self, kind: str, key: str, goes: Callable[[str, str], bool], *, by: str) -> int | None:
        """Remove these files of an artifact of a local store; its manifest stays, and says `by` what they went.

        Returns:
            The bytes that were freed; None when somebody is building the artifact in this moment.
        """
        try:
            with file_lock(self.tree.lock(kind, key), what=f"{kind} {key[:12]}", wait=False):
                going = self.held(kind, key, goes)
                manifest = self.peek(kind, key) if going else None
                return self.tree.strip(manifest, going, by=by) if manifest is not None else 0
        except LockHeld:
            return None

    def leftovers(self) -> list[tuple[str, str, Path]]:
        """(kind, key) and folder of what builders that did not come to their end have left in the local store."""
        return list(self.tree.leftovers())

    def remove_leftover(self, kind: str, key: str, folder: Path) -> bool:
        """Remove one of `leftovers`, unless somebody is building there."""
        try:
            with file_lock(self.tree.lock(kind, key), what=f"{kind} {key[:12]}", wait=False):
                durable.remove_tree(folder)
                return True
        except LockHeld:
            return False

    def writable(self) -> None:
        """Find out before any compute whether artifacts can be stored.

        Raises:
            StoreError: names the place and the remedy.
        """
        with self.asked():
            durable.write_bytes(self.root / "work" / "writable", b"")
            if self.remote is not None:
                name = f"work/writable-{uuid.uuid4().hex}"
                self.remote.write(name, b"")
                self.remote.delete(name)

    def free_bytes(self) -> int:
        """Bytes free on the disk of the store, or of the local copy of a remote one."""
        place = self.root
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free

    # --- small files beside the artifacts (experiments) ---

    def read_bytes(self, name: str) -> bytes | None:
        """A file of the store by its relative name, or None.

        Raises:
            StoreError: it cannot be read.
        """
        with self.asked():
            if self.remote is not None:
                return self.remote.read(name)
            try:
                return (self.root / name).read_bytes()
            except FileNotFoundError:
                return None

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write a file of the store, atomically.

        Raises:
            StoreError: it cannot be written.
        """
        with self.asked():
            if self.remote is not None:
                self.remote.write(name, data)
            else:
                with durable.naming_full_disk(self.root / name):
                    durable.write_bytes(self.root / name, data)

    def names(self, directory: str) -> list[str]:
        """File names in a directory of the store, sorted, without strays; none when it is not there.

        Raises:
            StoreError: the store is no directory, or cannot be read.
        """
        with self.asked():
            if self.remote is not None:
                return sorted(name for name in self.remote.names(directory) if not is_stray(name))
            if self.root.exists() and not self.root.is_dir():
                raise StoreError("store", str(self.root), "is a file: name a directory, or a URL")
            try:
                with os.scandir(self.root / directory) as entries:
                    return sorted(entry.name for entry in entries if entry.is_file() and not is_stray(entry.name))
            except FileNotFoundError:
                return []

    def states(self, directory: str) -> dict[str, int | None]:
        """What the file system or the storage says of each file in a directory, as one number, by its name.

        It is another one once the file was written again; None where its times may not show that, or nothing is said.
        """
        with self.asked():
            if self.remote is not None:
                infos = {name: info for name, info in self.remote.objects(directory).items() if "/" not in name}
                return {name: numbered(state_of(info)) for name, info in infos.items() if not is_stray(name)}
            names = self.names(directory)
            states = states_of(self.root / directory, names, [""], before=time.time_ns())
            return dict(zip(names, states, strict=True))

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Say in one line why the store cannot be read or written."""
        try:
            yield
        except FortifaiError:
            raise
        except OSError as error:
            problem = without_secrets(error.strerror or f"{type(error).__name__}: {error}")
            raise StoreError(
                "store", self.name, f"cannot be used ({problem}): choose a place where you may read and write"
            ) from error

    # --- for the catalog ---

    def address(self, name: str) -> str:
        """Where a file of the store lies: an absolute path, or a URL."""
        return self.remote.address(name) if self.remote else str(self.root / name)

    # --- details ---

    def _read(self, kind: str, key: str, *, verify: bool) -> Artifact | None:
        if self.remote is None:
            return self.tree.read(kind, key, verify=verify)
        manifest = self.peek(kind, key)
        if manifest is None:
            return None
        try:
            copy = self.tree.read(kind, key, verify=verify)
        except ArtifactDamaged:
            copy = None  # only our copy is damaged: fetch it again
        if copy is not None and copy.manifest == manifest:
            return copy
        with file_lock(self.root / "locks" / f"{kind}-{key}.download", what=f"{kind} {key[:12]}"):
            return self.remote.download(manifest, self.tree)

    def _publish_copy(self, kind: str, key: str) -> Artifact | None:
        """Finish an upload that broke off: our copy is whole, the remote store has nothing."""
        if self.remote is None:
            return None
        try:
            copy = self.tree.read(kind, key, verify=True)
        except ArtifactDamaged:
            return None  # the copy of what was damaged remotely, or half a download: build anew
        if copy is not None:
            self.remote.upload(copy)
        return copy

    def _read_or_set_aside(self, kind: str, key: str, *, verify: bool) -> Artifact | None:
        try:
            return self._read(kind, key, verify=verify)
        except ArtifactDamaged as error:
            where = self._set_aside(self.remote or self.tree, kind, key, error)
            message = f"{kind} {key[:12]} is damaged and will be rebuilt: {error}; set aside in {where}"
            warnings.warn(message, ArtifactDamagedWarning, stacklevel=4)
            return None

    def _damages(self, kind: str, key: str) -> list[tuple[Tree | Remote, ArtifactDamaged]]:
        """What is not whole to the last bit: the artifact, our copy of a remote one, or both."""
        damages: list[tuple[Tree | Remote, ArtifactDamaged]] = []
        places: list[Tree | Remote] = [self.tree] if self.remote is None else [self.remote, self.tree]
        for place in places:
            try:
                place.verify(kind, key)
            except ArtifactDamaged as error:
                damages.append((place, error))
        return damages

    def _set_aside(self, place: Tree | Remote, kind: str, key: str, damage: ArtifactDamaged) -> str:
        try:
            return str(place.set_aside(kind, key))
        except OSError as blocked:
            raise StoreError(self.name, str(blocked), f"make it writable; damage was found: {damage}") from damage

    @contextmanager
    def _locked(self, kind: str, key: str) -> Iterator[Lease | None]:
        what = f"{kind} {key[:12]}"
        with file_lock(self.tree.lock(kind, key), what=what):
            if self.remote is None:
                yield None
                return
            with lease(self.remote, f"locks/{kind}-{key}", what=what, times=self.lease_times) as held:
                yield held
