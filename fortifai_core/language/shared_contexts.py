"""Scoring many sequences in one row: what they begin with alike is read once, what follows stands side by side.

A row is a tree of tokens in which every token stands behind the one that it follows. Attention goes along the
branches: a token sees those on its way from the root, and its position is their number, as if its sequence stood there
alone. The last token of a sequence is foretold and never read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Architectures whose code takes a mask [rows, 1, length, length] and positions as given (tested on tiny ones).
KNOWN = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma3_text"})
# Sharing costs a mask of length² a row; below this share of tokens saved it is not worth its while.
WORTHWHILE = 0.25
# Elements of the masks that exist at once: 64 MiB as float32.
MASKS_AT_ONCE = 2**24
# A row longer than this costs more in attention than a beginning that is read again, unless that is half of the row.
ROW_TOKENS = 256


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


@dataclass
class Row:
    """A tree of tokens, each behind its parent, and every branch behind the one before it.

    Attributes:
        tokens, depth: of each place, its token and how many stand before that one in its sequences.
        ends: of each place, where the branch that begins there ends: places up to there, without, see it.
        members: the sequences in it, by their indices.
        asked: of each of them, the places at which its scored tokens are foretold.
    """

    tokens: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    members: list[int] = field(default_factory=list)
    asked: list[list[int]] = field(default_factory=list)
    _path: list[int] = field(default_factory=list)

    def in_common(self, tokens: Sequence[int]) -> int:
        """How many of these tokens are the first ones of the sequence that was added last."""
        common = 0
        for place, token in zip(self._path, tokens, strict=False):
            if self.tokens[place] != token:
                break
            common += 1
        return common

    def add(self, index: int, sequence: ScoredSequence, *, common: int) -> None:
        """Put a sequence there, which has its first `common` tokens in common with the one before."""
        read = sequence.tokens[:-1]
        del self._path[common:]
        for depth in range(common, len(read)):
            self._path.append(len(self.tokens))
            self.tokens.append(int(read[depth]))
            self.depth.append(depth)
            self.ends.append(0)
        for place in self._path:
            self.ends[place] = len(self.tokens)
        self.members.append(index)
        self.asked.append(self._path[len(read) - sequence.targets :])


def rows_of(sequences: Sequence[ScoredSequence], *, shared: bool = True, members: int | None = None) -> list[Row]:
    """Sequences with the same beginning together, at most `members` in a row; or each in a row by itself."""
    order = list(range(len(sequences)))
    if shared:
        order.sort(key=lambda index: tuple(sequences[index].tokens))
    rows: list[Row] = []
    for index in order:
        read, common = sequences[index].tokens[:-1], 0
        full = not rows or not shared or len(rows[-1].members) == members
        if not full:
            common, length = rows[-1].in_common(read), len(rows[-1].tokens)
            full = length + len(read) - common > ROW_TOKENS and 2 * common < length
        if full:
            rows.append(Row())
            common = 0
        rows[-1].add(index, sequences[index], common=common)
    return rows


def tokens_read(sequences: Sequence[ScoredSequence]) -> tuple[int, int]:
    """Tokens that the model reads: (every sequence by itself, beginnings shared); padding not counted."""
    return sum(len(one.tokens) - 1 for one in sequences), sum(len(row.tokens) for row in rows_of(sequences))


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


def batches(rows: Sequence[Row], *, batch: int, tokens: int, masks: bool) -> Iterator[list[Row]]:
    """Rows of like length together, within the limits on sequences, on tokens with padding, and on masks."""
    chosen: list[Row] = []
    for row in sorted(rows, key=lambda row: (len(row.tokens), row.members)):
        count, length = len(chosen) + 1, len(row.tokens)
        full = (
            sum(len(other.members) for other in chosen) + len(row.members) > batch
            or count * length > tokens
            or (masks and count * length**2 > MASKS_AT_ONCE)
        )
        if chosen and full:
            yield chosen
            chosen = []
        chosen.append(row)
    if chosen:
        yield chosen


def padded(rows: Sequence[Row]) -> torch.Tensor:
    """Token ids [rows, length] of some rows; padding stands behind them, where nothing looks."""
    import torch

    ids = torch.zeros((len(rows), max(len(row.tokens) for row in rows)), dtype=torch.long)
    for place, row in enumerate(rows):
        ids[place, : len(row.tokens)] = torch.tensor(row.tokens)
    return ids


def tree_of(rows: Sequence[Row], *, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """(positions [rows, length], additive mask [rows, 1, length, length]) of some rows."""
    import torch

    length = max(len(row.tokens) for row in rows)
    at = torch.arange(length)
    positions = torch.zeros((len(rows), length), dtype=torch.long)
    ends = (at + 1).repeat(len(rows), 1)  # padding looks at itself, or its softmax would be 0/0
    for place, row in enumerate(rows):
        positions[place, : len(row.tokens)] = torch.tensor(row.depth)
        ends[place, : len(row.tokens)] = torch.tensor(row.ends)
    seen = (at[None, :] <= at[:, None]) & (at[:, None] < ends[:, None, :])
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    return positions, mask[:, None]
