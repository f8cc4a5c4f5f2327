"""What a builder may use: its spec, the artifacts that the spec refers to, where to write, how to compute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from fortifai_core.config.stages import Runtime
from fortifai_core.errors import ArtifactDamaged
from storage.store.manifest import Manifest
from storage.store.store import Artifact, ArtifactStore
from tasks.engine.stages import Reference, Spec, Stage

Progress = Callable[[int, int, str], None]
S = TypeVar("S", bound=Spec)


class Context(Generic[S]):
    """Of one stage that is being built.

    Attributes:
        spec: what to make, and from what.
        directory: where the artifact's files go.
        runtime, device: how to compute; no result depends on them.
        progress: told how far the stage is: done, total, unit.
    """

    def __init__(
        self, stage: Stage, spec: S, store: ArtifactStore, directory: Path, runtime: Runtime, device: str,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.stage, self.spec, self.store, self.directory = stage, spec, store, directory
        self.runtime, self.device, self.progress = runtime, device, progress

    def artifact(self, reference: Reference) -> Artifact:
        """The artifact that the spec refers to, every digest checked: no number is made of what is damaged.

        Raises:
            ArtifactDamaged: it is missing, or without the weights or text that is read, or damaged and now set aside;
                whoever asked for this stage may build it anew and ask again.
        """
        artifact = self.store.find(reference.kind, reference.key, verify=True)
        if artifact is None:
            raise ArtifactDamaged(self._needs(reference))
        if artifact.manifest.removed and self.spec.whole:
            gone = f"whose {artifact.manifest.lost} {artifact.manifest.removed['by']} removed"
            raise ArtifactDamaged(f"{self.stage.label} needs the {reference.kind} {reference.key[:12]}, {gone}")
        return artifact

    def manifest(self, reference: Reference) -> Manifest:
        """What is known of an artifact of which no file is read: its manifest, which is sealed, and its files' sizes.

        Raises:
            ArtifactDamaged: as `artifact`.
        """
        artifact = self.store.find(reference.kind, reference.key)
        if artifact is None:
            raise ArtifactDamaged(self._needs(reference))
        return artifact.manifest

    def _needs(self, reference: Reference) -> str:
        needed = f"{self.stage.label} needs the {reference.kind} {reference.key[:12]}"
        return f"{needed}, which is missing or was damaged and set aside: run again to rebuild it"

    @property
    def workspace(self) -> Path:
        """A folder of this stage's own that outlives a crash; removed when the artifact is committed."""
        return self.store.workspace(self.stage.kind, self.stage.key)
