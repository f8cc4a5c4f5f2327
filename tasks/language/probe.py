"""A short probe of a model at hand: seconds of a training step, of rewriting and of scoring, and the memory it took.

`python -m tasks.language.probe` reads one request as JSON and answers with `Probed` as JSON: a process of its own, so
that its memory is its own and that as many probes run side by side as there will be workers. A scratch model is probed
with random weights of the same shape, a pretrained one with its own. Token ids are random: what is rewritten is nearly
never accepted, and no token is masked, so times are rather above than below what trained models take. On a CPU a time
is the smaller one of elapsed and computed seconds: those of one thread are what they were on a machine with nothing
else to do, whatever runs beside the probe.
"""

from __future__ import annotations

import itertools
import json
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.config.model import PretrainedModel, ScratchModel
from fortifai_core.config.stages import Training

# Tokens of a training step that is timed; longer steps are carried on from two shorter ones.
STEP_TOKENS = 1024
# A probe of one kind goes on for about so long, once it is known how long a step takes.
SECONDS = 4.0
FIRST_STEPS, MOST_STEPS = 4, 60
FIRST_TOKENS, MOST_TOKENS = 256, 4096


class Moment(NamedTuple):
    """Of two clocks: what elapses, and what this process computes in all its threads."""

    elapsed: float
    computed: float

    @classmethod
    def now(cls) -> Moment:
        return cls(time.perf_counter(), time.process_time())

    def until(self, end: Moment, *, device: str) -> float:
        """Seconds to a later moment."""
        elapsed = end.elapsed - self.elapsed
        return elapsed if device == "cuda" else min(elapsed, end.computed - self.computed)

    def since(self, *, device: str) -> float:
        return self.until(Moment.now(), device=device)


class Step(NamedTuple):
    """One optimizer step: its seconds, and the most memory that the process had."""

    seconds: float
    memory: float


@dataclass(frozen=True)
class Probed:
    """What a probe measured.

    Attributes:
        parameters: weights of the model; `trained` of them are trained, `products` take part in products of matrices
            for every token (all but an embedding that is no head).
        base_step, step: seconds of an optimizer step of M_-1's training (0 for a pretrained model), and of M_i's.
        start: seconds of a training beside its steps and checkpoints; `checkpoint`: seconds of one of these.
        load: seconds until a saved model is ready.
        rewrite: seconds of a rewritten token, of which `accepted` is the share taken over, and which takes `read`
            tokens through the model.
        score: seconds of a token that is scored or read as context.
        memory: most bytes that training or rewriting takes, as measured and carried on to the whole batch; of several
            processes that share a training, those of one.
    """

    parameters: int
    trained: int
    products: int
    base_step: float
    step: float
    start: float
    checkpoint: float
    load: float
    rewrite: float
    accepted: float
    read: float
    score: float
    memory: float


def probe(
    config: ExperimentConfig, *, vocabulary: int, documents: list[int], question: tuple[int, int], device: str
) -> Probed:
    """Train a few steps, rewrite a few blocks, score a batch.

    Args:
        vocabulary: entries of the tokenizer, for a scratch model.
        documents: lengths of some documents, in tokens.
        question: tokens of a question's context and of one of its answers.
    """
    import numpy as np

    from fortifai_core.language.rewriting.blocks import Rewriting, Statistics, TokenisedDocument, plan_blocks
    from fortifai_core.language.rewriting.regenerate import regenerate
    from fortifai_core.language.scoring import log_probabilities, text_setting
    from fortifai_core.language.shared_contexts import ScoredSequence
    from storage.sources.pretrained import pretrained
    from storage.tables.models import cast, load_model
    from tasks.language.regenerate import POSITIONS
    from tasks.language.train import _with_adapter, new_model, pretraining_of

    settings = config.model
    if isinstance(settings, PretrainedModel):
        model = pretrained(settings).fetch_model(dtype=settings.dtype)
    else:
        model = new_model(settings, vocabulary=vocabulary, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    size = text_setting(model, "vocab_size") or vocabulary
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    parameters = sum(p.numel() for p in model.parameters())
    products = parameters - (0 if embedding is head else embedding.numel())
    draw = np.random.default_rng(0)

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        started = Moment.now()
        load_model(Path(folder)).to(device)
        load = started.since(device=device)
    if settings.lora is not None:
        model = _with_adapter(model, settings.lora, seed=0)
    model.to(device)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)

    base = _step(model, pretraining_of(settings), size, device, draw) if isinstance(settings, ScratchModel) else None
    step = _step(model, config.training, size, device, draw, processes=config.runtime.processes)
    start, checkpoint = _beside_steps(model, config.training, size, device, draw)

    kept = str(model.dtype).removeprefix("torch.")
    cast(model, config.regeneration.dtype)

    def rewrite(tokens: int) -> tuple[float, Statistics, int]:
        texts: list[TokenisedDocument] = []
        due = 0
        while due < tokens:
            length = documents[len(texts) % len(documents)]
            texts.append(TokenisedDocument(str(len(texts)), len(texts), draw.integers(1, size, length).tolist()))
            of_text = sum(block.length for block in plan_blocks(texts[-1:], config.regeneration))
            due += of_text
            if len(texts) >= len(documents) and not due:
                return 0.0, Statistics(), 0
        rewriting = Rewriting(
            config.regeneration,
            seed_parts=("probe",),
            suppress=[0],
            pad_id=0,
            batch_blocks=config.runtime.inference_batch,
            budget=config.runtime.inference_batch * POSITIONS,
        )
        done, started = Statistics(), Moment.now()
        regenerate(model, texts, rewriting, statistics=done)
        return started.since(device=device), done, due

    seconds, done, due = rewrite(FIRST_TOKENS)
    if due and seconds < SECONDS / 2:
        seconds, done, due = rewrite(max(FIRST_TOKENS, min(MOST_TOKENS, round(due * SECONDS / seconds))))
    rewriting = config.regeneration
    read = (done.read + done.decoded) / max(1, done.rewritten)
    if rewriting.engine_used == "reference":
        rows = rewriting.beams if rewriting.decoding == "beam" else 1
        read = rewriting.context_tokens / rewriting.block_tokens + rows

    def score(questions: int) -> tuple[float, int]:
        contexts = [draw.integers(1, size, max(1, question[0])).tolist() for _ in range(questions)]
        sequences = [
            ScoredSequence([*context, *draw.integers(1, size, question[1]).tolist()], question[1])
            for context in contexts
            for _ in range(2)
        ]
        started = Moment.now()
        log_probabilities(model, sequences, batch=config.runtime.inference_batch)
        return started.since(device=device), sum(len(one.tokens) for one in sequences)

    cast(model, config.evaluation.dtype or kept)
    spent, scored = score(8)
    if spent < SECONDS / 2:
        spent, scored = score(max(8, min(128, round(8 * SECONDS / spent))))
    memory = max(step.memory, base.memory if base else 0.0, _memory(device))
    return Probed(
        parameters=parameters,
        trained=trained,
        products=products,
        base_step=base.seconds if base else 0.0,
        step=step.seconds,
        start=start,
        checkpoint=checkpoint,
        load=load,
        rewrite=seconds / max(1, due),
        accepted=done.accepted / max(1, done.rewritten),
        read=read,
        score=spent / scored,
        memory=memory,
    )


def _memory(device: str) -> float:
    if device == "cuda":
        import torch

        return float(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024.0 if sys.platform == "linux" else 1.0)


def _train(
    model: Any, training: Training, size: int, device: str, draw: Any, *, rows: int, steps: int, saves: int = 1
) -> tuple[list[float], float]:
    """Seconds of each step but the first, and of the whole call."""
    from fortifai_core.language.training import train_model
    from kernels import install_loss_head

    text = [{"input_ids": draw.integers(1, size, training.sequence_length).tolist()} for _ in range(rows * steps)]
    update = {"epochs": 1.0, "batch_size": rows, "gradient_accumulation": 1, "checkpoint": "last"}
    update |= {"loss_on": "all"}  # the text here is of nobody
    ends: list[Moment] = []
    model.train()
    hook = install_loss_head(model)
    started = Moment.now()
    try:
        with tempfile.TemporaryDirectory() as folder:
            train_model(
                model,
                text,
                config=training.model_copy(update=update),
                seed=0,
                pad_id=0,
                workspace=Path(folder),
                save_steps=max(1, steps // saves),
                device=device,
                on_progress=lambda *_: ends.append(Moment.now()),
            )
            spent = started.since(device=device)
    finally:
        hook.remove()
        model.eval()
    return [before.until(after, device=device) for before, after in itertools.pairwise(ends)], spent


def _step(model: Any, training: Training, size: int, device: str, draw: Any, *, processes: int = 1) -> Step:
    """An optimizer step of the whole batch, where that is large from two smaller ones.

    Its memory is that of one of the processes that share each micro-batch.
    """
    whole = training.batch_size
    rows = min(whole, max(2, STEP_TOKENS // training.sequence_length))

    def timed(rows: int) -> Step:
        first, _ = _train(model, training, size, device, draw, rows=rows, steps=FIRST_STEPS)
        steps = min(MOST_STEPS, int(SECONDS / 2 / max(1e-6, min(first))))
        if steps > FIRST_STEPS:
            first, _ = _train(model, training, size, device, draw, rows=rows, steps=steps)
        return Step(sum(first) / len(first), _memory(device))

    if rows == whole:
        return timed(rows)
    small, large = timed(max(1, rows // 2)), timed(rows)
    more = (whole - rows) / (rows - max(1, rows // 2))
    # a process's part of a micro-batch is what is in memory at once
    at_once = whole / training.gradient_accumulation / processes
    held = max(0.0, at_once - rows) / (rows - max(1, rows // 2))
    seconds = large.seconds + more * max(0.0, large.seconds - small.seconds)
    return Step(seconds, large.memory + held * max(0.0, large.memory - small.memory))


def _beside_steps(model: Any, training: Training, size: int, device: str, draw: Any) -> tuple[float, float]:
    """Seconds that a training takes to begin and end, and those of a checkpoint."""
    one = {"rows": 1, "steps": 4}
    steps, few = _train(model, training, size, device, draw, **one, saves=1)
    _, many = _train(model, training, size, device, draw, **one, saves=4)
    checkpoint = max(0.0, many - few) / 3
    return max(0.0, few - 4 * min(steps) - checkpoint), checkpoint


def main() -> None:
    """One request on standard input, one answer on standard output."""
    request = json.load(sys.stdin)
    answer, sys.stdout = sys.stdout, sys.stderr
    config = ExperimentConfig.model_validate(request.pop("config"))
    print(json.dumps(asdict(probe(config, **request))), file=answer)


if __name__ == "__main__":
    main()
