"""Training one generation: resuming changes nothing, packing loses nothing, a broken loss stops in time."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fortifai_core.config.stages import Training
from fortifai_core.corpus.packing import collate, pack
from fortifai_core.errors import NonFiniteLoss
from fortifai_core.language.training import TENSORBOARD, Report, newest_checkpoint, seal_checkpoint, train_model

VOCABULARY = 64


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
    )


def rows(count: int = 24, length: int = 16) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, VOCABULARY, (length,), generator=draw).tolist()} for _ in range(count)]


CONFIG = Training(epochs=3, learning_rate=1e-2, batch_size=4, sequence_length=16)


def weights(model: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def train(model: Any, workspace: Path, *, seed: int = 5, **options: Any) -> Any:
    config = options.pop("config", CONFIG)
    return train_model(model, rows(), config=config, seed=seed, pad_id=0, workspace=workspace, **options)


class Killed(BaseException):
    """Stands for a process that dies: nothing may catch it."""


def die_at(step: int) -> Any:
    def on_progress(done: int, total: int) -> None:
        if done == step:
            raise Killed

    return on_progress


@pytest.mark.parametrize("step", [1, 7, 11, 17])
def test_training_resumed_anywhere_ends_with_the_same_weights(tmp_path: Path, step: int) -> None:
    whole = tiny_model()
    train(whole, tmp_path / "whole", save_steps=2)
    with pytest.raises(Killed):
        train(tiny_model(), tmp_path / "cut", save_steps=2, on_progress=die_at(step))
    torch.manual_seed(12345)  # the resumed process has drawn other numbers before
    resumed = tiny_model()
    result = train(resumed, tmp_path / "cut", save_steps=2)
    assert result.resumed_from == (step - 1) // 2 * 2
    assert same(weights(whole), weights(resumed))


def one_step(workspace: Path, numbers: list[int], weights_of_rows: list[float] | None) -> list[torch.Tensor]:
    """What one step of gradient descent on some rows takes from every parameter."""
    chosen = [{**rows()[number], "input_ids": rows()[number]["input_ids"][: 16 - 2 * number]} for number in numbers]
    if weights_of_rows is not None:
        chosen = [{**row, "weight": weight} for row, weight in zip(chosen, weights_of_rows, strict=True)]
    step = {"epochs": 1, "learning_rate": 0.5, "batch_size": 4, "optimizer": "sgd", "scheduler": "constant"}
    config = Training.model_validate({**CONFIG.model_dump(), **step, "max_grad_norm": 1e9})
    model = tiny_model()
    before = weights(model)
    result = train_model(model, chosen, config=config, seed=0, pad_id=0, workspace=workspace)
    assert result.steps == 1
    return [old - new for old, new in zip(before, weights(model), strict=True)]


def test_a_rows_weight_multiplies_the_losses_of_its_tokens(tmp_path: Path) -> None:
    # rows of 16, 14 and 12 tokens have 15, 13 and 11 targets, and their gradients are means over these
    alone = [one_step(tmp_path / str(number), [number], None) for number in range(3)]
    given = one_step(tmp_path / "weighed", [0, 1, 2], [2.0, 0.5, 2.0])
    for parameter, gradients in zip(given, zip(*alone, strict=True), strict=True):
        by_hand = (2.0 * 15 * gradients[0] + 0.5 * 13 * gradients[1] + 2.0 * 11 * gradients[2]) / 39
        assert torch.allclose(parameter, by_hand, rtol=1e-3, atol=1e-6)
    plain, equal = (one_step(tmp_path / name, [0, 1, 2], w) for name, w in (("plain", None), ("equal", [1.0] * 3)))
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(plain, equal, strict=True))


def test_best_checkpoint_resumes_to_the_same_weights(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"checkpoint": "best"})
    whole, resumed = tiny_model(), tiny_model()
    train(whole, tmp_path / "whole", config=config, validation=rows(6))
    with pytest.raises(Killed):
        train(tiny_model(), tmp_path / "cut", config=config, validation=rows(6), on_progress=die_at(15))
    train(resumed, tmp_path / "cut", config=config, validation=rows(6))
    assert same(weights(whole), weights(resumed))


def test_a_damaged_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tiny_model(), tmp_path, save_steps=2, on_progress=die_at(9))
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and newest.name == "checkpoint-8"
    optimizer = newest / "optimizer.pt"
    content = bytearray(optimizer.read_bytes())
    content[len(content) // 2] ^= 1
    optimizer.write_bytes(content)
    older = newest_checkpoint(tmp_path)
    assert older is not None and older.name == "checkpoint-6"
    assert not newest.exists()
    (older / "digests.json").unlink()
    assert newest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("digests", [b"", b"\xff{", b"[]", b"null", b'{"model.safetensors": 1}', b"[" * 100_000])
def test_a_checkpoint_whose_digests_say_nothing_is_none(tmp_path: Path, digests: bytes) -> None:
    for step in (2, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").write_bytes(b"weights")
        seal_checkpoint(tmp_path / f"checkpoint-{step}")
    for step, left in ((10, "checkpoint-2"), (2, None)):
        (tmp_path / f"checkpoint-{step}" / "digests.json").write_bytes(digests)
        newest = newest_checkpoint(tmp_path)
        assert (newest and newest.name) == left and not (tmp_path / f"checkpoint-{step}").exists()


@pytest.mark.parametrize(("spoilt", "resumed_from"), [(1, 4), (2, 0)])
def test_training_goes_on_from_an_earlier_checkpoint_or_from_the_start(
    tmp_path: Path, spoilt: int, resumed_from: int
) -> None:
    whole, resumed = tiny_model(), tiny_model()
    train(whole, tmp_path / "whole", save_steps=2)
    with pytest.raises(Killed):
        train(tiny_model(), tmp_path / "cut", save_steps=2, on_progress=die_at(7))
    for step in (6, 4)[:spoilt]:
        (tmp_path / "cut" / f"checkpoint-{step}" / "digests.json").write_bytes(b"[" * 100_000)
    assert train(resumed, tmp_path / "cut", save_steps=2).resumed_from == resumed_from
    assert same(weights(whole), weights(resumed))


def test_the_seed_orders_the_data(tmp_path: Path) -> None:
    one, again, other = tiny_model(), tiny_model(), tiny_model()
    train(one, tmp_path / "1", seed=1)
    train(again, tmp_path / "2", seed=1)
    train(other, tmp_path / "3", seed=2)
    assert same(weights(one), weights(again))
    assert not same(weights(one), weights(other))


@pytest.mark.parametrize("factor", [float("nan"), float("inf")])
def test_a_non_finite_loss_stops_before_the_step_and_names_the_rows(tmp_path: Path, factor: float) -> None:
    """It is the second step's, so that what is kept is the first one's weights."""
    model = tiny_model()
    forward = model.forward
    read: list[list[list[int]]] = []
    kept: list[list[torch.Tensor]] = []

    def broken(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        read.append(kwargs["input_ids"].tolist())
        kept.append(weights(model))
        if len(read) == 2:
            output.loss = output.loss * factor
        return output

    model.forward = broken
    with pytest.raises(NonFiniteLoss, match=r"step 2: the training loss became (nan|inf)") as stopped:
        train(model, tmp_path / "cut")
    assert same(kept[-1], weights(model)) and not same(kept[0], kept[1])
    all_rows = [row["input_ids"] for row in rows()]
    named = ", ".join(str(number) for number, row in enumerate(all_rows) if row in read[1])
    assert f"on the batch of rows {named};" in str(stopped.value) and "training.learning_rate" in str(stopped.value)


def test_weights_that_the_last_step_spoilt_are_never_handed_on(tmp_path: Path) -> None:
    """The loss was finite, and its gradient was not."""
    model = tiny_model()
    calls = 0

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return gradient * float("nan") if calls == 6 else gradient

    model.lm_head.weight.register_hook(spoil)
    config = CONFIG.model_copy(update={"epochs": 1})
    with pytest.raises(NonFiniteLoss, match=r"step 6: the weights of .* became NaN or infinite; lower training"):
        train(model, tmp_path, config=config)
    assert calls == 6


def test_accumulated_micro_batches_make_the_same_step_as_one_batch(tmp_path: Path) -> None:
    one, two = tiny_model(), tiny_model()
    train(one, tmp_path / "1", config=CONFIG.model_copy(update={"epochs": 1, "optimizer": "sgd"}))
    split = {"epochs": 1, "optimizer": "sgd", "gradient_accumulation": 2}
    train(two, tmp_path / "2", config=CONFIG.model_copy(update=split))
    for a, b in zip(weights(one), weights(two), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_packing_keeps_every_token_in_order() -> None:
    documents = [list(range(10, 10 + n)) for n in (1, 7, 30, 2)]
    packed = list(pack(documents, sequence_length=8, end_of_text=0))
    assert [t for row in packed for t in row] == [t for d in documents for t in [*d, 0]]
    assert all(len(row) == 8 for row in packed[:-1])


def test_a_single_token_left_over_has_no_target_and_is_left_out() -> None:
    assert list(pack([[1, 2, 3, 4]], sequence_length=4, end_of_text=0)) == [[1, 2, 3, 4]]


def test_padding_carries_no_label() -> None:
    batch = collate([{"input_ids": [1, 2, 3]}, {"input_ids": [0]}], pad_id=0)
    assert batch["labels"].tolist() == [[1, 2, 3], [0, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_checkpoints_are_sealed_with_the_digest_of_every_file(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(tiny_model(), tmp_path, save_steps=2, on_progress=die_at(5))
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    sealed = set(json.loads((newest / "digests.json").read_text()))
    assert {"optimizer.pt", "model.safetensors", "rng_state.pth", "scheduler.pt"} <= sealed


WRITER = """
import json, pathlib
class SummaryWriter:
    def __init__(self, log_dir):
        self.folder = pathlib.Path(log_dir)
        self.folder.mkdir(parents=True)
    def add_scalar(self, name, value, step):
        with (self.folder / "scalars.jsonl").open("a") as file:
            file.write(json.dumps([name, value, step]) + "\\n")
    def add_text(self, *_): pass
    def flush(self): pass
    def close(self): pass
"""


def test_the_loss_is_reported_where_it_is_asked_for_and_no_weight_depends_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a stand-in for TensorBoard's writer, by the Trainer's own callback."""
    (tmp_path / "packages" / "tensorboardX").mkdir(parents=True)
    (tmp_path / "packages" / "tensorboardX" / "__init__.py").write_text(WRITER)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delenv(TENSORBOARD, raising=False)
    models = [tiny_model(), tiny_model()]
    reports = [None, Report(["tensorboard"], "CE · seed 0 · train · g0", tmp_path / "logs")]
    for number, (model, report) in enumerate(zip(models, reports, strict=True)):
        train(model, tmp_path / str(number), report=report)
    assert same(weights(models[0]), weights(models[1]))
    scalars = [json.loads(line) for line in (tmp_path / "logs" / "scalars.jsonl").read_text().splitlines()]
    losses = [(step, value) for name, value, step in scalars if name == "train/loss"]
    assert [step for step, _ in losses] == list(range(1, len(losses) + 1)) and len(losses) > 3
    assert all(0 < value < 20 for _, value in losses) and losses[-1][1] < losses[0][1]
    assert TENSORBOARD not in os.environ
