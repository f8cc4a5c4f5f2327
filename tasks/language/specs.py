"""The specs of a language model's stages: what each builder receives, and what its key holds.

What was added to the configuration later is left out of a key where it says what was always done: keys stay valid.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePath
from typing import Any, Literal, NamedTuple

from pydantic import Field

from fortifai_core.config.corpus import AlmanacCorpus, Corpus, MixtureCorpus
from fortifai_core.config.failure_metrics import DEFAULT
from fortifai_core.config.loss import CustomLoss, Loss, TruncatedCrossEntropyLoss
from fortifai_core.config.model import LoraConfig, ScratchModel
from fortifai_core.config.stages import Dtype, Reading, Regeneration, Regime, Training
from fortifai_core.config.treatment import Treatment, Weights
from fortifai_core.settings import Frozen
from tasks.engine.stages import Reference, Spec


class VersionedText(NamedTuple):
    """D_split^(version); `artifact` is None for the real text, which the corpus holds."""

    split: int
    version: int
    artifact: Reference | None = None

    @property
    def name(self) -> str:
        return f"D{self.split}^({self.version})"

    def references(self, place: str) -> Iterator[tuple[str, Reference]]:
        """The artifact, if a model wrote it: one of several texts goes by its name, a single one by its field's."""
        if self.artifact is not None:
            yield (self.name if "." in place else place), self.artifact


def text_content(texts: tuple[VersionedText, ...]) -> list[list[int]]:
    """Which texts, for a key; the artifacts' own keys stand among the parents."""
    return [[text.split, text.version] for text in texts]


def corpus_content(corpus: Corpus, digests: dict[str, str]) -> dict[str, Any]:
    """The corpus without its paths: files enter a key by their digests, a local folder by its digest and its name.

    A dataset of the hub enters by its digest, which holds its revision; a mirror has one version, whatever is named.
    """
    mixed = isinstance(corpus, MixtureCorpus)
    parts = [
        part.model_dump(mode="json", exclude=None if isinstance(part, AlmanacCorpus) else {"files", "questions"})
        for part in (corpus.parts if isinstance(corpus, MixtureCorpus) else [corpus])
    ]
    for index, part in enumerate(parts):
        if part.get("text") == "spelled":
            del part["text"]
        if "revision" in part:
            part["revision"] = None
        if (f"parts.{index}.folder" if mixed else "folder") in digests:
            part["dataset"] = PurePath(part["dataset"]).name  # documents are named after it
    content = {"type": "mixture", "parts": parts} if mixed else parts[0]
    return {**content, "digests": dict(digests)}


class PretrainingSpec(Spec):
    """The text that the tokenizer and the base model are made from."""

    role, version, builder = "pretraining", 2, "tasks.language.prepare:build_pretraining"
    corpus: Corpus
    digests: dict[str, str]
    splits: int

    def content(self) -> dict[str, Any]:
        if isinstance(self.corpus, AlmanacCorpus):  # does not depend on the entities of the splits
            return self.corpus.model_dump(mode="json", exclude={"entities"})
        return {**corpus_content(self.corpus, self.digests), "splits": self.splits}


class SourceSpec(Spec):
    """The corpus as it is read: documents, questions, validation text. `world`: seed of an almanac's."""

    role, version, builder = "source", 2, "tasks.language.prepare:build_source"
    corpus: Corpus
    digests: dict[str, str]
    splits: int
    world: int

    def content(self) -> dict[str, Any]:
        return {"corpus": corpus_content(self.corpus, self.digests), "splits": self.splits, "seed": self.world}


class TokenizerSpec(Spec):
    """A tokenizer trained on the pretraining text."""

    role, builder = "tokenizer", "tasks.language.prepare:build_tokenizer"
    whole = True
    keyed = ("vocabulary",)
    vocabulary: int
    pretraining: Reference


class PretrainedTokenizerSpec(Spec):
    """The tokenizer of a pretrained model. `identity` stands for the model's files in keys."""

    role, builder = "tokenizer", "tasks.language.prepare:fetch_tokenizer"
    identity: str
    path: str
    revision: str | None
    gguf_file: str | None = None

    def content(self) -> dict[str, Any]:
        return {"pretrained": self.identity}


class BaseSpec(Spec):
    """M_-1, made here from the pretraining text."""

    role, kind, builder = "base", "model", "tasks.language.train:build_base"
    whole = True
    model: ScratchModel
    pretraining: Reference
    tokenizer: Reference

    def content(self) -> dict[str, Any]:
        return {"model": self.model.model_dump(mode="json", exclude={"lora"})}  # an adapter of it is made later


class PretrainedBaseSpec(Spec):
    """M_-1, a pretrained model as it stands."""

    role, kind, builder = "base", "model", "tasks.language.train:fetch_base"
    identity: str
    dtype: str
    path: str
    revision: str | None
    gguf_file: str | None = None
    tokenizer: Reference

    def content(self) -> dict[str, Any]:
        return {"pretrained": self.identity, "dtype": self.dtype}


class CorpusSpec(Spec):
    """D_k^(0) for every k: the source tokenised and cut into equal splits."""

    role, builder = "corpus", "tasks.language.prepare:build_corpus"
    whole = True
    keyed = ("splits",)
    splits: int
    source: Reference
    tokenizer: Reference


class TreatSpec(Spec):
    """What M_i is trained on, treated: some documents dropped, repeated, edited or weighed.

    Attributes:
        code: digest of the source of a user's own function, or of a classifier that somebody else made.
        called: how the configuration names the treatment, for errors.
        window: tokens that a model reads at once.
        model: the model that the treatment reads the text with, if it does; base: M_-1, where it is an adapter of it.
        text: what the generation is trained on, in order; shares: how much of each, None: all of it.
        treated: the text as the treatment before left it.
        earlier: how many treatments of this type come before it, so that it draws anew.
        corpus_config, splits, world: for the ground truth of an almanac; that it is this corpus's follows from its key.
    """

    role, kind, builder = "treat", "treated", "tasks.language.treat:build_treatment"
    whole = True
    keyed = ("seed", "generation")
    treatment: Treatment
    code: str | None
    called: str
    window: int
    seed: int
    generation: int
    model: Reference | None
    base: Reference | None
    corpus: Reference
    tokenizer: Reference
    text: tuple[VersionedText, ...]
    shares: tuple[float, ...] | None
    treated: Reference | None
    earlier: int = 0
    corpus_config: Corpus
    splits: int
    world: int

    def content(self) -> dict[str, Any]:
        """Somebody else's code by what it is, not by its label or its place."""
        treatment = self.treatment.model_dump(mode="json", exclude={"name", "classifier"})
        content = super().content() | {"treatment": treatment, "text": text_content(self.text)}
        content |= {} if self.code is None else {"code": self.code}
        content |= {} if self.model is None else {"window": self.window}
        content |= {"earlier": self.earlier} if self.earlier else {}
        if isinstance(self.treatment, Weights) and self.shares is not None:
            content["shares"] = list(self.shares)
        return content

    @property
    def detail(self) -> str:
        return self.treatment.label


class TrainSpec(Spec):
    """M_i from M_(i-1), under the arm's loss.

    Attributes:
        loss_source: digest of the source of a user's own loss.
        model: M_(i-1).
        base: M_-1, where models are adapters of it: an adapter is kept without the model that it adapts.
        text: what this generation is trained on, in order.
        shares: how much of each is read; None: all of it.
        treated: the text as its treatments left it, which is what is read.
        anchor: M_-1, where the training stays near it.
    """

    role, kind, builder = "train", "model", "tasks.language.train:build_generation"
    whole = launched = True
    keyed = ("training", "lora", "regime", "seed", "generation")
    loss: Loss
    loss_source: str | None
    training: Training
    lora: LoraConfig | None
    regime: Regime
    seed: int
    generation: int
    model: Reference
    base: Reference | None
    corpus: Reference
    text: tuple[VersionedText, ...]
    shares: tuple[float, ...] | None = None
    treated: Reference | None = None
    anchor: Reference | None = None

    def content(self) -> dict[str, Any]:
        loss = self.loss.model_dump(mode="json")
        if isinstance(self.loss, CustomLoss):  # by what it computes, not by its label
            del loss["name"]
            loss["source"] = self.loss_source
        content = super().content()
        if self.training.save_dtype is None:
            del content["training"]["save_dtype"]
        content |= {"loss": loss, "text": text_content(self.text)}
        return content if self.shares is None else {**content, "shares": list(self.shares)}


class RegenerateSpec(Spec):
    """D_k^(j+1): `text`, which is D_k^(j), rewritten by M_i."""

    role, kind, builder = "regenerate", "split", "tasks.language.regenerate:build_split"
    whole = True
    keyed = ("seed", "generation")
    regeneration: Regeneration
    seed: int
    generation: int
    model: Reference
    base: Reference | None
    corpus: Reference
    text: VersionedText

    def content(self) -> dict[str, Any]:
        text = [self.text.split, self.text.version]
        return {**super().content(), "regeneration": self._settings(), "text": text}

    def _settings(self) -> dict[str, Any]:
        """Without the options that this decoding and these contexts do not read."""
        settings = self.regeneration
        unread = {"engine", "chunk_tokens"} | ({"context"} if settings.context == "cut" else set())
        unread |= set() if settings.decoding == "sample" else {"temperature", "top_p", "top_k"}
        unread |= set() if settings.decoding == "beam" else {"beams"}
        unread |= {"dtype"} if settings.dtype is None else set()
        content = settings.model_dump(mode="json", exclude=unread)
        if settings.engine_used != "reference":
            content["engine"] = settings.engine_used
        if settings.context != "cut":
            content["chunk_tokens"] = settings.longest_input
        return content


class PoolSpec(Spec):
    """D_k^(j) of a pool: each document as one of several arms rewrote it.

    Attributes:
        text: which it is.
        texts: the same as each of the arms wrote it; shares: of the documents that are taken of each.
    """

    role, kind, builder = "pool", "pooled", "tasks.language.pool:build_pool"
    whole = True
    keyed = ("seed", "shares")
    seed: int
    text: VersionedText
    shares: tuple[float, ...]
    texts: tuple[Reference, ...]

    def content(self) -> dict[str, Any]:
        return {**super().content(), "text": [self.text.split, self.text.version]}


class DriftSpec(Spec):
    """What became of the text that M_i rewrote, and of M_i itself.

    Attributes:
        gamma: of a TCE arm, for its live fraction.
        sample, window: tokens of each text on which a model is measured, in windows of so many.
        first: M_0 of the run.
        base: M_-1.
        text, rewritten: what M_i was trained on, and what it wrote.
        shares: how much of each text it read; None: all of it.
        treated: the text as its treatments left it, if any did.
        corpus_config, splits, world: for the ground truth of an almanac; that it is this corpus's follows from its key.
    """

    role, builder, waits = "drift", "tasks.language.drift:build_drift", True
    whole = True
    keyed = ("gamma", "sample", "window")
    gamma: float | None
    sample: int
    window: int
    model: Reference
    first: Reference
    base: Reference
    corpus: Reference
    text: tuple[VersionedText, ...]
    shares: tuple[float, ...] | None = None
    treated: Reference | None = None
    rewritten: tuple[VersionedText, ...]
    corpus_config: Corpus
    splits: int
    world: int

    def content(self) -> dict[str, Any]:
        texts: dict[str, Any] = {"text": text_content(self.text), "rewritten": text_content(self.rewritten)}
        texts |= {} if self.shares is None else {"shares": list(self.shares)}
        return super().content() | texts


def gamma_of(loss: Loss) -> float | None:
    """The threshold of a TCE arm."""
    return loss.gamma if isinstance(loss, TruncatedCrossEntropyLoss) else None


class EvaluateSpec(Spec):
    """M_i asked the questions of `splits`, and its perplexity on held-out real text."""

    role, kind, version, builder = "evaluate", "evaluation", 2, "tasks.language.evaluate:build_evaluation"
    whole = True
    kr_score: Literal["sum", "mean-cut"]
    perplexity: bool
    splits: tuple[int, ...]
    dtype: Dtype | None = None
    model: Reference
    base: Reference | None
    corpus: Reference

    def content(self) -> dict[str, Any]:
        measured = {"kr_score": self.kr_score, "perplexity": self.perplexity} | in_dtype(self.dtype)
        return {"evaluation": measured, "splits": list(self.splits)}


def in_dtype(dtype: Dtype | None) -> dict[str, Any]:
    """The type of the weights, for a key: weights as they are kept have none."""
    return {} if dtype is None else {"dtype": dtype}


class FailureSpec(Spec):
    """Whether the run has failed by now. `measured`: what holds the metric, generation by generation."""

    role, builder = "failure", "tasks.language.failure:build_failure"
    keyed = ("threshold", "regime")
    metric: str
    threshold: float
    regime: Reading
    measured: tuple[Reference, ...]

    def content(self) -> dict[str, Any]:
        judged = {} if self.metric == DEFAULT else {"metric": self.metric}
        return super().content() | judged

    def parents(self) -> dict[str, Reference]:
        return {f"g{generation}": reference for generation, reference in enumerate(self.measured)}


class BenchmarkTask(NamedTuple):
    """A benchmark of lm-eval as it is asked; `described`: versions and data digests."""

    name: str
    limit: int | None
    fewshot: int | None
    described: dict[str, Any]

    def content(self) -> dict[str, Any]:
        return {"benchmark": self.name, "limit": self.limit, "fewshot": self.fewshot, **self.described}


class BenchmarkCheckSpec(Spec):
    """Before any generation is trained: does the benchmark load, and fit the model's window?

    Attributes:
        window: tokens that the model reads; None: to be read from `base`.
    """

    role, builder = "benchmark-check", "tasks.language.benchmarks:build_check"
    task: BenchmarkTask
    window: int | None
    tokenizer: Reference
    base: Reference | None

    def content(self) -> dict[str, Any]:
        return {**self.task.content(), "window": self.window}

    @property
    def detail(self) -> str:
        return self.task.name


class BenchmarkSpec(Spec):
    """One benchmark on M_i."""

    role, builder, waits = "benchmark", "tasks.language.benchmarks:build_benchmark", True
    whole = True
    task: BenchmarkTask
    dtype: Dtype | None = None
    model: Reference
    base: Reference | None

    def content(self) -> dict[str, Any]:
        return self.task.content() | in_dtype(self.dtype)

    @property
    def detail(self) -> str:
        return self.task.name


class GenerationResults(Frozen):
    """The artifacts of one generation, as the report reads them. `pool`: by split, what it read of other arms."""

    generation: int
    train: Reference
    regenerate: dict[int, Reference]
    evaluate: Reference
    drift: Reference | None
    benchmarks: tuple[Reference, ...]
    treat: tuple[Reference, ...] = ()
    pool: dict[int, Reference] = Field(default_factory=dict)


class RunResults(Frozen):
    """The artifacts of one run. `before`: M_-1 as it was asked, if it was."""

    arm: str
    seed: int
    source: Reference
    corpus: Reference
    before: Reference | None
    generations: tuple[GenerationResults, ...]


class ReportSpec(Spec):
    """The report on all runs; `config` is the experiment's, as JSON types, and `command` goes on with it."""

    role, version, builder = "report", 4, "tasks.language.report:build_report"
    shown = True
    config: dict[str, Any]
    command: str
    runs: tuple[RunResults, ...]

    def content(self) -> dict[str, Any]:
        shown = ("name", "losses", "arms", "regime", "mixture", "treatments", "failure")
        return {name: self.config[name] for name in shown if name in self.config}
