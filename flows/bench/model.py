"""`fortifai bench model`: training, rewriting and scoring with one model, each against the best that others offer.

All that is compared takes turns within the run, and the median counts. Text and questions are the almanac's. Training
is transformers' Trainer with this package's head and with the model's own; TCE's gamma is the probability below which
a stated share of the tokens lies at first. Rewriting is the aligned engine against batches of `generate`, scoring the
KR-test against lm-eval's multiple choice on the same items, whose log-probabilities are compared as well.
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.bench.regeneration import engine_case, other_cases
from fortifai_core.config.corpus import AlmanacCorpus
from fortifai_core.config.stages import Regeneration, Training
from fortifai_core.corpus.documents import Question
from fortifai_core.errors import StageFailed
from fortifai_core.language.rewriting.blocks import TokenisedDocument
from fortifai_core.outside import markup

PARTS = ("training", "rewriting", "scoring")
LIVE = 0.5  # share of the tokens that TCE leaves, at first
TOLERANCE = 2e-3  # nats, in float32, between a log-probability and lm-eval's
IN_HALF = 0.15  # the same in bfloat16, as a share of the larger
# what a profile's operations are called by
GROUPS = {
    "products": ("mm", "addmm", "bmm", "linear", "matmul"),
    "attention": ("attention",),
    "optimizer": ("adam", "foreach"),
}


def bench_model(
    model: Any,
    tokenizer: Any,
    *,
    parts: Sequence[str] = PARTS,
    contexts: Sequence[int] = (64, 512),
    blocks: int = 16,
    rows: int = 4,
    length: int = 128,
    questions: int = 64,
    dtype: str = "float32",
    repeats: int = 3,
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Rows: part, what, seconds (median), `ratio` (how many times as long the best peer takes), and what else is known.

    Args:
        contexts: C's of the rewriting; `blocks` blocks of 32 tokens are rewritten with each.
        rows, length: sequences in a training step, and tokens in each.
        questions: how many are scored.
        dtype: of training's autocast, and of the weights in rewriting and scoring.

    Raises:
        StageFailed: a log-probability is not lm-eval's.
    """
    from fortifai_core.corpus.almanac.world import generate_almanac
    from storage.tables.models import cast

    source = generate_almanac(AlmanacCorpus(entities=64), splits=2, seed=0)
    text = tokenizer(" ".join(document.text for document in source.documents), add_special_tokens=False)["input_ids"]
    found: list[dict[str, Any]] = []
    if "training" in parts:
        found += training(model, text, rows=rows, length=length, dtype=dtype, repeats=repeats, say=say)
    model = cast(model, dtype).eval()
    if "rewriting" in parts:
        for context in contexts:
            found += rewriting(model, text, context=context, blocks=blocks, repeats=repeats, say=say)
    if "scoring" in parts:
        found += scoring(model, tokenizer, source.questions[:questions], repeats=repeats, say=say)
    return found


def training(
    model: Any, text: list[int], *, rows: int, length: int, dtype: str, repeats: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """A step of the Trainer with three heads. Its learning rate is next to nothing, so that gamma keeps its meaning."""
    import numpy as np

    from fortifai_core.measures.model_drift import target_log_probabilities
    from kernels import install_loss_head, losses

    steps = 3
    data = [{"input_ids": text[n * length : (n + 1) * length]} for n in range(rows)] * steps
    logs = target_log_probabilities(model, [row["input_ids"] for row in data[:rows]], batch=rows)
    gamma = float(np.exp(np.quantile(logs, LIVE)))
    heads = {"Trainer, its own head": None, "ours, f = 1": losses.cross_entropy()}
    heads[f"ours, TCE, f = {LIVE}"] = losses.truncated(gamma)
    config = Training(
        epochs=1, learning_rate=1e-9, batch_size=rows, sequence_length=length, precision=dtype,
        optimizer="adamw_torch_fused",
    )  # fmt: skip
    peaks: dict[str, int | None] = {}

    def case(name: str) -> float:
        hook = None if heads[name] is None else install_loss_head(model, loss=heads[name])
        try:
            seconds, peaks[name] = _steps(model, data, config)
        finally:
            if hook is not None:
                hook.remove()
        return seconds

    cases: dict[str, Callable[[], float | None]] = {name: partial(case, name) for name in heads}
    found = taken(cases, repeats, f"training, {rows} × {length} tokens", {"Trainer, its own head"}, say)
    for row in found:
        row["peak_bytes"] = peaks[row["what"]]
    return found


def _steps(model: Any, data: list[dict[str, Any]], config: Training) -> tuple[float, int | None]:
    """Seconds of a step (median of all but the first), and the memory that it takes beside what was there before."""
    import torch

    from fortifai_core.language.training import train_model

    cuda = model.device.type == "cuda"
    ends: list[float] = []
    before: list[int] = []

    def note(done: int, total: int) -> None:
        if cuda:
            torch.cuda.synchronize()
        if not before:
            before.append(_memory(cuda, reset=True))
        ends.append(time.perf_counter())

    model.train()
    with tempfile.TemporaryDirectory() as folder:
        train_model(
            model, data, config=config, seed=0, pad_id=0, workspace=Path(folder), save_steps=10**9,
            device=model.device.type, on_progress=note,
        )  # fmt: skip
        peak = _memory(cuda, peak=True) - before[0]
    model.zero_grad(set_to_none=True)
    seconds = statistics.median(after - at for at, after in itertools.pairwise(ends))
    return seconds, peak if before[0] else None


def _memory(cuda: bool, *, reset: bool = False, peak: bool = False) -> int:
    """Bytes of this process, or of torch on CUDA: now, or at most since the last reset. 0 where it is not known."""
    import torch

    if cuda:
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    if reset:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    field = "VmHWM" if peak else "VmRSS"
    lines = status.read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def rewriting(
    model: Any, text: list[int], *, context: int, blocks: int, repeats: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The aligned engine with both kinds of contexts, and `generate`."""
    size = 32
    longest = context + blocks * size
    documents = [TokenisedDocument("text", 0, text[:longest])]
    config = Regeneration(block_tokens=size, context_tokens=context, chunk_tokens=max(512, longest))
    ours = {f"aligned, {kind}": engine_case(model, documents, config, engine="aligned", context=kind, suppress=[0])
            for kind in ("document", "cut")}  # fmt: skip
    others = other_cases(model, documents, config, batches=(4, 16), say=say)
    peers = {name: case for name, case in others.items() if name.startswith("(b)")}
    shares: dict[str, float | None] = {}

    def case(name: str, run: Callable[[], tuple[int, float | None]]) -> None:
        _, shares[name] = run()

    cases: dict[str, Callable[[], float | None]] = {
        name: partial(case, name, run) for name, run in {**ours, **peers}.items()
    }
    found = taken(cases, repeats, f"rewriting, C = {context}, {blocks} blocks of {size}", set(peers), say)
    for row in found:
        row["acceptance"] = shares[row["what"]]
    return found


def scoring(
    model: Any, tokenizer: Any, questions: Sequence[Question], *, repeats: int, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The KR-test and lm-eval's multiple choice on the same items, the latter in the best of two batches."""
    from fortifai_core.corpus.tokenization import automatic_bos
    from fortifai_core.measures.retention import score_questions
    from tasks.language.benchmarks import score_choices

    answers: dict[str, list[tuple[float, float]]] = {}

    def ours() -> None:
        scores = score_questions(
            model,
            lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
            questions,
            variant="sum",
            batch=256,
            bos_id=automatic_bos(tokenizer),
        )
        answers["ours"] = [(score.logp_true, score.logp_false) for score in scores]

    def theirs(batch: int) -> None:
        answers["theirs"] = score_choices(model, tokenizer, questions, batch=batch)

    peers = {f"lm-eval, batches of {batch}": partial(theirs, batch) for batch in (8, 64)}
    cases: dict[str, Callable[[], float | None]] = {"KR-test": ours, **peers}
    found = taken(cases, repeats, f"scoring, {len(questions)} questions", set(peers), say)
    pairs = list(zip(itertools.chain(*answers["ours"]), itertools.chain(*answers["theirs"]), strict=True))
    off = max(abs(a - b) for a, b in pairs)
    half = str(model.dtype) != "torch.float32"
    if off > (IN_HALF * max(1.0, *(abs(b) for _, b in pairs)) if half else TOLERANCE):
        raise StageFailed(f"scoring: a log-probability is {off:.3g} nats off lm-eval's")
    found[0]["off_by"] = off
    return found


def taken(
    cases: dict[str, Callable[[], float | None]],
    repeats: int,
    part: str,
    peers: set[str],
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Cases in turn, after a first round that warms up and, of ours, is profiled; a case may say its own seconds.

    The ratio is the median over the rounds, to the fastest peer.
    """
    from torch.profiler import ProfilerActivity, profile

    rounds: dict[str, list[float]] = {name: [] for name in cases}
    shares: dict[str, dict[str, float]] = {}
    for turn, (name, case) in itertools.product(range(repeats + 1), cases.items()):
        say(f"{part}: {name}, {'warming up' if not turn else f'{turn} of {repeats}'}")
        if not turn:
            with profile(activities=[ProfilerActivity.CPU]) as profiled:
                case()
            shares[name] = profile_shares(profiled)
            continue
        started = time.perf_counter()
        own = case()
        rounds[name].append(time.perf_counter() - started if own is None else own)
    best = min(peers, key=lambda name: statistics.median(rounds[name]))
    return [
        {
            "part": part,
            "what": name,
            "seconds": statistics.median(seconds),
            "ratio": statistics.median(b / a for a, b in zip(seconds, rounds[best], strict=True)),
            "profile": shares[name],
        }
        for name, seconds in rounds.items()
    ]


def profile_shares(profiled: Any) -> dict[str, float]:
    """Share of the processor's time in each of `GROUPS`, and in everything else."""
    totals = dict.fromkeys([*GROUPS, "other"], 0.0)
    for event in profiled.key_averages():
        name = event.key.removeprefix("aten::").lower()
        group = next(
            (g for g, words in GROUPS.items() if (name in words if g == "products" else any(w in name for w in words))),
            "other",
        )
        totals[group] += event.self_cpu_time_total
    whole = sum(totals.values()) or 1.0
    return {group: total / whole for group, total in totals.items()}


def model_table(rows: list[dict[str, Any]], console: Console) -> None:
    """One table for each part."""
    for part in dict.fromkeys(row["part"] for row in rows):
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("", no_wrap=True)
        for head in ("seconds", "× best peer", "MiB", "accepted", *GROUPS, "other"):
            table.add_column(head, justify="right")
        for row in (row for row in rows if row["part"] == part):
            peak, accepted = row.get("peak_bytes"), row.get("acceptance")
            table.add_row(
                markup(row["what"]),
                f"{row['seconds']:.2f}",
                f"{row['ratio']:.2f}",
                "" if peak is None else f"{peak / 2**20:,.0f}",
                "" if accepted is None else f"{accepted:.0%}",
                *(f"{share:.0%}" for share in row["profile"].values()),
            )
        console.print(f"\n{markup(part)}", highlight=False)
        console.print(table)


def tiny() -> tuple[Any, Any]:
    """A small model with random weights and its tokenizer: to see that all of it runs."""
    from fortifai_core.config.model import ScratchModel
    from fortifai_core.corpus.almanac.world import pretraining_text
    from fortifai_core.corpus.tokenization import train_tokenizer
    from tasks.language.train import new_model

    texts = [document.text for document in pretraining_text(AlmanacCorpus(entities=8, pretraining_entities=16))]
    tokenizer = train_tokenizer(texts, vocabulary=300)
    shape = ScratchModel(vocabulary=300, hidden_size=16, heads=2, layers=1, intermediate_size=32, max_positions=1024)
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return new_model(shape, vocabulary=len(tokenizer), **special), tokenizer
