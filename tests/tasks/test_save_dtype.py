"""Weights kept in bfloat16: what follows reads them, the key says so, and training checkpoints stay exact."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from flows.fit import disk_for_models
from flows.load import load_experiment_config
from flows.prepare import Prepared, prepare_experiment
from fortifai_core.config.stages import Runtime
from fortifai_core.errors import ConfigError, InputError
from storage.store.store import Artifact, ArtifactStore
from storage.tables.models import is_weights, load_model
from tasks.engine.build import build
from tasks.engine.stages import Stage
from tasks.language.plan import Digests, plan_experiment

SMALL = ["generations=2", "splits=2", "losses=[{type: cross-entropy}]", "evaluation.drift=false", "runtime.threads=1"]
KEPT = "training.save_dtype=bfloat16"


def built(prepared: Prepared, stage: Stage, *, stop_at: int = 0) -> Artifact:
    def progress(done: int, total: int, unit: str) -> None:
        if done == stop_at and unit == "steps" and stage.role == "train":
            raise KeyboardInterrupt

    return build(stage, prepared.store, Runtime(save_steps=1), progress=progress)[0]


def trains(prepared: Prepared) -> list[Stage]:
    return [stage for stage in prepared.plan.stages() if stage.role == "train"]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prepared, Artifact]]:
    """An experiment up to its M_0."""
    store = str(tmp_path_factory.mktemp("kept") / "store")
    prepared = prepare_experiment(load_experiment_config("smoke", [*SMALL, KEPT]), store=store)
    stages = prepared.plan.stages()
    made = [built(prepared, stage) for stage in stages[: stages.index(trains(prepared)[0]) + 1]]
    yield prepared, made[-1]


def tensors(artifact: Artifact) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {name: weight for path in artifact.files("*.safetensors") for name, weight in load_file(path).items()}


def test_the_file_holds_bfloat16_and_who_reads_it_computes_in_float32(first: tuple[Prepared, Artifact]) -> None:
    prepared, artifact = first
    kept = tensors(artifact)
    assert {weight.dtype for weight in kept.values()} == {torch.bfloat16}
    model = load_model(artifact.path)
    assert model.dtype == torch.float32
    read = model.state_dict()
    assert all(torch.equal(read[name], weight.float()) for name, weight in kept.items())
    base = prepared.store.find(*trains(prepared)[0].parents["model"])
    assert base is not None
    assert {weight.dtype for weight in tensors(base).values()} == {torch.float32}
    sizes = [sum(e["size"] for e in one.manifest.files if is_weights("model", e["name"])) for one in (artifact, base)]
    assert sizes[0] < 0.6 * sizes[1]


def test_a_training_that_was_stopped_goes_on_exactly(first: tuple[Prepared, Artifact], tmp_path: Path) -> None:
    """Were its checkpoints rounded too, the weights would differ."""
    import shutil

    prepared, artifact = first
    shutil.copytree(prepared.store.root, tmp_path / "store")
    copy = Prepared(prepared.plan, ArtifactStore(tmp_path / "store"), prepared.record_id)
    stage = trains(prepared)[0]
    copy.store.remove(stage.kind, stage.key)
    with pytest.raises(KeyboardInterrupt):
        built(copy, stage, stop_at=2)
    again = built(copy, stage)
    assert again.manifest.metrics["resumed-from"] > 0
    assert again.manifest.files == artifact.manifest.files


def test_it_is_part_of_the_key_only_where_it_is_asked_for() -> None:
    def keys(*overrides: str) -> dict[str, str]:
        plan = plan_experiment(load_experiment_config("smoke", [*SMALL, *overrides]), Digests({}))
        return {stage.label: stage.key for stage in plan.stages()}

    plain, kept = keys(), keys(KEPT)
    assert keys("training.save_dtype=null") == plain
    same = {label for label in plain if plain[label] == kept[label]}
    assert same == {"pretraining", "tokenizer", "base", "source", "corpus"}
    stages = plan_experiment(load_experiment_config("smoke", SMALL), Digests({})).stages()
    assert not [s for s in stages if "save_dtype" in s.content.get("training", {})]


def test_what_it_takes_on_disk_is_known_before() -> None:
    def disk(*overrides: str) -> float:
        config = load_experiment_config("smoke", [*SMALL, *overrides])
        return disk_for_models(config, parameters=100, trained=100, bases=1, generations=5, at_once=1)

    assert disk() == 100 * 4 + 100 * 5 * 4 + 100 * 6 * 4
    assert disk() - disk(KEPT) == 100 * 5 * 2


def test_of_an_adapter_it_is_refused() -> None:
    model = "model={type: pretrained, path: somewhere/small, lora: {rank: 2}}"
    with pytest.raises((ConfigError, InputError), match=r"training\.save_dtype.*adapter"):
        load_experiment_config("smoke", [model, KEPT])
    with pytest.raises((ConfigError, InputError), match=r"training\.save_dtype"):
        load_experiment_config("smoke", ["training.save_dtype=float8"])
