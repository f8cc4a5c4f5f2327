"""Experiments that start from a pretrained model in a folder: all weights, or one LoRA adapter that goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flows.load import load_experiment_config, validate
from flows.prepare import Prepared, prepare_experiment
from flows.reporters import LogReporter
from fortifai_core.config.model import LoraConfig
from fortifai_core.errors import DataError
from helpers import COMMAND, digests, environment, run_flow
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


@pytest.mark.long
@pytest.mark.usefixtures("prefect_server")
def test_an_adapter_has_the_same_digests_in_another_store(tmp_path: Path) -> None:
    """Neither the store's place nor the order of a set, which is another one in each process, is among its files."""
    path = save_tiny(tmp_path / "model", "llama")
    model = {"path": str(path), "lora": {"rank": 2, "alpha": 4}}
    one, two = (digests(run(tmp_path / name, model).store) for name in ("one", "two"))
    assert one == two and any("adapter/adapter_config.json" in files for files in one.values())


def edit(file: Path, **fields: Any) -> None:
    """Change fields of a JSON file; those that are None are taken out."""
    changed = {**json.loads(file.read_text(encoding="utf-8")), **fields}
    file.write_text(json.dumps({name: value for name, value in changed.items() if value is not None}), encoding="utf-8")


def without(folder: Path, *names: str) -> None:
    """Take tensors out of the weights."""
    weights = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in weights.items() if k not in names}, folder / "model.safetensors", {"format": "pt"})


def flip(folder: Path) -> None:
    """Make the header of the weights unreadable."""
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(12)
        file.write(b"\xff")


def cut(folder: Path) -> None:
    """Take the last bytes of the weights away."""
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    """Weights as torch saves them: a pickle."""
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def indexed(folder: Path, name: str) -> None:
    """An index that names a file."""
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))


def own_code(folder: Path) -> None:
    """A model that is made by code beside it."""
    auto = {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}
    edit(folder / "config.json", model_type="own", auto_map=auto)


def own_tokenizer(folder: Path) -> None:
    """A tokenizer that is made by code beside it."""
    edit(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.T", "own.T"]})


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


SPOILT: dict[str, tuple[Any, str]] = {
    "no folder": (lambda f: shutil.rmtree(f), "no folder with a config.json"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "no folder with a config.json"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be used"),
    "deep JSON": (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json cannot be used"),
    "unknown type": (lambda f: edit(f / "config.json", model_type="nonesuch"), "config.json cannot be used"),
    "no language model": (lambda f: edit(f / "config.json", model_type="vit"), "config.json cannot be used"),
    "a word for a width": (lambda f: edit(f / "config.json", hidden_size="wide"), "config.json cannot be used"),
    "another width": (lambda f: edit(f / "config.json", hidden_size=32), "has the shape .* by its config.json"),
    "more layers": (lambda f: edit(f / "config.json", num_hidden_layers=3), r"lack model\.layers\.2\..* more"),
    "a tensor less": (lambda f: without(f, "model.norm.weight"), r"lack model\.norm\.weight"),
    "no header": (flip, "model.safetensors cannot be read"),
    "cut off": (cut, "model.safetensors cannot be read"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "pickled": (pickled, r"pickled \(pytorch_model.bin\)"),
    "part not there": (lambda f: indexed(f, "other.safetensors"), "other.safetensors cannot be read"),
    "part elsewhere": (lambda f: indexed(f, "../model/part.safetensors"), "names no .safetensors files of this folder"),
    "no index": (lambda f: (indexed(f, ""), (f / "model.safetensors.index.json").write_text("[]")), "cannot be read"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "holds an adapter"),
    "own code": (
        lambda f: edit(f / "config.json", model_type="own", auto_map={"AutoConfig": "own.C"}),
        "it brings along",
    ),
    "own tokenizer": (own_tokenizer, "it brings along"),
    "no tokenizer": (no_tokenizer, "tokenizer"),
    "broken tokenizer": (lambda f: (f / "tokenizer.json").write_text("[]"), "tokenizer cannot be loaded"),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is a model; to be copied."""
    return save_tiny(tmp_path_factory.mktemp("sound") / "model", "llama")


@pytest.mark.parametrize("how", SPOILT)
def test_a_spoilt_model_is_refused_in_one_line(tmp_path: Path, sound: Path, how: str) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    Pretrained.find(str(folder)).check_files()
    spoil, message = SPOILT[how]
    spoil(folder)
    with pytest.raises(DataError, match=f"model.path = '{folder}': .*{message}") as refused:
        Pretrained.find(str(folder)).check_files()
    assert "\n" not in str(refused.value)


def test_more_tokens_than_the_model_knows_are_refused(tmp_path: Path) -> None:
    from fortifai_core.corpus.tokenization import train_tokenizer

    folder = save_tiny(tmp_path / "model", "llama")
    train_tokenizer([" ".join(f"word{i}" for i in range(500))] * 4, vocabulary=321).save_pretrained(folder)
    with pytest.raises(DataError, match="its tokenizer has 321 tokens and the model knows 320"):
        Pretrained.find(str(folder)).check_files()


@pytest.mark.parametrize("architecture", ["gemma3", "qwen3"])
def test_models_as_they_are_published_pass(tmp_path: Path, architecture: str) -> None:
    folder = save_tiny(tmp_path / "whole", architecture)
    Pretrained.find(str(folder)).check_files()
    parts = save_tiny(tmp_path / "parts", architecture)
    load_model(folder).save_pretrained(parts, max_shard_size="20KB")
    (parts / "model.safetensors").unlink()
    assert (parts / "model.safetensors.index.json").is_file()
    Pretrained.find(str(parts)).check_files()


def test_a_model_that_lacks_weights_is_not_filled_up(tmp_path: Path, sound: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    without(folder, "model.norm.weight")
    with pytest.raises(DataError, match=r"lack model\.norm\.weight"):
        Pretrained.find(str(folder)).fetch_model(dtype="float32")


@pytest.mark.long
@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json"])
def test_a_model_that_brings_code_is_refused_and_asks_nobody(tmp_path: Path, sound: Path, place: str) -> None:
    """Though whoever sits there would say yes."""
    folder = Path(shutil.copytree(sound, tmp_path / "model"))
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'planted')!r}).touch()\n")
    if place == "config.json":
        own_code(folder)
    else:
        own_tokenizer(folder)
    model = f"model={{type: pretrained, path: {folder}}}"
    command = [*COMMAND, "plan", "smoke", "--set", model]
    told = {**environment(tmp_path, "store"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(command, env=told, input="y\n" * 50, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and not (tmp_path / "planted").exists(), done.stderr
    assert f"model.path = '{folder}'" in done.stderr and "code that it brings along" in done.stderr
    # nor is it run from somebody else's store, where a model and its tokenizer are loaded as they lie
    code = (
        "import contextlib, sys\nfrom pathlib import Path\nfrom storage.tables import models\n"
        "for load in (models.load_model, models.load_tokenizer, models.load_config):\n"
        "    with contextlib.suppress(Exception):\n        load(Path(sys.argv[1]))\n"
    )
    loading = [sys.executable, "-c", code, str(folder)]
    subprocess.run(loading, env=told, input="y\n" * 50, capture_output=True, text=True, timeout=120, check=True)
    assert not (tmp_path / "planted").exists()


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
