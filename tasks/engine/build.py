"""Builds one stage's artifact: lock, look again, run the stage's builder, commit. Runs in a worker process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fortifai_core.config.stages import Runtime
from storage.store.provenance import collect, rooms_of
from storage.store.store import Artifact, ArtifactStore
from tasks.engine.stages import VERSIONS, Stage

Progress = Callable[[int, int, str], None]
# Roles that check every digest of what they read: what is trained on, or written with, must be what it says.
VERIFIED = ("base", "train", "regenerate", "family-train", "family-sample", "family-segment")


class Context:
    """What a builder may use: the stage, its parents' artifacts, where to write, how to compute."""

    def __init__(
        self,
        stage: Stage,
        store: ArtifactStore,
        directory: Path,
        runtime: Runtime,
        device: str,
        progress: Progress,
    ) -> None:
        self.stage, self.store, self.directory = stage, store, directory
        self.runtime, self.device, self.progress = runtime, device, progress

    def parent(self, name: str) -> Artifact:
        """The artifact of a parent; its digests are checked when it will be trained from."""
        kind, key = self.stage.parents[name]
        found = self.store.find(kind, key, verify=self.stage.role in VERIFIED)
        if found is None:
            from fortifai_core.errors import ArtifactDamaged

            raise ArtifactDamaged(
                f"{self.stage.label} needs the {kind} {key[:12]}, which is missing or damaged: run again to rebuild it"
            )
        return found

    @property
    def workspace(self) -> Path:
        """A folder of this stage's own that outlives a crash; removed when the artifact is committed."""
        return self.store.workspace(self.stage.kind, self.stage.key)


def _builder(role: str) -> Callable[[Context], dict[str, Any]]:
    """The function that builds a role; imported when needed, so that a worker loads only what it uses."""
    if role.startswith("family-"):
        return _family_builder(role)
    from tasks.language import benchmarks, drift, evaluate, failure, prepare, regenerate, report, train

    return {
        "pretraining": prepare.build_pretraining,
        "source": prepare.build_source,
        "tokenizer": prepare.build_tokenizer,
        "base": train.build_base,
        "corpus": prepare.build_corpus,
        "train": train.build_generation,
        "regenerate": regenerate.build_split,
        "evaluate": evaluate.build_evaluation,
        "failure": failure.build_failure,
        "drift": drift.build_drift,
        "benchmark-check": benchmarks.build_check,
        "benchmark": benchmarks.build_benchmark,
        "report": report.build_report,
    }[role]


def _family_builder(role: str) -> Callable[[Context], dict[str, Any]]:
    from tasks.families import builders, report

    return {
        "family-data": builders.build_data,
        "family-train": builders.build_train,
        "family-sample": builders.build_sample,
        "family-evaluate": builders.build_evaluate,
        "family-segment": builders.build_segment,
        "family-failure": builders.build_failure,
        "family-report": report.build_family_report,
    }[role]


def build(
    stage: Stage, store: ArtifactStore, runtime: Runtime, *, device: str = "cpu", progress: Progress
) -> tuple[Artifact, bool]:
    """The stage's artifact, and whether it had been built before (by this or another process)."""
    with store.build(stage.kind, stage.key) as draft:
        if draft.found is not None:
            return draft.found, True
        context = Context(stage, store, draft.path, runtime, device, progress)
        metrics = _builder(stage.role)(context)
        artifact = draft.commit(
            stage_version=VERSIONS[stage.role],
            content=stage.content,
            parents={name: key for name, (_, key) in stage.parents.items()},
            metrics=metrics,
            provenance=collect(rooms_of(stage.kind)),
        )
        return artifact, False
