"""What is trained: a small model made here, or a pretrained one, whole or by an adapter."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from fortifai_core.config.stages import Dtype
from fortifai_core.settings import Frozen, Inconsistent


class LoraConfig(Frozen):
    """A LoRA adapter (peft); the same adapter goes on from generation to generation."""

    rank: int = Field(16, ge=1, description="Columns of the two matrices whose product is added to a weight.")
    alpha: int = Field(32, ge=1, description="That product is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Of what the adapter reads, in training.")
    target_modules: list[str] | Literal["all-linear"] = Field(
        "all-linear", description="Names of the modules that get an adapter; `all-linear`: every linear one."
    )


class ScratchModel(Frozen):
    """A small Llama made here: a byte-level BPE tokenizer and a base model, both from the pretraining text."""

    later: ClassVar[frozenset[str]] = frozenset({"lora"})

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
    lora: LoraConfig | None = Field(None, description="Train an adapter of M_-1 instead of all weights.")

    @model_validator(mode="after")
    def _heads_divide_width(self) -> ScratchModel:
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            remedy = f"must divide hidden_size = {self.hidden_size} into even parts"
            raise Inconsistent("model.heads", self.heads, remedy)
        return self


class PretrainedModel(Frozen):
    """A causal language model from the hub or from a folder; it is M_-1 as it stands."""

    type: Literal["pretrained"] = "pretrained"
    path: str = Field(description="Hub id (looked for in FORTIFAI_MODELS first), or a folder with the model.")
    revision: str | None = Field(None, description="Commit or tag on the hub; ignored by a local folder or mirror.")
    gguf_file: str | None = Field(None, description="The GGUF file there whose weights are taken, dequantised once.")
    dtype: Dtype = Field("float32", description="Type of the weights in training.")
    lora: LoraConfig | None = Field(None, description="Train an adapter instead of all weights.")

    @model_validator(mode="after")
    def _gguf_is_one_file(self) -> PretrainedModel:
        if self.gguf_file is not None and not self.gguf_file.endswith(".gguf"):
            raise Inconsistent("model.gguf_file", self.gguf_file, "is no GGUF file: its name ends in .gguf")
        return self


Model = Annotated[ScratchModel | PretrainedModel, Field(discriminator="type")]
