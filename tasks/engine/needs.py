"""What a plan still has to make: stages that are missing, and those whose removed files a missing stage reads."""

from __future__ import annotations

from dataclasses import dataclass

from fortifai_core.errors import ArtifactDamaged
from storage.store.manifest import Manifest
from storage.store.store import ArtifactStore
from tasks.engine.plans import Plan
from tasks.engine.stages import Reference, Stage


@dataclass(frozen=True)
class Needs:
    """Of a plan and a store.

    Attributes:
        manifests: of every stage whose artifact is there, though files may have been taken out of it.
        to_do: the stages that must run, parents before children.
        needed_by: every artifact that one of them reads as a whole, and the first that does.
    """

    manifests: dict[Reference, Manifest]
    to_do: tuple[Stage, ...]
    needed_by: dict[Reference, Stage]


def needs(plan: Plan, store: ArtifactStore) -> Needs:
    """Look up every stage whose artifact may be there, once.

    Raises:
        NewerRelease: a newer release wrote one of the artifacts.
    """
    stages, there = plan.stages(), store.addresses()
    known = [stage.reference for stage in stages if stage.reference in there]
    manifests = {reference: m for reference in known if (m := manifest_of(store, reference)) is not None}
    to_do: list[Stage] = []
    needed_by: dict[Reference, Stage] = {}
    for stage in reversed(stages):  # children before their parents
        manifest = manifests.get(stage.reference)
        if manifest is not None and not (manifest.removed and stage.reference in needed_by):
            continue
        to_do.append(stage)
        if stage.spec.whole:
            needed_by |= dict.fromkeys(stage.parents.values(), stage)
    return Needs(manifests, tuple(reversed(to_do)), needed_by)


def missing_stages(plan: Plan, store: ArtifactStore) -> tuple[Stage, ...]:
    """Those that must run."""
    return needs(plan, store).to_do


def manifest_of(store: ArtifactStore, reference: Reference) -> Manifest | None:
    """The manifest of an artifact that is there; None of a damaged one too."""
    try:
        return store.peek(*reference)
    except ArtifactDamaged:
        return None
