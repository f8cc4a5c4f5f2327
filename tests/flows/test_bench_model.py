"""`fortifai bench model`: all of it runs on a tiny model, compares equal things, and refuses what it cannot do."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from flows.bench.model import bench_model, taken, tiny
from flows.cli.app import app
from fortifai_core.errors import InputError, StageFailed


def test_every_part_has_a_peer_a_ratio_and_a_profile() -> None:
    asked = ["bench", "model", "--quick", "--json", "--blocks", "2", "--threads", "1"]
    threads = torch.get_num_threads()
    try:
        done = CliRunner().invoke(app, asked)
    finally:
        torch.set_num_threads(threads)
    assert done.exit_code == 0, done.output
    rows: list[dict[str, Any]] = json.loads(done.stdout[done.stdout.index("[\n") :])
    assert [row["part"].split(",")[0] for row in rows] == ["training"] * 3 + ["rewriting"] * 3 + ["scoring"] * 3
    for part in {row["part"] for row in rows}:
        of_part = [row for row in rows if row["part"] == part]
        assert any(row["ratio"] == 1 for row in of_part), "the best peer to itself"
        assert all(row["seconds"] > 0 and sum(row["profile"].values()) == pytest.approx(1) for row in of_part)
    (off,) = [row["off_by"] for row in rows if "off_by" in row]
    assert off < 2e-3, "nats between the log-probabilities of both"


def test_scores_that_are_not_lm_evals_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = tiny()
    monkeypatch.setattr("flows.bench.model.TOLERANCE", -1.0)
    with pytest.raises(StageFailed, match="off lm-eval's"):
        bench_model(model, tokenizer, parts=["scoring"], questions=2, repeats=1)


def test_a_ratio_is_to_the_fastest_peer_round_by_round() -> None:
    seconds = {
        "ours": iter([9.0, 1.0, 2.0, 1.0]),
        "slow": iter([1.0, 9.0, 9.0, 9.0]),
        "fast": iter([9.0, 2.0, 6.0, 2.0]),
    }
    cases = {name: (lambda values=values: next(values)) for name, values in seconds.items()}
    rows = {row["what"]: row for row in taken(cases, 3, "part", {"slow", "fast"}, lambda _: None)}  # type: ignore[arg-type]
    assert rows["ours"]["seconds"] == 1.0 and rows["ours"]["ratio"] == 2.0 and rows["fast"]["ratio"] == 1.0


@pytest.mark.parametrize(
    ("options", "field"),
    [([], "--model"), (["--quick", "--part", "all"], "--part"), (["--quick", "--dtype", "int8"], "--dtype")],
)
def test_what_it_cannot_do_is_refused(options: list[str], field: str) -> None:
    refused = CliRunner().invoke(app, ["bench", "model", *options])
    assert isinstance(refused.exception, InputError) and field in str(refused.exception)
