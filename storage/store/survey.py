"""What a store holds now, beside what was known of it: whatever is new or was touched is read, the rest is not."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from fortifai_core.errors import ArtifactDamaged
from storage.store.manifest import MANIFEST_NAME, Address, Manifest
from storage.store.remote import addresses_of
from storage.store.remote_digests import RemoteDigests, numbered, state_of
from storage.store.store import REMEDY, ArtifactStore
from storage.store.tree import check_file

NAMED = 5  # damaged artifacts that one message names


class Known(NamedTuple):
    """What was seen of an artifact when it was sound.

    Attributes:
        names: of its files.
        state: what the file system or the storage said of them; None where that tells nothing yet.
        digest: sha256 of its manifest's text.
    """

    names: Sequence[str]
    state: int | None
    digest: str


class Alike(NamedTuple):
    """The same of many artifacts of one kind whose files have the same names: 100,000 by themselves take a second.

    Attributes:
        keys, states, digests: of each artifact, in one order.
    """

    kind: str
    names: Sequence[str]
    keys: Sequence[str]
    states: Sequence[int | None]
    digests: Sequence[str]


@dataclass(frozen=True)
class Survey:
    """What has become of a store since it was looked at.

    Attributes:
        new: the manifests of what was not known, or is another now; oldest first.
        seen: what is to be known of these, and of what was touched, read again and found the same.
        gone: what was known and is not there any more, or is another now.
    """

    new: list[Manifest]
    seen: dict[Address, Known]
    gone: list[Address]


def survey(store: ArtifactStore, known: Sequence[Alike], reads: Callable[[str, str], bool]) -> Survey:
    """Look at every artifact of a store, when none of them is damaged.

    An artifact whose manifest and files are as they were, by what the file system says of them, is the same. Of any
    other the size of every file is compared, and the digest of each file that is going to be read. That is taken once
    by this process (`storage.store.digests`); of a remote store once for as long as the storage says the same of
    the object (`storage.store.remote_digests`), whichever process asks.

    Args:
        known: what was seen before.
        reads: whether a file of an artifact is going to be read, by the artifact's kind and the file's name.

    Raises:
        ArtifactDamaged: names the damaged ones.
        NewerRelease: a newer release wrote one of them.
    """
    look = _Look(store, reads)
    touched: dict[Address, str] = {}
    with store.asked():
        others = look.others(known)
        for alike in known:
            now = look.states(alike.kind, alike.keys, alike.names, kept=False)
            for key, digest, before, state in zip(alike.keys, alike.digests, alike.states, now, strict=True):
                if before is None or state != before:
                    touched[alike.kind, key] = digest
        found = list((store.remote or store.tree).manifests(sorted({*others, *touched})))
    manifests: dict[Address, Manifest] = {}
    digests: dict[Address, str] = {}
    problems = []
    for address, where, text in found:
        try:
            manifest, text = look.sound(address, where, text)
        except ArtifactDamaged as error:
            problems.append(f"{address[0]} {address[1][:12]}: {error}")
            continue
        if manifest is not None:
            manifests[address], digests[address] = manifest, hashlib.sha256(text).hexdigest()
    if look.taken is not None:
        look.taken.keep()
    if problems:
        more = f"; and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        named = "; ".join(problems[:NAMED])
        raise ArtifactDamaged(f"{len(problems)} damaged artifacts in {store.name}: {named}{more}; {REMEDY}")
    seen: dict[Address, Known] = {}
    for kind, names, addresses in _by_names(manifests):
        states = look.states(kind, [key for _, key in addresses], names, kept=True)
        for address, state in zip(addresses, states, strict=True):
            seen[address] = Known(names, state, digests[address])
    same = {address for address, now in seen.items() if touched.get(address) == now.digest}
    new = [manifest for address, manifest in manifests.items() if address not in same]
    gone = [address for address in touched if address not in same]
    return Survey(sorted(new, key=lambda m: (m.created, m.kind, m.key)), seen, gone)


def alike(seen: Mapping[Address, Known]) -> list[Alike]:
    """What was seen, as `survey` wants to know it."""
    groups: dict[tuple[str, tuple[str, ...]], list[tuple[str, int | None, str]]] = {}
    for (kind, key), known in seen.items():
        groups.setdefault((kind, tuple(known.names)), []).append((key, known.state, known.digest))
    return [Alike(kind, names, *zip(*rows, strict=True)) for (kind, names), rows in groups.items()]


def _by_names(manifests: Mapping[Address, Manifest]) -> Iterator[tuple[str, list[str], list[Address]]]:
    """Kind, names of files and addresses of those that have these in common."""
    groups: dict[tuple[str, tuple[str, ...]], list[Address]] = {}
    for address, manifest in manifests.items():
        groups.setdefault((address[0], tuple(entry["name"] for entry in manifest.files)), []).append(address)
    yield from ((kind, list(names), addresses) for (kind, names), addresses in groups.items())


class _Look:
    """One look at a store. `taken`: digests of a remote one's objects."""

    def __init__(self, store: ArtifactStore, reads: Callable[[str, str], bool]) -> None:
        self._store, self._reads = store, reads
        self._began = time.time_ns()
        # one listing tells all sizes of a remote store, which would take minutes one by one
        with store.asked():
            self.taken = RemoteDigests(store.remote, store.root) if store.remote else None
            self._objects = store.remote.objects("artifacts") if store.remote else {}

    def others(self, known: Iterable[Alike]) -> list[Address]:
        """Addresses of artifacts that are not known."""
        keys: dict[str, set[str]] = {}
        for alike in known:
            keys.setdefault(alike.kind, set()).update(alike.keys)
        if self._store.remote is None:
            return list(self._store.tree.addresses(but=keys))
        return [(kind, key) for kind, key in addresses_of(self._objects) if key not in keys.get(kind, ())]

    def states(self, kind: str, keys: Sequence[str], names: Sequence[str], *, kept: bool) -> Iterator[int | None]:
        """As `Tree.states`; one that is `kept` is from before this look began: what was touched since has none."""
        if self._store.remote is None:
            yield from self._store.tree.states(kind, keys, names, before=self._began if kept else None)
            return
        for key in keys:
            infos = [self._objects.get(f"{kind}/{key}/{name}") for name in (MANIFEST_NAME, *names)]
            yield numbered(*(state_of(info) if info else "" for info in infos))

    def sound(self, address: Address, where: str, text: bytes) -> tuple[Manifest | None, bytes]:
        """The manifest of an artifact that is sound, and its text; None when there is none by now."""
        try:
            manifest: Manifest | None = Manifest.from_json(text, where=where, address=address)
            assert manifest is not None
            self._compare(manifest, self._objects)
        except ArtifactDamaged:
            # it may have been replaced or set aside between one look and the next
            manifest = self._store.peek(*address)
            if manifest is not None:
                text = manifest.to_json().encode()
                folder = "/".join(address)
                with self._store.asked():
                    again = self._store.remote.objects(f"artifacts/{folder}") if self._store.remote else {}
                self._compare(manifest, {f"{folder}/{name}": info for name, info in again.items()})
        return manifest, text

    def _compare(self, manifest: Manifest, objects: Mapping[str, Mapping[str, Any]]) -> None:
        """Raise `ArtifactDamaged` where a file is not what the manifest says."""
        place = self._store.tree.place(manifest.kind, manifest.key)
        for entry in manifest.files:
            name = f"{manifest.kind}/{manifest.key}/{entry['name']}"
            is_read = self._reads(manifest.kind, entry["name"])
            if self.taken is None:
                check_file(place, entry, verify=is_read)
                continue
            info = objects.get(name)
            size = None if info is None else info["size"]
            if info is None or size != entry["size"]:
                message = f"{name} has {size} bytes, its manifest says {entry['size']}"
                raise ArtifactDamaged(message, file=entry["name"])
            with self._store.asked():
                if is_read and self.taken.of(f"artifacts/{name}", info) != entry["sha256"]:
                    message = f"{name} does not have the sha256 that its manifest says"
                    raise ArtifactDamaged(message, file=entry["name"])
