"""What went wrong in other loss heads, tried on this one; docs/kernels.md names where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import nn

from kernels import install_loss_head, linear_cross_entropy, losses

FUSED = ["chunked", "triton"]
SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def llama() -> Any:
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))


@pytest.mark.parametrize("impl", FUSED)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_ignored_rows_are_in_no_product(impl: str, reduction: str) -> None:
    """Liger multiplies them, and throws the products away."""
    from torch.utils.flop_counter import FlopCounterMode

    def into(a: Any, b: Any, **_: Any) -> int:
        return 2 * a[0] * a[1] * b[1]

    added = {torch.ops.aten.addmm_: lambda _, a, b, **__: into(a, b), torch.ops.aten.mm.out: into}
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(40, 8, generator=generator), torch.randn(100, 8, generator=generator)
    flops = {}
    for ignored in (0, 30):
        targets = torch.randint(100, (40,), generator=generator)
        targets[:ignored] = -100
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        with FlopCounterMode(display=False, custom_mapping=added) as counter:
            options: Any = {"impl": impl, "reduction": reduction, "chunk_rows": 16}
            loss = linear_cross_entropy(h, w, targets, loss=losses.label_smoothing(0.1), **options).loss
            loss.sum().backward()
        flops[ignored] = counter.get_total_flops()
    assert flops[30] * 4 == flops[0] == 2 * 40 * 8 * 100 * (3 if reduction == "mean" else 4)


@pytest.mark.parametrize("impl", ["torch", *FUSED])
@pytest.mark.parametrize("loss", [losses.truncated(0.5), losses.label_smoothing(0.1), losses.eaft(), losses.tail(0.5)])
def test_a_loss_for_each_token_has_each_tokens_gradient(impl: str, loss: losses.TokenLoss) -> None:
    """Liger multiplied a gradient that was summed over tokens by the first token's factor (#968)."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(4, 6, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(13, 8, generator=generator, dtype=torch.float64)
    targets, factor = torch.randint(13, (4, 6), generator=generator), torch.rand(4, 6, generator=generator).double()
    found = []
    for by, one_by_one in ((impl, False), ("torch", True)):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        rows = linear_cross_entropy(h, w, targets, loss=loss, reduction="none", impl=by).loss  # type: ignore[arg-type]
        if one_by_one:
            for row, f in zip(rows.flatten(), factor.flatten(), strict=True):
                (row * f).backward(retain_graph=True)
        else:
            (rows * factor).sum().backward()
        found.append([h.grad, w.grad])
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_the_soft_cap_of_gemma_is_in_the_loss(name: str) -> None:
    """Cut Cross-Entropy's patch for Gemma 2 left it out (#48)."""
    torch.manual_seed(0)
    sizes = {**SIZES, "head_dim": 8, "final_logit_softcapping": 2.0, "tie_word_embeddings": False}
    kinds: dict[str, Any] = {
        "gemma2": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**sizes)),
        "gemma3": lambda: transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**sizes)),
    }
    model = kinds[name]()
    with torch.no_grad():
        model.lm_head.weight.mul_(100)  # logits beyond the cap
    ids = torch.randint(3, 64, (2, 9))
    stock = model(input_ids=ids, labels=ids)
    stock.loss.backward()
    wanted = model.lm_head.weight.grad.clone()
    assert stock.logits.abs().max() > 1.9
    uncapped = F.cross_entropy((2 * torch.atanh(stock.logits[:, :-1] / 2.0001)).flatten(0, 1), ids[:, 1:].flatten())
    assert (uncapped - stock.loss).abs() > 1
    model.zero_grad()
    install_loss_head(model)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.testing.assert_close(loss, stock.loss)
    torch.testing.assert_close(model.lm_head.weight.grad, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [losses.truncated(0.5), losses.z_loss(0.01), losses.eaft(), losses.tail(0.5)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_graph_that_is_kept_gives_the_same_gradient_again(loss: losses.TokenLoss, reduction: Any) -> None:
    """QuACK's second backward pass found its buffers overwritten (#209)."""
    hidden, weight = torch.randn(2, 5, 8, requires_grad=True), torch.randn(13, 8, requires_grad=True)
    output = linear_cross_entropy(hidden, weight, torch.arange(10).view(2, 5), loss=loss, reduction=reduction)
    total = output.loss.sum()
    first = torch.autograd.grad(total, (hidden, weight), retain_graph=True)
    wanted = [gradient.clone() for gradient in first]
    for gradient in first:
        gradient.fill_(7)  # as an optimizer would
    torch.testing.assert_close(list(torch.autograd.grad(total, (hidden, weight))), wanted)


# --------------------------------------------------------------------- accumulation, and losses that are ignored


def texts() -> list[dict[str, list[int]]]:
    """Eight sequences of different length, so that micro-batches hold different numbers of tokens."""
    generator = torch.Generator().manual_seed(2)
    return [{"input_ids": torch.randint(3, 64, (4 + 2 * i,), generator=generator).tolist()} for i in range(8)]


def arguments(kind: Any, folder: Path, accumulation: int) -> Any:
    return kind(
        output_dir=str(folder), per_device_train_batch_size=8 // accumulation, max_steps=1, learning_rate=0.5,
        gradient_accumulation_steps=accumulation, optim="sgd", max_grad_norm=0.0, lr_scheduler_type="constant",
        report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True, bf16=False, seed=1,
    )  # fmt: skip


def by_trainer(folder: Path, accumulation: int, loss: losses.TokenLoss) -> Any:
    model = llama()
    install_loss_head(model, loss=loss)
    rows = [{**row, "labels": row["input_ids"]} for row in texts()]

    def collate(given: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        padded = {"input_ids": 0, "labels": -100}
        return {
            name: nn.utils.rnn.pad_sequence([torch.tensor(row[name]) for row in given], True, value)
            for name, value in padded.items()
        }

    given = arguments(transformers.TrainingArguments, folder, accumulation)
    transformers.Trainer(model=model, args=given, train_dataset=rows, data_collator=collate).train()
    return model


def by_sft(folder: Path, accumulation: int, loss: losses.TokenLoss) -> Any:
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = {"<pad>": 0, **{f"w{number}": number for number in range(1, 64)}}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")), pad_token="<pad>", eos_token="w2"
    )
    given = arguments(SFTConfig, folder, accumulation)
    trainer = SFTTrainer(llama(), given, train_dataset=Dataset.from_list(texts()), processing_class=tokenizer)
    install_loss_head(trainer, loss=loss)
    trainer.train()
    return trainer.model


def by_hand(loss: losses.TokenLoss) -> Any:
    """One step over all eight, on all logits."""
    model = llama()
    states, targets = [], []
    for row in texts():
        ids = torch.tensor([row["input_ids"]])
        states.append(model.model(input_ids=ids).last_hidden_state[0, :-1])
        targets.append(ids[0, 1:])
    linear_cross_entropy(
        torch.cat(states), model.lm_head.weight, torch.cat(targets), loss=loss, impl="torch"
    ).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(0.5 * parameter.grad)
    return model


@pytest.mark.parametrize("train", [by_trainer, by_sft])
@pytest.mark.parametrize(
    "loss", [losses.truncated(0.0157), losses.custom(lambda nll, entropy: nll * entropy), losses.label_smoothing(0.3)]
)
def test_accumulated_micro_batches_are_one_batch_under_the_loss_that_was_asked_for(
    train: Any, loss: losses.TokenLoss, tmp_path: Path
) -> None:
    """Unsloth divided by the accumulation steps a second time (#8261); a custom loss was ignored under Liger
    (trl#5823)."""
    wanted, plain = by_hand(loss), by_hand(losses.cross_entropy())
    assert max((p - q).abs().max() for p, q in zip(wanted.parameters(), plain.parameters(), strict=True)) > 1e-3
    for accumulation in (1, 4):
        model = train(tmp_path / str(accumulation), accumulation, loss)
        torch.testing.assert_close(model.state_dict(), wanted.state_dict(), rtol=1e-4, atol=1e-6)


def test_a_trainer_is_put_back_as_it_was(tmp_path: Path) -> None:
    given = arguments(transformers.TrainingArguments, tmp_path, 1)
    trainer = transformers.Trainer(model=llama(), args=given, train_dataset=texts())
    install_loss_head(trainer, loss=losses.dft()).remove()
    assert "forward" not in trainer.model.__dict__ and "compute_loss" not in trainer.__dict__
    blocked = transformers.Trainer(model=llama(), args=given, compute_loss_func=lambda outputs, labels, **_: 0)
    with pytest.raises(ValueError, match=r"^model: the trainer has a compute_loss_func"):
        install_loss_head(blocked, loss=losses.dft())
