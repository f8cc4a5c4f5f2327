"""A user's own treatments and verifiers: loaded by the name of an entry point or a module, and tried beforehand."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from fortifai_core.config.custom_code import Kind, line_of, load_function
from fortifai_core.errors import ConfigError, DataError
from fortifai_core.treatments.documents import Document, Documents, Dropped, Lineage, NothingLeft, Treat, apply
from fortifai_core.treatments.verification import Checker

TREATMENTS = Kind("fortifai.treatments", "treatment", "documents")
VERIFIERS = Kind("fortifai.verifiers", "verifier", "document")


def own_treatment(function: str, options: Mapping[str, Any], *, seed: int, field: str) -> Treat:
    """f(documents, **options), which is given a seed too if it takes one.

    Raises:
        ConfigError: as `custom_code.load_function`. While it treats, DataError: it failed.
    """
    loaded = load_function(TREATMENTS, function, options, f"{field}.function")
    given = {"seed": seed} if "seed" in inspect.signature(loaded).parameters and "seed" not in options else {}

    def treat(documents: Documents) -> Iterator[Document | Dropped]:
        try:
            yield from loaded(documents, **given)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{field}.function", function, f"failed: {line_of(error)}") from error

    return treat


def own_checker(function: str, options: Mapping[str, Any], *, field: str) -> Checker:
    """f(document, **options) -> bool. Raises as `custom_code.load_function`."""
    return load_function(VERIFIERS, function, options, f"{field}.checker")


class _Words:
    """A tokenizer for trying things out: a token is a character."""

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, tokens: list[int]) -> str:
        return "".join(map(chr, tokens))


def examples() -> Documents:
    """A few documents to try a treatment on: real and synthetic ones, two that are equal, one of a single token."""
    words = _Words()
    texts = {
        "a": ("The river Senn is long.", "The river Senn is deep."),
        "b": ("Ardenlith was founded in 1340.", "Ardenlith was founded in 1340."),
        "c": ("No more is known of it, but that its towers were white and its gates were never shut.", "No more."),
        "d": ("A", "B"),
    }

    def read() -> Iterator[Document]:
        for version in (1, 0):
            for name, versions in texts.items():
                yield Document(name, 0, version, versions[version], words.encode(versions[version]))

    return Documents(read)


def conforms(treat: Treat, documents: Documents | None = None, *, called: str = "treatment") -> list[Lineage]:
    """What a treatment makes of documents, if it is one: deterministic, in order, of what it was given, never empty.

    Args:
        documents: by default `examples()`, whose tokens are characters.

    Raises:
        DataError: it is none; the message says why.
        NothingLeft: it drops all of them.
    """
    documents = examples() if documents is None else documents
    first = list(apply(treat, documents, _Words(), called=called))
    if list(apply(treat, documents, _Words(), called=called)) != first:
        raise DataError(
            called, "twice the same documents", "gave different ones: draw from the `seed` that it is given"
        )
    return first


def try_treatment(function: str, options: Mapping[str, Any], field: str) -> None:
    """Try a user's treatment on a few documents, before any compute is spent.

    Raises:
        ConfigError: it cannot be loaded. DataError: it does not conform, though it may well drop all of so few.
    """
    treat = own_treatment(function, options, seed=0, field=field)
    try:
        conforms(treat, called=f"{field}.function")
    except NothingLeft:
        return


def try_checker(function: str, options: Mapping[str, Any], field: str) -> None:
    """Try a user's verifier on a few documents, before any compute is spent.

    Raises:
        ConfigError: it cannot be loaded, raises, or does not answer True or False.
    """
    checker = own_checker(function, options, field=field)
    for document in examples():
        try:
            answer: object = checker(document)
        except Exception as error:
            raise ConfigError(f"{field}.checker", function, f"fails on a document: {line_of(error)}") from error
        if not isinstance(answer, bool):
            raise ConfigError(f"{field}.checker", function, f"has to answer True or False, and gave {answer!r}")
