"""What a GGUF file says of itself before its weights: read in a moment, and checked before anything is computed.

The library `gguf` reads it too, but makes an object of every token: seconds, where a vocabulary is large.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from fortifai_core.errors import ConfigError

FIELD = "model.gguf_file"
_VERSIONS = (2, 3)
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# what transformers' loader calls otherwise than the file does
_RENAMED = {
    "qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss", "minimax-m2": "minimax_m2",
}  # fmt: skip
_TEXT_MODELS = {"gemma3": "gemma3_text", "gemma4": "gemma4_text"}


@dataclass(frozen=True)
class GgufHeader:
    """The header of a GGUF file.

    Attributes:
        values: what it says of the model; of an array, how long it is.
        shapes: of every tensor, the fastest-moving dimension first.
    """

    values: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))

    @property
    def shape(self) -> dict[str, int]:
        """`parameters`, `layers`, `hidden`, `intermediate`, `vocabulary`, and `keys`: values of a layer's keys for one
        token.

        Raises:
            KeyError: the file does not say one of them.
        """

        def said(name: str) -> int:
            return int(self.values[f"{self.architecture}.{name}"])

        size = self.values.get(f"{self.architecture}.attention.key_length")
        heads = said("attention.head_count")
        return {
            "parameters": sum(prod(shape) for shape in self.shapes.values()),
            "layers": said("block_count"),
            "hidden": said("embedding_length"),
            "intermediate": said("feed_forward_length"),
            "keys": self.values.get(f"{self.architecture}.attention.head_count_kv", heads)
            * (size or said("embedding_length") // heads),
            "vocabulary": self.shapes["token_embd.weight"][-1],
        }

    @property
    def context(self) -> int | None:
        """Tokens of the longest text that the model reads."""
        return self.values.get(f"{self.architecture}.context_length")


class _Reader:
    """Goes through a file's bytes; past its end is an `EOFError`."""

    def __init__(self, content: mmap) -> None:
        self.content, self.at = content, 0

    def skip(self, count: int) -> int:
        """Where these bytes begin."""
        begin = self.at
        if count < 0 or begin + count > len(self.content):
            raise EOFError
        self.at = begin + count
        return begin

    def numbers(self, form: str) -> tuple[Any, ...]:
        form = "<" + form
        return struct.unpack_from(form, self.content, self.skip(struct.calcsize(form)))

    def string(self) -> str:
        (length,) = self.numbers("Q")
        begin = self.skip(length)
        return self.content[begin : begin + length].decode("utf-8", errors="replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.numbers(_SCALARS[kind])[0]
        of, count = self.numbers("IQ")
        if of == _STRING:
            for _ in range(count):
                self.skip(self.numbers("Q")[0])
        elif of == _ARRAY:
            for _ in range(count):
                self.value(of)
        else:
            self.skip(count * struct.calcsize("<" + _SCALARS[of]))
        return count


def read_header(path: Path) -> GgufHeader:
    """The header of a GGUF file whose weights transformers can read.

    Raises:
        ConfigError: it is no GGUF, is cut off, holds no causal language model, or an architecture or a quantisation
            that transformers does not read, or a tokenizer that does not fit the weights.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ConfigError(FIELD, path.name, "is no GGUF file: its first four bytes are not `GGUF`; name another")
        with mmap(file.fileno(), 0, access=ACCESS_READ) as content:
            try:
                header, types = _parse(path, _Reader(content))
            except EOFError:
                raise _cut_off(path, len(content)) from None
            except (KeyError, ValueError, OverflowError, struct.error) as error:
                raise ConfigError(FIELD, path.name, f"its header is damaged ({error!r}): copy it anew") from error
    _check_kind(path, header)
    _check_types(path, types)
    _check_tokenizer(path, header)
    return header


def _cut_off(path: Path, size: int, needed: int = 0) -> ConfigError:
    wanted = f" of {needed:,}" if needed else ""
    return ConfigError(FIELD, path.name, f"is cut off: it holds {size:,}{wanted} bytes; copy it anew")


def _parse(path: Path, reader: _Reader) -> tuple[GgufHeader, dict[str, int]]:
    """The header, and each tensor's type."""
    import gguf

    reader.skip(4)
    version, tensors, entries = reader.numbers("IQQ")
    if version not in _VERSIONS:
        known = " and ".join(map(str, _VERSIONS))
        raise ConfigError(FIELD, path.name, f"is of GGUF version {version}; {known} can be read: convert it anew")
    values: dict[str, Any] = {}
    for _ in range(entries):
        name = reader.string()
        values[name] = reader.value(reader.numbers("I")[0])
    shapes, types, end = dict[str, tuple[int, ...]](), dict[str, int](), 0
    for _ in range(tensors):
        name = reader.string()
        shapes[name] = reader.numbers(f"{reader.numbers('I')[0]}Q")
        types[name], offset = reader.numbers("IQ")
        if types[name] in gguf.GGML_QUANT_SIZES:
            block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(types[name])]
            end = max(end, offset + prod(shapes[name]) // block * size)
    alignment = values.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    needed = -(-reader.at // alignment) * alignment + end
    if needed > len(reader.content):
        raise _cut_off(path, len(reader.content), needed)
    return GgufHeader(values, shapes), types


def _check_kind(path: Path, header: GgufHeader) -> None:
    """One whole causal language model, of an architecture that transformers reads."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = header.values.get("general.type", "model")
    if kind != "model" or "token_embd.weight" not in header.shapes:
        said = f"general.type = {kind!r}, {len(header.shapes)} tensors"
        raise ConfigError(FIELD, path.name, f"holds no language model ({said}): name the file with the weights")
    parts = header.values.get("split.count", 1)
    if parts > 1:
        raise ConfigError(FIELD, path.name, f"is one of {parts} parts: join them first (llama-gguf-split --merge)")
    name = _RENAMED.get(header.architecture, header.architecture)
    known = {
        found for found in GGUF_CONFIG_MAPPING if _TEXT_MODELS.get(found, found) in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    }
    if name not in known:
        remedy = (
            f"its architecture {header.architecture!r} is none of those that can be read: {', '.join(sorted(known))}"
        )
        raise ConfigError(FIELD, path.name, remedy)
    layers = header.values.get(f"{header.architecture}.block_count", 0)
    there = {shape.split(".")[1] for shape in header.shapes if shape.startswith("blk.")}
    if len(there) != layers:
        raise ConfigError(FIELD, path.name, f"holds the weights of {len(there)} of {layers} layers: copy it anew")


def _check_types(path: Path, types: dict[str, int]) -> None:
    """Every tensor is of a type that can be made into numbers again."""
    import gguf
    import numpy as np

    for kind in sorted(set(types.values())):
        try:
            known = gguf.GGMLQuantizationType(kind)
            size = gguf.GGML_QUANT_SIZES[known][1]
            gguf.dequantize(np.zeros((1, size), dtype=np.uint8), known)
        except (ValueError, KeyError, NotImplementedError):
            tensor = next(name for name, of in types.items() if of == kind)
            named = known.name if kind in set(gguf.GGMLQuantizationType) else f"number {kind}"
            remedy = (
                f"the quantisation type {named} of {tensor} is none that can be read: take another file of the model"
            )
            raise ConfigError(FIELD, path.name, remedy) from None


def _check_tokenizer(path: Path, header: GgufHeader) -> None:
    """There is a tokenizer, and the embedding has a row for each of its tokens."""
    tokens = header.values.get("tokenizer.ggml.tokens")
    rows = header.shapes["token_embd.weight"][-1]
    if not tokens:
        raise ConfigError(FIELD, path.name, "holds no tokenizer: take a file of the model that has one")
    if tokens > rows:
        remedy = f"its tokenizer has {tokens:,} tokens and its weights {rows:,}: they belong to different models"
        raise ConfigError(FIELD, path.name, remedy)
