"""`fortifai watch` and `fortifai leads`: a series of models, its page, the table of leads, and bad input."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from flows.cli.app import exit_code
from flows.tools.leads import RunLeads, signal_leads
from fortifai_core.corpus.tokenization import train_tokenizer
from invented import documents

SIZES = ["--windows", "12", "--window-tokens", "32", "--sample-tokens", "12"]


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a training that learns, and then learns one sentence only; with a held-out text."""
    folder = tmp_path_factory.mktemp("series")
    tokenizer = train_tokenizer(documents(60, seed=0), vocabulary=400)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **shape, **ids))
    tokens = [token for text in documents(60, seed=2) for token in tokenizer(text)["input_ids"]]
    good = torch.tensor(tokens[: len(tokens) // 256 * 256]).view(-1, 8, 32)
    bad = torch.tensor(tokenizer("the same again and again. " * 20)["input_ids"][:32]).expand(8, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def learn(batches: Any) -> None:
        for batch in batches:
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    for step, batches in ((100, [*good, *good]), (200, [*good]), (1000, [bad] * 60)):
        learn(batches)
        copy.deepcopy(model).save_pretrained(folder / "run" / f"checkpoint-{step}")
        tokenizer.save_pretrained(folder / "run" / f"checkpoint-{step}")
    (folder / "held-out.txt").write_text("\n\n".join(documents(24, seed=1)), encoding="utf-8")
    (folder / "short.txt").write_text("no more than one line\n", encoding="utf-8")
    (folder / "seen.txt").write_text("\n\n".join(["the same again and again. " * 20] * 10), encoding="utf-8")
    return folder


def test_a_folder_of_checkpoints_is_probed_in_the_order_of_their_steps(
    series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "new" / "watch.html"
    asked = ["watch", str(series / "run"), "--text", str(series / "held-out.txt"), "--seen", str(series / "seen.txt")]
    assert exit_code([*asked, *SIZES, "--json", "--out", str(page)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [Path(model["model"]).name for model in found["models"]] == [f"checkpoint-{n}" for n in (100, 200, 1000)]
    first, second, third = (model["signals"] for model in found["models"])
    assert not any(signal["alert"] for name, signal in first.items() if name != "live-fraction")
    assert first["entropy"]["change"] is None and third["entropy"]["change"] < -0.2
    alerts = {name for name, signal in third.items() if signal["alert"]}
    assert {"held-out-perplexity", "distinct-2", "repeated-4-grams", "live-fraction", "kl"} <= alerts
    assert not second["repeated-4-grams"]["alert"] and not second["held-out-perplexity"]["alert"]
    low, high = third["distinct-2"]["interval"]
    assert low <= third["distinct-2"]["value"] <= high
    html = page.read_text(encoding="utf-8")
    assert "M2 held-out-perplexity" in html and html.count("<svg") == 10 and "default-src 'none'" in html
    assert not re.search(r"(src|href)=", html), "the page needs nothing else"


def test_the_table_marks_what_alerts(series: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [str(series / "run" / f"checkpoint-{step}") for step in (100, 1000)]
    assert exit_code(["watch", *models, "--text", str(series / "held-out.txt"), *SIZES]) == 0
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("distinct-2"))
    assert line.rstrip().endswith("!") and line.count("!") == 1
    assert "live-fraction" not in printed, "no text that was trained on was given"
    assert exit_code(["watch", models[0], "--text", str(series / "held-out.txt"), *SIZES]) == 0
    printed = capsys.readouterr().out
    assert "No signal is beyond its limit" in printed and "no baseline" in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run/nowhere", "--text", "held-out.txt"], "run/nowhere"),
        (["run/checkpoint-100", "--text", "nowhere.txt"], "nowhere.txt"),
        (["run/checkpoint-100", "--text", "short.txt"], "windows of 8 tokens or more"),
        (["run/checkpoint-100", "--text", "held-out.txt", "--windows", "3"], "windows = 3"),
        (["run/checkpoint-100", "--text", "held-out.txt", "--gamma", "2"], "gamma = 2"),
        (["run/checkpoint-100", "--text", "held-out.txt", "--limit", "entropy"], "give a number"),
        (["run/checkpoint-100", "--text", "held-out.txt", "--limit", "entropi=1"], "no such signal"),
        (["run/checkpoint-100", "--text", "held-out.txt", "--limit", "kl=much"], "--limit = 'kl=much'"),
        (["run/checkpoint-100", "--text", "held-out.txt", "--device", "tpu"], "--device = 'tpu'"),
        (["run/checkpoint-100", "--text", "held-out.txt", "--out", "page.pdf"], "ends in .html"),
        (["run/checkpoint-100", "--text", "held-out.txt", "--window-tokens", "1000"], "reads 256 tokens"),
        (["run/checkpoint-100"], "--text"),
    ],
)
def test_bad_input_is_one_line(
    series: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(series)
    before = sorted(series.iterdir())
    assert exit_code(["watch", *arguments]) == 2
    told = capsys.readouterr()
    assert said in told.err and len(told.err.splitlines()) == 1 and told.out == ""
    assert sorted(series.iterdir()) == before


def test_a_model_with_another_tokenizer_is_refused(
    series: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    model = LlamaForCausalLM.from_pretrained(series / "run" / "checkpoint-100")
    model.save_pretrained(other)
    train_tokenizer(documents(60, seed=9), vocabulary=399).save_pretrained(other)
    asked = ["watch", str(series / "run" / "checkpoint-100"), str(other), "--text", str(series / "held-out.txt")]
    assert exit_code([*asked, *SIZES]) == 2
    assert "has another tokenizer" in capsys.readouterr().err


def run(failed: int | None, alerts: dict[str, int | None]) -> RunLeads:
    return RunLeads("e", "ce", 0, (0.9,), failed, alerts, 5, dict.fromkeys(alerts, 0))


def test_leads_by_hand() -> None:
    runs = [
        run(3, {"entropy": 1, "kl": 3, "top-mass": None, "distinct-2": 5}),
        run(4, {"entropy": 2, "kl": 4, "top-mass": None, "distinct-2": None}),
        run(2, {"entropy": 2, "kl": 1, "top-mass": None, "distinct-2": None}),
        run(None, {"entropy": None, "kl": 1, "top-mass": None, "distinct-2": None}),
        run(None, {"entropy": 1, "kl": 2, "top-mass": None, "distinct-2": None}),
        run(0, {"entropy": 1, "kl": 1, "top-mass": 1, "distinct-2": 1}),  # never learned: counts nowhere
    ]
    found = {signal.signal: signal for signal in signal_leads(runs)}
    entropy = found["entropy"]
    assert (entropy.before, entropy.together, entropy.after, entropy.never) == (2, 1, 0, 0)
    assert entropy.lead == pytest.approx(4 / 3) and entropy.lead_low == 0 and entropy.lead_high == 2
    assert (entropy.false, entropy.sound) == (1, 2) and entropy.verdict == "warns in time"
    assert entropy.false_low == pytest.approx(0.0126, abs=1e-3)  # Clopper and Pearson's, of 1 in 2
    assert found["kl"].verdict == "alerts whether or not it fails"
    assert found["top-mass"].verdict == "does not warn" and found["top-mass"].never == 3
    late = found["distinct-2"]
    assert (late.before, late.together, late.after, late.never) == (0, 0, 1, 2) and late.lead == -2
    assert late.verdict == "does not warn"


def test_a_cost_is_measured() -> None:
    from flows.bench.watch import bench_watch

    found = bench_watch(seconds=1, quick=True)
    assert found["probes"] >= 2 and found["steps"] > 5
    within = found["share"] * found["train_seconds"]  # both are rounded
    assert within == pytest.approx(sum(found["probe_seconds"]), rel=0.15), "the steps without a probe cost nothing"
