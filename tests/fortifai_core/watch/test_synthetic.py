"""The share of synthetic documents: by hand, on mixtures of known share, and where nothing can be told."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fortifai_core.errors import InputError
from fortifai_core.watch.synthetic import Confidence, share_of
from invented import documents


def test_a_mixture_by_hand() -> None:
    real, own = np.full(20, -3.0), np.full(20, -1.0)
    text = np.array([-3.0] * 30 + [-1.0] * 10)
    found = share_of(text, real, own)
    assert found.share.estimate == pytest.approx(0.25) and found.gap.estimate == 2 and found.told
    assert 0.08 < found.share.low < 0.17 and 0.33 < found.share.high < 0.42  # a binomial's: 25% ± 13
    assert str(found).startswith("synthetic: 25% (")


def test_the_interval_holds_the_share_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = {}
    for share in (0.0, 0.3, 1.0):
        hits = []
        for _ in range(100):
            real, own = rng.normal(-3, 0.5, 100), rng.normal(-2.3, 0.4, 100)
            written = rng.random(150) < share
            text = np.where(written, rng.normal(-2.3, 0.4, 150), rng.normal(-3, 0.5, 150))
            found = share_of(text, real, own, seed=int(rng.integers(1 << 30)))
            hits.append(found.share.low <= written.mean() <= found.share.high)
        held[share] = np.mean(hits)
    assert min(held.values()) >= 0.90, held


def test_a_model_that_finds_its_own_text_no_likelier_cannot_tell() -> None:
    rng = np.random.default_rng(1)
    found = share_of(rng.normal(-3, 1, 40), rng.normal(-3, 1, 40), rng.normal(-3, 1, 40))
    assert not found.told and str(found).startswith("cannot tell")
    wide = share_of(rng.normal(-2.9, 1, 16), rng.normal(-3, 0.3, 60), rng.normal(-2.5, 0.3, 60))
    assert not wide.told and "cannot tell: anything from" in str(wide)


def test_too_few_documents_are_refused() -> None:
    with pytest.raises(InputError, match="text = '5 documents'"):
        share_of(np.zeros(5), np.zeros(20), np.zeros(20))


def test_confidence_is_of_what_comes_after_the_prompt(model: Any, tokenizer: Any) -> None:
    confidence = Confidence(model, tokenizer, tokens=40)
    windows = confidence.windows(documents(6, seed=4, sentences=12))
    assert len(windows) == 6 and {len(window) for window in windows} == {40}
    model.eval()
    with torch.no_grad():
        log_p = model(torch.tensor([windows[0]])).logits[0, :-1].log_softmax(-1)
    wanted = np.mean([log_p[place - 1, windows[0][place]].item() for place in range(16, 40)])
    assert confidence.of(windows)[0] == pytest.approx(wanted, rel=1e-5)
    own = confidence.own(windows)
    assert [window[:16] for window in own] == [window[:16] for window in windows]
    assert {len(window) for window in own} == {40} and own == confidence.own(windows) != confidence.own(windows, seed=1)


def test_own_text_of_a_low_temperature_is_told_from_real_text(model: Any, tokenizer: Any, batches: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in batches * 20:
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    confidence = Confidence(model, tokenizer, tokens=40, temperature=0.6)
    real, others = (
        confidence.windows(documents(60, seed=5, sentences=12)),
        confidence.windows(documents(60, seed=6, sentences=12)),
    )
    own = confidence.of(confidence.own(real))
    mixture = np.concatenate([confidence.of(others[:30]), confidence.of(confidence.own(others[30:], seed=1))])
    found = share_of(mixture, confidence.of(real), own)
    assert found.told and found.share.low <= 0.5 <= found.share.high
    nothing = share_of(confidence.of(others), confidence.of(real), own)
    assert nothing.share.low <= 0.02
