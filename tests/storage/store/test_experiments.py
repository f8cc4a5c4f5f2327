"""Records of experiments."""

from __future__ import annotations

import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from artifacts import KEY, remote_store
from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.errors import InputError
from storage.store.experiments import (
    StageRecord,
    experiment_id,
    list_experiments,
    list_heads,
    load_experiment,
    record_experiment,
)
from storage.store.store import ArtifactStore


def test_experiments_are_recorded_updated_and_found(store: ArtifactStore) -> None:
    with pytest.raises(InputError, match="run one first"):
        load_experiment(store)
    config = ExperimentConfig(name="mine").model_dump(mode="json")
    stages = [StageRecord("model", KEY, "train", "ce", 0, 1, parents={"base": "b"})]
    first = record_experiment(store, config=config, status="running", stages=stages)
    other = record_experiment(
        store,
        config=ExperimentConfig(name="other", splits=3, generations=2).model_dump(mode="json"),
        status="x",
    )
    again = record_experiment(
        store, config={**config, "runtime": {**config["runtime"], "workers": 7}}, status="finished"
    )
    assert again.id == first.id == experiment_id(config) != other.id
    assert (again.created, again.stages, again.status) == (first.created, stages, "finished")
    assert again.updated > first.updated
    assert [e.label for e in list_experiments(store)] == [other.label, first.label]
    assert list_heads(store) == [(other, []), (replace(again, stages=[]), ["ce"])]
    for name in ("latest", "mine", first.label, first.id, first.id[:10]):
        assert load_experiment(store, name) == again
    with pytest.raises(InputError, match=other.label):
        load_experiment(store, "nobody")


def test_an_unreadable_record_is_said_aloud(store: ArtifactStore) -> None:
    store.write_bytes("experiments/broken-00000000.json", b"{")
    for read in (list_experiments, list_heads):
        with pytest.warns(UserWarning, match=r"broken-00000000\.json"):
            assert read(store) == []


def test_experiments_live_in_a_remote_store_too(tmp_path: Path) -> None:
    name = uuid.uuid4().hex
    config = ExperimentConfig(name="far").model_dump(mode="json")
    made = record_experiment(remote_store(tmp_path, name, "one"), config=config, status="finished", stages=[])
    assert load_experiment(remote_store(tmp_path, name, "two"), "far") == made


def test_an_experiment_whose_process_is_gone_does_not_say_that_it_runs(store: ArtifactStore) -> None:
    code = (
        "import sys; from storage.store.experiments import record_experiment;"
        "from storage.store.store import ArtifactStore;"
        "from fortifai_core.config.experiment import ExperimentConfig;"
        "made = record_experiment(ArtifactStore(sys.argv[1]), status='running',"
        " config=ExperimentConfig(name='killed').model_dump(mode='json')); print(made.state)"
    )
    there = subprocess.run([sys.executable, "-c", code, store.url], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == "running"  # as long as that process lived
    assert load_experiment(store, "killed").state == "interrupted"
    here = record_experiment(store, config=ExperimentConfig(name="alive").model_dump(mode="json"), status="running")
    assert load_experiment(store, "alive").state == here.state == "running"
    assert record_experiment(store, config=here.config, status="finished").state == "finished"
