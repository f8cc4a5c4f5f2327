"""No pickle is loaded: a malicious one is planted wherever a file is read, and its mark never appears."""

from __future__ import annotations

import contextlib
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from prefect.cache_policies import NO_CACHE
from transformers import LlamaConfig, LlamaForCausalLM

from flows.family import recursive_family
from flows.recursive import recursive_training
from flows.run import run_arm
from fortifai_core.config.stages import Training
from fortifai_core.errors import FortifaiError
from fortifai_core.families.images import idx
from fortifai_core.families.mixture.family import Table
from fortifai_core.language.training import newest_checkpoint, seal_checkpoint, train_model
from storage.catalog.catalog import query
from storage.sources.family_data import load_table
from storage.sources.pretrained import Pretrained
from storage.sources.questions import read_questions
from storage.sources.textfiles import read_documents
from storage.store.experiments import list_experiments
from storage.store.store import ArtifactStore
from storage.tables import parquet
from storage.tables.arrays import read_arrays, read_parameters
from storage.tables.models import load_model, load_tokenizer
from tasks.engine import prefect_tasks, publish


class Evil:
    """Whoever loads this makes the file `mark`."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return open, (str(self.mark), "w")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "mark"


@pytest.fixture
def plain(mark: Path) -> bytes:
    return pickle.dumps(Evil(mark))


def tiny() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=16, max_position_embeddings=32, **sizes))


def test_the_mark_would_show(plain: bytes, mark: Path, tmp_path: Path) -> None:
    pickle.loads(plain)
    assert mark.exists()
    mark.unlink()
    torch.save({"state": Evil(mark)}, tmp_path / "x.pt")
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert mark.exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "scaler.pt"])
def test_no_checkpoint_of_a_training_is_unpickled(name: str, mark: Path, tmp_path: Path) -> None:
    rows = [{"input_ids": [1, 2, 3, 4]} for _ in range(8)]

    def train(on_progress: Callable[[int, int], None] | None = None) -> None:
        config = Training(epochs=1, batch_size=2, sequence_length=8)
        options: dict[str, Any] = {"config": config, "seed": 0, "pad_id": 0, "save_steps": 1}
        train_model(tiny(), rows, workspace=tmp_path / "work", on_progress=on_progress, **options)

    def stop(step: int, _steps: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(stop)
    checkpoint = newest_checkpoint(tmp_path / "work")
    assert checkpoint is not None
    torch.save({"state": Evil(mark)}, checkpoint / name)
    seal_checkpoint(checkpoint)  # whoever can write here can seal it too
    read = name != "training_args.bin"  # a scaler stops before it is read: there is none on a CPU
    if read:
        with pytest.raises(Exception, match=r"(?i)weights.only|load_state_dict"):
            train()
    else:
        train()
    assert not mark.exists()


@pytest.mark.parametrize("beside", [False, True])
def test_weights_are_safetensors_or_none(beside: bool, mark: Path, tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    torch.save({"weight": Evil(mark)}, tmp_path / "pytorch_model.bin")
    if not beside:
        (tmp_path / "model.safetensors").unlink()
    for load in (lambda: Pretrained.find(str(tmp_path)).fetch_model(dtype="float32"), lambda: load_model(tmp_path)):
        if beside:
            load()
        else:
            with pytest.raises((FortifaiError, OSError)):
                load()
    assert not mark.exists()


def test_no_adapter_is_unpickled(mark: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    tiny().save_pretrained(tmp_path / "base")
    adapted: Any = get_peft_model(tiny(), LoraConfig(r=1, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapted.save_pretrained(tmp_path / "trained" / "adapter")
    (tmp_path / "trained" / "adapter" / "adapter_model.safetensors").unlink()
    torch.save({"weight": Evil(mark)}, tmp_path / "trained" / "adapter" / "adapter_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only|safetensors"):
        load_model(tmp_path / "trained", base=tmp_path / "base")
    assert not mark.exists()


def test_no_extension_type_of_parquet_is_unpickled(plain: bytes, mark: Path, tmp_path: Path) -> None:
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": plain}
    names = {"text": pa.string(), "n": pa.float64(), "metric": pa.string()}
    schema = pa.schema([pa.field(name, kind, metadata=metadata) for name, kind in names.items()])
    columns = [["a", "b", "c", "d"], [1.0, 2.0, 3.0, 4.0], ["m"] * 4]
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table(columns, schema=schema), path)
    for read in (
        lambda: read_documents(path, text_field="text"),
        lambda: load_table(Table(file=str(path), columns=["n"]), fewest=1),
        lambda: parquet.read_rows(path),
        lambda: list(parquet.iter_column(path, "metric")),
        lambda: read_arrays(path),
    ):
        try:
            read()
        except FortifaiError:
            continue
    assert not mark.exists()


def test_no_file_that_is_read_is_unpickled(plain: bytes, mark: Path, tmp_path: Path) -> None:
    for name, read in {
        "a.json": read_questions,
        "a.jsonl": read_questions,
        "b.jsonl": lambda path: read_documents(path, text_field="text"),
        "a.txt": lambda path: read_documents(path, text_field="text"),
        "a.parquet": read_arrays,
        "b.parquet": lambda path: read_documents(path, text_field="text"),
        "a.safetensors": read_parameters,
        "a.csv": lambda path: load_table(Table(file=str(path)), fewest=1),
        "a-idx3-ubyte": idx.read_idx,
        "tokenizer.json": lambda path: load_tokenizer(path.parent),
    }.items():
        (tmp_path / name).write_bytes(plain)
        with pytest.raises(Exception):  # noqa: B017 - which error is not the question here
            read(tmp_path / name)
        assert not mark.exists(), name


def test_no_record_of_a_store_is_unpickled(plain: bytes, mark: Path, tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    place = store.tree.place("model", "a" * 64)
    place.mkdir(parents=True)
    (place / "manifest.json").write_bytes(plain)
    (store.root / "experiments").mkdir()
    (store.root / "experiments" / "x-12345678.json").write_bytes(plain)
    (store.root / "catalog.duckdb").write_bytes(plain)
    for read in (lambda: store.ls(), lambda: list_experiments(store), lambda: store.find("model", "a" * 64)):
        with contextlib.suppress(FortifaiError), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert not read()
    (store.root / "experiments" / "x-12345678.json").unlink()
    assert query(store, "SELECT 1")[1] == [(1,)]
    assert not mark.exists()


def test_prefect_keeps_no_result_and_looks_none_up() -> None:
    """Prefect reads a result with the serializer that the result's own record names, pickle for one."""
    tasks = [
        value
        for module in (prefect_tasks, publish)
        for value in vars(module).values()
        if type(value).__name__ == "Task"
    ]
    assert len(tasks) >= 10
    for task in tasks:
        assert task.persist_result is False and task.cache_policy in (None, NO_CACHE), task.name
    for flow in (recursive_training, recursive_family, run_arm):
        assert flow.persist_result is False, flow.name
