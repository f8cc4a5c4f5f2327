"""Documents and a tiny language model for tests of treatments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from fortifai_core.treatments.documents import Document, Documents
from fortifai_core.treatments.reading import Reader


class Letters:
    """A tokenizer whose tokens are letters: a is 1, b is 2."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 96 for letter in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(chr(token + 96) for token in tokens)


def document(name: str, text: str, *, version: int = 1, split: int = 0) -> Document:
    return Document(name, split, version, text, Letters().encode(text))


def documents(*texts: str, version: int = 1) -> Documents:
    """Documents d0, d1, … of these texts."""

    def read() -> Iterator[Document]:
        for number, text in enumerate(texts):
            yield document(f"d{number}", text, version=version)

    return Documents(read)


class Bigrams(torch.nn.Module):
    """A language model in which a token depends on the one before it alone: row v of `table` is P(· | v)."""

    def __init__(self, table: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.tensor(table).log())

    def forward(self, input_ids: torch.Tensor) -> Any:
        return SimpleNamespace(logits=self.table[input_ids])


def reader(table: Sequence[Sequence[float]], *, window: int = 8) -> Reader:
    """One that reads documents with such a model; token 0 is the end of text."""
    return Reader(Bigrams(table), first=0, window=window, batch=3)
