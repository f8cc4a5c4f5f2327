"""Whether the models of an experiment fit into this machine's memory and disk: asked before any compute."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import psutil

from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.config.model import PretrainedModel, ScratchModel
from fortifai_core.errors import ConfigError
from storage.sources.pretrained import pretrained
from tasks.engine.pool import gpu_count, pool_size

FLOAT = 4
CHECKPOINTED = 2 * 3  # two checkpoints, each with the weights and Adam's two moments


class Shape(NamedTuple):
    """What memory depends on; `keys`: values of one layer's keys for one token."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    keys: int
    vocabulary: int


def shape_of(model: ScratchModel | PretrainedModel) -> Shape | None:
    """None for what is not on this machine yet, or is of a kind that says it otherwise."""
    if isinstance(model, ScratchModel):
        parameters = model_parameters(model)
        width = model.hidden_size
        return Shape(parameters, model.layers, width, model.intermediate_size, width, model.vocabulary)
    found = pretrained(model).shape
    return None if found is None else Shape(**found)


def model_parameters(model: ScratchModel) -> int:
    """Weights of a scratch model: embedding (and head), attention, gated feed-forward, norms."""
    embedding = model.vocabulary * model.hidden_size * (1 if model.tie_embeddings else 2)
    attention = 4 * model.hidden_size**2
    feed_forward = 3 * model.hidden_size * model.intermediate_size
    return embedding + model.layers * (attention + feed_forward + 2 * model.hidden_size) + model.hidden_size


def bytes_a_weight(config: ExperimentConfig) -> int:
    """Of M_-1, and of every model in memory."""
    model = config.model
    return 2 if isinstance(model, PretrainedModel) and model.dtype == "bfloat16" else FLOAT


def disk_for_models(
    config: ExperimentConfig, *, parameters: int, trained: int, bases: float, generations: int, at_once: int
) -> float:
    """Bytes on disk of models that are still to be made, and of the checkpoints of those `at_once` in training.

    Args:
        parameters: of M_-1, of which there are `bases` to be made; `trained`: of what each of the `generations` keeps.
    """
    whole = bytes_a_weight(config)
    width = FLOAT if config.model.lora else whole  # peft's adapters
    kept = 2 if config.training.save_dtype == "bfloat16" else width
    checkpoints = at_once * CHECKPOINTED * width if generations else 0
    return float(bases * parameters * whole + trained * (generations * kept + checkpoints))


def memory_needed(config: ExperimentConfig, shape: Shape) -> tuple[float, float]:
    """Bytes that one worker holds at least: in training, and in rewriting one longest input.

    Of a training that torch's launcher shares out, those of all its processes (`memory_of_process`), and the weights,
    which the worker goes on holding, and averages.
    """
    training, rewriting = memory_of_process(config, shape)
    if config.runtime.launcher == "torchrun":
        copies = 2 if config.training.averaging else 1
        training = training * config.runtime.processes + copies * shape.parameters * bytes_a_weight(config)
    return training, rewriting


def memory_of_process(config: ExperimentConfig, shape: Shape) -> tuple[float, float]:
    """Bytes that one process holds at least: in training, and in rewriting one longest input.

    Training: weights, gradients and the optimizer's moments, and of a micro-batch what the backward pass reads again
    (a Llama keeps some 10 vectors of its width and 4 of the feed-forward part for a token and layer). Logits are left
    out, of which only pieces exist at once, unless the target is a whole distribution: see `held_by_aims`.

    Each of several processes has its part of a micro-batch, and all weights, gradients and moments (DDP), or its part
    of these too (FSDP2).
    """
    model, training = config.model, config.training
    width = bytes_a_weight(config)
    weights = float(shape.parameters * width)
    adapter = model.lora is not None
    moments = 0 if training.optimizer == "sgd" else 2
    states = weights if adapter else weights * (2 + moments)
    if config.runtime.sharding != "none":
        states /= config.runtime.processes
    tokens = _rows_at_once(config) * training.sequence_length
    kept = tokens * shape.layers * (10 * shape.hidden + 4 * shape.intermediate)
    activations = kept * (2 if training.precision == "bfloat16" else width)
    rewriting = config.regeneration.longest_input * shape.layers * 2 * shape.keys * width
    return states + activations + sum(_held_in_process(config, shape).values()), weights + rewriting


def _held_in_process(config: ExperimentConfig, shape: Shape) -> dict[str, float]:
    """Of `held_by_aims`, without what a worker does by itself, where others train for it."""
    held = held_by_aims(config, shape)
    return {name: size for name, size in held.items() if name != "averaging" or config.runtime.launcher == "single"}


def _rows_at_once(config: ExperimentConfig) -> int:
    """Of a micro-batch, those that one process reads."""
    return config.training.batch_size // config.training.gradient_accumulation // config.runtime.processes


def held_by_aims(config: ExperimentConfig, shape: Shape) -> dict[str, float]:
    """Bytes that settings of the training hold beside what cross entropy does, by the setting.

    A target that is a distribution needs all logits of a micro-batch in float32: the log-probabilities, which the
    backward pass reads, their gradient and the logits' own; with distillation the teacher's probabilities too, which
    it reads as well, and the teacher. Anchor and averaging hold a copy of the weights each.
    """
    training = config.training
    weights = float(shape.parameters * bytes_a_weight(config))
    logits = float(_rows_at_once(config) * (training.sequence_length - 1) * shape.vocabulary * FLOAT)
    held: dict[str, float] = {}
    if training.distillation:
        held["distillation"] = 4 * logits + weights
    elif training.label_smoothing:
        held["label_smoothing"] = 3 * logits
    return held | {name: weights for name in ("anchor", "averaging") if getattr(training, name)}


def check_memory(config: ExperimentConfig, workers: int | None = None) -> None:
    """Refuse what needs more memory than the device has, with the figures.

    Args:
        workers: that share a machine's memory; by default as many as the experiment gets.

    Raises:
        ConfigError: naming what is too large, and what makes it smaller.
    """
    shape = shape_of(config.model)
    if shape is None:
        return
    device, there = _device_memory(config.runtime.device)
    workers, processes = workers or pool_size(config)[0], config.runtime.processes
    training, rewriting = memory_needed(config, shape)
    if device == "GPU":  # they are dealt out in turn, to processes
        workers, processes = -(-workers * processes // max(1, gpu_count(config.runtime))), 1
        training, _ = memory_of_process(config, shape)
    size = f"{shape.parameters / 1e6:,.0f} million parameters"
    if max(training, rewriting) * workers <= there:
        return
    has = f"this {device} has {there / 1e9:.1f} GB"
    if rewriting > max(there, training):
        tokens = config.regeneration.longest_input
        remedy = (
            f"reading {tokens} tokens at once takes {rewriting / 1e9:.1f} GB, and {has}: shorten contexts or chunks"
        )
        raise ConfigError("regeneration.context_tokens", config.regeneration.context_tokens, remedy)
    needs = f"training {size} takes at least {training / 1e9:.1f} GB a worker"
    held = _held_in_process(config, shape)
    if held and training > there >= max(training - processes * sum(held.values()), rewriting):
        name, most = max(held.items(), key=lambda pair: pair[1])
        this = f"{processes * most / 1e9:.1f} GB of it for this"
        remedy = f"{needs}, {this}, and {has}: leave it out, or raise gradient_accumulation"
        raise ConfigError(f"training.{name}", getattr(config.training, name), remedy)
    if workers > 1 and max(training, rewriting) <= there:
        whole = f"{training * workers / 1e9:.1f} GB for {workers} of them, and {has}: set it to 1"
        raise ConfigError("runtime.workers", config.runtime.workers, f"{needs}, {whole}")
    fewer = [
        n for n in range(1, processes) if processes % n == 0 and memory_needed(_with(config, n), shape)[0] <= there
    ]
    if fewer:
        remedy = f"{needs}, a copy of everything for each process, and {has}: set it to {fewer[-1]}"
        raise ConfigError("runtime.processes", processes, remedy)
    smaller = "choose a smaller model, an adapter (model.lora), or smaller micro-batches (training.batch_size, "
    value = config.model.path if isinstance(config.model, PretrainedModel) else "scratch"
    raise ConfigError("model", value, f"{needs}, and {has}: {smaller}gradient_accumulation, sequence_length)")


def _with(config: ExperimentConfig, processes: int) -> ExperimentConfig:
    """The experiment as it is with so many processes for a training."""
    return config.model_copy(update={"runtime": config.runtime.model_copy(update={"processes": processes})})


def _device_memory(device: str) -> tuple[str, float]:
    """The device's name in words, and its bytes."""
    if device == "cuda" or (device == "auto" and Path("/proc/driver/nvidia/version").exists()):
        import torch

        if torch.cuda.is_available():
            return "GPU", float(torch.cuda.get_device_properties(0).total_memory)
    return "machine", float(psutil.virtual_memory().total)
