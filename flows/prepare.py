"""Everything that can be known, and refused, before any compute is spent: checks, digests, keys, the record."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from flows.fit import check_memory, disk_for_models, shape_of
from flows.stores import open_store
from fortifai_core.config.custom_loss import check_elementwise, load_custom, source_of
from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.config.loss import CustomLoss
from fortifai_core.config.model import PretrainedModel
from fortifai_core.errors import ConfigError, StoreError
from fortifai_core.families.registry import FamilyExperiment, check_family
from storage.sources.family_data import data_digests, load_data
from storage.sources.pretrained import pretrained
from storage.sources.sources import check_content, check_corpus, source_digests
from storage.store.experiments import StageRecord, is_finished, record_experiment, to_replace, unrefreshed
from storage.store.store import ArtifactStore
from tasks.engine.needs import manifest_of, missing_stages
from tasks.engine.plans import AnyExperiment, Plan
from tasks.engine.pool import check_processes, pool_size
from tasks.engine.stages import ROLES, Reference, Stage
from tasks.families.plan import plan_family
from tasks.language.amounts import check_amounts
from tasks.language.plan import Digests, models_of, place_of, plan_experiment
from tasks.language.treatments import check_treatments, code_digests

REPORTERS = {"tensorboard": ("tensorboard", "tensorboardX")}  # packages of which the Trainer takes either


@dataclass(frozen=True)
class Prepared:
    """An experiment that may start: checked, planned, recorded. `refresh`: what is built although it is there."""

    plan: Plan
    store: ArtifactStore
    record_id: str
    refresh: frozenset[Reference] = frozenset()


def plan_for(config: AnyExperiment) -> Plan:
    """Check what the experiment reads, and compute the key of every stage."""
    if isinstance(config, FamilyExperiment):
        check_family(config)
        load_data(config.family)  # what is wrong with a user's table shows here, not in a worker
        return plan_family(config, data_digests=data_digests(config.family))
    check_corpus(config.corpus)
    check_content(config.corpus, splits=config.splits)
    models: dict[str, str] = {}
    for model in models_of(config):
        if isinstance(model, PretrainedModel):
            pretrained(model).check_files()
            models[place_of(model)] = pretrained(model).identity
    fields = [f"arms.{i}.loss" if config.arms[i].loss else "losses.0" for i in range(len(config.arms))]
    fields = fields or [f"losses.{i}" for i in range(len(config.losses))]
    losses = {
        arm.loss.function: _loss_digest(f"{field}.function", arm.loss)
        for field, arm in zip(fields, config.resolved_arms(), strict=True)
        if isinstance(arm.loss, CustomLoss)
    }
    check_treatments(config)
    treatments = code_digests(config)
    data, asked = source_digests(config.corpus), _benchmarks(config)
    digests = Digests(data, models, losses, asked, treatments, _tokenizers(config))
    plan = plan_experiment(config, digests)
    check_amounts(config)
    return plan


def _tokenizers(config: ExperimentConfig) -> dict[str, str]:
    """What the tokenizers of several pretrained models hold, if some of them are in a pool: they may be the same."""
    found = [model for model in models_of(config) if isinstance(model, PretrainedModel)]
    if len(found) < 2 or not any(arm.pool for arm in config.arms):
        return {}
    return {place_of(model): pretrained(model).tokens_digest for model in found}


def _benchmarks(config: ExperimentConfig) -> dict[str, dict[str, Any]]:
    from tasks.language.benchmark_data import describe, known

    evaluation = config.evaluation
    for name in evaluation.benchmark_fewshot:
        # a number may stand ready for a benchmark that is not asked for this time, as in a preset
        if name not in evaluation.benchmarks and known(name) is None:
            raise ConfigError("evaluation.benchmark_fewshot", name, "is among no benchmarks; is it spelt as there?")
    return {name: describe(name, fewshot=evaluation.benchmark_fewshot.get(name)) for name in evaluation.benchmarks}


def _loss_digest(field: str, loss: CustomLoss) -> str:
    """The digest of a custom loss's source, which is loaded and tried here: nothing has been computed yet."""
    source = source_of(loss.function, field)
    check_elementwise(loss.function, load_custom(loss.function, loss.options, field), field)
    return source.digest


def prepare_experiment(
    config: AnyExperiment, *, store: str | None = None, refresh: Sequence[str] = (), weights: bool = False
) -> Prepared:
    """Check everything, then record the experiment in the store.

    Args:
        refresh: roles of stages that are built anew, with all that is made from them.
        weights: models whose weights were removed are made again, whether or not a stage needs them.

    Raises:
        InputError: naming the field, its value and the remedy; nothing has been computed by then.
    """
    opened = open_store(store)
    for role in refresh:
        if role not in ROLES:
            raise ConfigError("--refresh", role, f"choose one of {', '.join(ROLES)}")
    check_reporting(config)
    check_processes(config.runtime)
    plan = plan_for(config)
    check_model(plan, opened)
    opened.writable()  # last, for it leaves the store's folder behind
    check_space(config, plan, opened)
    dumped = config.model_dump(mode="json")
    waiting = unrefreshed(opened, dumped)
    stopped = {stage.reference for stage in plan.stages() if _address(stage.reference) in waiting}
    if stopped:
        message = f"--refresh was stopped before its end: {len(stopped)} stages are still to be built anew, and will be"
        warnings.warn(message, UserWarning, stacklevel=2)
    wanted = descendants(plan, refresh) + (_stripped(plan, opened) if weights else [])
    anew = frozenset({stage.reference for stage in wanted} | stopped)
    present = {address: to_replace(opened, address) for address in map(_address, anew)}
    asked = {address: digest for address, digest in present.items() if digest is not None}
    with opened.registering():
        finished = not anew and is_finished(opened, dumped) and (plan.may_stop or is_there(plan, opened))
        status = "finished" if finished else "planned"
        # a finished one whose runs may have stopped has the report of those that did on record
        stages = None if finished and plan.may_stop else stage_records(plan.uses())
        record = record_experiment(opened, config=dumped, status=status, stages=stages, refresh=asked)
    return Prepared(plan=plan, store=opened, record_id=record.label, refresh=anew)


def stage_records(stages: Iterable[Stage]) -> list[StageRecord]:
    """Stages as an experiment's record has them."""
    return [
        StageRecord(
            kind=one.kind,
            key=one.key,
            role=one.role,
            **one.place,
            parents={name: parent.key for name, parent in one.parents.items()},
        )
        for one in stages
    ]


def _address(reference: Reference) -> str:
    return "/".join(reference)


def _stripped(plan: Plan, store: ArtifactStore) -> list[Stage]:
    """The stages whose artifacts are there without their weights."""
    found = [(stage, manifest_of(store, stage.reference)) for stage in plan.stages()]
    return [stage for stage, manifest in found if manifest is not None and manifest.removed is not None]


def is_there(plan: Plan, store: ArtifactStore) -> bool:
    """Whether every stage's artifact is in the store, with its weights or without."""
    found = (
        store.find(*stage.reference, verify=True) if stage.spec.shown else manifest_of(store, stage.reference)
        for stage in plan.stages()
    )
    return all(one is not None for one in found)


def descendants(plan: Plan, roles: Sequence[str]) -> list[Stage]:
    """The stages of these roles and every stage that is made from one of them."""
    chosen: dict[Reference, Stage] = {}
    for stage in plan.stages():
        if stage.role in roles or any(parent in chosen for parent in stage.parents.values()):
            chosen[stage.reference] = stage
    return list(chosen.values())


def check_model(plan: Plan, store: ArtifactStore) -> None:
    """Refuse a pretrained model that cannot be read, or reads less than it is asked to; what is stored is not asked.

    Raises:
        InputError: naming the field, its value and the remedy.
    """
    config = plan.config
    if not isinstance(config, ExperimentConfig):
        return
    made = [stage for stage in plan.shared if stage.role in ("tokenizer", "base")]
    if any(manifest_of(store, stage.reference) is None for stage in made):
        for arm in (arm.experiment for arm in config.resolved_arms()):
            if isinstance(arm.model, PretrainedModel):
                longest = max(arm.training.sequence_length, arm.regeneration.longest_input)
                pretrained(arm.model).check(longest=longest)


def check_reporting(config: AnyExperiment) -> None:
    """Refuse to report to what is not installed here.

    Raises:
        ConfigError: naming what to install.
    """
    for index, name in enumerate(config.runtime.report_to if isinstance(config, ExperimentConfig) else []):
        packages = REPORTERS.get(name, (name,))
        if not any(importlib.util.find_spec(package) for package in packages):
            raise ConfigError(f"runtime.report_to.{index}", name, f"is not installed: pip install {packages[0]}")


def check_space(config: AnyExperiment, plan: Plan, store: ArtifactStore) -> None:
    """Refuse an experiment whose models alone would not fit into memory or on the disk."""
    free = store.free_bytes()
    if isinstance(config, FamilyExperiment):
        return
    missing, needed, arms = missing_stages(plan, store), 0.0, config.resolved_arms()
    bases = [stage.role for stage in missing].count("base") / len(arms)
    for arm in arms:
        check_memory(arm.experiment, pool_size(config)[0])
        shape = shape_of(arm.experiment.model)
        if shape is None or arm.experiment.model.lora:
            continue
        trained = sum(stage.role == "train" and stage.arm == arm.label for stage in missing)
        size, seeds = shape.parameters, len(config.seeds)
        needed += disk_for_models(
            arm.experiment, parameters=size, trained=size, bases=bases, generations=trained, at_once=seeds
        )
    if needed > free:
        raise StoreError(
            "store",
            store.name,
            f"the experiment's models need about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free: "
            "choose a smaller model, fewer seeds or generations, or another store (FORTIFAI_STORE)",
        )
