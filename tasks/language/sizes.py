"""How much text and how many questions an experiment has, read from its corpus before anything is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fortifai_core.config.corpus import AlmanacCorpus, Corpus, HuggingFaceCorpus, MixtureCorpus
from fortifai_core.config.model import Model, PretrainedModel
from fortifai_core.corpus.documents import Question
from fortifai_core.corpus.splitting import assign_questions, cut

# How long each of some texts is, in tokens or in characters.
Lengths = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True)
class Sizes:
    """Of one world of a corpus, in the unit of the lengths given.

    Attributes:
        documents: length of every document, split by split.
        questions: of each split.
        validation: length of every held-out document.
    """

    documents: list[list[int]]
    questions: list[list[Question]]
    validation: list[int]

    @property
    def asked(self) -> tuple[int, int]:
        """Questions about split 0, and the documents that they are about."""
        return len(self.questions[0]), len({question.document for question in self.questions[0]})


def read_sizes(corpus: Corpus, *, splits: int, world: int, lengths: Lengths) -> Sizes:
    """Read a corpus and cut it as `build_corpus` does.

    Raises:
        DataError: naming the field, the value and the remedy.
    """
    from storage.sources.sources import load_source

    source = load_source(corpus, splits=splits, seed=world)
    sizes = lengths([document.text for document in source.documents])
    split_of = cut(sizes, splits=splits, group=[document.source for document in source.documents])
    of_document = {document.id: split for document, split in zip(source.documents, split_of, strict=True)}
    questions = assign_questions(source.questions, of_document)
    return Sizes(
        documents=[[size for size, of in zip(sizes, split_of, strict=True) if of == k] for k in range(splits)],
        questions=[[question for question in questions if question.split == k] for k in range(splits)],
        validation=lengths([document.text for document in source.validation]),
    )


def is_at_hand(corpus: Corpus) -> bool:
    """Whether a corpus can be read without a network."""
    from storage.sources import mirror

    parts = corpus.parts if isinstance(corpus, MixtureCorpus) else [corpus]
    return mirror.root() is not None or not any(isinstance(part, HuggingFaceCorpus) for part in parts)


def pretraining_texts(corpus: Corpus, *, splits: int) -> list[str]:
    """The texts that a scratch model and its tokenizer are made from."""
    from fortifai_core.corpus.almanac.world import pretraining_text
    from storage.sources.sources import load_source

    if isinstance(corpus, AlmanacCorpus):
        return [document.text for document in pretraining_text(corpus)]
    return [document.text for document in load_source(corpus, splits=splits, seed=0).pretraining]


def tokenizer_for(model: Model, corpus: Corpus, *, splits: int) -> Any:
    """The tokenizer of a model, made as its stage would."""
    from fortifai_core.corpus.tokenization import train_tokenizer
    from storage.sources.pretrained import pretrained

    if isinstance(model, PretrainedModel):
        return pretrained(model).fetch_tokenizer()
    return train_tokenizer(pretraining_texts(corpus, splits=splits), vocabulary=model.vocabulary)
