"""What a plan says beside its stages: power, what does not fit, and an estimate."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from flows.fit import Shape, check_memory, held_by_aims, memory_needed, memory_of_process, shape_of
from flows.load import load_any_config
from flows.prepare import plan_for
from flows.tools.estimate import EACH_STAGE, GPUS, Experiment, kinds_of, laid_out, memory_of, peak_of
from flows.tools.foresight import foresee, power_of
from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.errors import ConfigError, InputError
from fortifai_core.outcomes.power import Power
from storage.sources.pretrained import Pretrained
from storage.store.store import ArtifactStore
from tasks.engine.plans import Plan
from tasks.language.probe import Probed

# A machine on which an optimizer step takes a second and nothing else takes any time.
STEPS_ONLY = Probed(
    parameters=1000, trained=1000, products=800, base_step=0, step=1, start=0, checkpoint=0, load=0, rewrite=0,
    accepted=0, read=2, score=0, memory=0,
)  # fmt: skip


def config_of(preset: str, *overrides: str) -> ExperimentConfig:
    config = load_any_config(preset, overrides)
    assert isinstance(config, ExperimentConfig)
    return config


def planned(tmp_path: Path, *overrides: str) -> tuple[Plan, ArtifactStore]:
    return plan_for(config_of("smoke", *overrides)), ArtifactStore(tmp_path)


def test_power_is_known_before_anything_runs() -> None:
    tiny = power_of(config_of("tiny"))
    assert isinstance(tiny, Power)
    assert 120 <= tiny.questions <= 140 and 0.14 < tiny.difference < 0.16
    more = power_of(config_of("tiny", "seeds=[1, 2, 3, 4, 5]"))
    assert isinstance(more, Power) and more.difference < tiny.difference and more.runs == 5


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("losses=[{type: cross-entropy}]", "compared with none"),
        ("corpus={type: text, files: [FILE]}", "no questions about split 0"),
        ("corpus={type: huggingface, dataset: a/b}", "not known before the corpus is fetched"),
    ],
)
def test_why_there_is_no_power_is_said(
    override: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FORTIFAI_DATA", raising=False)
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(f"Document {n} says {n * n} things." for n in range(60)))
    found = power_of(config_of("smoke", override.replace("FILE", str(file))))
    assert isinstance(found, str) and why in found


def test_seconds_are_those_of_the_plans_steps(tmp_path: Path) -> None:
    plan, store = planned(tmp_path)
    experiment = Experiment(plan, store)
    works = [experiment.work(stage, STEPS_ONLY) for stage in plan.stages() if stage.role == "train"]
    config = plan.config
    assert isinstance(config, ExperimentConfig)
    texts = experiment.sizes(config.seeds[0]).documents
    tokens = sum(texts[0]) + len(texts[0])
    rows = -(-tokens // config.training.sequence_length)
    assert works[0].seconds == -(-rows // config.training.batch_size) * config.training.epochs
    assert works[0].trained == round(tokens * config.training.epochs)
    # generation 1 reads two splits
    assert works[1].seconds > 1.8 * works[0].seconds


def test_arms_of_another_model_or_step_are_probed_by_themselves(tmp_path: Path) -> None:
    arms = """arms=[{name: a}, {name: tce, loss: {type: tce}}, {name: narrow, model: {hidden_size: 16}},
        {name: smooth, training: {label_smoothing: 0.1}}, {name: long, training: {sequence_length: 128}},
        {name: too, model: {hidden_size: 16}, regime: replace}]"""
    plan, store = planned(tmp_path, "losses=[{type: cross-entropy}]", arms)
    kinds = kinds_of(plan)
    assert [[arm.label for arm in kind] for kind in kinds] == [["a", "tce", "smooth"], ["narrow", "too"], ["long"]]
    # each with its own settings
    first = [stage for stage in plan.stages() if stage.role == "train" and stage.generation == 0]
    by_arm = {stage.arm: stage for stage in first}
    seconds = [Experiment(plan, store, kind[0]).work(by_arm[kind[0].label], STEPS_ONLY).seconds for kind in kinds]
    assert seconds[0] == seconds[1] > seconds[2]


def test_what_is_in_the_store_costs_nothing(tmp_path: Path) -> None:
    stages = (plan := planned(tmp_path)[0]).stages()
    seconds = {stage.reference: 1.0 for stage in stages}
    alone = laid_out(stages, seconds, workers=1)
    assert alone == len(stages)
    assert laid_out(stages[5:], seconds, workers=1) == len(stages) - 5
    # two arms side by side, and no faster than the longest chain of parents
    assert alone / 2 <= laid_out(stages, seconds, workers=2) < alone
    assert laid_out(stages, seconds, workers=64) >= 2 * len(plan.runs[0].generations) + 3
    assert laid_out([], {}, workers=2) == 0 and EACH_STAGE > 0


def test_a_named_gpu_is_counted_by_its_stated_peak(tmp_path: Path) -> None:
    config = config_of("smoke")
    slow, fast = peak_of("t4", config), peak_of("h100", config)
    assert slow.training == GPUS["t4"][0] and "float32 8.1 TFLOP/s" in slow.in_words() and "30%" in slow.in_words()
    half = config.model_copy(update={"training": config.training.model_copy(update={"precision": "bfloat16"})})
    assert peak_of("h100", half).training == GPUS["h100"][1] > fast.training
    with pytest.raises(InputError, match="choose h200, h100"):
        peak_of("abacus", config)
    plan, store = planned(tmp_path)
    with pytest.raises(ConfigError, match="add --estimate"):
        foresee(plan, store, gpu="h100")
    with pytest.raises(InputError, match="for language models"):
        foresee(plan_for(load_any_config("zipf")), store, estimate=True)


def test_what_does_not_fit_into_memory_is_refused_with_the_figures() -> None:
    tiny = config_of("tiny")
    check_memory(tiny)
    wide = {"hidden_size": 16384, "layers": 200, "intermediate_size": 65536}
    large = tiny.model_copy(update={"model": tiny.model.model_copy(update=wide)})
    with pytest.raises(
        ConfigError, match=r"million parameters takes at least [\d,.]+ GB a worker, and this .* has"
    ) as e:
        check_memory(large)
    assert e.value.field == "model"
    long = {"context_tokens": 10**9, "head_tokens": 16}
    contexts = tiny.model_copy(update={"regeneration": tiny.regeneration.model_copy(update=long)})
    with pytest.raises(ConfigError, match=r"tokens at once takes .* GB, .* shorten contexts") as e:
        check_memory(contexts)
    assert e.value.field == "regeneration.context_tokens"
    many = tiny.model_copy(update={"runtime": tiny.runtime.model_copy(update={"workers": 100_000})})
    with pytest.raises(ConfigError, match=r"for 100000 of them, .* set it to 1"):
        check_memory(many)


def test_workers_share_the_memory_of_the_gpus_that_they_are_dealt_out_to(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of("tiny", "runtime.device=cuda")
    shape = shape_of(config.model)
    assert shape is not None
    memory = int(1.5 * max(memory_needed(config, shape)))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=memory))
    check_memory(config, 3)
    with pytest.raises(ConfigError, match=r"runtime.workers = .* for 2 of them, and this GPU has"):
        check_memory(config, 4)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    check_memory(config)  # by default no more than there are GPUs, though there are two runs
    with pytest.raises(ConfigError, match=r"for 2 of them, and this GPU has"):
        check_memory(config, 2)


def test_an_adapter_and_bfloat16_take_less() -> None:
    shape = Shape(parameters=10**9, layers=16, hidden=2048, intermediate=8192, keys=512, vocabulary=128_000)
    pretrained = {"type": "pretrained", "path": "a/b"}

    def training(**model: Any) -> float:
        return memory_needed(config_of("smoke", f"model={json.dumps({**pretrained, **model})}"), shape)[0]

    whole = training()
    assert whole > 16e9 > training(dtype="bfloat16") > training(lora={}, dtype="bfloat16") > 2e9


def test_what_a_whole_distribution_as_the_target_holds_is_counted() -> None:
    """8 rows of 63 targets and 512 tokens in float32 are 1,032,192 bytes; a copy of 10 million weights is 40 MB."""
    shape = Shape(parameters=10**7, layers=1, hidden=8, intermediate=8, keys=8, vocabulary=512)

    def held(**training: Any) -> dict[str, float]:
        settings = {"epochs": 1, "batch_size": 16, "gradient_accumulation": 2, "sequence_length": 64, **training}
        config = config_of("smoke", "losses=[{type: cross-entropy}]", f"training={json.dumps(settings)}")
        whole, extra = memory_needed(config, shape)[0], held_by_aims(config, shape)
        plain = memory_needed(config_of("smoke", f"training={json.dumps({**settings, **off})}"), shape)[0]
        assert whole - plain == sum(extra.values())
        return extra

    off = {"label_smoothing": 0, "distillation": 0, "anchor": 0, "averaging": 0}
    logits, weights = 8 * 63 * 512 * 4, 4e7
    assert held() == {}
    assert held(label_smoothing=0.1) == {"label_smoothing": 3 * logits}
    assert held(distillation=1, label_smoothing=0.1) == {"distillation": 4 * logits + weights}
    assert held(anchor=1, averaging=0.5) == {"anchor": weights, "averaging": weights}


def test_what_backward_reads_of_a_whole_distribution_is_what_is_counted() -> None:
    """Autograd keeps the log-probabilities, and with a teacher its probabilities: the rest counted is two gradients."""
    import torch

    from fortifai_core.language.objective import soft_cross_entropy

    logits, targets = torch.randn(2, 7, 97, requires_grad=True), torch.zeros((2, 7), dtype=torch.long)
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.data_ptr()] = tensor.numel()
        return tensor

    for taught, weight, kept in ((None, None, 1), (torch.randn(2, 7, 97), torch.ones(2), 2)):
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = soft_cross_entropy(logits, targets, smoothing=0.1, taught=taught, weight=weight).sum()
        assert sum(size for size in saved.values() if size == logits.numel()) == kept * logits.numel()
        loss.backward()


def test_a_target_that_does_not_fit_is_named() -> None:
    arena = config_of("arena", "training.batch_size=64", "training.gradient_accumulation=1")
    tiny = arena.resolved_arms()[2].experiment
    assert tiny.training.label_smoothing
    many = tiny.model.model_copy(update={"vocabulary": 10**8, "hidden_size": 1, "layers": 1, "intermediate_size": 1})
    huge = tiny.model_copy(update={"model": many})
    with pytest.raises(ConfigError, match=r"GB of it for this, .* raise gradient_accumulation") as e:
        check_memory(huge, 1)
    assert e.value.field == "training.label_smoothing"


TWO = ("runtime.launcher=torchrun", "runtime.processes=2")


def test_each_process_of_a_training_holds_all_but_its_part_of_the_rows() -> None:
    """10^9 weights in float32 are 4 GB; trained, 16 GB. 16 rows of 64 tokens keep 112 values each: 458,752 bytes."""
    shape = Shape(parameters=10**9, layers=1, hidden=8, intermediate=8, keys=8, vocabulary=512)
    rows, activations = ("training.batch_size=16", "training.sequence_length=64"), 16 * 64 * (10 * 8 + 4 * 8) * 4

    def held(*overrides: str) -> float:
        return memory_needed(config_of("smoke", *rows, *overrides), shape)[0]

    assert held() == 16e9 + activations
    # two with 8 rows each, and the worker's own weights
    assert held(*TWO) == 2 * (16e9 + activations / 2) + 4e9
    # every process has the anchor; the worker alone averages
    assert held(*TWO, "training.anchor=1") == held(*TWO) + 2 * 4e9
    assert held(*TWO, "training.averaging=0.5") == held(*TWO) + 4e9
    divided = config_of("smoke", *rows, *TWO, "runtime.sharding=fsdp2")
    assert memory_of_process(divided, shape)[0] == 16e9 / 2 + activations / 2


@pytest.mark.parametrize(
    "setting", ["training.anchor=1.0", "training.loss_on=synthetic", "treatments=[{type: weights}]"]
)
def test_what_would_need_whole_weights_is_refused_where_they_are_divided(setting: str) -> None:
    field = setting.partition("=")[0]
    with pytest.raises(ConfigError, match=r"not with runtime\.sharding: leave one out") as caught:
        config_of("smoke", *TWO, "runtime.sharding=fsdp2", setting)
    assert caught.value.field == field


def test_more_processes_than_memory_are_refused_with_the_number_that_fits() -> None:
    """Of weights that take a seventh of the memory, one process and its worker hold five copies, two hold nine."""
    weights = psutil.virtual_memory().total // 7 // 4
    two = config_of("smoke", *TWO, "runtime.device=cpu", "model.tie_embeddings=true")
    large = {"vocabulary": weights, "hidden_size": 1, "layers": 1, "intermediate_size": 1}
    config = two.model_copy(update={"model": two.model.model_copy(update=large)})
    with pytest.raises(ConfigError, match=r"GB a worker, a copy of everything for each process, .*: set it to 1") as e:
        check_memory(config, 1)
    assert e.value.field == "runtime.processes" and e.value.value == 2
    check_memory(config.model_copy(update={"runtime": config.runtime.model_copy(update={"processes": 1})}), 1)


def test_of_a_setting_what_all_processes_hold_for_it_is_said() -> None:
    """Weights take a tenth of the memory: each process has five copies, one of them the anchor, their worker one."""
    total = psutil.virtual_memory().total
    anchored = config_of("smoke", *TWO, "runtime.device=cpu", "model.tie_embeddings=true", "training.anchor=1")
    large = {"vocabulary": total // 10 // 4, "hidden_size": 1, "layers": 1, "intermediate_size": 1}
    config = anchored.model_copy(update={"model": anchored.model.model_copy(update=large)})
    with pytest.raises(ConfigError, match=rf"at least {1.1 * total / 1e9:.1f} GB a worker, {total / 5e9:.1f} GB") as e:
        check_memory(config, 1)
    assert e.value.field == "training.anchor"


def test_an_estimate_counts_the_memory_of_every_process() -> None:
    probed = replace(STEPS_ONLY, memory=9000)
    assert memory_of(config_of("smoke"), probed) == 9000
    assert memory_of(config_of("smoke", *TWO), probed) == 2 * 9000 + 4 * 1000


def test_the_shape_of_a_local_model_is_read_from_its_headers(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": {}, "a": {"shape": [3, 5]}, "b": {"shape": [7]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    inner = {
        "vocab_size": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "num_hidden_layers": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps({**inner, "hidden_size": 32, "intermediate_size": 64}))
    found = Pretrained.find(str(tmp_path)).shape
    assert found == {"parameters": 22, "layers": 2, "hidden": 32, "intermediate": 64, "keys": 16, "vocabulary": 3}
    (tmp_path / "config.json").write_text("{}")
    assert Pretrained.find(str(tmp_path)).shape is None and Pretrained.find("owner/name").shape is None


@pytest.mark.long
def test_an_estimate_of_smoke_is_of_its_size(tmp_path: Path) -> None:
    plan, store = planned(tmp_path, "runtime.workers=1")
    found = foresee(plan, store, estimate=True, gpu="h100")
    assert found.estimate is not None and found.gpu_seconds is not None
    estimate = found.estimate
    assert estimate.stages["train"] == sum(len(run.generations) for run in plan.runs)
    assert 5 < estimate.seconds < 300 and 0 < found.gpu_seconds < estimate.seconds
    assert estimate.probed.step > 0 and estimate.probed.rewrite > 0 and estimate.memory > 100e6
    assert replace(estimate.probed, memory=0) != estimate.probed
    assert json.dumps(found.as_json())


@pytest.mark.long
def test_two_models_are_estimated_by_two_probes(tmp_path: Path) -> None:
    arms = "arms=[{name: wide}, {name: narrow, model: {hidden_size: 16, layers: 1}}]"
    plan, store = planned(tmp_path, "losses=[{type: cross-entropy}]", arms, "runtime.workers=1")
    estimate = foresee(plan, store, estimate=True).estimate
    assert estimate is not None and list(estimate.others) == ["narrow"]
    assert estimate.others["narrow"].parameters < estimate.probed.parameters
    assert estimate.stages["base"] == 2 and estimate.stages["train"] == 4
    alone = foresee(planned(tmp_path, "losses=[{type: cross-entropy}]", "runtime.workers=1")[0], store, estimate=True)
    assert alone.estimate is not None and alone.estimate.training_flops < estimate.training_flops
    assert estimate.training_flops < 2 * alone.estimate.training_flops
