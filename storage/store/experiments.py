"""The record of what was run: one JSON file an experiment, naming the artifact of every stage.

Artifacts know their parents but not why they were made: arm, seed and generation are here. An artifact that
two experiments share is named by both.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

import psutil

from fortifai_core.errors import ArtifactDamaged, InputError
from storage.store.keys import artifact_key
from storage.store.manifest import check_address, now, seal_of
from storage.store.store import ArtifactStore

DIRECTORY = "experiments"
SEAL = "record_sha256"
CLOCK_SECONDS = 2.0


@dataclass(frozen=True)
class StageRecord:
    """One stage of an experiment, done or planned.

    Attributes:
        kind, key: the artifact it makes.
        role: what the stage does (`source`, `train`, `regenerate`, `evaluate`, `failure`, …).
        arm, seed: None for what all runs share.
        generation, split, version: None where they mean nothing.
        parents: keys of the artifacts it reads, by role.
    """

    kind: str
    key: str
    role: str
    arm: str | None = None
    seed: int | None = None
    generation: int | None = None
    split: int | None = None
    version: int | None = None
    parents: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """One experiment. `config`: the full configuration as JSON types; times are ISO, UTC.

    `process` is the one that wrote `status`, as host, pid and the moment it was started. `refresh` has what was asked
    to be built anew and may not be yet: by `kind/key` the digest of the manifest that is to be replaced.
    """

    id: str
    name: str
    config: dict[str, Any]
    created: str
    updated: str
    status: str
    stages: list[StageRecord] = field(default_factory=list)
    process: str = ""
    refresh: dict[str, str] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """`status`, but `interrupted` where it says `running` and the process that ran it, on this host, is gone."""
        if self.status != "running" or self.process.rpartition("/")[0] != socket.gethostname():
            return self.status
        return "running" if _is_alive(self.process) else "interrupted"

    @property
    def may_be_at_work(self) -> bool:
        """Whether its process may be building its stages: it lives, or is on another host and has not said its end."""
        here = self.process.rpartition("/")[0] == socket.gethostname()
        if self.status in ("planned", "running"):
            return not here or _is_alive(self.process)
        # a finished one that may stop early is run without being put on record anew (`flows.prepare`)
        stops = bool((self.config.get("failure") or {}).get("stop_arm"))
        return self.status == "finished" and stops and here and _is_alive(self.process)

    def refuse_family(self, field: str, remedy: str) -> None:
        """Raise an `InputError` where the experiment is on another family than language models."""
        family = self.config.get("family")
        if family is not None:
            raise InputError(field, self.label, f"is an experiment on the family {family['type']}: {remedy}")

    @property
    def label(self) -> str:
        """`<name>-<first eight digits of the id>`: its file, and a name that stays unique."""
        return f"{self.name}-{self.id[:8]}"


def _this_process() -> str:
    """This process as `host/pid@start`, its start in seconds since 1970; no later process has the same."""
    return f"{socket.gethostname()}/{os.getpid()}@{psutil.Process().create_time():.2f}"


def _is_alive(process: str) -> bool:
    """Whether a process of this host, as `_this_process` writes it, is still there and not a zombie."""
    pid, _, start = process.rpartition("/")[2].partition("@")
    try:
        there = psutil.Process(int(pid))
        # a clock that is set between two looks moves the start; a pid is not given out again within seconds
        return abs(there.create_time() - float(start)) < CLOCK_SECONDS and there.status() != psutil.STATUS_ZOMBIE
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False


def experiment_id(config: Mapping[str, Any]) -> str:
    """The key of a configuration (`model_dump(mode="json")`); `runtime` changes no result and no id."""
    content = {name: value for name, value in config.items() if name != "runtime"}
    return artifact_key("experiment", version=1, content=content)


def record_experiment(
    store: ArtifactStore,
    *,
    config: Mapping[str, Any],
    status: str,
    stages: Sequence[StageRecord] | None = None,
    refresh: Mapping[str, str] | None = None,
) -> Experiment:
    """Write the record of an experiment, atomically; running the same configuration again updates it.

    Args:
        config: `ExperimentConfig.model_dump(mode="json")`.
        status: `running`, `finished`, `failed`, …
        stages: all of them; None keeps those recorded before.
        refresh: what is to be built anew; None keeps it, until the experiment is finished.
    """
    identity, name, moment = experiment_id(config), str(config["name"]), now()
    fresh = Experiment(identity, name, dict(config), moment, moment, status, process=_this_process())
    try:
        before = _read(store, f"{fresh.label}.json")
    except InputError as error:  # it is written anew from what is known now
        warnings.warn(f"{error}: it is written anew", UserWarning, stacklevel=2)
        before = None
    if before is not None:
        waiting = {} if status == "finished" else before.refresh
        fresh = replace(fresh, created=before.created, stages=before.stages, refresh=waiting)
    if refresh is not None:
        fresh = replace(fresh, refresh=dict(refresh))
    if stages is not None:
        fresh = replace(fresh, stages=list(stages))
    store.write_bytes(f"{DIRECTORY}/{fresh.label}.json", as_written(fresh))
    return fresh


def as_written(experiment: Experiment) -> bytes:
    """The record as it lies in a store, sealed."""
    body = asdict(experiment)
    return (json.dumps({**body, SEAL: seal_of(body)}, indent=1, allow_nan=False) + "\n").encode()


def as_read(data: bytes) -> Experiment:
    """The record that a file of another store holds.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, RecursionError: it is none, or was altered.
    """
    body, _ = _unsealed(data)
    record = Experiment(**{**body, "stages": [StageRecord(**stage) for stage in body["stages"]]})
    _check(record, f"{record.label}.json", sealed=False)
    return record


def unrefreshed(store: ArtifactStore, config: Mapping[str, Any]) -> dict[str, str]:
    """What the experiment of this configuration was asked to build anew and did not yet, as `Experiment.refresh`."""
    before = _read(store, f"{config['name']}-{experiment_id(config)[:8]}.json")
    asked = before.refresh if before is not None else {}
    return {address: digest for address, digest in asked.items() if to_replace(store, address) == digest}


def to_replace(store: ArtifactStore, address: str) -> str | None:
    """A digest of an artifact `kind/key`, whatever was taken out of it; another one once it was built anew."""
    kind, _, key = address.partition("/")
    try:
        manifest = store.peek(kind, key)
    except ArtifactDamaged:
        return None
    if manifest is None:
        return None
    whole = replace(manifest, files=[], removed=None)
    return hashlib.sha256(whole.to_json().encode()).hexdigest()


def is_finished(store: ArtifactStore, config: Mapping[str, Any]) -> bool:
    """Whether the experiment of this configuration is on record as finished."""
    before = _read(store, f"{config['name']}-{experiment_id(config)[:8]}.json")
    return before is not None and before.status == "finished"


def list_experiments(store: ArtifactStore) -> list[Experiment]:
    """All experiments, the one updated last at the end. An unreadable record is warned about and left out.

    Raises:
        StoreError: the store cannot be read.
    """
    readable, unreadable = _read_all(store)
    for error in unreadable.values():
        warnings.warn(str(error), UserWarning, stacklevel=2)
    return readable


def list_heads(store: ArtifactStore) -> list[tuple[Experiment, list[str]]]:
    """As `list_experiments`, each without its stages, and the arms that these name; in half the time.

    Raises:
        StoreError: the store cannot be read.
    """
    heads = []
    for name in filter(_is_record, store.names(DIRECTORY)):
        try:
            data = store.read_bytes(f"{DIRECTORY}/{name}")
            heads += [] if data is None else [_head(store, name, data)]
        except InputError as error:
            warnings.warn(str(error), UserWarning, stacklevel=2)
    return sorted(heads, key=lambda head: (head[0].updated, head[0].id))


@dataclass(frozen=True)
class SeenRecord:
    """A record's file as it was seen.

    Attributes:
        label: its name without `.json`.
        state: what the file system said of it, as `ArtifactStore.states`; None where that tells nothing.
        digest: sha256 of its text.
        experiment: what it says; None where it was not read, or cannot be.
        status: `Experiment.state` at that time; None with `experiment`.
    """

    label: str
    state: int | None
    digest: str
    experiment: Experiment | None = None
    status: str | None = None


def survey_experiments(store: ArtifactStore, known: Mapping[str, SeenRecord]) -> tuple[list[SeenRecord], list[str]]:
    """Records that are new or say something else than what is `known`, by label; and the labels that are gone.

    Those are read that were touched, and those that said `running` while their process may have ended. What cannot be
    read is warned about, each time.

    Returns:
        (changed, gone); a changed one that was known is not among the gone.
    """
    states = {name.removesuffix(".json"): state for name, state in store.states(DIRECTORY).items() if _is_record(name)}
    changed = []
    for label, state in states.items():
        before = known.get(label)
        if before is not None and before.status not in (None, "running") and before.state == state is not None:
            continue
        try:
            data = store.read_bytes(f"{DIRECTORY}/{label}.json")
            experiment = None if data is None else _parsed(store, f"{label}.json", data)
        except InputError as error:
            warnings.warn(str(error), UserWarning, stacklevel=2)
            experiment = None
        if data is None:
            continue
        digest, status = hashlib.sha256(data).hexdigest(), experiment.state if experiment else None
        if before is None or (before.digest, before.status) != (digest, status):
            changed.append(SeenRecord(label, state, digest, experiment, status))
    return changed, sorted(set(known) - set(states))


def _is_record(name: str) -> bool:
    return name.endswith(".json") and not name.startswith(".")


def every_experiment(store: ArtifactStore) -> list[Experiment]:
    """As `list_experiments`, for whoever must know of all.

    Raises:
        InputError: a record cannot be read.
    """
    readable, unreadable = _read_all(store)
    for error in unreadable.values():
        raise error
    return readable


def _read_all(store: ArtifactStore) -> tuple[list[Experiment], dict[str, InputError]]:
    """Those that can be read, the one updated last at the end; and of the others, by their label, why not."""
    readable, unreadable = [], {}
    for name in store.names(DIRECTORY):
        if not _is_record(name):
            continue
        try:
            experiment = _read(store, name)
        except InputError as error:
            unreadable[name.removesuffix(".json")] = error
            continue
        if experiment is not None:
            readable.append(experiment)
    return sorted(readable, key=lambda e: (e.updated, e.id)), unreadable


def load_experiment(store: ArtifactStore, name_or_id: str = "latest") -> Experiment:
    """An experiment by name (the latest of that name), label, id or beginning of an id; or the `latest`.

    Raises:
        InputError: none matches; the message lists what there is.
    """
    if name_or_id == "latest" and (newest := _newest(store)) is not None:
        return newest
    named = [label for label in _labels(store) if _may_be(label, name_or_id)]
    known = _those(store, named, aloud=False) or _read_all(store)[0]
    exact = [e for e in known if name_or_id in (e.name, e.label, e.id)]
    prefix = [e for e in known if len(name_or_id) >= 4 and e.id.startswith(name_or_id)]
    if len({e.id for e in prefix}) > 1 and not exact:
        labels = ", ".join(e.label for e in prefix)
        raise InputError("experiment", name_or_id, f"several begin so: {labels}; give more digits")
    if exact or prefix:
        return (exact or prefix)[-1]
    readable, unreadable = _read_all(store)
    for label, error in unreadable.items():
        if name_or_id in ("latest", label, label.rpartition("-")[0]):
            raise error
    labels = ", ".join(e.label for e in readable) or "none: run one first"
    raise InputError("experiment", name_or_id, f"not found in {store.name}; there is {labels}")


def _labels(store: ArtifactStore) -> list[str]:
    return [name.removesuffix(".json") for name in store.names(DIRECTORY) if _is_record(name)]


def _may_be(label: str, name_or_id: str) -> bool:
    """Whether the record of that label may be the one that is asked for, without reading it."""
    name, _, digits = label.rpartition("-")
    return name_or_id in (label, name) or digits.startswith(name_or_id[: len(digits)])


def _those(store: ArtifactStore, labels: Sequence[str], *, aloud: bool = True) -> list[Experiment]:
    """Those of them that can be read, the one updated last at the end; another is warned about, if `aloud`."""
    found = []
    for label in labels:
        try:
            experiment = _read(store, f"{label}.json")
        except InputError as error:
            if aloud:
                warnings.warn(str(error), UserWarning, stacklevel=3)
            continue
        found += [experiment] if experiment is not None else []
    return sorted(found, key=lambda e: (e.updated, e.id))


def _newest(store: ArtifactStore) -> Experiment | None:
    """The one updated last of those that can be read; only as many are read in full as it takes to be sure."""
    said: list[tuple[str, str]] = []
    for label in _labels(store):
        match = _UPDATED.search(store.read_bytes(f"{DIRECTORY}/{label}.json") or b"")
        if match is None:  # as earlier releases wrote it, or spoilt
            said += [(e.updated, label) for e in _those(store, [label])]
        else:
            said.append((match[1].decode(errors="replace"), label))
    for updated in sorted({updated for updated, _ in said}, reverse=True):
        found = _those(store, [label for moment, label in said if moment == updated])
        if found and found[-1].updated == updated:
            return found[-1]
    return None


_UPDATED = re.compile(rb'\n "updated": "([^"\n]+)"')


def _read(store: ArtifactStore, name: str) -> Experiment | None:
    data = store.read_bytes(f"{DIRECTORY}/{name}")
    return None if data is None else _parsed(store, name, data)


def _parsed(store: ArtifactStore, name: str, data: bytes) -> Experiment:
    with _refusing(store, name):
        body, sealed = _unsealed(data)
        record = Experiment(**{**body, "stages": [StageRecord(**stage) for stage in body["stages"]]})
        _check(record, name, sealed=sealed)
        return record


def _head(store: ArtifactStore, name: str, data: bytes) -> tuple[Experiment, list[str]]:
    with _refusing(store, name):
        body, sealed = _unsealed(data)
        if not sealed:
            record = _parsed(store, name, data)
            return replace(record, stages=[]), list(dict.fromkeys(s.arm for s in record.stages if s.arm))
        head = Experiment(**{**body, "stages": []})
        _check(head, name, sealed=True)
        arms = list(dict.fromkeys(stage["arm"] for stage in body["stages"] if stage["arm"]))
        if not all(isinstance(arm, str) for arm in arms):
            raise ValueError("stages.arm cannot be so in a record")
        return head, arms


def _unsealed(data: bytes) -> tuple[dict[str, Any], bool]:
    """A record as JSON, and whether it has a seal, which fits.

    Records of releases before 1.0 have none: that their configuration has their id says that it is theirs.
    """
    body = json.loads(data)
    seal = body.pop(SEAL, None)
    if seal is not None and seal != seal_of(body):
        raise ValueError("its text does not match its own digest")
    return body, seal is not None


@contextmanager
def _refusing(store: ArtifactStore, name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        where = f"{store.name}/{DIRECTORY}/{name}"
        raise InputError(where, str(error), "it is no experiment record; delete it or restore it") from error


def _check(record: Experiment, file: str, *, sealed: bool) -> None:
    """That every field is of its type, and the configuration the one that the id and the file's name stand for."""
    texts = ("id", "name", "created", "updated", "status", "process")
    wrong = [name for name in texts if not isinstance(getattr(record, name), str)]
    config = record.config
    wrong += [f"config.{name}" for name, kind in _SHOWN.items() if not isinstance(config.get(name, kind()), kind)]
    for name, kind in _STAGE.items():
        if not all(issubclass(found, kind) for found in {type(getattr(stage, name)) for stage in record.stages}):
            wrong += [
                f"stages.{i}.{name}" for i, one in enumerate(record.stages) if not isinstance(getattr(one, name), kind)
            ]
    for index, stage in enumerate([] if wrong else record.stages):
        wrong += [f"stages.{index}.parents" for key in stage.parents.values() if not isinstance(key, str)]
        check_address(stage.kind, stage.key)
    if not isinstance(record.refresh, dict) or not all(isinstance(d, str) for d in record.refresh.values()):
        wrong.append("refresh")
    for address in () if wrong else record.refresh:
        check_address(*address.split("/"))
    if wrong:
        raise ValueError(f"{', '.join(wrong[:3])} cannot be so in a record")
    for moment in (record.created, record.updated):
        datetime.fromisoformat(moment)
    # a seal says that all of it is as it was written
    if (not sealed and record.id != experiment_id(config)) or record.name != config["name"]:
        raise ValueError("its configuration has another id")
    if file != f"{record.label}.json":
        raise ValueError(f"it belongs into {record.label}.json")


# what lists and tables read of a configuration, whatever its model class
_SHOWN: dict[str, Any] = {"name": str, "seeds": list, "generations": int}
_STAGE: dict[str, Any] = {
    **dict.fromkeys(("kind", "key", "role"), str),
    "arm": (str, type(None)),
    **dict.fromkeys(("seed", "generation", "split", "version"), (int, type(None))),
    "parents": dict,
}
