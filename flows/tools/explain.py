"""Saying why: which stages are there, which are not and what changed; where things lie; what the paper says."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_core.errors import ArtifactDamaged, InputError
from storage.store.experiments import StageRecord, list_experiments, load_experiment
from storage.store.manifest import Manifest
from storage.store.store import ArtifactStore
from tasks.engine.needs import needs
from tasks.engine.plans import Plan
from tasks.engine.stages import Reference, Stage

if TYPE_CHECKING:
    from fortifai_core.outcomes.paper import PaperDifference, PaperResult

LONGEST = 60  # characters of a value in a sentence
_Place = tuple[str, str | None, int | None, int | None, int | None]


def _place(stage: Stage | StageRecord) -> _Place:
    return (stage.role, stage.arm, stage.seed, stage.generation, stage.split)


def explain_plan(plan: Plan, store: ArtifactStore) -> list[dict[str, Any]]:
    """One row a stage: is it found, and if not, why not (compared with the last run under the same name).

    A stage that a run shares with one before it has a row for each; `shared` names the first of them.
    """
    # what runs of several seeds share has one place: there may be an artifact for each seed
    earlier: dict[_Place, list[Manifest]] = {}
    for record in list_experiments(store):
        if record.name == plan.config.name:
            for stage in record.stages:
                with contextlib.suppress(ArtifactDamaged):
                    manifest = store.peek(stage.kind, stage.key)
                    if manifest is not None:
                        earlier.setdefault(_place(stage), []).append(manifest)
    rows: list[dict[str, Any]] = []
    first: dict[Reference, str] = {}
    found = needs(plan, store)
    to_do = {stage.reference for stage in found.to_do}
    for planned in plan.uses():
        is_there = planned.reference not in to_do
        why = f"{planned.kind} {planned.key[:12]}" if is_there else ""
        manifest = found.manifests.get(planned.reference)
        if manifest is not None and manifest.removed is not None:
            gone = f"{manifest.removal} on {manifest.removed['at'][:10]}"
            what = "them" if manifest.lost == "weights" else "it"
            if is_there:
                why += f"; {gone}, and no stage to do needs {what}"
            else:
                reader = found.needed_by[planned.reference]
                why = f"{gone}; {reader.label} needs {what}" + (f" ({reader.run})" if reader.run != planned.run else "")
        shared = first.setdefault(planned.reference, planned.run)
        shared = "" if shared == planned.run else shared
        if shared and not is_there:
            why = f"built once, for {shared}"
        rows.append(
            {
                "run": planned.run,
                "stage": planned.label,
                "kind": planned.kind,
                "key": planned.key,
                "found": is_there,
                "shared": shared,
                "why": why or _why(planned, earlier.get(_place(planned), [])),
            }
        )
    return rows


def _why(stage: Stage, earlier: list[Manifest]) -> str:
    if not earlier:
        return "never computed"
    # the nearest, and of those the newest
    before = min(reversed(earlier), key=lambda manifest: len(differences(manifest.content, stage.content)))
    if before.stage_version != stage.spec.version:
        return f"the stage's code is version {stage.spec.version}, found is {before.stage_version}"
    changed = [
        f"{path}: {_short(old)} → {_short(new)}" for path, old, new in differences(before.content, stage.content)
    ]
    if changed:
        return "; ".join(changed[:4])
    parents = [name for name, (_, key) in stage.parents.items() if before.parents.get(name) != key]
    if parents:
        return "made from something else: " + ", ".join(parents[:4])
    return "removed or damaged since it was computed"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Every leaf in which two JSON values differ: (dotted path, old, new).

    >>> differences({"loss": {"gamma": 0.9}}, {"loss": {"gamma": 0.8}})
    [('loss.gamma', 0.9, 0.8)]
    """
    if isinstance(old, dict) and isinstance(new, dict):
        names = [*old, *(name for name in new if name not in old)]
        return [
            leaf
            for name in names
            for leaf in differences(old.get(name), new.get(name), f"{path}.{name}" if path else name)
        ]
    # a manifest has been through JSON, where a tuple is a list
    return [] if json.dumps(old) == json.dumps(new) else [(path, old, new)]


def describe(store: ArtifactStore, key: str) -> dict[str, Any]:
    """An experiment's record or an artifact's manifest, found by name, id or the first digits of a key."""
    for record in list_experiments(store):
        if key in (record.id, record.label, record.name):
            return asdict(record)
    return asdict(_by_prefix(store, key))


def _by_prefix(store: ArtifactStore, prefix: str) -> Manifest:
    matches = [address for address in store.addresses() if address[1].startswith(prefix)] if len(prefix) >= 4 else []
    manifest = store.peek(*matches[0]) if len(matches) == 1 else None
    if manifest is None:
        problem = f"fits {len(matches)} artifacts" if len(matches) > 1 else "is no experiment and no artifact"
        raise InputError("key", prefix, f"{problem}; `fortifai ls` and `fortifai sql 'select * from stages'` list them")
    return manifest


def locate(store: ArtifactStore, what: str) -> Path | str:
    """The path of the catalog (made up to date), the store, the newest report, lm-eval's tasks, or an artifact."""
    if what == "store":
        return store.name
    if what == "lm-eval":
        from tasks.language.watch_tasks import FOLDER

        return FOLDER
    if what == "catalog":
        from storage.catalog.catalog import refresh_catalog

        return refresh_catalog(store)
    if what == "report":
        from flows.local import read_report

        return read_report(store, load_experiment(store, "latest"))[1] / "report.html"
    manifest = _by_prefix(store, what)
    artifact = store.read(manifest.kind, manifest.key)
    if artifact is None:
        raise InputError("key", what, "was removed in this moment; run its experiment again")
    return artifact.path


def paper_table() -> list[dict[str, str]]:
    """Time to failure of the paper's arms, from its own Tables D2 to D5, with the ratio to CE in each unit."""
    from fortifai_core.outcomes.paper import paper_time_to_failure
    from fortifai_core.outcomes.time_to_failure import SPLIT_UNITS

    arms = paper_time_to_failure(_quoted())
    return [
        {
            "table": arm.table,
            "dataset": arm.dataset,
            "model": arm.model,
            "arm": arm.method,
            **{unit: arm.absolute.describe(unit) for unit in SPLIT_UNITS},
            **{
                f"{unit}_ratio_to_ce": arm.absolute_ratios[unit].describe()
                for unit in SPLIT_UNITS
                if unit in arm.absolute_ratios
            },
        }
        for arm in arms
    ]


def paper_noise() -> list[PaperDifference]:
    """What the paper's tables say of each arm beside cross entropy, with what chance makes of so many questions."""
    from fortifai_core.outcomes.paper import paper_differences

    return paper_differences(_quoted())


def _quoted() -> list[PaperResult]:
    from fortifai_core.outcomes.paper import read_results

    with resources.as_file(resources.files("storage") / "paper" / "results.csv") as path:
        return read_results(path)
