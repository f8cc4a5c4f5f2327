"""Builds one stage's artifact: lock, look again, run the stage's builder, commit. Runs in a worker process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fortifai_core.config.stages import Runtime
from storage.store import durable
from storage.store.provenance import collect, rooms_of
from storage.store.store import Artifact, ArtifactStore
from tasks.engine.context import Context, Progress
from tasks.engine.stages import Stage, load

Builder = Callable[[Context[Any]], dict[str, Any]]


def build(
    stage: Stage,
    store: ArtifactStore,
    runtime: Runtime,
    *,
    device: str = "cpu",
    progress: Progress,
    anew: bool = False,
) -> tuple[Artifact, bool]:
    """The stage's artifact, and whether it had been built before (by this or another process).

    Args:
        anew: build it although it is there; the old one is in its place until then.

    Raises:
        ArtifactDamaged: what it is made from is missing, or damaged and now set aside.
        StoreError: no space left.
    """
    with store.build(stage.kind, stage.key, anew=anew) as draft:
        if draft.found is not None:
            return draft.found, True
        builder: Builder = load(stage.spec.builder)
        with durable.naming_full_disk(draft.path):
            metrics = builder(Context(stage, stage.spec, store, draft.path, runtime, device, progress))
        artifact = draft.commit(
            stage_version=stage.spec.version,
            content=stage.content,
            parents={name: parent.key for name, parent in stage.parents.items()},
            metrics=metrics,
            provenance=collect(rooms_of(stage.kind))
            | ({"processes": runtime.processes} if stage.spec.launched else {}),
        )
        return artifact, False
