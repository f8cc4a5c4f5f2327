"""The experiment as one frozen, typed value; every field bounded and described (Prefect shows it as a form).

Only `runtime` never changes a result: it is left out of every artifact's key.
"""

from __future__ import annotations

import re
import warnings
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fortifai_core.config import failure_metrics


class Frozen(BaseModel):
    """Base of all configuration: immutable, and unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Inconsistent(ValueError):
    """Fields that do not fit together; kept in parts, so that whoever shows it can name the field."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        self.field, self.value, self.remedy = field, value, remedy
        super().__init__(f"{field} = {value!r}: {remedy}")


# --------------------------------------------------------------------------------------------- corpora


class AlmanacCorpus(Frozen):
    """The embedded default: an invented world that knows its own ground truth."""

    type: Literal["almanac"] = "almanac"
    entities: int = Field(60, ge=4, le=1_000_000, description="Entities in each split.")
    facts: int = Field(6, ge=2, le=8, description="Facts stated about each entity, each one a question.")
    pretraining_entities: int = Field(400, ge=4, description="Other entities, which only the base model reads.")
    validation_entities: int = Field(40, ge=2, description="Other entities, held out of all training.")
    seed: int = Field(0, ge=0, description="Seed of the pretraining and validation text.")


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

# ---------------------------------------------------------------------------------------------- models


class ScratchModel(Frozen):
    """A small Llama made here: a byte-level BPE tokenizer and a base model, both from the pretraining text."""

    type: Literal["scratch"] = "scratch"
    vocabulary: int = Field(1024, ge=260, le=262_144, description="Entries of the tokenizer.")
    hidden_size: int = Field(128, ge=8, multiple_of=2, description="Width.")
    layers: int = Field(4, ge=1, description="Depth.")
    heads: int = Field(4, ge=1, description="Attention heads; must divide `hidden_size`.")
    intermediate_size: int = Field(352, ge=8, description="Width of the gated feed-forward part.")
    max_positions: int = Field(1024, ge=32, description="Longest input.")
    tie_embeddings: bool = Field(True, description="One matrix for the embedding and the head.")
    pretraining_epochs: float = Field(8, gt=0, description="Passes over the pretraining text that make M_-1.")
    pretraining_learning_rate: float = Field(2e-3, gt=0, lt=1, description="Peak learning rate of that phase.")
    pretraining_batch_size: int = Field(16, ge=1, description="Sequences in one step of that phase.")
    pretraining_sequence_length: int = Field(256, ge=8, description="Tokens in one sequence of that phase.")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ScratchModel:
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            remedy = f"must divide hidden_size = {self.hidden_size} into even parts"
            raise Inconsistent("model.heads", self.heads, remedy)
        return self


class LoraConfig(Frozen):
    """A LoRA adapter (peft); the same adapter goes on from generation to generation."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: list[str] | Literal["all-linear"] = Field("all-linear")


class PretrainedModel(Frozen):
    """A causal language model from the hub or from a folder; it is M_-1 as it stands."""

    type: Literal["pretrained"] = "pretrained"
    path: str = Field(description="Hub id, or a folder that `from_pretrained` loads.")
    revision: str | None = Field(None, description="Commit or tag on the hub.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Type of the weights in training.")
    lora: LoraConfig | None = Field(None, description="Train an adapter instead of all weights.")


Model = Annotated[ScratchModel | PretrainedModel, Field(discriminator="type")]

# ---------------------------------------------------------------------------------------------- losses


class CrossEntropyLoss(Frozen):
    """−log p."""

    type: Literal["cross-entropy"] = "cross-entropy"

    @property
    def label(self) -> str:
        return "ce"


class TruncatedCrossEntropyLoss(Frozen):
    """−log p where p ≤ gamma, else 0 (ForTIFAI, Section 4). gamma = 1 is cross entropy."""

    type: Literal["tce"] = "tce"
    gamma: float = Field(0.9, gt=0, le=1, description="Tokens with p > gamma are masked.")
    denominator: Literal["all", "live"] = Field(
        "all", description="Average over all target tokens (the paper), or over the unmasked ones."
    )

    @property
    def label(self) -> str:
        return f"tce-{self.gamma:g}" + ("-live" if self.denominator == "live" else "")


class FocalLoss(Frozen):
    """−(1 − p)^gamma log p (Lin et al. 2017); the paper uses gamma = 2."""

    type: Literal["focal"] = "focal"
    gamma: float = Field(2.0, ge=0, le=20, description="Focusing exponent.")

    @property
    def label(self) -> str:
        return f"focal-{self.gamma:g}"


class CustomLoss(Frozen):
    """A user's own f(nll), imported from `module:function`; the derivative comes from autograd."""

    type: Literal["custom"] = "custom"
    function: str = Field(pattern=r"^[\w.]+:\w+$", description="`module:function`, elementwise over nll ≥ 0.")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", description="How this arm is called.")
    options: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for the function.")

    @property
    def label(self) -> str:
        return self.name


Loss = Annotated[CrossEntropyLoss | TruncatedCrossEntropyLoss | FocalLoss | CustomLoss, Field(discriminator="type")]

# ---------------------------------------------------------------------------------------------- stages


class Regime(StrEnum):
    """What generation i trains on; `fortifai_core.corpus.schedule` spells each out."""

    PAPER = "paper"
    REPLACE = "replace"
    ACCUMULATE = "accumulate"
    ACCUMULATE_SUBSAMPLE = "accumulate-subsample"
    FRESH_MIX = "fresh-mix"


class Training(Frozen):
    """One generation's training. The paper: lr 2e-5, effective batch 64, 10 epochs, blocks of 128 tokens."""

    epochs: float = Field(10, gt=0, le=10_000)
    learning_rate: float = Field(2e-5, gt=0, lt=1)
    batch_size: int = Field(64, ge=1, description="Sequences in one optimizer step, over all devices.")
    gradient_accumulation: int = Field(1, ge=1, description="Micro-batches that make up one step.")
    sequence_length: int = Field(128, ge=8, description="Tokens in one training sequence.")
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup_fraction: float = Field(0.0, ge=0, lt=1, description="Share of the steps that warm up.")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    checkpoint: Literal["last", "best"] = Field("last", description="`best`: lowest validation loss (per epoch).")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: autocast.")
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "sgd"] = "adamw_torch"


class Regeneration(Frozen):
    """How a split is rewritten. The paper's code: 5 beams, repetition penalty 3.0, 512 tokens to get 32."""

    engine: Literal["reference", "aligned"] = Field(
        "reference",
        description="`aligned`: the same tokens, faster, with the old text as a draft. Beams: always `reference`.",
    )
    block_tokens: int = Field(32, ge=1, description="Tokens rewritten at a time (B).")
    context_tokens: int = Field(512, ge=1, description="Tokens of the previous version before them (C).")
    context: Literal["cut", "document"] = Field(
        "cut", description="A block's context: the C tokens before it, or all of its document (chunk) before it."
    )
    chunk_tokens: int | None = Field(
        None,
        ge=2,
        description="Only for context `document`: where a longer one is divided, each chunk beginning with C tokens "
        "of the one before; by default twice C + B, and not below 512.",
    )
    decoding: Literal["greedy", "sample", "beam"] = "greedy"
    temperature: float = Field(1.0, gt=0, le=10, description="Only for `sample`.")
    top_p: float = Field(1.0, gt=0, le=1, description="Only for `sample`.")
    top_k: int = Field(0, ge=0, description="Only for `sample`; 0 keeps all.")
    beams: int = Field(5, ge=2, le=64, description="Only for `beam`.")
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    head: Literal["copy", "drop"] = Field(
        "copy",
        description="Text without a full context: copied, or dropped anew each time as the authors do.",
    )
    head_tokens: int | None = Field(
        None, ge=1, description="How much of a document counts as its head; by default `context_tokens`."
    )
    across_documents: bool = Field(False, description="Contexts run across documents, as the authors' do.")

    @property
    def longest_input(self) -> int:
        """Tokens of the longest text that the model reads and writes at once, context and new tokens together."""
        needed = self.context_tokens + self.block_tokens
        if self.context == "cut":
            return needed
        return max(512, 2 * needed) if self.chunk_tokens is None else self.chunk_tokens

    @property
    def engine_used(self) -> Literal["reference", "aligned"]:
        """The engine that rewrites: beams are decoded by the reference engine, whichever is asked for."""
        return "reference" if self.decoding == "beam" else self.engine

    @model_validator(mode="after")
    def _chunks_hold_a_block(self) -> Regeneration:
        needed = self.context_tokens + self.block_tokens
        if self.longest_input < needed:
            remedy = f"a chunk holds a context and a block: at least context_tokens + block_tokens = {needed}"
            raise Inconsistent("regeneration.chunk_tokens", self.chunk_tokens, remedy)
        if self.engine != self.engine_used:
            warnings.warn(
                f"regeneration.engine = {self.engine!r}: beams are decoded by the reference engine; for the speed of "
                "`aligned` set regeneration.decoding to greedy or sample",
                stacklevel=2,
            )
        return self


class Evaluation(Frozen):
    """What is measured in each generation."""

    kr_score: Literal["sum", "mean-cut"] = Field(
        "sum",
        description="Log-probability of the whole answer, or the authors' mean over the shorter length.",
    )
    perplexity: bool = Field(True, description="Perplexity on held-out real text.")
    drift: bool = Field(True, description="Drift of text and model, confidence; also after the last generation.")
    drift_sample: int = Field(2048, ge=64, description="Tokens of each text on which a model's drift is measured.")
    benchmarks: list[str] = Field(
        default_factory=list,
        description="blimp, hellaswag, hellaswag_text, gsm8k, or any other task of lm-eval by its name.",
    )
    benchmark_limit: int | None = Field(None, ge=1, description="Only the first so many items of each lm-eval task.")
    benchmark_fewshot: dict[str, int] = Field(
        default_factory=dict, description="Worked examples before each item, by benchmark; the task's own by default."
    )

    @model_validator(mode="after")
    def _benchmarks_fit(self) -> Evaluation:
        for name in self.benchmarks:
            if not re.fullmatch(r"[\w.+-]+", name):
                raise Inconsistent("evaluation.benchmarks", name, "is no name of an lm-eval task")
        if len(set(self.benchmarks)) < len(self.benchmarks):
            raise Inconsistent("evaluation.benchmarks", self.benchmarks, "names one twice; remove it")
        for name, count in self.benchmark_fewshot.items():
            field = f"evaluation.benchmark_fewshot.{name}"
            if count < 0:
                raise Inconsistent(field, count, "must be 0 or more")
        return self


class Failure(Frozen):
    """When an arm counts as failed: by default, retention of split 0 first below three quarters."""

    metric: str = Field(failure_metrics.DEFAULT, description=f"What it is judged by: {failure_metrics.CHOICES}.")
    threshold: float = Field(0.75, gt=0, description="Beyond it: below for what should stay high, above otherwise.")
    stop_arm: bool = Field(False, description="Stop an arm in the generation in which it fails.")

    @model_validator(mode="after")
    def _threshold_fits_metric(self) -> Failure:
        try:
            metric = failure_metrics.failure_metric(self.metric)
        except KeyError:
            raise Inconsistent("failure.metric", self.metric, f"choose {failure_metrics.CHOICES}") from None
        lowest = 0.5 if self.metric.startswith("kr-") else 0.0
        if metric.share and not lowest < self.threshold < 1:
            remedy = f"{self.metric} is a share: between {lowest:g}" + (", which is guessing," if lowest else "")
            raise Inconsistent("failure.threshold", self.threshold, f"{remedy} and 1")
        return self


class Runtime(Frozen):
    """How the work is done. Nothing here is part of a key."""

    workers: int = Field(0, ge=0, le=256, description="Stages that run side by side; 0: one an arm, up to the cores.")
    threads: int = Field(0, ge=0, le=512, description="Threads a worker computes with; 0: cores / workers.")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    inference_batch: int = Field(256, ge=1, description="Blocks or answers at a time; aligned: 128 positions each.")
    shard_blocks: int = Field(4096, ge=1, description="Blocks in one part-file of a regenerated split.")
    save_steps: int = Field(0, ge=0, description="Optimizer steps between training checkpoints; 0: ten a stage.")
    logits_chunk: int = Field(4096, ge=1, description="Rows of logits that exist at once.")


def _ce_and_tce() -> list[Loss]:
    return [CrossEntropyLoss(), TruncatedCrossEntropyLoss()]


class ExperimentConfig(Frozen):
    """One experiment: every arm (loss × seed) of one recursive training."""

    name: str = Field("experiment", pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Lower case, digits, dashes.")
    corpus: Corpus = Field(default_factory=AlmanacCorpus)
    splits: int = Field(6, ge=2, le=1000, description="Parts into which the real corpus is cut.")
    generations: int = Field(6, ge=1, le=1000, description="How far each arm goes; at most `splits`.")
    regime: Regime = Regime.PAPER
    model: Model = Field(default_factory=ScratchModel)
    losses: list[Loss] = Field(default_factory=_ce_and_tce, min_length=1)
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    training: Training = Field(default_factory=Training)
    regeneration: Regeneration = Field(default_factory=Regeneration)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    failure: Failure = Field(default_factory=Failure)
    runtime: Runtime = Field(default_factory=Runtime)

    @property
    def arm_labels(self) -> list[str]:
        """The arms' names, in order; the baseline first."""
        return [loss.label for loss in self.losses]

    @model_validator(mode="after")
    def _consistent(self) -> ExperimentConfig:
        if self.generations > self.splits:
            remedy = f"is above splits = {self.splits}: each generation brings in one; lower it, or raise splits"
            raise Inconsistent("generations", self.generations, remedy)
        judged = failure_metrics.failure_metric(self.failure.metric)
        if judged.role == "drift" and not self.evaluation.drift:
            raise Inconsistent("failure.metric", judged.name, "is measured by the drift: set evaluation.drift to true")
        if judged.name == "perplexity-real" and not self.evaluation.perplexity:
            raise Inconsistent("failure.metric", judged.name, "is not measured: set evaluation.perplexity to true")
        if judged.first >= self.generations:
            remedy = f"split {judged.first} is not seen before generation {judged.first}: raise generations"
            raise Inconsistent("failure.metric", judged.name, remedy)
        labels = self.arm_labels
        if len(set(labels)) < len(labels):
            raise Inconsistent("losses", labels, "two arms are the same; remove one")
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise Inconsistent("seeds", self.seeds, "seeds must be different and not negative")
        if isinstance(self.model, ScratchModel):
            training = max(self.training.sequence_length, self.model.pretraining_sequence_length)
            longest = max(self.regeneration.longest_input, training)
            if longest > self.model.max_positions:
                remedy = (
                    f"sequences of {longest} tokens are asked for; raise it, or shorten contexts, chunks and sequences"
                )
                raise Inconsistent("model.max_positions", self.model.max_positions, remedy)
        if self.training.batch_size % self.training.gradient_accumulation:
            remedy = f"must be a multiple of gradient_accumulation = {self.training.gradient_accumulation}"
            raise Inconsistent("training.batch_size", self.training.batch_size, remedy)
        return self
