"""What is read: the embedded almanac, files, a dataset, or a mixture of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fortifai_core.settings import Frozen, Seed


class AlmanacCorpus(Frozen):
    """The embedded default: an invented world that knows its own ground truth."""

    type: Literal["almanac"] = "almanac"
    entities: int = Field(60, ge=4, le=1_000_000, description="Entities in each split.")
    facts: int = Field(6, ge=2, le=8, description="Facts stated about each entity, each one a question.")
    pretraining_entities: int = Field(400, ge=4, description="Other entities, which only the base model reads.")
    validation_entities: int = Field(40, ge=2, description="Other entities, held out of all training.")
    seed: Seed = Field(0, description="Seed of the pretraining and validation text.")


class TextCorpus(Frozen):
    """A user's own files: .txt (blank lines divide documents), .jsonl, .parquet, each also as .gz."""

    type: Literal["text"] = "text"
    files: list[str] = Field(min_length=1, description="Paths of the files, read in this order.")
    questions: str | None = Field(None, description="A KR-test file (JSON list or JSONL), or none.")
    text_field: str = Field("text", description="Column that holds the text in .jsonl and .parquet files.")
    pretraining_fraction: float = Field(0.25, ge=0, lt=0.9, description="Documents kept for the base model.")
    validation_fraction: float = Field(0.05, gt=0, lt=0.5, description="Documents held out as validation.")
    max_documents: int | None = Field(None, ge=4, description="Read only the first so many documents.")


class HuggingFaceCorpus(Frozen):
    """A dataset on the hub, or of the same name in the local mirror that FORTIFAI_DATA points at."""

    type: Literal["huggingface"] = "huggingface"
    dataset: str = Field(description="Name on the hub, e.g. `Salesforce/wikitext` or `openai/gsm8k`.")
    config: str | None = Field(None, description="Configuration of the dataset, e.g. `wikitext-2-v1`.")
    revision: str | None = Field(None, description="Commit or tag on the hub; ignored by a local mirror.")
    split: str = Field("train", description="Which of the dataset's own splits is the real corpus.")
    text: Literal["spelled", "raw"] = Field(
        "spelled",
        description="WikiText without its tokenisation; `raw`: also without marks of headings, for pretrained models.",
    )
    questions: str | None = Field(None, description="KR-test: a file, or `wikitext-2` for the authors' one.")
    pretraining_fraction: float = Field(0.25, ge=0, lt=0.9, description="Documents kept for the base model.")
    validation_fraction: float = Field(
        0.05, gt=0, lt=0.5, description="Documents held out, where the dataset has no validation split."
    )
    fraction: float = Field(1.0, gt=0, le=1, description="Use only this first share of the documents.")
    max_documents: int | None = Field(None, ge=4, description="Use only the first so many documents.")


class MixtureCorpus(Frozen):
    """Several corpora, each cut into `splits` parts; part k of each of them makes split k."""

    type: Literal["mixture"] = "mixture"
    parts: list[Annotated[AlmanacCorpus | TextCorpus | HuggingFaceCorpus, Field(discriminator="type")]] = Field(
        min_length=2, description="The corpora to be interleaved."
    )


Corpus = Annotated[AlmanacCorpus | TextCorpus | HuggingFaceCorpus | MixtureCorpus, Field(discriminator="type")]
