"""The benchmark's own parts: constructed batches, what is reported, and memory measured in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from kernels import bench, bench_heads
from kernels.bench_heads import Case

CASE = Case("test", 64, 64, 256, "float32", rounds=1)


@pytest.mark.parametrize("live", bench_heads.LIVE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_batches_have_the_live_fraction_they_were_made_for(live: float, dtype: str) -> None:
    batch = bench_heads.make_batch(Case("test", 64, 64, 512, dtype), live, "cpu")
    assert bench_heads.live_share(batch) == live


def test_every_head_computes_the_same_at_f_1_and_the_masked_ones_below() -> None:
    entries = bench_heads.entries("cpu", lambda line: None, quick=True)
    names = {entry.name for entry in entries}
    peers = {"linear + cross_entropy", "torch linear_cross_entropy, chunked", "TRL, chunked nll"}
    assert {"this package", *peers} <= names
    batches = {live: bench_heads.make_batch(CASE, live, "cpu") for live in bench_heads.LIVE}
    for entry in entries:
        batch = batches[entry.live]
        nll = torch.nn.functional.cross_entropy(batch.hidden @ batch.weight.T, batch.targets, reduction="none").detach()
        expected = (nll * (nll.neg().exp() <= bench_heads.GAMMA)).mean() if not entry.peer else nll.mean()
        torch.testing.assert_close(entry.head(batch).detach(), expected, msg=f"{entry.name}, f = {entry.live}")


def test_a_case_reports_times_floor_and_errors() -> None:
    said: list[str] = []
    entries = bench_heads.entries("cpu", said.append, quick=True)
    result = bench.run_case(CASE, entries, device="cpu", say=said.append)
    assert said[0].startswith("skipped in a quick run: torch.compile")
    for row in result["heads"]:
        assert row["seconds"] > 0 and row["floor_seconds"] > 0
        assert row["times_floor"] == pytest.approx(row["seconds"] / row["floor_seconds"])
    ours = [row for row in result["heads"] if row["head"] == "this package"]
    assert [row["measured_live"] for row in ours] == [1.0, 0.5, 0.25]
    assert ours[1]["floor_seconds"] / ours[0]["floor_seconds"] == pytest.approx(2 / 3)
    best = min((row for row in result["heads"] if row["peer"]), key=lambda row: row["seconds"])
    assert best["speed_to_best_peer"] == 1
    assert all(error < 1e-4 for error in result["gradient_error"].values())
    text = bench.table(result)
    assert "this package" in text and "GFLOP/s" in text
    json.dumps(result)


def test_a_peer_out_of_the_running_is_timed_no_further_and_a_busy_moment_hits_both(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, calls = [0.0], dict.fromkeys(("ours", "best", "behind", "hopeless"), 0)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def head(name: str, seconds: float) -> Any:
        def call() -> None:
            calls[name] += 1
            busy = 3 if calls[name] > 4 else 1  # from the fifth round on
            now[0] += seconds * busy

        return call

    runs = {0: head("ours", 1.0), 1: head("best", 2.0), 2: head("behind", 3.2), 3: head("hopeless", 4.5)}
    taken = bench.rounds_of(runs, 7, "cpu", peers={1, 2, 3})
    assert calls == {"ours": 7, "best": 7, "behind": 3, "hopeless": 1}
    assert bench.paired(taken[1], taken[0]) == pytest.approx(2)
    assert bench.paired(taken[1], taken[2]) == pytest.approx(2 / 3.2)


def test_cases_of_one_type_and_a_type_that_no_case_is_in(capsys: pytest.CaptureFixture[str]) -> None:
    both = bench.cases_of("cpu", quick=False)
    assert [case for case in both if case.dtype == "bfloat16"] == bench.cases_of("cpu", quick=False, dtype="bfloat16")
    assert {case.dtype for case in both} == {"float32", "bfloat16"}
    shapes = {(case.rows, case.width, case.vocabulary) for case in bench.cases_of("cuda", quick=False)}
    assert (8192, 4096, 151936) in shapes  # at which others publish their times
    with pytest.raises(SystemExit):
        bench.main(["--device", "cuda", "--dtype", "float32"])
    assert "--dtype float32: no case on cuda" in capsys.readouterr().err


def test_memory_is_measured_in_a_process_of_its_own() -> None:
    # eager holds several times the logits; a chunk holds a part of them
    case = Case("test", 2048, 8, 16384, "float32")
    entries = {(e.name, e.live): e for e in bench_heads.entries("cpu", lambda line: None, quick=True)}
    logits = 4 * case.rows * case.vocabulary
    eager = bench.peak(case, entries["linear + cross_entropy", 1.0], "cpu")
    assert 1.8 * logits < eager < 4 * logits


def test_the_command_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    from flows.cli.app import app
    from fortifai_core.errors import InputError

    unknown = CliRunner().invoke(app, ["bench", "speed"])
    assert unknown.exit_code == 2 and "speed" in unknown.output
    refused = CliRunner().invoke(app, ["bench", "kernels", "--plot", str(tmp_path / "x.jpg")])
    assert isinstance(refused.exception, InputError)


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    heads = [
        {"head": "this package", "live": 0.5, "peer": False, "seconds": 1.0, "speed_to_best_peer": 1.5},
        {"head": "linear + cross_entropy", "live": 1.0, "peer": True, "seconds": 1.5, "speed_to_best_peer": 1.0},
        {"head": "broken", "live": 1.0, "peer": True, "failed": "no"},
    ]
    result = {"machine": {"device": "this CPU"}, "cases": [{"title": CASE.title, "heads": heads}]}
    bench.plot(result, tmp_path / "r.svg")
    assert "this package, f = 0.5" in (tmp_path / "r.svg").read_text()
