"""Builders of models: M_-1 from the pretraining text, and M_i from M_(i-1) under the arm's loss.

This is where `kernels` meets the science: the masked cross-entropy head is patched into the model here, and
the training code never learns which loss it is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from fortifai_core.config.loss import CrossEntropyLoss, Loss
from fortifai_core.config.model import LoraConfig, ScratchModel
from fortifai_core.config.stages import Regime, Training
from fortifai_core.errors import ConfigError, DataError
from fortifai_core.seeds import derive_seed
from storage.tables import parquet
from tasks.engine.context import Context
from tasks.language.files import base_folder, split_file, trained_texts
from tasks.language.specs import BaseSpec, PretrainedBaseSpec, TrainSpec, VersionedText


def _packed(context: Context[Any], name: str, documents: Iterator[list[int]], *, length: int, end_of_text: int) -> Any:
    """Training sequences as a memory-mapped dataset, so that a corpus larger than memory can be trained on."""
    from fortifai_core.corpus.packing import pack

    return _mapped(context, name, pack(documents, sequence_length=length, end_of_text=end_of_text), length=length)


def _mapped(context: Context[Any], name: str, rows: Iterator[list[int]], *, length: int) -> Any:
    from datasets import Dataset

    path = context.workspace / name
    parquet.write_packed(path, rows, sequence_length=length)
    return Dataset.from_file(str(path))


def fetch_base(context: Context[PretrainedBaseSpec]) -> dict[str, Any]:
    """M_-1: a pretrained model copied into the store."""
    from storage.sources.pretrained import Pretrained

    spec = context.spec
    model = Pretrained.find(spec.path, spec.revision, spec.gguf_file).fetch_model(dtype=spec.dtype)
    _save(model, context, tokenizer=context.artifact(spec.tokenizer).path)
    return {"parameters": sum(p.numel() for p in model.parameters())}


def build_base(context: Context[BaseSpec]) -> dict[str, Any]:
    """M_-1: a Llama pretrained here on text of its own."""
    from fortifai_core.corpus.tokenization import iter_encoded
    from storage.tables.models import load_tokenizer

    config = context.spec.model
    tokenizer = load_tokenizer(context.artifact(context.spec.tokenizer).path)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model = new_model(config, vocabulary=len(tokenizer), **special)
    path = context.artifact(context.spec.pretraining).file("pretraining.parquet")
    texts = parquet.iter_column(path, "text")
    packing = {"length": config.pretraining_sequence_length, "end_of_text": tokenizer.eos_token_id}
    rows = _packed(context, "pretraining.arrow", iter_encoded(tokenizer, texts), **packing)
    metrics = _train(
        model, rows, context, training=pretraining_of(config), loss=CrossEntropyLoss(), seed=derive_seed("base", 0)
    )
    _save(model, context, tokenizer=context.artifact(context.spec.tokenizer).path)
    return {**metrics, "parameters": sum(p.numel() for p in model.parameters())}


def new_model(config: ScratchModel, *, vocabulary: int, **special: Any) -> Any:
    """A Llama of this shape with random weights, the same in every run. special: ids of BOS, EOS and padding."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(derive_seed("base", 0))
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            max_position_embeddings=config.max_positions,
            tie_word_embeddings=config.tie_embeddings,
            **special,
        )
    )


def pretraining_of(config: ScratchModel) -> Training:
    """The training that makes M_-1."""
    return Training(
        epochs=config.pretraining_epochs,
        learning_rate=config.pretraining_learning_rate,
        batch_size=config.pretraining_batch_size,
        sequence_length=config.pretraining_sequence_length,
        scheduler="cosine",
        warmup_fraction=0.05,
    )


def build_generation(context: Context[TrainSpec]) -> dict[str, Any]:
    """M_i: the previous model trained on this generation's text under the arm's loss."""
    import numpy as np

    from fortifai_core.language.objective import average_with, weights_of
    from storage.tables.models import load_model, load_tokenizer

    spec, training = context.spec, context.spec.training
    previous = context.artifact(spec.model)
    tokenizer = load_tokenizer(previous.path / "tokenizer")
    model = load_model(previous.path, base=base_folder(context, spec.base), trainable=True)
    if spec.lora is not None:
        model = _with_adapter(model, spec.lora, seed=spec.seed)
    files = trained_texts(context)
    packing = {"length": training.sequence_length, "end_of_text": tokenizer.eos_token_id}
    shares = [1.0] * len(files)
    if spec.shares is not None or training.distillation:
        rows, shares = _mixed(context, files, **packing)
    else:
        rows = _sequences(context, "text.arrow", files, **packing)
    if spec.treated is not None and len(rows) < training.batch_size:
        remedy = f"is what treatments leave M_{spec.generation}, and training.batch_size is {training.batch_size}: "
        raise DataError("treatments", f"{len(rows)} sequences", f"{remedy}keep more text, or lower the batch size")
    if spec.regime == Regime.ACCUMULATE_SUBSAMPLE and len(files) > 1:
        # one split's worth of sequences, drawn evenly over everything accumulated
        draw = np.random.default_rng(derive_seed("subsample", spec.seed, spec.generation))
        size = len(rows) // len(files)
        if spec.treated is not None:  # of what is left, as much as there was in a split
            real = parquet.iter_column(context.artifact(spec.corpus).file(split_file(0)), "tokens")
            size = min(len(rows), sum(len(tokens) + 1 for tokens in real) // training.sequence_length)
        chosen = np.sort(draw.permutation(len(rows))[: max(1, size)])
        shares = [len(chosen) / len(rows)] * len(files)
        rows = rows.select(chosen)
    validation = None
    if training.checkpoint == "best":
        held_out = context.artifact(spec.corpus).file("validation.parquet")
        validation = _packed(context, "validation.arrow", parquet.iter_column(held_out, "tokens"), **packing)
    seed = derive_seed("train", spec.seed, spec.generation)
    started = weights_of(model) if training.averaging else {}
    if context.runtime.launcher == "torchrun":
        model, metrics = _train_in_processes(model, rows, context, seed=seed, validation=validation)
    else:
        metrics = train_generation(model, rows, context, seed=seed, validation=validation)
    if training.averaging:
        average_with(model, started, training.averaging)
    _save(model, context, tokenizer=previous.path / "tokenizer", dtype=training.save_dtype)
    read = [
        (text.version, share * sum(len(tokens) for tokens in parquet.iter_column(of_text, "tokens")))
        for share, (text, of_text) in zip(shares, files, strict=True)
    ]
    return {
        **metrics,
        "tokens-read": round(sum(tokens for _, tokens in read)),
        "tokens-synthetic": round(sum(tokens for version, tokens in read if version > 0)),
    }


def train_generation(
    model: Any, rows: Any, context: Context[TrainSpec], *, seed: int, validation: Any | None, processes: int = 1
) -> dict[str, Any]:
    """Train M_(i-1) in place on the rows; what there is to say of it. Each of several processes calls this alike."""
    from fortifai_core.language.objective import weights_of
    from storage.tables.models import load_model

    spec = context.spec
    aims: dict[str, Any] = {}
    if spec.training.distillation:
        teacher = load_model(context.artifact(spec.model).path, base=base_folder(context, spec.base))
        aims["teacher"] = teacher.to(context.device).requires_grad_(False)
    if spec.anchor is not None:
        aims["before"] = weights_of(load_model(context.artifact(spec.anchor).path).to(context.device))
    aims |= {"processes": processes, "sharding": context.runtime.sharding}
    return _train(
        model, rows, context, training=spec.training, loss=spec.loss, seed=seed, validation=validation, **aims
    )


def _train_in_processes(
    model: Any, rows: Any, context: Context[TrainSpec], *, seed: int, validation: Any | None
) -> tuple[Any, dict[str, Any]]:
    """The same by torch's launcher: what it is given lies in a folder, and so does what `tasks.language.ranks` makes.

    Raises:
        ConfigError: the model draws dropout, which several processes would draw otherwise than one.
    """
    from storage.tables.models import load_model, save_model
    from tasks.engine.launch import launch

    processes, settings = context.runtime.processes, model.config.get_text_config().to_dict()
    for name, value in settings.items():
        if processes > 1 and name.endswith(("dropout", "pdrop")) and value:
            remedy = f"the model has {name} = {value}, which they would draw otherwise than one: set it to 1"
            raise ConfigError("runtime.processes", processes, remedy)
    folder = context.workspace / "processes"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save_model(model, folder / "given")
    for name, each in (("rows", rows), ("validation", validation)):
        if each is not None:
            each.save_to_disk(str(folder / name))
    request = {
        "stage": context.stage.to_json(),
        "store": context.store.url,
        "runtime": context.runtime.model_dump(mode="json"),
        "device": context.device,
        "seed": seed,
        "workspace": str(context.workspace),
    }
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    log = context.store.logs / f"torchrun-{context.stage.kind}-{context.stage.key[:12]}.log"
    done = launch(
        "tasks.language.ranks",
        folder,
        processes=processes,
        device=context.device,
        log=log,
        progress=context.progress,
    )
    trained = load_model(folder / "trained", base=base_folder(context, context.spec.base), trainable=True)
    shutil.rmtree(folder)
    return trained, done["metrics"]


def _sequences(
    context: Context[TrainSpec],
    name: str,
    files: list[tuple[VersionedText, list[Path]]],
    *,
    length: int,
    end_of_text: int,
) -> Any:
    """Training sequences of some of this generation's text.

    Of weighed text none holds documents of different weights, and each has its own in a column. Where a loss falls on
    real or on synthetic text alone, each says which it is: what its middle token is of.

    Raises:
        ConfigError: weights of the model are divided: a process would gather them for rows that another has none of.
    """
    from fortifai_core.corpus.packing import pack_marked

    spec, weighed = context.spec, False
    if spec.treated is not None:
        told = context.manifest(spec.treated).metrics
        weighed = (told["lightest-weight"], told["heaviest-weight"]) != (1.0, 1.0)
    marked = spec.training.loss_on != "all" and len({text.version > 0 for text, _ in files}) == 2
    if not weighed and not marked:
        tokens = parquet.iter_column([path for _, paths in files for path in paths], "tokens")
        return _packed(context, name, tokens, length=length, end_of_text=end_of_text)
    if weighed and context.runtime.sharding != "none" and context.runtime.processes > 1:
        remedy = "treatments weigh documents, which needs whole weights in each process: set it to none"
        raise ConfigError("runtime.sharding", context.runtime.sharding, remedy)
    weights, synthetic = list[float](), list[bool]()

    def documents() -> Iterator[tuple[float, tuple[list[int], bool]]]:
        for text, paths in files:
            for row in parquet.iter_rows(paths, columns=["tokens", "weight"] if weighed else ["tokens"]):
                yield row.get("weight", 1.0), (row["tokens"], text.version > 0)

    def rows() -> Iterator[list[int]]:
        for weight, alike in groupby(documents(), key=itemgetter(0)):
            of_weight = (document for _, document in alike)
            for row, written in pack_marked(of_weight, sequence_length=length, end_of_text=end_of_text):
                weights.append(weight)
                synthetic.append(written)
                yield row

    made = _mapped(context, name, rows(), length=length)
    for column, values in (("weight", weights if weighed else []), ("synthetic", synthetic if marked else [])):
        if values:
            made = made.add_column(column, values)
    return made


def _mixed(
    context: Context[TrainSpec], files: list[tuple[VersionedText, list[Path]]], **packing: int
) -> tuple[Any, list[float]]:
    """Of each text the sequences that make up its share, text after text; and the shares that they are.

    No sequence crosses from one text into another, so that each is real or synthetic, as distillation asks.

    Which sequences a share gets is drawn once for a seed, a generation and a text: those of a smaller share are among
    those of a larger one, so that arms differ in the share alone.
    """
    import numpy as np
    from datasets import concatenate_datasets

    spec, parts, taken = context.spec, list[Any](), list[float]()
    shares = spec.shares or (1.0,) * len(files)
    for place, (share, (text, paths)) in enumerate(zip(shares, files, strict=True)):
        if not paths:  # a treatment left nothing of it
            taken.append(0.0)
            continue
        rows = _sequences(context, f"text-{place}.arrow", [(text, paths)], **packing)
        draw = np.random.default_rng(derive_seed("mixture", spec.seed, spec.generation, text.split, text.version))
        chosen = np.sort(draw.permutation(len(rows))[: max(1, round(share * len(rows)))])
        part = rows.select(chosen)
        if spec.training.distillation or spec.training.loss_on != "all":
            part = part.add_column("synthetic", [text.version > 0] * len(part))
        parts.append(part)
        taken.append(len(chosen) / len(rows))
    return concatenate_datasets(parts), taken


def _train(
    model: Any,
    rows: Any,
    context: Context[Any],
    *,
    training: Training,
    loss: Loss,
    seed: int,
    validation: Any | None = None,
    processes: int = 1,
    **aims: Any,
) -> dict[str, Any]:
    from fortifai_core.language.training import Report, train_model
    from kernels import install_loss_head
    from tasks.language.losses import token_loss

    report = None
    if context.runtime.report_to:
        name = f"{context.stage.run} · {context.stage.label}"
        folder = context.store.logs / "tensorboard" / f"{context.stage.kind}-{context.stage.key}"
        report = Report(context.runtime.report_to, name, folder)

    head = install_loss_head(model, loss=token_loss(loss), chunk_rows=context.runtime.logits_chunk)
    result = train_model(
        model,
        rows,
        config=training,
        seed=seed,
        pad_id=model.config.pad_token_id or 0,
        workspace=context.workspace / ("trainer" if processes == 1 else f"trainer-{processes}"),
        validation=validation,
        save_steps=context.runtime.save_steps,
        device=context.device,
        on_progress=lambda done, total: context.progress(done, total, "steps"),
        processes=processes,
        plainly={"token_loss": token_loss(CrossEntropyLoss())},
        **aims,
        report=report,
    )
    head.remove()
    return {"steps": result.steps, "tokens-trained": result.tokens, "resumed-from": result.resumed_from}


def _with_adapter(model: Any, lora: LoraConfig, *, seed: int) -> Any:
    """The model with its LoRA adapter: the one it has, or (over M_-1) a new one."""
    import torch
    from peft import LoraConfig as PeftLoraConfig
    from peft import PeftModel, get_peft_model

    if isinstance(model, PeftModel):
        return model
    torch.manual_seed(derive_seed("lora", seed))
    return get_peft_model(
        model,
        PeftLoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
            task_type="CAUSAL_LM",
        ),
    )


def _save(model: Any, context: Context[Any], *, tokenizer: Path, dtype: str | None = None) -> None:
    """The weights, and the tokenizer in a folder beside them; `dtype` as in `save_model`."""
    from storage.tables.models import save_model

    save_model(model, context.directory, dtype=dtype)
    target = context.directory / "tokenizer"
    target.mkdir()
    for file in sorted(tokenizer.iterdir()):
        if file.is_file() and file.name != "manifest.json":
            shutil.copyfile(file, target / file.name)
