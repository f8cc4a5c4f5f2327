"""Microscopic GGUF files, made with the library that others are made with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np

HIDDEN, LAYERS, HEADS, WIDE, CONTEXT = 32, 2, 2, 64, 256


def write_gguf(
    path: Path,
    *,
    matrices: str = "Q4_1",
    embedding: str = "Q8_0",
    architecture: str = "llama",
    rows: int | None = None,
    tensor_of_kind: gguf.GGMLQuantizationType | None = None,
    layers: int = LAYERS,
    kind: str | None = None,
    tied: bool = True,
) -> Path:
    """A Llama of random weights with a byte-level tokenizer.

    Args:
        matrices, embedding: quantisation types.
        rows: of the embedding; by default one for each token.
        tensor_of_kind: adds a tensor of this type.
        layers: as the header says; two are written.
        kind: `general.type`.
    """
    from fortifai_core.corpus.tokenization import train_tokenizer

    tokenizer: Any = train_tokenizer(["The town of Ardenlith was founded in 1340."] * 4, vocabulary=300)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    if kind is not None:
        writer.add_type(kind)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(rows or len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in tokenizer.all_special_tokens else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]])
    writer.add_bos_token_id(tokenizer.bos_token_id or 0)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)

    draw = np.random.default_rng(0)

    def matrix(name: str, out: int, into: int, type_name: str) -> None:
        quantisation = gguf.GGMLQuantizationType[type_name]
        values = draw.normal(scale=0.3, size=(out, into)).astype(np.float32)
        writer.add_tensor(name, gguf.quantize(values, quantisation), raw_dtype=quantisation)

    matrix("token_embd.weight", rows or len(tokens), HIDDEN, embedding)
    for layer in range(LAYERS):
        head = HIDDEN // HEADS
        shapes = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (head, HIDDEN), "attn_v": (head, HIDDEN)}
        shapes |= {"attn_output": (HIDDEN, HIDDEN), "ffn_gate": (WIDE, HIDDEN), "ffn_up": (WIDE, HIDDEN)}
        for name, (out, into) in {**shapes, "ffn_down": (HIDDEN, WIDE)}.items():
            matrix(f"blk.{layer}.{name}.weight", out, into, matrices)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(HIDDEN, dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, dtype=np.float32))
    if not tied:
        matrix("output.weight", rows or len(tokens), HIDDEN, matrices)
    if tensor_of_kind is not None:
        _, size = gguf.GGML_QUANT_SIZES[tensor_of_kind]
        writer.add_tensor("extra.weight", np.zeros((1, size), dtype=np.uint8), raw_dtype=tensor_of_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
