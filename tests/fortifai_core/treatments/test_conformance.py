"""What holds for every treatment: deterministic, in order, lineage kept, never empty, and what it cannot do refused."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from treated import Letters, document, documents, reader

from fortifai_core.config.custom_code import ALLOWED
from fortifai_core.config.treatment import (
    CustomTreatment,
    Deduplicate,
    Detector,
    SurpriseFilter,
    TokenEdit,
    Treatment,
    Verifier,
    Weights,
)
from fortifai_core.errors import ConfigError, DataError, InputError
from fortifai_core.treatments.documents import Document, Documents, Dropped, Lineage, NothingLeft, Treat, apply
from fortifai_core.treatments.own import conforms, examples, try_checker, try_treatment
from fortifai_core.treatments.registry import Material, treatment_of
from helpers import install_losses

TEN_LINES = '''
from fortifai_core.treatments.documents import Dropped


def long_enough(documents, *, tokens=5):
    """Keep documents of at least so many tokens."""
    for document in documents:
        if len(document.tokens) >= tokens:
            yield document
        else:
            yield Dropped(document, "short", float(len(document.tokens)))
'''
VERIFIERS = """
def has_number(document, *, least=1):
    return sum(character.isdigit() for character in document.text) >= least
def maybe(document):
    return None
def fails(document):
    return document.text.nothing
"""
# every character that the examples have; all alike, but that after 'h' an 'e' is nearly sure
WIDE = [[1.0] * 256 for _ in range(256)]
WIDE[ord("h")] = [1e-6] * 256
WIDE[ord("h")][ord("e")] = 1.0
BUILT_IN = [
    SurpriseFilter(),
    SurpriseFilter(keep=0.01, model="base"),
    TokenEdit(),
    TokenEdit(threshold=0.5, temperature=3, top_k=20),
    Detector(folds=2),
    Detector(folds=2, bias=4, upsample=2, max_repeats=5),
    Verifier(),
    Verifier(false_reject=0.5, of="all"),
    Weights(),
    Weights(real=0.9),
    Deduplicate(),
    Deduplicate(near=None),
    CustomTreatment(function="long-enough", name="mine"),
]


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that offers a treatment, and one that offers verifiers."""
    install_losses(tmp_path, "my_treatments", TEN_LINES, {"long-enough": "long_enough"}, group="fortifai.treatments")
    names = {"has-number": "has_number", "maybe": "maybe", "fails": "fails"}
    install_losses(tmp_path, "my_verifiers", VERIFIERS, names, group="fortifai.verifiers")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(ALLOWED, raising=False)


def made(config: Treatment, *, seed: int = 0) -> Treat:
    normal = [[value / sum(row) for value in row] for row in WIDE]
    material = Material(
        seed=seed, called="treatments.0", reader=reader(normal, window=16), suppress=[0], labelled=examples()
    )
    return treatment_of(config, material)


@pytest.mark.parametrize("config", BUILT_IN, ids=lambda config: config.label)
def test_a_treatment_conforms(config: Treatment) -> None:
    lineage = conforms(made(config), called="treatments.0")
    assert [one.given for one in lineage] == list(examples())
    for one in lineage:
        assert (one.fate == "dropped") == (not one.made)
        assert [copy.copy for copy in one.made] == list(range(len(one.made)))
        for copy in one.made:
            assert copy.name._replace(copy=0) == one.given.name
            assert copy.text == "".join(map(chr, copy.tokens)) and copy.tokens
    assert conforms(made(config), called="treatments.0") == lineage


@pytest.mark.parametrize("config", BUILT_IN, ids=lambda config: config.label)
def test_only_the_origin_that_is_asked_for_is_treated(config: Treatment) -> None:
    if isinstance(config, Weights):
        return
    for of in ("real", "synthetic"):
        for one in apply(made(config), examples(), Letters(), of=of):  # type: ignore[arg-type]
            if one.given.real != (of == "real"):
                assert one.made == (one.given,) and one.why.startswith("not treated")


def test_what_draws_draws_otherwise_under_another_seed() -> None:
    for config in (Detector(folds=2, upsample=0.5), Verifier(of="all", false_reject=0.5)):
        assert len({str(conforms(made(config, seed=seed))) for seed in range(5)}) > 1


def keep(count: int) -> Callable[[Documents], Iterator[Document]]:
    return lambda given: (one for number, one in enumerate(given) if number < count)


def unsteady() -> Callable[[Documents], Iterator[Document]]:
    calls = iter(range(1, 100))
    return lambda given: keep(next(calls))(given)


def stranger(given: Documents) -> Iterator[Document]:
    yield document("nobody", "abc")


def mutated(given: Documents) -> Iterator[Document]:
    for one in given:
        one.tokens.append(3)
        yield one


@pytest.mark.parametrize(
    ("treat", "said"),
    [
        (lambda given: reversed(list(given)), "out of order"),
        (stranger, "was not given to the treatment"),
        (lambda given: [one.text for one in given], "no document"),
        (lambda given: None, "yield them, or return a list"),
        (lambda given: [one.weighed(0.0) for one in given], "positive number"),
        (lambda given: [one.weighed(float("nan")) for one in given], "positive number"),
        (lambda given: [one.edited() for one in given], "without a token"),
        (mutated, "document.edited"),
        (unsteady(), "draw from the `seed`"),
        (keep(0), "leaves nothing to train on"),
        (lambda given: [Dropped(one) for one in given], "leaves nothing to train on"),
    ],
)
def test_what_is_no_treatment_is_refused(treat: Any, said: str) -> None:
    with pytest.raises(DataError, match=f"^treatments.0 = .*{said}"):
        conforms(treat, called="treatments.0")


def test_an_edited_document_gets_the_tokens_of_its_text_and_the_text_of_its_tokens() -> None:
    by_text = list(apply(lambda given: [one.edited(text=one.text * 2) for one in given], documents("ab"), Letters()))
    by_tokens = list(apply(lambda given: [one.edited(tokens=[3]) for one in given], documents("ab"), Letters()))
    assert by_text[0].made[0].tokens == [1, 2, 1, 2] and by_text[0].changed == 2
    assert by_tokens[0].made[0].text == "c" and by_tokens[0].changed == 2
    assert [lineage[0].fate for lineage in (by_text, by_tokens)] == ["edited", "edited"]


def test_copies_of_one_treatment_are_documents_of_the_next() -> None:
    def twice(given: Documents) -> Iterator[Document]:
        for one in given:
            yield from (one, one)

    first: list[Lineage] = list(apply(twice, documents("ab", "c"), Letters()))
    assert [one.fate for one in first] == ["repeated", "repeated"]
    copies = [copy for one in first for copy in one.made]
    given = Documents(lambda: iter(copies))
    second = list(apply(lambda given: [one for one in given if not one.copy], given, Letters()))
    fates = [(one.given.id, one.given.copy, one.fate) for one in second]
    assert fates == [("d0", 0, "kept"), ("d0", 1, "dropped"), ("d1", 0, "kept"), ("d1", 1, "dropped")]


@pytest.mark.parametrize(
    "config",
    [Weights(), Verifier(), SurpriseFilter(), TokenEdit(), CustomTreatment(function="long-enough", name="m")],
    ids=lambda config: config.label,
)
def test_a_few_documents_at_a_time_are_held(config: Treatment) -> None:
    if isinstance(config, CustomTreatment):
        config = config.model_copy(update={"options": {"tokens": 1}})
    read: list[weakref.ref[Document]] = []

    def given() -> Iterator[Document]:
        for number in range(300):
            one = Document(f"d{number}", 0, 1, "ab", [1, 2])
            read.append(weakref.ref(one))
            yield one

    held = [sum(one() is not None for one in read) for _ in apply(made(config), Documents(given), Letters())]
    assert len(held) == 300 and len(read) >= 600 and max(held) <= 12


# ------------------------------------------------------------------------------------------- one's own


def test_ones_own_treatment_is_tried_before_any_compute() -> None:
    try_treatment("long-enough", {}, "treatments.0")
    try_treatment("long-enough", {"tokens": 10_000}, "treatments.0")  # it may drop all of so few
    with pytest.raises(ConfigError, match=r"^treatments.0.options = .*unexpected keyword argument 'word'"):
        try_treatment("long-enough", {"word": 1}, "treatments.0")
    with pytest.raises(DataError, match=r"^treatments.0.function = 'long-enough': failed: TypeError"):
        try_treatment("long-enough", {"tokens": "5"}, "treatments.0")
    with pytest.raises(ConfigError, match=r"^treatments.0.function = 'other': no installed package offers a treatment"):
        try_treatment("other", {}, "treatments.0")
    with pytest.raises(ConfigError, match="--allow-code my_treatments"):
        try_treatment("my_treatments:long_enough", {}, "treatments.0")


def test_ones_own_verifier_is_tried_before_any_compute() -> None:
    try_checker("has-number", {"least": 2}, "treatments.0")
    lineage = conforms(made(Verifier(checker="has-number", of="all")))
    assert [one.given.text for one in lineage if one.made] == ["Ardenlith was founded in 1340."] * 2
    for name, said in (("maybe", "True or False"), ("fails", "AttributeError"), ("other", "offers a verifier")):
        with pytest.raises(InputError, match=f"^treatments.0.checker = '{name}': .*{said}"):
            try_checker(name, {}, "treatments.0")


def test_nothing_left_is_an_input_error() -> None:
    assert issubclass(NothingLeft, InputError)
