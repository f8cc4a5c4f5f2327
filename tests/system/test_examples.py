"""Ten lines each for the loss in other people's training, as the README shows them; here they are run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BARE_LOOP = """
from kernels import install_loss_head, losses

head = install_loss_head(model, loss=losses.truncated(0.9))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for batch in batches:
    loss = model(input_ids=batch, labels=batch).loss  # logits are never larger than a chunk
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"loss {loss.item():.3f}, {head.statistics.live_fraction.item():.0%} of the tokens are live")
"""

TRAINER = """
from transformers import Trainer, TrainingArguments
from kernels import install_loss_head, losses

head = install_loss_head(model, loss=losses.truncated(0.9))
arguments = TrainingArguments(output_dir, max_steps=4, per_device_train_batch_size=2, report_to=[], use_cpu=True)
trainer = Trainer(model=model, args=arguments, train_dataset=dataset)
trainer.train()  # gradient accumulation, mixed precision, DDP and checkpoints as ever
head.remove()
trainer.save_model()
"""

TRL = """
from transformers import Trainer
from trl import SFTConfig, SFTTrainer
from kernels import install_loss_head, losses


class TruncatedSFTTrainer(SFTTrainer):
    compute_loss = Trainer.compute_loss  # the model's own loss; SFTTrainer's is always cross entropy


arguments = SFTConfig(output_dir, max_steps=4, per_device_train_batch_size=2, report_to=[], use_cpu=True)
trainer = TruncatedSFTTrainer(model, arguments, train_dataset=dataset, processing_class=tokenizer)
head = install_loss_head(trainer.model, loss=losses.truncated(0.9))  # after the trainer put its own head in
trainer.train()
"""


def tiny(vocabulary: int = 64) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def text(rows: int = 8) -> torch.Tensor:
    """Runs of numbers, each the last one plus three: soon learned."""
    return (torch.arange(rows)[:, None] * 7 + torch.arange(16) * 3) % 61 + 3


def run(source: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(source, "<example>", "exec"), names)
    return names


def loss_of(model: Any) -> float:
    with torch.no_grad():
        logits = model(text()).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), text()[:, 1:].flatten()))


def test_bare_loop(capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny()
    before = loss_of(model)
    head = run(BARE_LOOP, {"torch": torch, "model": model, "batches": [text()] * 30})["head"]
    assert loss_of(model) < before / 4
    # with confidence, tokens die
    assert head.statistics.live_fraction < 0.5
    assert "100% of the tokens are live" in capsys.readouterr().out


def test_trainer(tmp_path: Path) -> None:
    model = tiny()
    before = loss_of(model)
    dataset = [{"input_ids": row, "labels": row} for row in text()]
    found = run(TRAINER, {"model": model, "dataset": dataset, "output_dir": str(tmp_path)})
    assert found["head"].statistics is not None
    assert loss_of(found["model"]) < before
    assert LlamaForCausalLM.from_pretrained(tmp_path) is not None


@pytest.mark.filterwarnings("ignore")  # of other people's deprecations
def test_trl_sft_trainer(tmp_path: Path) -> None:
    import datasets
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: number for number, word in enumerate(["<pad>", "<s>", "</s>", *(f"w{i}" for i in range(61))])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<pad>"
    )
    rows = [{"text": " ".join(f"w{int(number) - 3}" for number in row)} for row in text()]
    model = tiny()
    before = loss_of(model)
    names = {"model": model, "tokenizer": tokenizer, "output_dir": str(tmp_path)}
    found = run(TRL, {**names, "dataset": datasets.Dataset.from_list(rows)})
    statistics = found["head"].statistics
    assert statistics is not None and statistics.tokens > 0  # the loss was ours
    assert loss_of(found["model"]) < before
