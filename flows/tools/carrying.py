"""Carries an experiment to another machine: one archive with its record and every artifact but for weights.

experiment.json             its record
KIND-KEY/manifest.json      of every stage that is done
KIND-KEY/…                  its files: settings, texts, scores, measures

Weights are what is large, and what can be made again: there the manifest says that they were removed, as `fortifai gc`
would. What is finished stays so where it is taken in; what is not goes on there. Without its texts and its report,
which can be made again too, an experiment's results are a tenth as large.
"""

from __future__ import annotations

import io
import lzma
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from flows.outputs import whole_file
from fortifai_core.errors import ArtifactDamaged, DataError, InputError, one_line
from storage.store.experiments import Experiment, as_read, as_written, load_experiment, record_experiment
from storage.store.keys import artifact_key
from storage.store.manifest import MANIFEST_NAME, Manifest, Removal, check_address, check_name, now
from storage.store.store import ArtifactStore
from storage.tables.models import is_weights

ENDING = ".tar.xz"
RECORD = "experiment.json"
LARGEST = 1 << 26  # bytes of a record or a manifest, which are read whole
BY = "fortifai pack --artifacts"
FIELD = "file"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")  # an experiment's, of which its record's file is called
# one name twice, or below a file
NO_PLACE = (FileExistsError, FileNotFoundError, NotADirectoryError, IsADirectoryError)
# texts, by the kind of artifact
TEXTS = {
    "pretraining": ("pretraining.parquet",),
    "source": ("documents.parquet", "validation.parquet"),
    "corpus": ("split-*.parquet", "validation.parquet"),
    "split": ("part-*.parquet",),
    "pooled": ("part-*.parquet",),
    "treated": ("text-*.parquet",),
}


@dataclass(frozen=True)
class TakenIn:
    """What an archive brought: artifacts that are new here, and how many were here before."""

    record: Experiment
    new: int
    before: int


def carry(store: ArtifactStore, record: Experiment, target: Path, *, text: bool = True) -> int:
    """Write the archive of an experiment, finished or not. The same artifacts give the same bytes.

    Args:
        text: with its texts and its report; without them results alone.

    Returns:
        How many artifacts are in it.

    Raises:
        InputError: the store has none of its artifacts. ArtifactDamaged: one is damaged.
    """
    carried = [stage for stage in record.stages if text or stage.role != "report"]
    found = [store.read(kind, key) for kind, key in dict.fromkeys((s.kind, s.key) for s in carried)]
    files: dict[str, Path | bytes] = {}
    count = 0
    for artifact in filter(None, found):
        manifest, folder = _lighter(artifact.manifest, text=text), f"{artifact.kind}-{artifact.key}"
        files[f"{folder}/{MANIFEST_NAME}"] = manifest.to_json().encode()
        files |= {f"{folder}/{entry['name']}": artifact.file(entry["name"]) for entry in manifest.files}
        count += 1
    if not count:
        raise InputError("experiment", record.label, f"has no artifacts in {store.name}: pack it where it was run")
    files[RECORD] = as_written(_portable(record))
    with whole_file("--out", target) as aside, tarfile.open(aside, "w:xz", preset=9) as archive:
        # files of one name, which are alike, beside each other
        for name in sorted(files, key=lambda name: (name != RECORD, name.rpartition("/")[::-1])):
            _add(archive, name, files[name])
    return count


def take_in(store: ArtifactStore, file: Path) -> TakenIn:
    """Commit every artifact of an archive that is not here yet, and put its experiment on record.

    Nothing is committed of an archive with one file that is not what its manifest says, with a key that is not that of
    its settings, or with a record that is none. Whether its numbers are true is its maker's word.

    Raises:
        InputError: no such file, or nowhere to unpack it. DataError: it is no such archive, or is damaged.
    """
    if not file.is_file():
        raise InputError(FIELD, str(file), f"is no file; `{BY}` writes one")
    with tempfile.TemporaryDirectory(prefix="fortifai-") as scratch:
        try:
            with tarfile.open(file, "r:xz") as archive:
                record = _unpack(archive, Path(scratch))
            manifests = list(_manifests(store, Path(scratch)))
        except (tarfile.TarError, lzma.LZMAError, EOFError, ArtifactDamaged) as error:
            raise DataError(FIELD, str(file), f"is damaged ({error}): fetch it again") from error
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, *NO_PLACE) as error:
            raise DataError(FIELD, str(file), f"is no archive of `{BY}` ({one_line(str(error))})") from error
        except OSError as error:
            remedy = f"cannot be unpacked below {scratch} ({error.strerror}): set TMPDIR to a place with more room"
            raise InputError(FIELD, str(file), remedy) from error
        new = sum(_adopt(store, manifest, Path(scratch)) for manifest in manifests)
    return TakenIn(_on_record(store, record), new, len(manifests) - new)


def _lighter(manifest: Manifest, *, text: bool) -> Manifest:
    kind, texts = manifest.kind, () if text else TEXTS.get(manifest.kind, ())
    gone = [e for e in manifest.files if is_weights(kind, e["name"]) or any(fnmatch(e["name"], of) for of in texts)]
    if not gone:
        return manifest
    before = manifest.removed["files"] if manifest.removed else []
    removed: Removal = {"by": BY, "at": manifest.created or now(), "files": [*before, *gone]}
    return replace(manifest, files=[entry for entry in manifest.files if entry not in gone], removed=removed)


def _portable(record: Experiment) -> Experiment:
    """A record without what belongs to the machine that ran it: its process, and how things are run there."""
    config = {name: value for name, value in record.config.items() if name != "runtime"}
    status = "finished" if record.status == "finished" else "stopped"  # nobody is at work on it elsewhere
    return replace(record, config=config, status=status, process="", refresh={})


def _add(archive: tarfile.TarFile, name: str, content: Path | bytes) -> None:
    data = content.read_bytes() if isinstance(content, Path) else content
    entry = tarfile.TarInfo(name)  # of nobody, at no time: equal archives are equal to the last bit
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def _unpack(archive: tarfile.TarFile, folder: Path) -> Experiment:
    """Every file into the folder, by a name that cannot lead out of it; the record."""
    record: Experiment | None = None
    for entry in archive:
        stream = archive.extractfile(entry) if entry.isreg() else None
        address, _, name = entry.name.partition("/")
        if stream is None or (name in ("", MANIFEST_NAME) and entry.size > LARGEST):
            raise ValueError(f"{entry.name}: no plain file, or far too large")
        if entry.name == RECORD:
            record = _portable(as_read(stream.read()))
            continue
        _address(address)
        if name != MANIFEST_NAME:
            check_name(name)
        place = folder / address / name
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("xb") as out:
            shutil.copyfileobj(stream, out, 1 << 20)
    if record is None or not NAME.fullmatch(record.name):
        raise ValueError(f"{RECORD} is missing, or its experiment has no name")
    return record


def _address(folder: str) -> tuple[str, str]:
    kind, _, key = folder.rpartition("-")
    check_address(kind, key)
    return kind, key


def _manifests(store: ArtifactStore, folder: Path) -> Iterator[Manifest]:
    """Of every artifact that was unpacked, its files compared with it, and its key with its settings."""
    for place in sorted(folder.iterdir()):
        manifest = Manifest.from_json((place / MANIFEST_NAME).read_bytes(), address=_address(place.name))
        version, content, parents = manifest.stage_version, manifest.content, manifest.parents
        if artifact_key(manifest.kind, version=version, content=content, parents=parents) != manifest.key:
            raise ArtifactDamaged(f"{place.name}: its key is not that of its settings")
        (place / MANIFEST_NAME).unlink()
        there = {entry["name"]: entry for entry in (store.tree.describe(place) if any(place.iterdir()) else ())}
        named = {entry["name"]: entry for entry in manifest.files}
        if len(named) < len(manifest.files) or there.keys() - named.keys():
            raise ArtifactDamaged(f"{place.name} has a file that its manifest does not name, or names one twice")
        for name, entry in named.items():
            if there.get(name) != entry:
                raise ArtifactDamaged(f"{place.name}/{name} is missing, or is not what it was")
        yield manifest


def _adopt(store: ArtifactStore, manifest: Manifest, folder: Path) -> bool:
    """Whether the artifact is new here, or brings back what was taken out of the same one; any other stays as it is."""
    here = store.find_manifest(manifest.kind, manifest.key)
    if here is not None and (len(here.files) >= len(manifest.files) or _made(here) != _made(manifest)):
        return False
    with store.build(manifest.kind, manifest.key) as draft:
        if draft.found is not None:
            return False
        place = folder / f"{manifest.kind}-{manifest.key}"
        for entry in manifest.files:
            target = draft.path / entry["name"]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(place / entry["name"], target)
        draft.adopt(manifest)
    return True


def _made(manifest: Manifest) -> set[tuple[str, str]]:
    """Name and digest of every file as it was made, whatever was taken out since."""
    gone = manifest.removed["files"] if manifest.removed else []
    return {(entry["name"], entry["sha256"]) for entry in [*manifest.files, *gone]}


def _on_record(store: ArtifactStore, record: Experiment) -> Experiment:
    """The experiment as it is on record here, where it is, unless it came finished; otherwise as it came."""
    with store.registering():
        try:
            before = load_experiment(store, record.label)
        except InputError:
            before = None
        known = before is not None and (before.status == "finished" or record.status != "finished")
        if before is not None and (known or before.may_be_at_work):
            return before
        return record_experiment(store, config=record.config, status=record.status, stages=record.stages)
