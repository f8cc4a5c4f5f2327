"""`fortifai gc`: which models' weights may go, why the others stay, and what crashed builders left behind.

Only what can be made again goes: a model whose stage has the same key in the plan of its experiment as it is made here
today. Results, text and manifests stay; what else is in an artifact of a model (its configuration, its tokenizer) too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flows.load import validate
from flows.prepare import plan_for
from fortifai_core.errors import FortifaiError, InputError
from storage.store.experiments import Experiment, StageRecord, every_experiment, load_experiment
from storage.store.store import ArtifactStore
from storage.tables.models import is_weights
from tasks.engine.needs import Needs, manifest_of, needs
from tasks.engine.plans import Plan, RunPlan
from tasks.engine.stages import Reference

BY = "fortifai gc"
# whose weights are kept, of every run
KEEP = ("all", "last", "best", "none")


@dataclass(frozen=True)
class Item:
    """Weights of one model, or what a builder left behind. `why`: it stays, or may go."""

    what: str
    kind: str
    key: str
    size: int
    goes: bool
    why: str
    folder: Path | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Collection:
    """What may go and what stays; `freed`: bytes that are gone by now, None where nothing was to be removed yet."""

    items: list[Item]
    freed: int | None = None

    @property
    def going(self) -> list[Item]:
        return [item for item in self.items if item.goes]


def collect(store: ArtifactStore, names: Sequence[str], *, keep: str, remove: bool) -> Collection:
    """Look what may go, and have it go where that is asked for.

    No experiment that is put on record meanwhile is overlooked: it is on record before this looks, or finds afterwards
    what is gone.

    Args:
        names: of experiments, or their ids; all where there are none.
        keep: one of `KEEP`.

    Raises:
        InputError: no such experiment, a record that cannot be read, or a remote store.
    """
    if store.remote is not None:
        remedy = "is remote, where nothing is removed: free a store that is a folder; our copy of a remote one may be "
        raise InputError("store", store.name, f"{remedy}deleted at any time ({store.root})")
    # planning may take long: nobody is kept waiting for it
    chosen = {load_experiment(store, name).id for name in names} or {e.id for e in every_experiment(store)}
    plans = {e.id: _plan_of(e) for e in every_experiment(store) if e.id in chosen}
    if not remove:
        return Collection(list(_items(store, plans, keep, everything=not names)))
    with store.registering():
        items = list(_items(store, plans, keep, everything=not names))
        freed = sum(_remove(store, item) for item in items if item.goes)
    return Collection(items, freed)


def _plan_of(experiment: Experiment) -> Plan | str | None:
    """Its plan as it is made here today, or why there is none; None for what has no models."""
    if experiment.config.get("family") is not None:
        return None
    try:
        return plan_for(validate(experiment.config))
    except FortifaiError as error:
        return f"cannot be made again here: {error}"


def _remove(store: ArtifactStore, item: Item) -> int:
    if item.folder is None:
        return store.strip(item.kind, item.key, is_weights, by=BY) or 0
    return item.size if store.remove_leftover(item.kind, item.key, item.folder) else 0


def _items(
    store: ArtifactStore, plans: Mapping[str, Plan | str | None], keep: str, *, everything: bool
) -> Iterator[Item]:
    """Every model that has weights, of the experiments in `plans`; then what is left of builders."""
    experiments = every_experiment(store)
    named: dict[Reference, StageRecord] = {}
    reasons: dict[Reference, str] = {}  # why it stays: one experiment's reason is enough
    unfinished: dict[Reference, str] = {}
    for experiment in experiments:
        stages = {Reference(s.kind, s.key): s for s in experiment.stages}
        models = {reference: stage for reference, stage in stages.items() if reference.kind == "model"}
        if experiment.may_be_at_work:
            reasons |= dict.fromkeys(models, f"{experiment.label} is running")
        if experiment.may_be_at_work or experiment.status != "finished":
            unfinished |= dict.fromkeys(stages, experiment.label)
        if experiment.id not in plans:
            reasons = dict.fromkeys(models, f"{experiment.label} shares it, which was not asked about") | reasons
            continue
        named |= models
        plan = plans[experiment.id]
        if isinstance(plan, Plan):
            reasons = _kept(experiment, plan, store, models, keep) | reasons
        else:
            reasons = dict.fromkeys(models, plan or "") | reasons
    for reference, stage in named.items():
        yield from _weights(store, reference, _label(stage), reasons.get(reference))
    if everything:
        known = {Reference(s.kind, s.key) for e in experiments for s in e.stages}
        for manifest in store.ls("model"):
            reference = Reference(manifest.kind, manifest.key)
            if reference not in known:
                yield from _weights(store, reference, "model", "no experiment names it, which could make it again")
    ours = {Reference(s.kind, s.key) for e in experiments if e.id in plans for s in e.stages}
    for kind, key, folder in store.leftovers():
        reference = Reference(kind, key)
        if not everything and reference not in ours:
            continue
        manifest_there = manifest_of(store, reference)
        done = manifest_there is not None and manifest_there.removed is None
        draft = folder.name != f"{kind}-{key}"  # of a builder that died: the next one begins another
        owner = None if done or draft else unfinished.get(reference)
        why = f"{owner} goes on from it" if owner else "nothing goes on from it"
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        yield Item(f"checkpoints of {kind}", kind, key, size, owner is None, why, folder)


def _weights(store: ArtifactStore, reference: Reference, what: str, why: str | None) -> Iterator[Item]:
    size = sum(entry["size"] for entry in store.held(*reference, is_weights))
    if size:
        yield Item(what, *reference, size, why is None, why or "can be made again, and no stage needs it")


def _label(stage: StageRecord) -> str:
    if stage.arm is None:
        return f"{stage.role}"
    return f"{stage.arm} · seed {stage.seed} · g{stage.generation}"


def _kept(
    experiment: Experiment, plan: Plan, store: ArtifactStore, models: Mapping[Reference, StageRecord], keep: str
) -> dict[Reference, str]:
    """Which of an experiment's models stay, and why."""
    found = needs(plan, store)
    planned = {stage.reference: stage for stage in plan.stages()}
    over = experiment.status == "finished" and plan.may_stop  # what was not made was not wanted
    chosen = {_chosen(run, found, keep): run for run in plan.runs if keep in ("last", "best")}
    reasons: dict[Reference, str] = {}
    for reference in models:
        if reference not in planned:
            reasons[reference] = "cannot be made again: with today's code and data its experiment has another one"
        elif planned[reference].role == "base":
            reasons[reference] = "the others are made from it"
        elif reference in found.needed_by and not over:
            reader = found.needed_by[reference]
            reasons[reference] = f"{reader.label} ({reader.run}) of {experiment.label} needs it"
        elif keep == "all":
            reasons[reference] = "--keep all"
        elif reference in chosen:
            reasons[reference] = f"the {keep} of {chosen[reference].arm} · seed {chosen[reference].seed}"
    return reasons


def _chosen(run: RunPlan, found: Needs, keep: str) -> Reference | None:
    """The model of a run that is kept: its last, or that of the lowest perplexity on held-out real text."""
    there = [step for step in run.generations if step.train.reference in found.manifests]
    if not there:
        return None
    measured: list[tuple[float, Reference]] = []
    for step in there:
        of_step = found.manifests.get(step.measured.reference)
        value = of_step.metrics.get("perplexity-real") if of_step else None
        if isinstance(value, (int, float)):
            measured.append((float(value), step.train.reference))
    if keep == "best" and measured:
        return min(measured, key=lambda pair: pair[0])[1]
    return there[-1].train.reference
