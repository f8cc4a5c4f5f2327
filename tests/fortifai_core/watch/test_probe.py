"""What a probe measures, against plain torch and against counting by hand; and what it leaves as it was."""

from __future__ import annotations

import random
import zlib
from typing import Any

import numpy as np
import pytest
import torch

from fortifai_core.errors import InputError
from fortifai_core.measures.model_drift import model_kl_by_window
from fortifai_core.watch.probe import GROUP, Probe, Size, of_samples
from fortifai_core.watch.reading import live_in_batch, predict, undisturbed, write

SMALL = Size(windows=12, window_tokens=32, prompt_tokens=4, sample_tokens=12, batch_tokens=64)


@pytest.fixture
def probe(tokenizer: Any, held_out: list[str]) -> Probe:
    return Probe(tokenizer, held_out, SMALL)


def test_predictions_are_those_of_plain_torch(model: Any, probe: Probe) -> None:
    with undisturbed(model) as core:
        seen = predict(core, probe.windows)
        for number, window in enumerate(probe.windows):
            log_p = core(torch.tensor([window])).logits[0, :-1].double().log_softmax(-1)
            p = log_p.exp()
            assert seen.nll[number] == pytest.approx(
                -sum(log_p[i, t].item() for i, t in enumerate(window[1:])), rel=1e-5
            )
            assert seen.entropy[number] == pytest.approx(-(p * log_p).sum().item(), rel=1e-5)
            assert seen.top_mass[number] == pytest.approx(p.max(-1).values.sum().item(), rel=1e-5)
            assert seen.positions[number] == len(window) - 1


def test_only_what_is_asked_for_is_predicted(model: Any, probe: Probe) -> None:
    given = [len(window) - 3 for window in probe.windows]
    with undisturbed(model) as core:
        last = predict(core, probe.windows, given=given)
        log_p = core(torch.tensor([probe.windows[0]])).logits[0].log_softmax(-1)
    wanted = -sum(log_p[len(probe.windows[0]) - 4 + i, probe.windows[0][-3 + i]].item() for i in range(3))
    assert last.nll[0] == pytest.approx(wanted, rel=1e-5) and last.positions[0] == 3


def test_kl_is_a_lower_bound_that_is_tight_where_the_tokens_hold_the_mass(
    model: Any, probe: Probe, tokenizer: Any
) -> None:
    from transformers import LlamaForCausalLM

    torch.manual_seed(1)
    other = LlamaForCausalLM(model.config)
    for parameter in model.lm_head.parameters():
        parameter.data *= 40  # a sharp baseline: its 64 likeliest tokens are all of it
    with undisturbed(model) as core:
        top = predict(core, probe.windows, keep=True).top
    with undisturbed(other) as core:
        seen = predict(core, probe.windows, against=top)
    by_window = model_kl_by_window(model, other, probe.windows, batch=4)
    exact, positions = by_window.kl, int(by_window.positions.sum())
    assert positions == seen.positions.sum()
    assert exact * 0.98 < seen.kl.sum() / positions <= exact + 1e-6
    with undisturbed(model) as core:
        assert predict(core, probe.windows, against=top).kl.sum() == pytest.approx(0, abs=1e-3)


def test_live_fraction_of_a_batch_by_hand(model: Any) -> None:
    class Fixed(torch.nn.Module):  # p of token 1 is 0.95 at even places, 0.5 at odd ones
        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            p = torch.tensor([0.95, 0.5]).repeat(input_ids.shape[1])[: input_ids.shape[1]]
            logits = torch.stack([(1 - p).log(), p.log()], dim=-1)[None].expand(len(input_ids), -1, -1)
            return type("Output", (), {"logits": logits})

    ids = torch.ones((2, 5), dtype=torch.long)
    labels = ids.clone()
    labels[1, 3:] = -100
    # predicted from places 0 to 3 (0 and 2 are sure); of the second row from places 0 and 1
    counted = live_in_batch(Fixed(), {"input_ids": ids, "labels": labels}, gamma=0.9, tokens=64)
    assert counted.tolist() == [[2, 4], [1, 2]]
    masked = {"input_ids": ids, "attention_mask": torch.tensor([[1] * 5, [1, 1, 0, 0, 0]])}
    assert live_in_batch(Fixed(), masked, gamma=0.9, tokens=64).tolist() == [[2, 4], [0, 1]]
    assert live_in_batch(Fixed(), {"input_ids": ids}, gamma=0.9, tokens=64, piece=2).tolist() == [[1, 2]] * 4
    nothing = {"input_ids": ids, "labels": torch.full_like(ids, -100)}
    assert live_in_batch(Fixed(), nothing, gamma=0.9, tokens=64) is None


def test_samples_by_hand() -> None:
    samples = [[1, 2, 1, 2, 1, 2]] * GROUP + [[1, 2, 3, 4, 5, 6]] * GROUP
    texts = ["the the zebra"] * GROUP + ["the cat sat"] * GROUP
    measured = of_samples(samples, texts, rare=frozenset({"zebra", "cat"}))
    # of a group's 4 × 5 pairs: (1 2) and (2 1); five different ones in the other
    assert measured["distinct-2"].tolist() == [[2 / 20, 1], [5 / 20, 1]]
    # 4-grams of the first: 1212, 2121, 1212
    assert measured["repeated-4-grams"][:, 0].tolist() == pytest.approx([1 / 3] * GROUP + [0] * GROUP)
    assert measured["tail-mass"].tolist() == [[1, 3]] * 8
    text = "\n".join(texts[:GROUP]).encode()
    assert measured["compression-ratio"][0].tolist() == [len(text), len(zlib.compress(text, 9))]


def test_a_last_group_that_is_smaller_is_left_out() -> None:
    samples = [[1, 2, 3, 4]] * (GROUP + 1)
    assert len(of_samples(samples, ["a b"] * len(samples))["distinct-2"]) == 1


def test_windows_come_from_as_many_documents_as_there_are(tokenizer: Any, held_out: list[str]) -> None:
    many = Probe(tokenizer, held_out, SMALL)
    beginnings = {tuple(tokenizer(text)["input_ids"][:8]) for text in held_out}
    assert all(tuple(window[:8]) in beginnings for window in many.windows)
    few = Probe(tokenizer, held_out[:6], SMALL)
    assert len(few.windows) == SMALL.windows
    assert len({tuple(window) for window in few.windows}) == SMALL.windows


def test_the_same_probe_reads_the_same_and_another_is_another(model: Any, tokenizer: Any, held_out: list[str]) -> None:
    first, second = (Probe(tokenizer, held_out, SMALL) for _ in range(2))
    assert first.digest == second.digest != Probe(tokenizer, held_out[1:], SMALL).digest
    one, two = first.read(model), second.read(model)
    assert one.texts == two.texts and len(set(one.texts)) > 6
    for name, columns in one.columns.items():
        assert np.array_equal(columns, two.columns[name]), name
    assert set(one.columns) == {
        "held-out-perplexity", "own-perplexity", "entropy", "top-mass", "distinct-2", "compression-ratio",
        "repeated-4-grams", "tail-mass",
    }  # fmt: skip


def test_own_perplexity_is_of_what_was_written_given_its_prompt(model: Any, probe: Probe, tokenizer: Any) -> None:
    reading = probe.read(model)
    with undisturbed(model) as core:
        samples = write(core, probe.prompts, probe.uniforms, suppress=[0], pad_id=0)
        seen = predict(core, [[*probe.prompts[0], *samples[0]]], given=[len(probe.prompts[0])])
    assert reading.texts == tuple(tokenizer.batch_decode(samples))
    assert {len(sample) for sample in samples} == {SMALL.sample_tokens} and not any(0 in sample for sample in samples)
    assert reading.columns["own-perplexity"][0].tolist() == pytest.approx([seen.nll[0], SMALL.sample_tokens], rel=1e-5)


def test_nothing_is_disturbed(model: Any, probe: Probe, batches: list[torch.Tensor]) -> None:
    model.train()
    model.model.layers[1].eval()  # a frozen part stays in its mode
    modes = [module.training for module in model.modules()]
    model(input_ids=batches[0], labels=batches[0]).loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    settings = model.generation_config
    probe.read(model, batch={"input_ids": batches[0]}, keep=True)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    assert model.generation_config is settings and torch.is_grad_enabled()


def test_random_states_come_back_after_an_error_too(model: Any) -> None:
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), undisturbed(model):
        torch.rand(3)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), before) and model.training


@pytest.mark.parametrize(
    ("texts", "size", "said"),
    [
        (["short"], {}, "has 0 windows"),
        ("one long text", {}, "give a list of documents"),
        (None, {"windows": 7}, "windows = 7: give a whole number from 8"),
        (None, {"sample_tokens": 2.5}, "sample_tokens = 2.5"),
        (None, {"gamma": 0}, "gamma = 0"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tokenizer: Any, held_out: list[str], texts: Any, size: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        Probe(tokenizer, held_out if texts is None else texts, Size(**size))


def test_a_model_that_reads_less_or_knows_fewer_tokens_is_refused(model: Any, tokenizer: Any, held_out: Any) -> None:
    long = Probe(tokenizer, held_out, Size(windows=8, window_tokens=32, prompt_tokens=8, sample_tokens=200))
    with pytest.raises(InputError, match="the model reads 128 tokens"):
        long.check(model)
    model.config.vocab_size = 10
    with pytest.raises(InputError, match="take its own tokenizer"):
        Probe(tokenizer, held_out, SMALL).check(model)


def test_logits_that_are_no_numbers_are_measured_as_such(model: Any, probe: Probe) -> None:
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    reading = probe.read(model)
    assert np.isnan(reading.columns["held-out-perplexity"][:, 0]).all()
    assert "own-perplexity" not in reading.columns and reading.texts == ()
