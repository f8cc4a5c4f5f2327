"""The loss head in real architectures (tiny, random weights): the stock forward is the reference."""

from __future__ import annotations

import copy
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from kernels import install_loss_head, losses

ROOT = Path(__file__).parents[2]
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make(name: str) -> Any:
    torch.manual_seed(0)
    t = transformers
    models: dict[str, Any] = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES)),
        "llama-tied": lambda: t.LlamaForCausalLM(t.LlamaConfig(**SIZES, tie_word_embeddings=True)),
        "gemma3": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**SIZES, head_dim=8)),
        "gemma3-softcap": lambda: t.Gemma3ForCausalLM(
            t.Gemma3TextConfig(**SIZES, head_dim=8, final_logit_softcapping=0.5)
        ),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**SIZES)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**SIZES, head_dim=8)),
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(vocab_size=97, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
        ),
        "phi": lambda: t.PhiForCausalLM(t.PhiConfig(**{**SIZES, "num_key_value_heads": 2})),  # a head with a bias
        "granite": lambda: t.GraniteForCausalLM(t.GraniteConfig(**SIZES, logits_scaling=3.0)),
        "cohere": lambda: t.CohereForCausalLM(t.CohereConfig(**SIZES, logit_scale=0.25)),
    }
    model = models[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    # dropout would be drawn anew for each forward
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.train()


def batch(rows: int = 3, length: int = 11) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 97, (rows, length), generator=g)
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


ARCHITECTURES = [
    "llama", "llama-tied", "gemma3", "gemma3-softcap", "qwen2", "qwen3", "gpt2", "phi", "granite", "cohere",
]  # fmt: skip


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("items", [None, 40])
def test_loss_and_gradients_are_those_of_the_stock_forward(name: str, items: int | None) -> None:
    model = make(name)
    given: dict[str, Any] = {**batch(), **({} if items is None else {"num_items_in_batch": torch.tensor(items)})}
    stock = model(**given)
    stock.loss.backward()
    wanted = gradients(model)
    handle = install_loss_head(model, chunk_rows=7)
    assert model.training
    patched = model(**given)
    patched.loss.backward()
    assert type(patched).__name__ == "CausalLMOutputWithPast" and patched.logits is None
    torch.testing.assert_close(patched.loss, stock.loss)
    torch.testing.assert_close(gradients(model), wanted, rtol=1e-4, atol=1e-6)
    assert handle.statistics is not None and handle.statistics.live_fraction == 1
    assert handle.statistics.tokens == batch()["labels"][:, 1:].ne(-100).sum()
    assert not handle.statistics.mean_confidence.requires_grad


def test_without_labels_nothing_is_different() -> None:
    model = make("llama").eval()
    inputs = {k: v for k, v in batch().items() if k != "labels"}
    logits = model(**inputs).logits
    text = model.generate(inputs["input_ids"], max_new_tokens=5, do_sample=False)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    handle = install_loss_head(model, loss=losses.truncated(0.5))
    assert torch.equal(model(**inputs).logits, logits)
    assert torch.equal(model.generate(inputs["input_ids"], max_new_tokens=5, do_sample=False), text)
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())
    assert handle.statistics is None


def test_saved_and_loaded_without_a_trace(tmp_path: Path) -> None:
    model = make("llama")
    stock = model(**batch()).loss
    install_loss_head(model, loss=losses.truncated(0.5))
    model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    loaded = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert loaded(**batch()).logits is not None
    torch.testing.assert_close(loaded(**batch()).loss, stock)


def test_remove_restores_and_other_instances_are_untouched() -> None:
    model, other = make("llama"), make("llama")
    assert "forward" not in model.__dict__
    handle = install_loss_head(model)
    with pytest.raises(RuntimeError, match="already"):
        install_loss_head(model)
    assert other(**batch()).logits is not None
    handle.remove()
    handle.remove()
    assert "forward" not in model.__dict__
    assert model(**batch()).logits is not None
    install_loss_head(model, loss=losses.focal()).remove()
    assert "forward" not in model.__dict__


def test_remove_under_somebody_elses_wrapper_lets_calls_pass() -> None:
    import functools
    from types import MethodType

    model = make("llama")
    handle = install_loss_head(model)
    ours = model.forward.__func__

    @functools.wraps(ours)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(self, *args, **kwargs)

    model.forward = MethodType(wrapper, model)
    assert model(**batch()).logits is None
    handle.remove()
    assert model(**batch()).logits is not None
    install_loss_head(model)
    assert model(**batch()).logits is None


def test_a_deep_copy_uses_its_own_weights() -> None:
    model = make("llama-tied")
    install_loss_head(model)
    before = model(**batch()).loss
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    torch.testing.assert_close(model(**batch()).loss, before)
    torch.testing.assert_close(twin(**batch()).loss, torch.tensor(97.0).log())


def test_the_arms_loss_is_what_is_computed_in_training_and_evaluation() -> None:
    model = make("llama")
    labels = batch()["labels"][:, 1:]
    logits = model(**{k: v for k, v in batch().items() if k != "labels"}).logits[:, :-1]
    nll = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    gamma = float(nll.detach()[labels != -100].median().neg().exp())
    live = (labels != -100) & (nll.neg().exp() <= gamma)
    handle = install_loss_head(model, loss=losses.truncated(gamma))
    for training in (True, False):
        model.train(training)
        torch.testing.assert_close(model(**batch()).loss, nll[live].sum() / (labels != -100).sum())
        torch.testing.assert_close(model(**batch(), num_items_in_batch=50).loss, nll[live].sum() / 50)
    assert 0.3 < handle.statistics.live_fraction < 0.7
    handle.remove()
    # averaged over live tokens: the share of the accumulated batch still weighs the call
    install_loss_head(model, loss=losses.truncated(gamma, denominator="live"))
    torch.testing.assert_close(model(**batch()).loss, nll[live].mean())
    part = (labels != -100).sum() / 50
    torch.testing.assert_close(model(**batch(), num_items_in_batch=50).loss, nll[live].mean() * part)


def test_a_call_may_bring_a_loss_of_its_own() -> None:
    model = make("llama")
    stock = model(**batch()).loss
    handle = install_loss_head(model, loss=losses.truncated(0.02, denominator="live"))
    installed = model(**batch()).loss
    torch.testing.assert_close(model(**batch(), token_loss=losses.cross_entropy()).loss, stock)
    torch.testing.assert_close(
        model(**batch(), token_loss=losses.cross_entropy(), num_items_in_batch=50).loss,
        stock * handle.statistics.tokens / 50,
    )
    assert torch.equal(model(**batch()).loss, installed) and not torch.allclose(installed, stock)
    with pytest.raises(TypeError, match="loss: str has no attribute 'value'"):
        model(**batch(), token_loss="ce")


def test_positional_arguments_shifted_labels_and_tuples() -> None:
    model = make("llama")
    given = batch()
    stock = model(**given, output_hidden_states=True, use_cache=True)
    install_loss_head(model)
    loss = model(**given).loss
    torch.testing.assert_close(model(given["input_ids"], given["attention_mask"], labels=given["labels"]).loss, loss)
    shifted = nn.functional.pad(given["labels"][:, 1:], (0, 1), value=-100)
    torch.testing.assert_close(model(**given, shift_labels=shifted).loss, loss)
    torch.testing.assert_close(model(**given, return_dict=False)[0], loss)
    output = model(**given, output_hidden_states=True, use_cache=True)
    assert set(output) == set(stock) - {"logits"} and len(output.hidden_states) == 3
    with pytest.raises(ValueError, match="logits_to_keep"):
        model(**given, logits_to_keep=1)


def test_gradient_checkpointing_and_autocast() -> None:
    model = make("llama")
    model(**batch()).loss.backward()
    wanted = gradients(model)
    install_loss_head(model)
    model.gradient_checkpointing_enable()
    model(**batch(), use_cache=False).loss.backward()
    torch.testing.assert_close(gradients(model), wanted, rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(**batch(), use_cache=False).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert all(p.grad.isfinite().all() and p.grad.dtype == p.dtype for p in model.parameters())


# ------------------------------------------------------------------------------------------------ Trainer


class Rows(torch.utils.data.Dataset):
    """Sequences of different lengths of labels, so that micro-batches hold different numbers of tokens."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.randint(3, 97, (12,), generator=torch.Generator().manual_seed(index))
        labels = ids.clone()
        labels[12 - index :] = -100
        return {"input_ids": ids, "labels": labels}


def train(model: Any, folder: Path, **options: Any) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=2,
        learning_rate=0.1,
        optim="sgd",
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        seed=3,
        **options,
    )
    trainer = transformers.Trainer(model=model, args=arguments, train_dataset=Rows(), eval_dataset=Rows())
    trainer.train()
    return trainer


def test_trainer_takes_the_same_steps(tmp_path: Path) -> None:
    stock, patched = make("llama-tied"), make("llama-tied")
    handle = install_loss_head(patched, chunk_rows=8)
    one, two = train(stock, tmp_path / "a"), train(patched, tmp_path / "b")
    assert one.model_accepts_loss_kwargs and two.model_accepts_loss_kwargs
    torch.testing.assert_close(patched.state_dict(), stock.state_dict(), rtol=1e-5, atol=1e-6)
    assert one.state.global_step == 2
    assert two.evaluate()["eval_loss"] == pytest.approx(one.evaluate()["eval_loss"], rel=1e-5)
    # Trainer drops the columns that forward does not name
    assert "input_ids" in inspect.signature(patched.forward).parameters
    handle.remove()
    assert patched(**batch()).logits is not None


def test_trainer_in_mixed_precision(tmp_path: Path) -> None:
    stock, patched = make("llama"), make("llama")
    handle = install_loss_head(patched)
    train(stock, tmp_path / "a", bf16=True)
    train(patched, tmp_path / "b", bf16=True)
    moved = [(p - q).abs().max() for p, q in zip(stock.parameters(), make("llama").parameters(), strict=True)]
    apart = [(p - q).abs().max() for p, q in zip(stock.parameters(), patched.parameters(), strict=True)]
    assert max(apart) < 0.05 * max(moved)
    assert patched(**batch()).logits is None
    handle.remove()
    assert patched(**batch()).logits is not None


@pytest.mark.parametrize("name", ["llama", "gemma3-softcap", "granite", "phi"])
def test_a_model_that_mixed_precision_has_wrapped_is_trained_again(name: str, tmp_path: Path) -> None:
    """Accelerate leaves its wrapper on: the model's logits are rounded to 8 bits, and so are those compared with."""
    model = make(name)
    install_loss_head(model).remove()
    with torch.no_grad():
        model.get_output_embeddings().weight[0].mul_(50)  # a row with far larger logits than the others
    train(model, tmp_path / "first", bf16=True)
    before = copy.deepcopy(model.state_dict())
    handle = install_loss_head(model)
    train(model, tmp_path / "second", bf16=True)
    assert any(not torch.equal(value, before[key]) for key, value in model.state_dict().items())
    fused = model(**batch())
    handle.remove()
    stock = model(**batch())
    assert fused.logits is None and stock.logits is not None
    torch.testing.assert_close(fused.loss, stock.loss, rtol=0.02, atol=0.0)


def test_lora_trains_like_the_stock_forward(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    models = []
    for patch in (False, True):
        model = make("llama")
        torch.manual_seed(0)
        model = get_peft_model(
            model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        )
        if patch:
            handle = install_loss_head(model)
        train(model, tmp_path / str(patch))
        models.append(model)
    torch.testing.assert_close(models[1].state_dict(), models[0].state_dict(), rtol=1e-5, atol=1e-6)
    assert handle.statistics is not None
    handle.remove()
    models[1].save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("where", ["target_modules", "modules_to_save"])
def test_an_adapted_head_is_refused(where: str) -> None:
    from peft import LoraConfig, get_peft_model

    adapt = ["q_proj", "lm_head"] if where == "target_modules" else ["q_proj"]
    save = ["lm_head"] if where == "modules_to_save" else None
    model = get_peft_model(make("llama"), LoraConfig(target_modules=adapt, modules_to_save=save, task_type="CAUSAL_LM"))
    with pytest.raises(TypeError, match="not a plain linear layer"):
        install_loss_head(model)


def test_what_is_not_a_causal_language_model_is_refused() -> None:
    with pytest.raises(TypeError, match="no causal language model"):
        install_loss_head(nn.Linear(2, 2))
    with pytest.raises(TypeError, match="no causal language model"):
        install_loss_head(make("llama").model)
    with pytest.raises(TypeError, match="wrapper"):
        install_loss_head(nn.DataParallel(make("llama")))


def test_an_implementation_that_is_not_there_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("llama")
    monkeypatch.setattr("kernels.dispatch.find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="impl = 'triton' is not available here: triton is not installed"):
        install_loss_head(model, impl="triton")
    assert "forward" not in model.__dict__


@pytest.mark.parametrize("change", ["scale", "shift", "softcap", "hidden", "vocabulary"])
def test_logits_computed_in_another_way_are_refused(change: str) -> None:
    class Odd(transformers.LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            outputs = self.model(input_ids=kwargs["input_ids"])
            hidden = outputs.last_hidden_state
            logits = self.lm_head(hidden.tanh() if change == "hidden" else hidden)
            if change == "scale":
                logits = 0.9 * logits
            if change == "shift":
                logits = logits + 1
            if change == "softcap":
                logits = 30 * torch.tanh(logits / 30)
            if change == "vocabulary":
                logits = logits[..., :90]
            return transformers.modeling_outputs.CausalLMOutputWithPast(logits=logits)

    model = Odd(transformers.LlamaConfig(**SIZES)).train()
    model.model.eval()
    with pytest.raises(ValueError, match="does not compute its logits"):
        install_loss_head(model)
    assert model.training and not model.model.training
    assert not model.model._forward_hooks


def test_installing_draws_no_random_numbers() -> None:
    model = make("gemma3-softcap")
    before = torch.get_rng_state()
    install_loss_head(model)
    assert torch.equal(torch.get_rng_state(), before)


# ----------------------------------------------------------------------------------------------- the name


def test_transformers_works_beside_a_package_of_this_name(tmp_path: Path) -> None:
    # transformers looks for the hub's `kernels`, and finds ours when it stands on the path
    code = f"""
import kernels, transformers
assert kernels.__file__.startswith({str(ROOT)!r}), kernels.__file__
config = transformers.LlamaConfig(vocab_size=97, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                                  num_attention_heads=2, num_key_value_heads=1)
model = transformers.LlamaForCausalLM(config)
model.save_pretrained({str(tmp_path)!r})
transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})
kernels.install_loss_head(model)
"""
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment)
