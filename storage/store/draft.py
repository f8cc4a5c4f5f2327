"""An artifact in the making: where a builder writes, what survives its crash, and the commit."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fortifai_core.errors import ArtifactDamaged, StageFailed
from storage.store import durable
from storage.store.locks import Lease
from storage.store.manifest import FileEntry, Manifest, now
from storage.store.remote import Remote
from storage.store.tree import Artifact, Tree


class Draft:
    """An artifact in the making; handed out by `storage.store.store.ArtifactStore.build`.

    Attributes:
        found: the artifact, when it exists already; then there is nothing to do.
        path: the directory to write files into. It becomes the artifact's.
        workspace: a directory that survives a crash of this process, for checkpoints and finished shards.
    """

    def __init__(
        self, tree: Tree, remote: Remote | None, kind: str, key: str, *, held: Lease | None, found: Artifact | None
    ) -> None:
        self.kind, self.key, self.found = kind, key, found
        self.path = tree.draft(kind, key)
        self.artifact: Artifact | None = found
        self._tree, self._remote, self._held = tree, remote, held
        self._started = time.monotonic()

    @property
    def workspace(self) -> Path:
        """A directory that is always the same for this key, and goes with the commit."""
        path = self._tree.workspace(self.kind, self.key)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def commit(
        self,
        *,
        stage_version: int,
        content: Mapping[str, Any],
        parents: Mapping[str, str] | None = None,
        metrics: Mapping[str, float | int | str] | None = None,
        provenance: Mapping[str, Any] | None = None,
        seconds: float | None = None,
    ) -> Artifact:
        """Make the draft an artifact; once, and for ever.

        Raises:
            StageFailed: committed before, or the lease was lost meanwhile.
            EncodingError: a value that JSON cannot hold exactly.
            StoreError: no space left.
        """
        self._refuse_twice()
        return self._publish(
            Manifest(
                kind=self.kind,
                key=self.key,
                stage_version=stage_version,
                content=dict(content),
                parents=dict(parents or {}),
                files=self._tree.describe(self.path),
                metrics=dict(metrics or {}),
                provenance=dict(provenance or {}),
                created=now(),
                seconds=time.monotonic() - self._started if seconds is None else seconds,
            )
        )

    def adopt(self, manifest: Manifest) -> Artifact:
        """Make the draft the artifact that another store committed: its manifest is taken as it is.

        Raises:
            StageFailed: committed before, or the lease was lost meanwhile.
            ArtifactDamaged: it is the manifest of another artifact, or of other files than those of the draft.
        """
        self._refuse_twice()
        if (manifest.kind, manifest.key) != (self.kind, self.key):
            raise ArtifactDamaged(
                f"{self.kind} {self.key[:12]}: its manifest is of {manifest.kind} {manifest.key[:12]}"
            )
        described = self._tree.describe(self.path) if manifest.files else []  # all may have been taken out of it
        if sorted(described, key=_name) != sorted(manifest.files, key=_name):
            raise ArtifactDamaged(f"{self.kind} {self.key[:12]}: its files are not those of its manifest")
        return self._publish(manifest)

    def _refuse_twice(self) -> None:
        if self.artifact is not None:
            raise StageFailed(f"{self.kind} {self.key[:12]} is committed already: an artifact never changes")

    def _publish(self, manifest: Manifest) -> Artifact:
        manifest.to_json()  # what cannot be encoded is refused before anything is moved
        if self._held is not None:  # a file lock cannot be lost while its owner lives
            self._held.check()
        with durable.naming_full_disk(self.path):
            artifact = self._tree.commit(self.path, manifest)
        if self._remote is not None and self._held is not None:
            self._held.check()
            self._remote.upload(artifact)
        durable.remove_tree(self._tree.workspace(self.kind, self.key))
        self.artifact = artifact
        return artifact


def _name(entry: FileEntry) -> str:
    return entry["name"]
