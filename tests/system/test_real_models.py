"""Real pretrained models, where `make models` has been run: they read text as well as they should."""

from __future__ import annotations

import itertools
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from storage.sources.model_packages import PACKAGES
from storage.sources.pretrained import Pretrained, root
from storage.sources.textfiles import numbered_lines

DATA = os.environ.get("FORTIFAI_DATA", "")
# Of the first 8,192 tokens of raw WikiText-2 validation, as another program found it. Its windows are not known: of
# those tried, these alone (empty lines kept, a token of beginning before each window) give both figures within 1%.
PERPLEXITY = {"smollm2": 19.06, "gemma-270m": 15.38}
TOKENS, WINDOW = 8192, 1024


def perplexity(model: Any, tokenizer: Any) -> float:
    """Of the text as it is, in windows of 1,024 tokens, each after the model's token of beginning."""
    lines = (line for _, line in numbered_lines(Path(DATA) / "wikitext-2-raw-v1" / "validation.txt.gz"))
    text = "\n".join(itertools.islice(lines, 700))
    before = [tokenizer.bos_token_id]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][:TOKENS]
    assert len(ids) == TOKENS
    total, count = 0.0, 0
    for start in range(0, TOKENS, WINDOW):
        read = torch.tensor([[*before, *ids[start : start + WINDOW]]])
        with torch.no_grad():
            logits = model(read).logits[0, :-1]
        total += float(torch.nn.functional.cross_entropy(logits.float(), read[0, 1:], reduction="sum"))
        count += read.shape[1] - 1
    return math.exp(total / count)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.skipif(not DATA, reason="reads the local mirror: FORTIFAI_DATA")
@pytest.mark.parametrize("name", PERPLEXITY)
def test_a_real_model_reads_text_as_well_as_it_should(name: str) -> None:
    package = next(package for package in PACKAGES if package.name == name)
    if not package.path(root()).is_file():
        pytest.skip("needs the weights: make models")
    found = Pretrained.find(package.hub_id, gguf_file=package.file)
    found.check(longest=WINDOW)
    measured = perplexity(found.fetch_model(dtype="float32"), found.fetch_tokenizer())
    assert measured == pytest.approx(PERPLEXITY[name], rel=0.01)
