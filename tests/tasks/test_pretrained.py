"""Experiments that start from a pretrained model in a folder: all weights, or one LoRA adapter that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from flows.load import load_experiment_config, validate
from flows.prepare import Prepared, prepare_experiment
from flows.reporters import LogReporter
from fortifai_core.config.model import LoraConfig
from fortifai_core.errors import DataError
from helpers import run_flow
from storage.sources.pretrained import Pretrained
from storage.tables.models import ADAPTER, load_model
from tasks.language.train import _with_adapter

VOCABULARY = 300


def save_tiny(folder: Path, architecture: str) -> Path:
    """A randomly initialised model of a few thousand weights, with a byte-level tokenizer."""
    from transformers import (
        Gemma3ForCausalLM,
        Gemma3TextConfig,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    from fortifai_core.corpus.tokenization import train_tokenizer

    tokenizer = train_tokenizer(["The town of Ardenlith was founded in 1340."] * 4, vocabulary=VOCABULARY)
    common: dict[str, Any] = {
        "vocab_size": 320,  # padded beyond the tokenizer, as published models often are
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "head_dim": 8,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    torch.manual_seed(0)
    model = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**common)),
        "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**common, sliding_window=16)),
        "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**common)),
    }[architecture]()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run(tmp_path: Path, model: dict[str, Any], **training: Any) -> Prepared:

    config = load_experiment_config("smoke", ["runtime.workers=1", "runtime.threads=1"]).model_dump()
    config["model"] = {"type": "pretrained", **model}
    config["losses"] = [{"type": "tce", "gamma": 0.9}]
    config["training"] |= training
    prepared = prepare_experiment(validate(config), store=str(tmp_path / "store"))
    run_flow(prepared, LogReporter())
    return prepared


def folder_of(prepared: Prepared, generation: int) -> Path:
    stage = prepared.plan.runs[0].generations[generation].train
    artifact = prepared.store.find(*stage.reference)
    assert artifact is not None
    return artifact.path


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "qwen3"])
def test_all_weights_of_each_architecture_are_trained_over_two_generations(tmp_path: Path, architecture: str) -> None:
    path = save_tiny(tmp_path / "model", architecture)
    prepared = run(tmp_path, {"path": str(path)})
    first, second = (load_model(folder_of(prepared, g)).state_dict() for g in (0, 1))
    assert first.keys() == second.keys()
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_one_adapter_goes_on_from_generation_to_generation(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = save_tiny(tmp_path / "model", "llama")
    lora = {"rank": 4, "alpha": 8}
    prepared = run(tmp_path, {"path": str(path), "lora": lora})
    adapters = [load_file(folder_of(prepared, g) / ADAPTER / "adapter_model.safetensors") for g in (0, 1)]
    assert adapters[0].keys() == adapters[1].keys()
    assert not (folder_of(prepared, 1) / "model.safetensors").exists()  # the base model is kept once
    assert any(not torch.equal(adapters[0][name], adapters[1][name]) for name in adapters[0])
    # what the second generation starts from is the first one's adapter: B, zero in a new one, is as it was left
    found = load_model(folder_of(prepared, 0), base=path, trainable=True)
    started = _with_adapter(found, LoraConfig(rank=4, alpha=8), seed=0)
    trained = {name: p for name, p in started.named_parameters() if p.requires_grad}
    assert len(trained) == len(adapters[0])
    for name, value in adapters[0].items():
        torch.testing.assert_close(trained[name.replace(".weight", ".default.weight")].data, value, rtol=0, atol=0)
        assert "lora_B" not in name or value.abs().max() > 0


def test_a_folder_without_a_model_is_refused_before_any_compute(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model\.path"):
        _ = Pretrained.find(str(tmp_path)).identity
    with pytest.raises(DataError, match=r"model\.path"):
        _ = Pretrained.find("./nowhere").identity


def test_the_identity_of_a_local_model_is_that_of_its_files(tmp_path: Path) -> None:
    one, two = save_tiny(tmp_path / "one", "llama"), save_tiny(tmp_path / "two", "llama")
    assert Pretrained.find(str(one)).identity == Pretrained.find(str(two)).identity
    config = two / "config.json"
    config.write_text(config.read_text().replace('"hidden_size": 16', '"hidden_size": 17'))
    assert Pretrained.find(str(one)).identity != Pretrained.find(str(two)).identity
    assert Pretrained.find("owner/name", "abc").identity == "hub:owner/name@abc"
