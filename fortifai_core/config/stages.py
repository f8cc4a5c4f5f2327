"""How each stage does its work: regime, training, rewriting, evaluation, failure; and the runtime, in no key."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from fortifai_core.config import failure_metrics
from fortifai_core.settings import Engine, Frozen, Inconsistent

Dtype = Literal["float32", "bfloat16"]


class Regime(StrEnum):
    """What generation i trains on; `fortifai_core.corpus.schedule` spells each out."""

    PAPER = "paper"
    REPLACE = "replace"
    ACCUMULATE = "accumulate"
    ACCUMULATE_SUBSAMPLE = "accumulate-subsample"
    FRESH_MIX = "fresh-mix"


class Mixture(Frozen):
    """Each generation after M_0 reads so much text, a stated part of it written by the model before, the rest real.

    Model text is split 0, rewritten by every generation in turn (D_0^(i)). Of both parts so many training sequences
    are drawn as make up their share; those of a smaller share are among those of a larger one.
    """

    synthetic: float = Field(ge=0, le=1, description="Share of the text that models wrote.")
    real: Literal["fresh", "original", "none"] = Field(
        "none", description="The rest: a new split of real text each time, split 0 as it was, or nothing."
    )
    splits: float = Field(1.0, gt=0, le=2, description="How much text a generation reads, in splits.")

    @property
    def label(self) -> str:
        """In words: `50% synthetic, the rest the original text`."""
        rest = {"fresh": ", the rest new real text", "original": ", the rest the original text", "none": ""}
        size = "" if self.splits == 1 else f", {self.splits:g} splits of text"
        return f"{100 * self.synthetic:g}% synthetic" + (rest[self.real] if self.synthetic < 1 else "") + size

    @model_validator(mode="after")
    def _can_be_given(self) -> Mixture:
        if self.real == "none" and self.synthetic < 1:
            remedy = "without real text everything is synthetic: set it to 1, or mixture.real to fresh or original"
            raise Inconsistent("mixture.synthetic", self.synthetic, remedy)
        larger = max(self.synthetic, 1 - self.synthetic) * self.splits
        if larger > 1:
            remedy = f"takes {larger:g} splits of one kind of text, and there is one of each: lower it"
            raise Inconsistent("mixture.splits", self.splits, remedy)
        return self


# What a generation's text is made up by.
Reading = Regime | Mixture

# The regimes that are mixtures; in the others the share of synthetic text grows.
SETTINGS = {
    Regime.REPLACE: Mixture(synthetic=1),
    Regime.FRESH_MIX: Mixture(synthetic=0.5, real="fresh", splits=2),
}


def reading_of(regime: Regime, mixture: Mixture | None) -> Reading:
    """What is read: a mixture that is a regime's setting goes by the regime's name."""
    if mixture is None:
        return regime
    if mixture.synthetic == 1:  # there is no rest
        mixture = mixture.model_copy(update={"real": "none"})
    return next((one for one, setting in SETTINGS.items() if setting == mixture), mixture)


class Training(Frozen):
    """One generation's training. The paper: lr 2e-5, effective batch 64, 10 epochs, blocks of 128 tokens."""

    later: ClassVar[frozenset[str]] = frozenset(
        {"dropout", "label_smoothing", "anchor", "averaging", "distillation", "loss_on"}
    )

    epochs: float = Field(10, gt=0, le=10_000, description="How often a generation reads its text.")
    learning_rate: float = Field(2e-5, gt=0, lt=1, description="The highest, after warming up.")
    batch_size: int = Field(64, ge=1, description="Sequences in one optimizer step, over all devices.")
    gradient_accumulation: int = Field(1, ge=1, description="Micro-batches that make up one step.")
    sequence_length: int = Field(128, ge=8, description="Tokens in one training sequence.")
    scheduler: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="How the learning rate falls to 0 in a generation; `constant`: it does not."
    )
    warmup_fraction: float = Field(0.0, ge=0, lt=1, description="Share of the steps that warm up.")
    weight_decay: float = Field(0.0, ge=0, description="Of the optimizer; 0: none.")
    max_grad_norm: float = Field(1.0, gt=0, description="Longer gradients are shortened to this norm.")
    checkpoint: Literal["last", "best"] = Field("last", description="`best`: lowest validation loss (per epoch).")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16: autocast.")
    optimizer: Literal["adamw_torch", "adamw_torch_fused", "sgd"] = Field(
        "adamw_torch", description="By the Trainer's names; `fused`: torch's faster AdamW, rounded differently."
    )
    save_dtype: Literal["bfloat16"] | None = Field(
        None,
        description="Type in which M_i is kept, and read again by whatever follows; by default that of its weights. "
        "Computing is in that of its weights either way.",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Of what each attention and feed-forward block adds to the residual stream."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the target spread evenly over all tokens.")
    anchor: float = Field(
        0.0, ge=0, le=1e6, description="λ of an L2 pull towards M_-1: λ/2 · ‖θ − θ_-1‖² is added to the loss."
    )
    averaging: float = Field(
        0.0, ge=0, lt=1, description="Share of M_(i-1) in the weights that M_i is kept with, from M_1 on."
    )
    distillation: float = Field(
        0.0,
        ge=0,
        le=1,
        description="On synthetic text: how much of the target is M_(i-1)'s whole distribution, not the drawn token.",
    )
    loss_on: Literal["all", "synthetic", "real"] = Field(
        "all", description="Text that the arm's loss falls on, its provenance known; the rest has cross entropy."
    )


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
    decoding: Literal["greedy", "sample", "beam"] = Field(
        "greedy", description="The likeliest token each time, one drawn at random, or the likeliest block of `beams`."
    )
    temperature: float = Field(1.0, gt=0, le=10, description="Only for `sample`.")
    top_p: float = Field(1.0, gt=0, le=1, description="Only for `sample`.")
    top_k: int = Field(0, ge=0, description="Only for `sample`; 0 keeps all.")
    beams: int = Field(5, ge=2, le=64, description="Only for `beam`.")
    repetition_penalty: float = Field(
        1.0, gt=0, le=10, description="Logits of tokens that stand there already are divided by it; 1 changes nothing."
    )
    head: Literal["copy", "drop"] = Field(
        "copy", description="Text without a full context: copied, or dropped anew each time as the authors do."
    )
    head_tokens: int | None = Field(
        None, ge=1, description="How much of a document counts as its head; by default `context_tokens`."
    )
    across_documents: bool = Field(False, description="Contexts run across documents, as the authors' do.")
    dtype: Dtype | None = Field(None, description="Type of the weights in rewriting; by default that they are kept in.")

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
        return self


class Evaluation(Frozen):
    """What is measured in each generation."""

    kr_score: Literal["sum", "mean-cut"] = Field(
        "sum", description="Log-probability of the whole answer, or the authors' mean over the shorter length."
    )
    perplexity: bool = Field(True, description="Perplexity on held-out real text.")
    base: bool | None = Field(
        None, description="Ask M_-1 about every split, before any training; by default where it is a pretrained model."
    )
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
    dtype: Dtype | None = Field(
        None,
        description="Type of the weights in questions, perplexity and benchmarks (drift: always as they are kept); by "
        "default that they are kept in.",
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


class Runtime(Engine):
    """How the work is done. Nothing here is part of a key."""

    later: ClassVar[frozenset[str]] = frozenset({"launcher", "processes", "sharding"})

    workers: int = Field(
        0, ge=0, le=256, description="Stages that run side by side; 0: one a run, up to the cores or GPUs."
    )
    threads: int = Field(0, ge=0, le=512, description="Threads a worker computes with; 0: cores / workers.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where models compute; `auto`: on GPUs where there are any."
    )
    inference_batch: int = Field(256, ge=1, description="Blocks or answers at a time; aligned: 128 positions each.")
    shard_blocks: int = Field(4096, ge=1, description="Blocks in one part-file of a regenerated split.")
    save_steps: int = Field(0, ge=0, description="Optimizer steps between training checkpoints; 0: ten a stage.")
    logits_chunk: int = Field(4096, ge=1, description="Rows of logits that exist at once.")
    report_to: list[Literal["tensorboard", "wandb", "mlflow"]] = Field(
        [], description="Where the training of language models also reports its loss, by the Trainer's own callbacks."
    )
    launcher: Literal["single", "torchrun"] = Field(
        "single", description="`torchrun`: M_i is trained by several processes of this machine, which torch's starts."
    )
    processes: int = Field(
        1, ge=1, le=256, description="Only for `torchrun`: how many share every micro-batch; a GPU each, if on GPUs."
    )
    sharding: Literal["none", "fsdp2"] = Field(
        "none", description="Only for `torchrun` on GPUs. `fsdp2`: each process keeps a part of the weights."
    )

    @model_validator(mode="after")
    def _processes_have_a_launcher(self) -> Runtime:
        if self.launcher == "single":
            if self.processes > 1:
                raise Inconsistent("runtime.processes", self.processes, "only with runtime.launcher=torchrun")
            if self.sharding != "none":
                raise Inconsistent("runtime.sharding", self.sharding, "only with runtime.launcher=torchrun")
        elif self.engine == "ray":
            raise Inconsistent("runtime.launcher", self.launcher, "only with runtime.engine=processes")
        if self.sharding != "none" and self.device == "cpu":
            raise Inconsistent("runtime.sharding", self.sharding, "is for GPUs: on the CPU leave it out")
        return self
