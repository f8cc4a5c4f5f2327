"""The watch around a loop and a Trainer: the training is untouched, values are logged and kept, collapse is noticed."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from fortifai_core.errors import InputError
from fortifai_core.watch.pace import Pace
from fortifai_core.watch.probe import Size
from fortifai_core.watch.watch import Watch

SMALL = Size(windows=12, window_tokens=32, prompt_tokens=4, sample_tokens=12, batch_tokens=64)
ROOT = Path(__file__).parents[3]


def train(model: Any, batches: list[torch.Tensor], watch: Watch | None = None, *, first: int = 0) -> list[float]:
    """A bare loop; its losses."""
    torch.manual_seed(5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    losses = []
    if watch is not None:
        watch.start(model, step=first)
    for step, batch in enumerate(batches, start=first + 1):
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if watch is not None:
            watch.step(step)
    if watch is not None:
        watch.stop()
    return losses


def test_a_loop_computes_the_same_bits_with_the_watch_and_without(
    model: Any, tokenizer: Any, held_out: list[str], batches: list[torch.Tensor], tmp_path: Path
) -> None:
    plain, watched = model, copy.deepcopy(model)
    alone = train(plain, batches)
    watch = Watch(tokenizer, held_out, every=2, size=SMALL, to=tmp_path / "w.parquet")
    beside = train(watched, batches, watch)
    assert alone == beside
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    assert not watched._forward_pre_hooks
    steps = pq.read_table(tmp_path / "w.parquet")["step"].to_pylist()
    assert sorted(set(steps)) == [0, 2, 4, 6, 8, 10, 12]


def test_the_dropout_of_the_model_draws_at_all(model: Any, batches: list[torch.Tensor]) -> None:
    model.train()
    assert model(batches[0]).logits.ne(model(batches[0]).logits).any()


def trainer_of(model: Any, batches: list[torch.Tensor], folder: Path, **settings: Any) -> Any:
    from transformers import Trainer, TrainingArguments

    rows = [{"input_ids": row, "labels": row} for batch in batches for row in batch]
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=8, num_train_epochs=1, learning_rate=3e-3, report_to=[], use_cpu=True,
        disable_tqdm=True, logging_steps=1, seed=3, **settings,
    )  # fmt: skip
    return Trainer(model=model, args=arguments, train_dataset=rows)


def losses_of(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def test_a_trainer_computes_the_same_and_logs_the_values(
    model: Any, tokenizer: Any, held_out: list[str], batches: list[torch.Tensor], tmp_path: Path
) -> None:
    plain = trainer_of(copy.deepcopy(model), batches, tmp_path / "a", save_strategy="no")
    plain.train()
    trainer = trainer_of(model, batches, tmp_path / "b", save_strategy="no")
    Watch(tokenizer, held_out, every=5, size=SMALL).attach(trainer)
    trainer.train()
    assert losses_of(trainer) == losses_of(plain) and len(losses_of(plain)) == 12
    logged = {line["step"]: line for line in trainer.state.log_history if "watch/entropy" in line}
    assert sorted(logged) == [0, 5, 10, 12]
    assert logged[12]["watch/held-out-perplexity"] < logged[0]["watch/held-out-perplexity"]
    assert logged[0]["watch/kl"] == pytest.approx(0, abs=1e-3) if "watch/kl" in logged[0] else True
    assert 0 <= logged[5]["watch/live-fraction"] <= 1 and logged[5]["watch/kl"] > 0


def test_a_resumed_trainer_keeps_its_baseline_and_drops_what_comes_again(
    model: Any, tokenizer: Any, held_out: list[str], batches: list[torch.Tensor], tmp_path: Path
) -> None:
    table = tmp_path / "log" / "w.parquet"
    whole = trainer_of(copy.deepcopy(model), batches, tmp_path / "a", save_strategy="steps", save_steps=6)
    Watch(tokenizer, held_out, every=4, size=SMALL, to=table).attach(whole)
    whole.train()
    first = pq.read_table(table).drop_columns(["seconds", "cost"])
    again = trainer_of(copy.deepcopy(model), batches, tmp_path / "a", save_strategy="no")
    Watch(tokenizer, held_out, every=4, size=SMALL, to=table).attach(again)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))
    resumed = pq.read_table(table).drop_columns(["seconds", "cost"])
    steps = sorted(set(resumed["step"].to_pylist()))
    assert steps == [0, 4, 10, 12]

    def at(rows: Any, step: int) -> list[dict[str, Any]]:
        return [row for row in rows.to_pylist() if row["step"] == step]

    assert at(resumed, 4) == at(first, 4)
    assert repr(at(resumed, 12)) == repr(at(first, 12)), "the baseline is the one of the start"


def test_another_probe_does_not_go_on_with_a_record(
    model: Any, tokenizer: Any, held_out: list[str], batches: list[torch.Tensor], tmp_path: Path
) -> None:
    table = tmp_path / "w.parquet"
    train(model, batches[:2], Watch(tokenizer, held_out, every=1, size=SMALL, to=table))
    other = Watch(tokenizer, held_out[2:], every=1, size=SMALL, to=table)
    with pytest.raises(InputError, match="other text or in other sizes"):
        other.start(model, step=2)
    (tmp_path / "w.baseline.npz").write_bytes(b"PK damaged")
    with pytest.raises(InputError, match="remove it"):
        Watch(tokenizer, held_out, every=1, size=SMALL, to=table).start(model, step=2)


def test_a_model_that_learns_one_sentence_alerts_and_can_be_stopped(
    model: Any, tokenizer: Any, held_out: list[str], batches: list[torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    from transformers import Trainer, TrainingArguments

    train(model, batches)  # it has learned something that can be lost
    ids = torch.tensor(tokenizer("the same again and again. " * 20)["input_ids"][:32])
    arguments = TrainingArguments(
        "unused", max_steps=200, learning_rate=2e-2, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no",
        logging_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model=model, args=arguments, train_dataset=[{"input_ids": ids, "labels": ids}] * 8)
    told = []
    watch = Watch(tokenizer, held_out, every=5, size=SMALL, stop_on=["distinct-2"], on_alert=told.append)
    watch.attach(trainer)
    with caplog.at_level(logging.WARNING, "fortifai.watch"):
        trainer.train()
    names = {watched.signal.name for watched in told}
    assert {"distinct-2", "held-out-perplexity", "entropy", "top-mass"} <= names
    assert trainer.state.global_step < 200 and watch.should_stop
    assert "distinct-2 is" in caplog.text and "limit -20%" in caplog.text
    assert len(told) == len({(t.signal.name) for t in told}), "each is told once, when it begins"


def test_training_on_text_of_the_same_kind_alerts_of_no_repetition(
    model: Any, tokenizer: Any, held_out: list[str], batches: list[torch.Tensor]
) -> None:
    train(model, batches * 4)
    told = []
    watch = Watch(tokenizer, held_out, every=4, size=SMALL, on_alert=told.append)
    train(model, batches, watch)
    wrong = {"held-out-perplexity", "repeated-4-grams", "live-fraction"}
    assert not wrong & {watched.signal.name for watched in told}


def test_a_reference_is_what_is_compared_with(
    model: Any, tokenizer: Any, held_out: list[str], batches: list[torch.Tensor]
) -> None:
    reference = copy.deepcopy(model)
    train(model, batches)
    watch = Watch(tokenizer, held_out, every=1, size=SMALL, reference=reference)
    probed = watch.start(model)
    assert probed is not None
    found = {watched.signal.name: watched for watched in probed.signals}
    assert found["held-out-perplexity"].change.estimate < -0.1 and found["kl"].value.estimate > 0.01
    watch.stop()


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("step_seconds", "probe_seconds"), [(0.1, 1.0), (1.0, 1.0), (0.01, 3.0), (5.0, 0.5)])
def test_probes_take_at_most_their_share_once_the_baseline_is_paid_for(
    step_seconds: float, probe_seconds: float
) -> None:
    clock = Clock()
    pace = Pace(cost=0.02, clock=clock)
    pace.begin(0)
    clock.now += probe_seconds  # the baseline is counted as spent, and is no training
    pace.count(probe_seconds)
    probes, asked = 0, 0
    steps = int(1000 * probe_seconds / step_seconds)
    for step in range(1, steps + 1):
        clock.now += step_seconds
        if step >= pace.next:
            asked += 1
        if pace.due(step):
            probes += 1
            clock.now += probe_seconds
            pace.count(probe_seconds)
            assert pace.share <= 0.02
    pace.count(probe_seconds)
    clock.now += probe_seconds
    assert pace.share <= 0.02, "with a last one"
    assert probes >= 15, "and no fewer than fit: 20, less the baseline and what is kept for the last one"
    assert asked < 4 * probes, "hardly ever in vain"


def test_a_cadence_of_ones_own_is_kept() -> None:
    pace = Pace(every=3)
    pace.begin(6)
    assert [step for step in range(7, 17) if pace.due(step)] == [9, 12, 15]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"every": 0}, "every = 0"),
        ({"cost": 0}, "cost = 0"),
        ({"limits": {"entropi": 1}}, "no such signal"),
        ({"stop_on": ["loss"]}, "stop_on = 'loss'"),
        ({"stop_on": "entropy"}, "give a list of signals"),
        ({"to": "w.csv"}, "ends in .parquet"),
        ({"to": "/proc/none/w.parquet"}, "cannot be written"),
    ],
)
def test_what_makes_no_sense_is_refused(tokenizer: Any, held_out: list[str], given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Watch(tokenizer, held_out, size=SMALL, **given)


def test_a_step_before_the_start_is_refused(tokenizer: Any, held_out: list[str]) -> None:
    with pytest.raises(InputError, match="call start"):
        Watch(tokenizer, held_out, size=SMALL).step(1)


def test_a_table_that_was_cut_off_is_refused_when_it_is_gone_on_with(
    model: Any, tokenizer: Any, held_out: list[str], batches: list[torch.Tensor], tmp_path: Path
) -> None:
    table = tmp_path / "w.parquet"
    train(model, batches[:2], Watch(tokenizer, held_out, every=1, size=SMALL, to=table))
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(InputError, match="cannot be read"):
        Watch(tokenizer, held_out, every=1, size=SMALL, to=table).start(model, step=2)


@pytest.mark.long
def test_a_table_is_whole_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    """A process rewrites the table again and again and is killed at some moments; what lies there can be read."""
    code = """
import sys
from fortifai_core.interval import Interval
from fortifai_core.watch.record import Record, row_of
from fortifai_core.watch.signals import SIGNALS, Watched
record = Record(sys.argv[1])
step = 0
while True:
    step += 1
    value = Interval(step, step, step)
    record.add([row_of(Watched(step, s, value, 1.0, value, 1.0, False, 4), seconds=1, cost=0) for s in SIGNALS])
    print(step, flush=True)
"""
    table = tmp_path / "w.parquet"
    for wanted in (1, 3, 10, 30):
        writer = subprocess.Popen([sys.executable, "-c", code, str(table)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) >= wanted:
                break
        writer.kill()
        writer.wait()
        steps = np.array(pq.read_table(table)["step"].to_pylist())
        assert steps.max() >= wanted and np.array_equal(np.unique(steps), np.arange(1, steps.max() + 1))
