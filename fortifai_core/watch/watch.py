"""The watch: three calls around any training loop, or one line before `trainer.train()`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fortifai_core.errors import InputError
from fortifai_core.watch.callback import WatchCallback
from fortifai_core.watch.pace import COST, Pace
from fortifai_core.watch.probe import Probe, Reading, Size
from fortifai_core.watch.record import Record, row_of
from fortifai_core.watch.signals import Watched, compare, limits_of

logger = logging.getLogger("fortifai.watch")

_KEPT = ("input_ids", "labels", "attention_mask", "position_ids")


@dataclass(frozen=True)
class Probed:
    """What one probe found.

    Attributes:
        step: after which it was made.
        signals: every signal that could be measured.
        seconds: what it took.
        cost: what all probes took until now, as a share of the training's time; NaN before there was any.
    """

    step: int
    signals: tuple[Watched, ...]
    seconds: float
    cost: float

    @property
    def alerts(self) -> list[Watched]:
        """The signals that are beyond their limits."""
        return [watched for watched in self.signals if watched.alert]

    @property
    def values(self) -> dict[str, float]:
        """Plain numbers for a log: `watch/entropy` and so on, `watch/alerts`, `watch/cost`."""
        values = {f"watch/{watched.signal.name}": watched.value.estimate for watched in self.signals}
        values["watch/alerts"] = float(len(self.alerts))
        return values | ({} if not math.isfinite(self.cost) else {"watch/cost": self.cost})


class Watch:
    """Watches a training for collapse: probes the model at some steps, beside a baseline taken at the start.

    Around a loop: `start(model)`, `step(number)` after each optimizer step, `stop()`. With a Trainer of transformers or
    TRL: `attach(trainer)`. What the training computes is the same as without: modes, gradients and random states are
    as they were after a probe. With several processes every one of them probes, and the first one decides and writes.

    Args:
        tokenizer: the model's.
        texts: held-out documents that the training does not read, 48 or more.
        every: steps between probes; by default so seldom that they take at most `cost` of the training's time.
        cost: a share. A training that is shorter than some 250 probes pays more, for the baseline and the last probe.
        size: how much a probe looks at.
        reference: a model to compare with; by default the trained one as it is at the start.
        limits: other limits than those of `signals.SIGNALS`, by signal.
        to: a Parquet file for every value with its interval; with the baseline beside it, a resumed training goes on
            with it.
        stop_on: signals at whose alert the training is to be stopped.
        on_alert: called with a signal that has just begun to alert. Each is logged as a warning as well.

    Raises:
        InputError: an argument that makes no sense, too little text, or a file that cannot be written.
    """

    def __init__(
        self,
        tokenizer: Any,
        texts: Sequence[str],
        *,
        every: int | None = None,
        cost: float = COST,
        size: Size | None = None,
        reference: Any | None = None,
        limits: Mapping[str, float] | None = None,
        to: str | Path | None = None,
        stop_on: Sequence[str] = (),
        on_alert: Callable[[Watched], None] | None = None,
    ) -> None:
        self.limits = limits_of(limits)
        if isinstance(stop_on, str) or (unknown := [name for name in stop_on if name not in self.limits]):
            wrong = stop_on if isinstance(stop_on, str) else unknown[0]
            raise InputError("stop_on", wrong, f"give a list of signals: {', '.join(self.limits)}")
        self.pace = Pace(every=every, cost=cost)
        self.probe = Probe(tokenizer, texts, size)
        self._record = Record(to) if to is not None else None
        self._reference, self._stop_on, self._on_alert = reference, frozenset(stop_on), on_alert
        self._model: Any = None
        self._baseline: Reading | None = None
        self._batch: dict[str, torch.Tensor] = {}
        self._hook: Any = None
        self._alerting: set[str] = set()
        self._last = self._probed = 0
        self._probing = False
        self.should_stop = False

    def attach(self, trainer: Any) -> Watch:
        """Watch a Trainer of transformers or TRL. Values go to its log, and so to wherever `report_to` sends it."""
        trainer.add_callback(WatchCallback(self, trainer))
        return self

    def start(self, model: Any, *, step: int = 0) -> Probed | None:
        """Take the baseline, or go on with the one that was kept when the training is resumed after `step`.

        Returns:
            What the first probe found; None where the training goes on.

        Raises:
            InputError: the model does not fit the text or the tokenizer, a record is of another probe, or each process
                has only a part of the weights.
        """
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            model = model.module  # of itself a probe needs nothing from the other processes
        if any(hasattr(parameter, "full_tensor") for parameter in model.parameters()):
            remedy = "each process has a part of the weights: probe checkpoints with `fortifai watch` instead"
            raise InputError("model", type(model).__name__, remedy)
        self.probe.check(model)
        self._model, self._last, self._probed, self.should_stop = model, step, step, False
        record = self._record if self._leads() else None
        self._baseline = record.resume(step, self.probe.digest) if record is not None else None
        self._alerting = record.alerting() if record is not None else set()
        self._batch = {}
        if self._hook is not None:
            self._hook.remove()
        self._hook = model.register_forward_pre_hook(self._see, with_kwargs=True)
        self.pace.begin(step)
        if self._agreed(int(self._baseline is not None))[0]:
            return None
        if step and self._reference is None:
            logger.warning("there is no baseline of this training's start: it is taken now, at step %d", step)
        began = self._now()
        if self._reference is not None:
            self.probe.check(self._reference)
            self._baseline = self.probe.read(self._reference, keep=True)
            first = self._read()
        else:
            self._baseline = first = self._read(keep=True)
        if record is not None:
            record.keep(self._baseline, self.probe.digest)
        return self._found(first, step, began)

    def step(self, step: int) -> Probed | None:
        """After optimizer step number `step`: probe, where one is due. None where none was made."""
        if self._model is None:
            raise InputError("step", step, "call start(model) before the first step")
        if not self._due(step):
            return None
        return self._probe(step)

    def stop(self) -> Probed | None:
        """The training is over: one more probe, unless the last step was probed, and nothing is left in the model."""
        if self._model is None:
            return None
        found = self._probe(self._last) if self._last != self._probed else None
        self._hook.remove()
        self._hook, self._model, self._batch = None, None, {}
        return found

    def _see(self, module: Any, arguments: tuple[Any, ...], given: dict[str, Any]) -> None:
        """Remember the batch that the training reads; no copy is made."""
        if self._probing or not module.training or not torch.is_grad_enabled():
            return
        batch = {name: given[name] for name in _KEPT if isinstance(given.get(name), torch.Tensor)}
        if "input_ids" not in batch and arguments and isinstance(arguments[0], torch.Tensor):
            batch["input_ids"] = arguments[0]
        self._batch = batch if "input_ids" in batch and batch["input_ids"].dim() == 2 else {}

    def _due(self, step: int) -> bool:
        self._last = step
        if step < self.pace.next:
            return False
        due, self.pace.next = self._agreed(int(self.pace.due(step)), self.pace.next)
        return bool(due)

    def _probe(self, step: int) -> Probed:
        began = self._now()
        return self._found(self._read(), step, began)

    def _read(self, *, keep: bool = False) -> Reading:
        self._probing = True
        try:
            return self.probe.read(self._model, batch=self._batch, baseline=self._baseline, keep=keep)
        finally:
            self._probing = False

    def _found(self, reading: Reading, step: int, began: float) -> Probed:
        """Compare, count what it took, write, warn, and say whether to stop."""
        baseline = self._baseline.columns if self._baseline is not None else None
        signals = compare(reading.columns, baseline, step=step, limits=self.limits)
        seconds = self._now() - began
        self.pace.count(seconds)
        cost = self.pace.share if step > self.pace.first else math.nan
        found = Probed(step, tuple(signals), seconds, cost)
        self._probed = step
        stop = any(watched.signal.name in self._stop_on for watched in found.alerts)
        self.should_stop = bool(self._agreed(int(stop))[0]) or self.should_stop
        if self._leads():
            if self._record is not None and signals:
                self._record.add([row_of(watched, seconds=seconds, cost=found.cost) for watched in signals])
            for watched in found.alerts:
                if watched.signal.name not in self._alerting:
                    logger.warning("%s", watched)
                    if self._on_alert is not None:
                        self._on_alert(watched)
        measured = {watched.signal.name for watched in signals}
        self._alerting = (self._alerting - measured) | {watched.signal.name for watched in found.alerts}
        return found

    def _now(self) -> float:
        """Seconds, when the device has done what it was given."""
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return time.perf_counter()

    def _agreed(self, *numbers: int) -> list[int]:
        """The first process's numbers: all probe at the same steps, or one would wait for the others for ever."""
        distributed = torch.distributed
        if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
            return list(numbers)
        device = next((parameter.device for parameter in self._model.parameters()), torch.device("cpu"))
        tensor = torch.tensor(numbers, dtype=torch.long, device=device)
        distributed.broadcast(tensor, 0)
        return [int(number) for number in tensor.tolist()]

    def _leads(self) -> bool:
        """Whether this is the process that writes."""
        distributed = torch.distributed
        return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0
