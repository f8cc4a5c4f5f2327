"""`fortifai bench watch`: what a watch costs a training, as a share of its time, at the default cadence."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from fortifai_core.config.corpus import AlmanacCorpus
from fortifai_core.corpus.almanac.world import generate_almanac
from fortifai_core.corpus.packing import pack
from fortifai_core.corpus.tokenization import encode_documents, train_tokenizer

QUICK: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
DEMO: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4, "num_attention_heads": 4}
ROWS, LENGTH = 4, 48  # of a batch, as the demo's


def bench_watch(
    *, seconds: float, quick: bool = False, device: str = "cpu", say: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Train a model of the demo's shape for some time with a watch beside it.

    Args:
        seconds: of training.
        quick: a smaller model and probe: to see that it works.
        say: told of every probe.

    Returns:
        `share`: all seconds within the watch's calls, over all others of the loop; `probes`; `probe_seconds`, of each;
        `steps`; `train_seconds`.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from fortifai_core.watch.probe import Size
    from fortifai_core.watch.watch import Watch

    world = AlmanacCorpus(entities=8, facts=4, pretraining_entities=120, validation_entities=48)
    source = generate_almanac(world, splits=2, seed=0)
    texts = [document.text for document in source.pretraining]
    tokenizer = train_tokenizer(texts, vocabulary=512 if quick else 1024)
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **(QUICK if quick else DEMO))
    )
    model.to(device)
    rows = [list(row) for row in pack(encode_documents(tokenizer, texts), sequence_length=LENGTH, end_of_text=0)]
    every: Any = torch.tensor([row for row in rows if len(row) == LENGTH], device=device)
    batches = every.split(ROWS)
    size = Size(windows=8, window_tokens=32, sample_tokens=8, batch_tokens=64) if quick else Size()
    watch = Watch(tokenizer, [document.text for document in source.validation], size=size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    within: list[float] = []
    began = time.perf_counter()

    def timed(call: Callable[[], Any]) -> None:
        start = time.perf_counter()
        found = call()
        taken = time.perf_counter() - start
        if found is not None:
            so_far = "" if math.isnan(found.cost) else f"; {found.cost:.2%} of the training so far"
            say(f"step {found.step}: a probe of {taken:.2f} s{so_far}")
            probes.append(taken)
        within.append(taken)

    probes: list[float] = []
    timed(lambda: watch.start(model))
    model.train()
    step = 0
    while time.perf_counter() - began - sum(within) < seconds:
        batch = batches[step % len(batches)]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        timed(lambda: watch.step(step))  # noqa: B023 - called at once
    timed(watch.stop)
    trained = time.perf_counter() - began - sum(within)
    return {
        "share": sum(within) / trained,
        "probes": len(probes),
        "probe_seconds": [round(taken, 3) for taken in probes],
        "steps": step,
        "train_seconds": round(trained, 1),
    }
