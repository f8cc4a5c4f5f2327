"""Aims beyond the drawn token, each against its definition on a case worked by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPTNeoConfig, GPTNeoForCausalLM, LlamaConfig, LlamaForCausalLM

from fortifai_core.config.stages import Training
from fortifai_core.errors import ConfigError
from fortifai_core.language.objective import Objective, average_with, residual_dropout, soft_cross_entropy, weights_of
from fortifai_core.language.training import train_model
from kernels import install_loss_head, losses

# p = (1/2, 1/4, 1/4)
LOGITS = torch.tensor([[[2.0, 1.0, 1.0]]]) * math.log(2)
TARGET = torch.tensor([[1]])


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=24, max_position_embeddings=32, **shape))


def rows(*, synthetic: bool | None = None) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(1)
    told = {} if synthetic is None else {"synthetic": synthetic}
    return [{"input_ids": torch.randint(0, 24, (8,), generator=draw).tolist(), **told} for _ in range(12)]


def trained(folder: Path, config: dict[str, Any], *, data: list[dict[str, Any]] | None = None, **aims: Any) -> Any:
    model = tiny_model()
    settings = Training(epochs=2, learning_rate=1e-2, batch_size=4, sequence_length=8, **config)
    train_model(model, data or rows(), config=settings, seed=5, pad_id=0, workspace=folder, **aims)
    return model


def distance(one: nn.Module, other: nn.Module) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs))


def test_without_smoothing_it_is_cross_entropy() -> None:
    assert soft_cross_entropy(LOGITS, TARGET, smoothing=0).item() == pytest.approx(math.log(4))


def test_smoothing_spreads_a_share_of_the_target_evenly() -> None:
    # 0.7 · ln 4 + 0.3 · (ln 2 + ln 4 + ln 4) / 3 = (1.4 + 0.5) ln 2
    assert soft_cross_entropy(LOGITS, TARGET, smoothing=0.3).item() == pytest.approx(1.9 * math.log(2))


def test_a_teacher_is_followed_in_whole_on_synthetic_rows_only() -> None:
    # q = (1/4, 1/2, 1/4): ½·… = (1/4) ln 2 + (1/2) ln 4 + (1/4) ln 4 = 1.75 ln 2
    taught = torch.tensor([[[1.0, 2.0, 1.0]]]) * math.log(2)
    both = [tensor.expand(2, *tensor.shape[1:]) for tensor in (LOGITS, TARGET, taught)]
    logits, targets, teacher = both
    loss = soft_cross_entropy(logits, targets, smoothing=0, taught=teacher, weight=torch.tensor([1.0, 0.0]))
    assert loss[:, 0].tolist() == pytest.approx([1.75 * math.log(2), 2 * math.log(2)])
    half = soft_cross_entropy(logits, targets, smoothing=0, taught=teacher, weight=torch.tensor([0.5, 0.0]))
    assert half[0, 0].item() == pytest.approx(1.875 * math.log(2))


def test_what_has_no_target_counts_for_nothing() -> None:
    logits = LOGITS.expand(1, 3, 3)
    loss = soft_cross_entropy(logits, torch.tensor([[1, -100, 0]]), smoothing=0.1)
    assert loss[0, 1] == 0 and (loss[0, [0, 2]] > 0).all()


def test_the_penalty_is_half_lambda_times_the_squared_distance() -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 1.0]]))
    before = {"weight": torch.tensor([[1.0, 0.0]])}
    penalty = Objective(anchor=0.5, before=before).penalty(model)
    assert isinstance(penalty, torch.Tensor)
    assert penalty.item() == pytest.approx(0.5 / 2 * (4 + 1))
    penalty.backward()
    assert model.weight.grad is not None and model.weight.grad.tolist() == [[1.0, 0.5]]  # λ (θ − θ_before)


def test_averaging_is_a_share_of_the_other_weights() -> None:
    model = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 1.0]]))
    average_with(model, {"weight": torch.tensor([[1.0, 5.0]])}, 0.25)
    assert model.weight.tolist() == [[2.5, 2.0]]


def test_dropout_is_there_in_training_alone_and_gone_afterwards() -> None:
    model, ids = tiny_model(), torch.arange(8)[None]
    plain = model.eval()(ids).logits
    with residual_dropout(model, 0.5):
        torch.manual_seed(0)
        assert not torch.allclose(model.train()(ids).logits, plain)
        assert torch.equal(model.eval()(ids).logits, plain)
    assert torch.equal(model.train()(ids).logits, plain)


def test_dropout_of_everything_but_a_trace_leaves_the_residual_stream() -> None:
    model, ids = tiny_model(), torch.arange(8)[None]
    stream = model.lm_head(model.model.norm(model.model.embed_tokens(ids)))
    with residual_dropout(model, 1 - 1e-7):
        torch.manual_seed(0)
        assert torch.allclose(model.train()(ids).logits, stream, atol=1e-5)


def test_dropout_within_a_block_that_has_one_is_not_doubled() -> None:
    """GPT-Neo's attention is `attn.attention`; both would be dropped from."""
    shape: dict[str, Any] = {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global"], 2]]}
    model = GPTNeoForCausalLM(GPTNeoConfig(vocab_size=24, max_position_embeddings=32, **shape))
    with residual_dropout(model, 0.5):
        hooked = {name for name, module in model.named_modules() if module._forward_hooks}
    assert hooked == {f"transformer.h.{n}.{branch}" for n in (0, 1) for branch in ("attn", "mlp")}


@pytest.mark.parametrize("names", [(), ("self_attn",), ("mlp",)])
def test_dropout_of_a_model_without_blocks_of_either_kind_is_refused(names: tuple[str, ...]) -> None:
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in (*names, "other")})
    with (
        pytest.raises(ConfigError, match=r"training\.dropout = 0\.1: ModuleDict has no blocks"),
        residual_dropout(model, 0.1),
    ):
        pass


def test_a_training_follows_its_teacher(tmp_path: Path) -> None:
    """A model that starts as its own teacher stays where it is on synthetic rows; on real ones it moves."""
    teacher = tiny_model().eval().requires_grad_(False)
    plainly = {"optimizer": "sgd"}  # Adam would make steps of rounding alone
    told = {"config": {"distillation": 1.0, **plainly}, "teacher": teacher}
    on_written = trained(tmp_path / "a", data=rows(synthetic=True), **told)
    on_real = trained(tmp_path / "b", data=rows(synthetic=False), **told)
    plain = trained(tmp_path / "c", plainly)
    assert distance(on_real, plain) < 1e-4
    ids = torch.arange(8)[None]
    gap = [float((model.eval()(ids).logits - teacher(ids).logits).abs().max()) for model in (on_written, plain)]
    assert gap[0] < gap[1] / 5


@pytest.mark.parametrize("loss_on", ["synthetic", "real"])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]], ids=["plain", "weighed"])
def test_a_loss_falls_on_rows_of_its_origin_and_cross_entropy_on_the_others(
    tmp_path: Path, loss_on: str, weights: list[float] | None
) -> None:
    """One step of plain gradient descent, against the mean over all tokens written out."""
    data = rows()
    for number, row in enumerate(data):
        row["synthetic"] = number % 2 == 0
        if weights:
            row["weight"] = weights[number % 3]
    model, start = tiny_model(), tiny_model()
    ids = torch.tensor([row["input_ids"] for row in data])
    logs = start(ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    gamma = float(logs.exp().median())
    judged = torch.tensor([row["synthetic"] == (loss_on == "synthetic") for row in data])
    kept = (logs.exp() <= gamma) | ~judged[:, None]
    assert 0 < int((~kept).sum()) < int(judged.sum()) * logs.shape[1]
    counted = torch.tensor([row.get("weight", 1.0) for row in data])[:, None]
    (-(logs * kept * counted).sum() / logs.numel()).backward()

    settings = {"learning_rate": 0.5, "optimizer": "sgd", "max_grad_norm": 1e9, "loss_on": loss_on}
    config = Training.model_validate({"epochs": 1, "batch_size": 12, "sequence_length": 8, **settings})
    install_loss_head(model, loss=losses.truncated(gamma))
    plainly = {"token_loss": losses.cross_entropy()}
    train_model(model, data, config=config, seed=5, pad_id=0, workspace=tmp_path, plainly=plainly)
    for (name, moved), before in zip(model.named_parameters(), start.parameters(), strict=True):
        assert before.grad is not None
        torch.testing.assert_close(moved - before, -0.5 * before.grad, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize(("loss_on", "plainly"), [("synthetic", True), ("real", False)])
def test_held_out_text_is_real_and_judged_as_real_text_is(tmp_path: Path, loss_on: str, plainly: bool) -> None:
    data = [dict(row, synthetic=number % 2 == 0) for number, row in enumerate(rows())]
    model = tiny_model()
    install_loss_head(model, loss=losses.truncated(1e-9))  # masks everything
    config = Training.model_validate(
        {"epochs": 1, "batch_size": 4, "sequence_length": 8, "loss_on": loss_on, "checkpoint": "best"}
    )
    told = {"plainly": {"token_loss": losses.cross_entropy()}, "validation": rows()}
    train_model(model, data, config=config, seed=5, pad_id=0, workspace=tmp_path, **told)
    state = json.loads(next(tmp_path.glob("checkpoint-*/trainer_state.json")).read_text())
    (measured,) = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
    assert (measured > 1) == plainly and (measured == 0) != plainly


@pytest.mark.parametrize("given", [{}, {"plainly": {"token_loss": losses.cross_entropy()}}])
def test_a_loss_for_one_kind_of_text_needs_to_be_told_of_which_rows_are(tmp_path: Path, given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"loss_on = 'real' needs `plainly`, and rows that say"):
        trained(tmp_path, {"loss_on": "real"}, data=rows(synthetic=True) if not given else rows(), **given)


def test_an_anchored_training_stays_nearer_also_in_micro_batches(tmp_path: Path) -> None:
    before = weights_of(tiny_model())
    free = trained(tmp_path / "free", {"optimizer": "sgd"})
    config = {"anchor": 5.0, "optimizer": "sgd"}
    held = trained(tmp_path / "held", config, before=before)
    parts = trained(tmp_path / "parts", {**config, "gradient_accumulation": 2}, before=before)
    start = tiny_model()
    assert distance(held, start) < distance(free, start)
    assert distance(held, parts) < 1e-4 * distance(free, start) + 1e-6


def test_a_smoothed_training_is_less_sure(tmp_path: Path) -> None:
    data = [{"input_ids": [1, 2] * 4} for _ in range(12)]
    ids = torch.tensor([[1, 2, 1, 2, 1, 2, 1, 2]])

    def confidence(model: nn.Module) -> float:
        return float(model.eval()(ids).logits.softmax(-1).amax(-1).mean())

    smoothed = trained(tmp_path / "smooth", {"label_smoothing": 0.5}, data=data)
    assert confidence(smoothed) < confidence(trained(tmp_path / "plain", {}, data=data))


def test_a_resumed_dropout_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", {"dropout": 0.2}, save_steps=2)

    class Killed(BaseException):
        pass

    def die(done: int, total: int) -> None:
        if done == 5:
            raise Killed

    with pytest.raises(Killed):
        trained(tmp_path / "cut", {"dropout": 0.2}, save_steps=2, on_progress=die)
    torch.manual_seed(99)
    assert distance(trained(tmp_path / "cut", {"dropout": 0.2}, save_steps=2), whole) == 0
