"""`fortifai bench regeneration`: the aligned engine against the reference, `generate` and continuous batching.

Every number is tokens rewritten per second, and ratios are taken within the run. What speed depends on is the shape
of the model, of contexts and blocks, and how much of a draft is accepted; it does not depend on what the weights have
learned. So the weights are random, and the old text is written so that acceptance is controlled: token by token the
model's own greedy choice, or with a fixed probability another token. What each row accepted is measured and printed.

`generate` and continuous batching get equal prompts of exactly C tokens and no more work than to append B greedy
tokens; `generate` in the best of several batch sizes and kinds of cache. They know no drafts: acceptance does not
change their speed. The bound is one forward pass over the text, in batches, without logits.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fortifai_core.config.stages import Regeneration
from fortifai_core.language.rewriting.blocks import Rewriting, Statistics, TokenisedDocument, plan_blocks
from fortifai_core.language.rewriting.regenerate import regenerate
from fortifai_core.outside import markup

SHAPES: dict[str, dict[str, Any]] = {
    "demo": {"vocab_size": 1024, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4},
    "wikitext": {"vocab_size": 4096, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3},
    "1b": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}
# shares of the old text that are the model's own choice; with 32 tokens a block 0.995 makes an acceptance of about
# 0.92, 0.96 one of about 0.5
AGREEMENT = (0.995, 0.96, 0.0)
SPECIAL = [0, 1, 2]


@dataclass(frozen=True)
class Size:
    """What is rewritten: `documents` of `length` tokens, in blocks after contexts, and how often it is timed."""

    documents: int
    length: int
    context: int
    block: int
    batches: tuple[int, ...]
    repeats: int


FULL = Size(documents=12, length=1088, context=512, block=32, batches=(4, 8, 16, 32, 64), repeats=3)
QUICK = Size(documents=4, length=160, context=64, block=16, batches=(8, 24), repeats=1)
# the demo's own: documents of some 150 tokens, rewritten from their 17th token on, sampled. The temperature is not the
# demo's 0.7 but so low that what is drawn is nearly always the greedy choice, and acceptance is controlled here too
DEMO: dict[str, Any] = {
    "block_tokens": 16,
    "context_tokens": 48,
    "head_tokens": 16,
    "decoding": "sample",
    "temperature": 0.0001,
}


def bench_regeneration(
    *, shape: str, device: str, quick: bool, say: Callable[[str], None] = lambda _: None
) -> list[dict[str, Any]]:
    """Rows of one table: what, acceptance, tokens per second (median), and the ratio of `aligned` to it.

    Args:
        shape: a name in `SHAPES`.
        quick: a tiny size that takes about a minute; shows that all of it runs, and nothing else.
        say: told what is being done.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = QUICK if quick else FULL
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, **SHAPES[shape]}
    model: Any = LlamaForCausalLM(LlamaConfig(max_position_embeddings=4096, pad_token_id=0, **heads))
    model.to(device, torch.bfloat16 if shape == "1b" else torch.float32).eval()
    rows: list[dict[str, Any]] = []
    paper = Regeneration(block_tokens=size.block, context_tokens=size.context, chunk_tokens=max(512, size.length))
    # no inference mode around it all: continuous batching has a thread of its own, which would be outside of it
    for agreement in AGREEMENT:
        say(f"writing text of which the model agrees with {agreement:.1%} of the tokens")
        documents = write_text(model, size, agreement=agreement)
        cases: dict[str, Case] = {
            f"aligned, {context}": engine_case(model, documents, paper, engine="aligned", context=context)
            for context in ("document", "cut")
        }
        if agreement == 0:
            cases["(a) reference engine"] = engine_case(model, documents, paper, engine="reference")
            cases |= other_cases(model, documents, paper, batches=size.batches, say=say)
        rows += timed(cases, size.repeats, f"C={size.context}, B={size.block}, greedy", say)
    demo = Regeneration.model_validate(DEMO)
    small = Size(80 if not quick else 8, 150, 48, 16, (), size.repeats)
    documents = write_text(model, small, agreement=0.6, ragged=True)
    engines = [("aligned", "document"), ("aligned", "cut"), ("reference", "document"), ("reference", "cut")]
    cases = {f"{e}, {c}": engine_case(model, documents, demo, engine=e, context=c) for e, c in engines}
    rows += timed(cases, small.repeats, "the demo's shape: documents of about 150, C=48, B=16, sampled", say)
    return with_ratios(rows)


Case = Callable[[], tuple[int, float | None]]


def engine_case(
    model: Any,
    documents: list[TokenisedDocument],
    config: Regeneration,
    *,
    suppress: list[int] = SPECIAL,
    pad_id: int = 0,
    **options: str,
) -> Case:
    """One rewriting; gives the tokens rewritten and the share accepted. options: fields of `config` to change."""
    chosen = Regeneration.model_validate({**config.model_dump(), **options})
    rewriting = Rewriting(chosen, seed_parts=("bench",), suppress=suppress, pad_id=pad_id)

    def case() -> tuple[int, float | None]:
        done = Statistics()
        regenerate(model, documents, rewriting, statistics=done)
        tokens = sum(block.length for block in plan_blocks(documents, chosen))
        return tokens, done.accepted / tokens if chosen.engine == "aligned" else None

    return case


def other_cases(
    model: Any,
    documents: list[TokenisedDocument],
    config: Regeneration,
    *,
    batches: tuple[int, ...],
    say: Callable[[str], None],
    pad_id: int = 0,
) -> dict[str, Case]:
    """`generate` at its best, continuous batching, and the bound: all blind to drafts.

    batches: how many rows of `generate` are tried; the fastest is timed. Where no whole block has a whole context
    before it, only the bound is there.
    """
    import torch
    import transformers

    longest = min(2048, model.config.get_text_config().max_position_embeddings)
    pieces = [d.tokens[i : i + longest] for d in documents for i in range(0, len(d.tokens), longest)]
    pieces.sort(key=len)

    def bound() -> tuple[int, float | None]:
        rows = max(1, 2048 // len(pieces[-1]))
        for first in range(0, len(pieces), rows):
            part = [torch.tensor(list(piece)) for piece in pieces[first : first + rows]]
            ids = torch.nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=pad_id).to(model.device)
            with torch.inference_mode():
                model.base_model(input_ids=ids, use_cache=False)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return sum(b.length for b in plan_blocks(documents, config)), None

    context, length = config.context_tokens, config.block_tokens
    blocks = [b for b in plan_blocks(documents, config) if b.length == length and b.start >= context]
    if not blocks:
        say(f"generate and continuous batching are left out: no whole block of {length} tokens has {context} before it")
        return {"bound: one forward pass": bound}
    settings_of: Any = transformers.GenerationConfig
    prompts = [list(documents[b.document].tokens[b.start - context : b.start]) for b in blocks]
    settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": length, "pad_token_id": pad_id}
    settings["repetition_penalty"] = config.repetition_penalty
    if config.decoding == "sample":
        settings |= {name: getattr(config, name) for name in ("temperature", "top_p", "top_k")} | {"do_sample": True}
    elif config.decoding == "beam":
        settings["num_beams"] = config.beams
    model.generation_config = settings_of()  # no id ends a text: each prompt gets all its tokens

    def generate(prompts: list[list[int]], *, batch: int, cache: str | None) -> tuple[int, float | None]:
        for first in range(0, len(prompts), batch):
            ids = torch.tensor(prompts[first : first + batch], device=model.device)
            chosen = settings_of(**settings, cache_implementation=cache)
            output = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=chosen)
            if output.shape[1] != context + length:
                raise RuntimeError(f"generate gave {output.shape[1] - context} tokens for {length}")
        return len(prompts) * length, None

    speeds = {}
    for cache in (None, "static"):
        for batch in [size for size in batches if size <= len(prompts)] or [len(prompts)]:
            started = time.perf_counter()
            tokens, _ = generate(prompts[: max(batches)], batch=batch, cache=cache)
            speeds[batch, cache] = tokens / (time.perf_counter() - started)
            say(f"generate, {batch} rows, {cache or 'dynamic'} cache: {speeds[batch, cache]:,.0f} tokens/s")
    batch, cache = max(speeds, key=lambda tried: speeds[tried])

    def continuous() -> tuple[int, float | None]:
        # on a CPU it has no memory to size itself by: pages for some eighty blocks, in batches as in the first pass
        limits: dict[str, Any] = {} if model.device.type == "cuda" else {"num_blocks": 256, "max_batch_tokens": 1024}
        output = model.generate_batch(
            prompts,
            generation_config=settings_of(**settings, eos_token_id=-1),
            continuous_batching_config=transformers.ContinuousBatchingConfig(**limits),
            progress_bar=False,
        )
        counts = {len(request.generated_tokens) for request in output.values()}
        if counts != {length} or len(output) != len(prompts):
            raise RuntimeError(f"continuous batching gave {len(output)} of {len(prompts)} blocks, of {counts} tokens")
        return len(prompts) * length, None

    return {
        f"(b) generate, {batch}, {cache or 'dynamic'}": lambda: generate(prompts, batch=batch, cache=cache),
        "(c) continuous batching": continuous,
        "bound: one forward pass": bound,
    }


def timed(cases: dict[str, Case], repeats: int, task: str, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Cases in turn, `repeats` times after a first round that warms up; medians. One that cannot run says why."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    last: dict[str, tuple[int, float | None]] = {}
    failed: dict[str, str] = {}
    for turn in range(repeats + 1):
        for name, case in cases.items():
            if name in failed:
                continue
            say(f"{task}: {name}, {'warming up' if turn == 0 else f'{turn} of {repeats}'}")
            started = time.perf_counter()
            try:
                last[name] = case()
            except (RuntimeError, ValueError, NotImplementedError, ImportError, AttributeError) as error:
                if not name.startswith("(c)"):
                    raise
                failed[name] = f"does not run here: {type(error).__name__}: {error}"
                continue
            if turn:
                seconds[name].append(time.perf_counter() - started)
    rows: list[dict[str, Any]] = []
    for name in cases:
        rows.append({"task": task, "what": name, "acceptance": None, "tokens_per_second": None})
        if name in failed:
            rows[-1]["note"] = failed[name]
        else:
            tokens, rows[-1]["acceptance"] = last[name]
            rows[-1]["tokens_per_second"] = tokens / statistics.median(seconds[name])
    return rows


def with_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """To each aligned row: how many times as fast as every other kind of row of its task."""
    for row in rows:
        others = [o for o in rows if o["task"] == row["task"] and not o["what"].startswith("aligned")]
        if row["what"].startswith("aligned"):
            speeds = {o["what"].split()[0].strip(":") if o["what"][0] in "(b" else o["what"]: o for o in others}
            row["times"] = {
                name: row["tokens_per_second"] / o["tokens_per_second"]
                for name, o in speeds.items()
                if o["tokens_per_second"]
            }
    return rows


def write_text(model: Any, size: Size, *, agreement: float, ragged: bool = False) -> list[TokenisedDocument]:
    """Documents after whose head (a context, or in ragged ones 16 tokens) the model agrees with that share of tokens.

    At agreement 0 no token is the model's choice.
    """
    import torch
    from transformers import DynamicCache

    from fortifai_core.language.rewriting.attention import cache_keyword

    random = np.random.default_rng(0)
    vocabulary = model.config.vocab_size
    head = 16 if ragged else size.context
    text = torch.tensor(random.integers(3, vocabulary, (size.documents, head)), device=model.device)
    keyword, cache, fed = cache_keyword(model), DynamicCache(), text
    for _ in range(size.length - head):
        with torch.no_grad():
            logits = model(input_ids=fed, **{keyword: cache}, logits_to_keep=1).logits[:, -1].float()
        logits[:, SPECIAL] = -torch.inf
        other = torch.tensor(random.random(size.documents) >= agreement, device=model.device)
        drawn = torch.tensor(random.integers(3, vocabulary, size.documents), device=model.device)
        chosen = logits.argmax(-1)
        drawn = torch.where(drawn == chosen, 3 + (drawn - 2) % (vocabulary - 3), drawn)
        fed = torch.where(other, drawn, chosen)[:, None]
        text = torch.cat([text, fed], dim=1)
    lengths = random.integers(int(0.7 * size.length), size.length + 1, size.documents)
    return [TokenisedDocument(f"d{i}", i, row[: lengths[i]] if ragged else row) for i, row in enumerate(text.tolist())]


def regeneration_table(rows: list[dict[str, Any]], console: Console) -> None:
    """One table for each task; a column for every ratio."""
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        ratios = list(dict.fromkeys(name for row in of_task for name in row.get("times", {})))
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("", no_wrap=True)
        for head in ("accepted", "tokens/s", *(f"× {name.replace('reference,', 'ref.')}" for name in ratios)):
            table.add_column(head, justify="right")
        for row in of_task:
            speed, accepted = row["tokens_per_second"], row["acceptance"]
            times = row.get("times", {})
            table.add_row(
                row["what"],
                "" if accepted is None else f"{accepted:.0%}",
                f"{speed:,.0f}" if speed else "–",
                *(f"{times[name]:.2f}" if name in times else "" for name in ratios),
            )
        console.print(f"\n{task}", highlight=False)
        console.print(table)
        for row in of_task:
            if "note" in row:
                console.print(f"[dim]{markup(row['what'])} {markup(row['note'])}[/]", highlight=False)
