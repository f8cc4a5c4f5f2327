"""Scoring several continuations of one context in one row: the context is read once, the answers side by side after it.

A row is the context's tokens followed by every answer's. Attention is a tree: each answer sees the context and itself,
never another answer, and its positions go on from the context's end, as if it stood there alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Architectures whose code takes a mask [rows, 1, length, length] and positions as given (tested on tiny ones).
KNOWN = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma3_text"})
# Sharing costs a mask of length² a row; below this share of tokens saved it is not worth its while.
WORTHWHILE = 0.25
# Elements of the masks that exist at once: 64 MiB as float32.
MASKS_AT_ONCE = 2**24
ANSWERS_IN_ROW = 8


@dataclass(frozen=True)
class ScoredSequence:
    """Token ids, of which the last `targets` are scored, each given all before it."""

    tokens: Sequence[int]
    targets: int

    @property
    def context(self) -> Sequence[int]:
        """The tokens before the scored ones."""
        return self.tokens[: len(self.tokens) - self.targets]

    @property
    def answer(self) -> Sequence[int]:
        """The scored tokens."""
        return self.tokens[len(self.tokens) - self.targets :]


@dataclass(frozen=True)
class Row:
    """One context and the sequences that continue it, by their indices; `starts` is where each answer begins."""

    prefix: tuple[int, ...]
    members: tuple[int, ...]
    starts: tuple[int, ...]
    length: int


def rows_of(sequences: Sequence[ScoredSequence]) -> list[Row]:
    """Sequences with the same context together, at most `ANSWERS_IN_ROW` in a row; in order of first appearance."""
    groups: dict[tuple[int, ...], list[list[int]]] = {}
    for index, sequence in enumerate(sequences):
        prefix = tuple(sequence.context)
        parts = groups.setdefault(prefix, [[]])
        if len(parts[-1]) == ANSWERS_IN_ROW:
            parts.append([])
        parts[-1].append(index)
    rows = []
    for prefix, parts in groups.items():
        for members in parts:
            starts, end = [], len(prefix)
            for index in members:
                starts.append(end)
                end += sequences[index].targets
            rows.append(Row(prefix, tuple(members), tuple(starts), end))
    return rows


def tokens_read(sequences: Sequence[ScoredSequence]) -> tuple[int, int]:
    """Tokens that the model reads: (every sequence by itself, contexts shared); padding not counted."""
    return sum(len(sequence.tokens) for sequence in sequences), sum(row.length for row in rows_of(sequences))


def worthwhile(core: Any, sequences: Sequence[ScoredSequence]) -> bool:
    """Whether to share: the model's code is known to take a tree, and enough tokens are saved. From the data alone."""
    config = getattr(core, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        return False
    text = config.get_text_config()
    if text.model_type not in KNOWN or getattr(text, "_attn_implementation", None) not in ("sdpa", "eager"):
        return False
    window = getattr(text, "sliding_window", None)
    if window is not None and max((len(sequence.tokens) for sequence in sequences), default=0) >= window:
        return False  # a layer that looks no further than its window would need a mask of its own
    plain, shared = tokens_read(sequences)
    return shared <= (1 - WORTHWHILE) * plain


def batches(rows: Sequence[Row], *, batch: int, logits: int) -> Iterator[list[Row]]:
    """Rows of like length together, within the limits on answers, masks and logits (`logits`: positions at once)."""
    order = sorted(range(len(rows)), key=lambda i: (rows[i].length, len(rows[i].prefix), i))
    chosen: list[Row] = []
    for index in order:
        row = rows[index]
        first = min([len(row.prefix), *(len(other.prefix) for other in chosen)]) - 1
        count = len(chosen) + 1
        full = (
            sum(len(other.members) for other in chosen) + len(row.members) > batch
            or count * row.length**2 > MASKS_AT_ONCE
            or count * (row.length - first) > logits
        )
        if chosen and full:
            yield chosen
            chosen = []
        chosen.append(row)
    if chosen:
        yield chosen


def inputs(
    rows: Sequence[Row], sequences: Sequence[ScoredSequence], *, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids [rows, length], positions [rows, length], additive mask [rows, 1, length, length])."""
    import torch

    length = max(row.length for row in rows)
    ids = torch.zeros((len(rows), length), dtype=torch.long)
    positions = torch.zeros((len(rows), length), dtype=torch.long)
    # −1: padding, 0: the context, n: the n-th answer
    branch = torch.full((len(rows), length), -1, dtype=torch.long)
    for place, row in enumerate(rows):
        context = len(row.prefix)
        ids[place, :context] = torch.tensor(row.prefix, dtype=torch.long)
        positions[place, :context] = torch.arange(context)
        branch[place, :context] = 0
        for number, (index, start) in enumerate(zip(row.members, row.starts, strict=True), start=1):
            answer = sequences[index].answer
            end = start + len(answer)
            ids[place, start:end] = torch.as_tensor(answer, dtype=torch.long)
            positions[place, start:end] = torch.arange(context, context + len(answer))
            branch[place, start:end] = number
    at = torch.arange(length)
    of_query, of_key = branch[:, :, None], branch[:, None, :]
    seen = (at[None, :] <= at[:, None]) & ((of_key == of_query) | (of_key == 0))
    seen[:, at, at] = True  # padding looks at itself, or its softmax would be 0/0
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return ids, positions, mask[:, None]
