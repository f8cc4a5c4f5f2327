"""One generation's training: Hugging Face `Trainer`, resumable in the middle with the same result.

Several processes that torch's launcher has started train one model together: each reads its part of every micro-batch,
and the steps are those of one process, but for the rounding of sums.

The loss head is not chosen here: the caller patches it into the model (see `kernels.install`), so that this
module needs no kernels and trains whatever the model's `forward` returns as its loss.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from fortifai_core.config.stages import Training
from fortifai_core.corpus.packing import collate
from fortifai_core.language.finite import check_loss, check_weights
from fortifai_core.language.objective import Objective, residual_dropout

DIGESTS = "digests.json"
SAVES_PER_STAGE = 10
LOGS_PER_STAGE = 100
TENSORBOARD = "TENSORBOARD_LOGGING_DIR"
REMEDY = "lower training.learning_rate, or train in float32"


@dataclass(frozen=True)
class TrainingResult:
    """What one training did. `tokens` counts every token read, each epoch anew."""

    steps: int
    tokens: int
    seconds: float
    resumed_from: int


@dataclass(frozen=True)
class Report:
    """Where a training also reports its loss, learning rate and gradient norm.

    Attributes:
        to: names of the Trainer's integrations: `tensorboard`, `wandb`, `mlflow`.
        name: of the run there.
        folder: where TensorBoard's files go, unless TENSORBOARD_LOGGING_DIR says so.
    """

    to: Sequence[str]
    name: str
    folder: Path


@contextmanager
def _tensorboard_in(folder: Path | None) -> Iterator[None]:
    """The Trainer's callback asks the environment, when it is made; by default it would write into the workspace."""
    if folder is None or TENSORBOARD in os.environ:
        yield
        return
    os.environ[TENSORBOARD] = str(folder)
    try:
        yield
    finally:
        del os.environ[TENSORBOARD]


def _end_reports(report: Report | None) -> None:
    """The callbacks of these two leave their run open, and the next training in this process would go on with it."""
    if report and "wandb" in report.to:
        importlib.import_module("wandb").finish()
    if report and "mlflow" in report.to:
        importlib.import_module("mlflow").end_run()


class _FiniteTrainer(Trainer):
    """A Trainer that stops at a loss that is not finite, before the optimizer can spoil the weights.

    In training it follows an `objective`, and rows count by their weights; validation is by the model's own loss.
    Rows that are not of the origin `loss_on` are judged `plainly`, which is what their forward is called with besides;
    validation's are real.
    """

    objective = Objective()
    loss_on: Literal["all", "synthetic", "real"] = "all"
    plainly: Mapping[str, Any] = MappingProxyType({})

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        several = self.accelerator.num_processes > 1
        return super().get_batch_samples(
            self._each_row_once(epoch_iterator) if several else epoch_iterator, num_batches, device
        )

    def _each_row_once(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The first rows fill up an epoch's last batch, so that all processes have one; of them nothing is learnt."""
        rows: Any = self.train_dataset
        each = self.args.per_device_train_batch_size
        left = len(rows) % (each * self.accelerator.num_processes)  # accelerate's own count is lost in resuming
        for batch in batches:
            if left and self.accelerator.gradient_state.end_of_dataloader:
                batch["labels"][max(0, left - each * self.accelerator.process_index) :] = -100
            yield batch

    def compute_loss(
        self, model: nn.Module, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        synthetic, weights = inputs.pop("synthetic", None), inputs.pop("weights", None)
        if not model.training:
            if self.loss_on == "synthetic":
                inputs |= self.plainly
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if weights is None and self.loss_on == "all":
            loss = self._mean_loss(model, inputs, synthetic, num_items_in_batch)
        else:
            items = (inputs["labels"][:, 1:] != -100).sum() if num_items_in_batch is None else num_items_in_batch
            loss = torch.zeros((), device=inputs["labels"].device)
            # rows of one weight that are judged alike together: their loss is the model's own
            for weight, plain, here in self._alike(len(inputs["labels"]), weights, synthetic, loss.device):
                alike = {name: value[here] for name, value in inputs.items()}
                if plain:
                    alike |= dict(self.plainly)
                written = None if synthetic is None else synthetic[here]
                loss = loss + weight * self._mean_loss(model, alike, written, items)
        # a mean over the accumulated batch is divided already; what is added to each part is not
        scaled = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        assert self.model is not None
        return loss + self.objective.penalty(self.model) / (self.current_gradient_accumulation_steps if scaled else 1)

    def _alike(
        self, rows: int, weights: torch.Tensor | None, synthetic: torch.Tensor | None, device: torch.device
    ) -> Iterator[tuple[torch.Tensor, bool, torch.Tensor]]:
        """Weight, whether it is judged plainly, and which rows, (rows,): of each kind of row in a batch."""
        weights = torch.ones(rows, device=device) if weights is None else weights
        plainly = torch.zeros(rows, dtype=torch.bool, device=device)
        if self.loss_on != "all" and synthetic is not None:
            plainly = synthetic == (self.loss_on == "real")
        for weight in weights.unique():
            for plain in (False, True):
                here = (weights == weight) & (plainly == plain)
                if here.any():
                    yield weight, plain, here

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch=num_items_in_batch)
        if not torch.isfinite(loss):
            where = f"step {self.state.global_step + 1}"
            check_loss(loss.item(), where=where, batch=self._rows_of(inputs), remedy=REMEDY)
        return loss

    def _mean_loss(self, model: nn.Module, inputs: Any, synthetic: torch.Tensor | None, items: Any) -> Any:
        if self.objective.soft:
            # as the Trainer does with its own: gradients are averaged over the processes, `items` are those of all
            return self.objective.loss(model, inputs, synthetic, items) * self.accelerator.num_processes
        return super().compute_loss(model, inputs, num_items_in_batch=items)

    def _rows_of(self, inputs: Any) -> list[int]:
        """The numbers of a batch's rows; looked for among all, since a batch does not say where it is from."""
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        batch = [row[:length] for row, length in zip(inputs["input_ids"].tolist(), lengths, strict=True)]
        rows: Any = self.train_dataset
        return [number for number, row in enumerate(rows) if row["input_ids"] in batch]


class _Progress(TrainerCallback):
    def __init__(self, report: Callable[[int, int], None]) -> None:
        self.report = report

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.report(state.global_step, state.max_steps)


class _SealCheckpoints(TrainerCallback):
    """Writes the digests of a checkpoint's files last: what has none was cut off, and is not resumed from."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if args.world_size > 1:
            torch.distributed.barrier()  # every process writes its random state into it
        if state.is_world_process_zero and folder.is_dir():
            seal_checkpoint(folder)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != DIGESTS)


def seal_checkpoint(folder: Path) -> None:
    """Record the sha256 of every file of a training checkpoint, atomically and last."""
    digests = {str(path.relative_to(folder)): _digest(path) for path in _files(folder)}
    temporary = folder / (DIGESTS + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(digests, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(folder / DIGESTS)


def newest_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint whose files are all there and unaltered; all others are removed.

    Trainer's optimizer state is a torch pickle. It is only ever read from a checkpoint that passes here (and
    Trainer itself reads it with `weights_only=True`).
    """
    newest: Path | None = None
    folders = [p for p in output_dir.glob("checkpoint-*") if p.is_dir() and p.name.split("-")[-1].isdigit()]
    for folder in sorted(folders, key=lambda p: int(p.name.split("-")[-1]), reverse=True):
        seal = folder / DIGESTS
        intact = newest is None and seal.is_file()
        if intact:
            try:
                present = {str(path.relative_to(folder)): _digest(path) for path in _files(folder)}
                intact = json.loads(seal.read_bytes()) == present
            except (OSError, ValueError, RecursionError):
                intact = False  # digests that cannot be read vouch for nothing
        if intact:
            newest = folder
        elif newest is None:
            shutil.rmtree(folder)
    return newest


def train_model(
    model: nn.Module,
    rows: Any,
    *,
    config: Training,
    seed: int,
    pad_id: int,
    workspace: Path,
    validation: Any | None = None,
    save_steps: int = 0,
    device: str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
    teacher: nn.Module | None = None,
    before: Mapping[str, torch.Tensor] | None = None,
    plainly: Mapping[str, Any] = MappingProxyType({}),
    report: Report | None = None,
    processes: int = 1,
    sharding: Literal["none", "fsdp2"] = "none",
) -> TrainingResult:
    """Train `model` in place on packed `rows`.

    Args:
        model: any causal language model whose `forward(input_ids, attention_mask, labels)` returns a loss.
        rows: a map-style dataset of `{"input_ids": list[int]}`, such as a memory-mapped `datasets.Dataset`; with a
            `weight` in all of them each row's tokens count by it in the loss.
        seed: orders the data; two arms with the same seed read the same sequences in the same order.
        workspace: where training checkpoints go. If an intact one is there, training goes on from it and ends
            with the same weights as if it had never stopped.
        validation: packed rows of held-out text; required for `config.checkpoint == "best"`.
        save_steps: optimizer steps between checkpoints; 0 makes about ten.
        teacher: M_(i-1), for `config.distillation`; rows then say whether they are `synthetic`.
        before: the weights of M_-1 by name, for `config.anchor`.
        plainly: what `forward` is called with besides, to return cross entropy, for `config.loss_on`; rows then say
            whether they are `synthetic`.
        report: where the loss is logged, if anywhere; no weight depends on it.
        processes: that train together, as torch's launcher has started them; each calls this with equal arguments. They
            divide `config.batch_size / config.gradient_accumulation`.
        sharding: `fsdp2` divides the weights among processes on GPUs; by default each has them all (DDP).

    Raises:
        NonFiniteLoss: before the optimizer step that would have used the loss; or of the weights after the last one.
    """
    if not len(rows):
        raise ValueError("train_model needs at least one row")
    if config.checkpoint == "best" and validation is None:
        raise ValueError("checkpoint = 'best' needs validation rows")
    if config.loss_on != "all" and not (plainly and all("synthetic" in row for row in (rows[0], rows[-1]))):
        raise ValueError(f"loss_on = {config.loss_on!r} needs `plainly`, and rows that say whether they are synthetic")
    together = config.batch_size // config.gradient_accumulation
    if together % processes:
        raise ValueError(f"{processes} processes cannot share micro-batches of {together} equally")
    steps_per_epoch = math.ceil(math.ceil(len(rows) / together) / config.gradient_accumulation)
    total_steps = max(1, math.ceil(steps_per_epoch * config.epochs))
    best = config.checkpoint == "best"
    arguments = TrainingArguments(
        output_dir=str(workspace),
        per_device_train_batch_size=together // processes,
        per_device_eval_batch_size=together // processes,
        gradient_accumulation_steps=config.gradient_accumulation,
        num_train_epochs=config.epochs,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.scheduler,
        # not the Trainer's ratios: it rounds up, which changes results, and each resuming would warn of a mismatch
        warmup_steps=int(config.warmup_fraction * total_steps),
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim=config.optimizer,
        bf16=config.precision == "bfloat16",
        seed=seed % 2**32,
        data_seed=seed % 2**32,
        save_strategy="epoch" if best else "steps",
        save_steps=save_steps or max(1, total_steps // SAVES_PER_STAGE),
        save_total_limit=2,
        eval_strategy="epoch" if best else "no",
        load_best_model_at_end=best,
        metric_for_best_model="eval_loss" if best else None,
        greater_is_better=False if best else None,
        logging_strategy="steps" if report else "no",
        logging_steps=max(1, total_steps // LOGS_PER_STAGE),
        report_to=list(report.to) if report else [],
        run_name=report.name if report else None,
        disable_tqdm=True,
        use_cpu=device == "cpu",
        dataloader_pin_memory=device != "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=True,
        # rows of different weights are read in turn, more turns in one process than in another: none may wait
        ddp_broadcast_buffers=False,
        ddp_find_unused_parameters=False,
        fsdp="full_shard" if sharding == "fsdp2" else None,
        fsdp_config={"version": 2} if sharding == "fsdp2" else None,
    )
    if arguments.world_size != processes:
        raise ValueError(f"processes = {processes}: torch's launcher has started {arguments.world_size}")
    workspace.mkdir(parents=True, exist_ok=True)
    with _tensorboard_in(report.folder if report else None):
        trainer = _FiniteTrainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=validation if best else None,
            data_collator=partial(collate, pad_id=pad_id),
            callbacks=[_SealCheckpoints()] + ([_Progress(on_progress)] if on_progress else []),
        )
    trainer.remove_callback(PrinterCallback)
    trainer.objective = Objective(
        smoothing=config.label_smoothing,
        teacher=teacher if config.distillation else None,
        weight=config.distillation,
        anchor=config.anchor,
        before=before or {},
    )
    trainer.loss_on, trainer.plainly = config.loss_on, plainly
    with arguments.main_process_first(local=False):  # it removes what is cut off
        checkpoint = newest_checkpoint(workspace)
    try:
        with residual_dropout(model, config.dropout):
            outcome = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        _end_reports(report)
    check_weights(model, where=f"step {trainer.state.global_step}", remedy=REMEDY)
    tokens = sum(len(row["input_ids"]) for row in rows)
    return TrainingResult(
        steps=trainer.state.global_step,
        tokens=round(tokens * config.epochs),
        seconds=float(outcome.metrics["train_runtime"]),
        resumed_from=int(checkpoint.name.split("-")[-1]) if checkpoint else 0,
    )
