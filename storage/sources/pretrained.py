"""Pretrained models: of a folder, of the local mirror of models, or of the hub; as safetensors or as a GGUF file.

A hub id (`owner/name`) is looked for in the folder that FORTIFAI_MODELS names first, laid out as `owner/name/`
(`fortifai models fetch` fills it), and on the hub after that. HF_TOKEN opens the hub's gated models.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from fortifai_core.config.model import PretrainedModel
from fortifai_core.errors import ConfigError, DataError
from fortifai_core.parsing import local_path
from storage.sources.gguf_header import FIELD, GgufHeader, read_header
from storage.sources.model_folder import check_folder, check_settings, is_whole
from storage.sources.network import network_errors
from storage.store.tree import is_stray
from storage.tables.models import SAFELY, why_not

VARIABLE = "FORTIFAI_MODELS"
# what no loader reads: notes, and weights in formats that are never opened
_UNREAD = (".md", ".txt.license", ".gitattributes", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".ot", ".onnx",
           ".tflite", ".gguf", ".png", ".jpg", ".pdf")  # fmt: skip


def root() -> Path:
    """The local mirror of models: the folder that FORTIFAI_MODELS names, or the user's own, which may not be there.

    Raises:
        DataError: FORTIFAI_MODELS is set to something that is not a folder.
    """
    value = os.environ.get(VARIABLE, "").strip()
    if not value:
        return Path.home() / ".fortifai" / "models"
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise DataError(VARIABLE, value, "is not a folder: `fortifai models fetch` fills one, or unset it")
    return folder


def is_local(path: str) -> bool:
    """Whether a model's `path` means a folder rather than a hub id (`owner/name`)."""
    return not re.fullmatch(r"[\w.-]{1,96}(/[\w.-]{1,96})?", path) or path.startswith(".") or Path(path).exists()


@dataclass(frozen=True)
class Pretrained:
    """A pretrained model as it is asked for, and where it lies. `folder` is None for one of the hub."""

    path: str
    revision: str | None
    gguf_file: str | None
    folder: Path | None

    @classmethod
    def find(cls, path: str, revision: str | None = None, gguf_file: str | None = None) -> Pretrained:
        """Where the model lies; whether it is one is not looked at yet.

        Raises:
            DataError: FORTIFAI_MODELS is no folder.
        """
        if is_local(path):
            return cls(path, revision, gguf_file, local_path(path, "model.path"))
        mirrored = root() / path
        return cls(path, revision, gguf_file, mirrored if mirrored.is_dir() else None)

    @property
    def identity(self) -> str:
        """What enters keys: the digest of the GGUF file or of a folder's files, or the hub id with its revision.

        Raises:
            DataError: the folder is not there, or holds no model.
        """
        if self.gguf_file is not None:
            return f"gguf:sha256:{_digest(self.gguf_path).hex()}"
        if self.folder is None:
            return f"hub:{self.path}@{self.revision or 'main'}"
        # everything that lies there may be read: vocabularies, merges, special tokens, how to generate
        files = sorted(file for file in self.folder.glob("*") if file.is_file() and _may_be_read(file.name))
        if not any(file.suffix == ".safetensors" for file in files):
            held = sorted(file.name for file in self.folder.glob("*.gguf"))
            hint = f"; of a GGUF, say which: {FIELD}={held[0]}" if held else ""
            raise DataError("model.path", self.path, f"is no folder with a config.json and .safetensors weights{hint}")
        digest = hashlib.sha256()
        for file in files:
            digest.update(file.name.encode())
            digest.update(_digest(file))
        return f"sha256:{digest.hexdigest()}"

    @cached_property
    def gguf_path(self) -> Path:
        """The GGUF file. One of the hub is fetched into the hub's own cache first.

        Raises:
            InputError: it is not there.
        """
        assert self.gguf_file is not None
        if self.folder is None:
            return self._from_hub(self.gguf_file)
        path = self.folder / self.gguf_file
        if not path.is_file():
            held = ", ".join(sorted(file.name for file in self.folder.glob("*.gguf"))) or "none"
            raise ConfigError(FIELD, self.gguf_file, f"there is no such file in {self.path}; of GGUF it holds {held}")
        return path

    @cached_property
    def header(self) -> GgufHeader:
        """What the GGUF file says of itself, checked."""
        return read_header(self.gguf_path)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """config.json of a model that is no GGUF; of one that reads pictures as well, the language model's part.

        Raises:
            DataError: it is not there, cannot be fetched, or cannot be read.
        """
        path = self._from_hub("config.json") if self.folder is None else self.folder / "config.json"
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            return dict(settings.get("text_config") or settings)
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise DataError(
                "model.path", self.path, f"its config.json cannot be read ({error}): copy it anew"
            ) from error

    @property
    def context(self) -> int | None:
        """Tokens of the longest text that the model reads, where it says so."""
        return self.settings.get("max_position_embeddings") if self.gguf_file is None else self.header.context

    @property
    def shape(self) -> dict[str, int] | None:
        """`parameters`, `layers`, `hidden`, `intermediate`, `vocabulary`, and `keys`: values of a layer's keys for one
        token.

        None for a model that has not been fetched yet, or that does not say them under the usual names.
        """
        try:
            if self.gguf_file is not None:
                return self.header.shape
            if self.folder is None:
                return None
            settings, heads = self.settings, self.settings["num_attention_heads"]
            return {
                "parameters": sum(_elements(file) for file in self.folder.glob("*.safetensors")),
                "layers": settings["num_hidden_layers"],
                "hidden": settings["hidden_size"],
                "intermediate": settings["intermediate_size"],
                "keys": (settings.get("num_key_value_heads") or heads)
                * (settings.get("head_dim") or settings["hidden_size"] // heads),
                "vocabulary": settings["vocab_size"],
            }
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def check(self, *, longest: int) -> None:
        """Refuse what cannot be read, before anything is computed: neither weights nor torch are loaded.

        Args:
            longest: tokens of the longest text that it is to read.

        Raises:
            InputError: it is not there, gated, damaged, of an unknown kind, reads less, or its tokenizer does not fit.
        """
        if self.context is not None and longest > self.context:
            remedy = (
                f"reads {self.context:,} tokens, and sequences of {longest:,} are asked for: shorten contexts, chunks"
            )
            raise ConfigError("model.path", self.path, f"{remedy} and sequences, or take another model")
        if self.folder is None:  # its config.json was fetched just now, perhaps
            self.check_files()

    def check_files(self) -> None:
        """Refuse a folder that is no model which can be trained from; a GGUF says enough in its header.

        Of a model of the hub that is looked at which was fetched before; nothing is fetched for it.

        Raises:
            InputError: it is not there, damaged, incomplete or of an unknown kind, brings code along, or its tokenizer
                does not fit.
        """
        if self.gguf_file is not None:
            _ = self.header
        elif self.folder is not None:
            rows = check_folder(self.path, self.folder)
            tokens = max(self.fetch_tokenizer().get_vocab().values(), default=-1) + 1  # their ids may have gaps
            if not 0 < tokens <= rows:
                remedy = f"its tokenizer has {tokens:,} tokens and the model knows {rows:,}"
                raise DataError("model.path", self.path, remedy)
        elif (fetched := self._fetched) is not None:
            if is_whole(self.path, fetched):
                Pretrained(self.path, None, None, fetched).check_files()
            else:
                check_settings(self.path, fetched)

    @property
    def _fetched(self) -> Path | None:
        """The folder of the hub's cache that holds the model's config.json, where it was fetched before."""
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            found = try_to_load_from_cache(self.path, "config.json", revision=self.revision)
        except HFValidationError:
            return None  # the hub's own error says more
        return Path(found).parent if isinstance(found, str) else None

    def _from_hub(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download

        with self._hub_errors(name):
            return Path(hf_hub_download(self.path, name, revision=self.revision))

    @contextmanager
    def _hub_errors(self, name: str) -> Iterator[None]:
        """What goes wrong between here and the hub, as one error with a remedy."""
        import huggingface_hub.errors as hub

        here = f"put it into {root() / self.path} (`make models` fetches some), or let {VARIABLE} name a mirror with it"
        try:
            yield
        except hub.GatedRepoError as error:
            remedy = f"is gated: accept its terms at https://huggingface.co/{self.path} and set HF_TOKEN, or {here}"
            raise DataError("model.path", self.path, remedy) from error
        except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError) as error:
            remedy = f"the hub has no such model, or a private one: correct it, set HF_TOKEN, or {here}"
            raise DataError("model.path", self.path, remedy) from error
        except (hub.EntryNotFoundError, hub.HfHubHTTPError, network_errors(), OSError) as error:
            reason = " ".join(str(error).split())[:160]
            remedy = f"is not on this machine, and the hub did not give {name} ({reason}): {here}"
            raise DataError("model.path", self.path, remedy) from error

    def fetch_model(self, *, dtype: str) -> Any:
        """The causal language model in evaluation mode; of a GGUF, its weights as plain numbers of `dtype`.

        Raises:
            DataError: it cannot be loaded.
        """
        from transformers import AutoModelForCausalLM

        if self.gguf_file is not None:
            return self._dequantised(dtype)
        how: dict[str, Any] = {"revision": self.revision, "dtype": dtype, "use_safetensors": True, **SAFELY}
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(self._place, output_loading_info=True, **how)
        except network_errors():
            raise  # trouble on the way to the hub, which is tried again
        except Exception as error:
            raise DataError("model.path", self.path, f"cannot be loaded: {why_not(error)}") from error
        model, found = loaded
        if found["missing_keys"]:  # the library fills in random ones
            missing = ", ".join(sorted(found["missing_keys"])[:3])
            raise DataError("model.path", self.path, f"its weights lack {missing}")
        return model

    def _dequantised(self, dtype: str) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        file = self.gguf_path
        loaded: Any
        try:
            loaded = AutoModelForCausalLM.from_pretrained(
                str(file.parent), gguf_file=file.name, dtype=dtype, output_loading_info=True, **SAFELY
            )
        except (OSError, ValueError, KeyError, NotImplementedError, RuntimeError) as error:
            raise DataError(FIELD, file.name, f"cannot be loaded: {why_not(error)}") from error
        read, told = loaded
        tied = set(getattr(read, "all_tied_weights_keys", None) or ())
        missing = sorted(set(told["missing_keys"]) - tied)
        if missing:
            raise DataError(FIELD, file.name, f"lacks {missing[0]} (and {len(missing) - 1} more weights)")
        # a model that was read from a GGUF counts as quantised and cannot be saved: the same weights in one made anew
        config = read.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype), **SAFELY)
        model.load_state_dict(read.state_dict(), assign=True)
        model.tie_weights()
        # what no file of weights holds (rotary frequencies) was computed by the model that was read
        for name, buffer in read.named_buffers():
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, buffer)
        return model.eval()

    def fetch_tokenizer(self) -> Any:
        """The tokenizer, with a padding token.

        Raises:
            DataError: it cannot be loaded, or has no end-of-text token.
        """
        from transformers import AutoTokenizer

        place: dict[str, Any] = {"pretrained_model_name_or_path": self._place, "revision": self.revision}
        if self.gguf_file is not None:
            file = self.gguf_path
            place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        try:
            tokenizer = AutoTokenizer.from_pretrained(**place, **SAFELY)
        except network_errors():
            raise  # trouble on the way to the hub, which is tried again
        except Exception as error:
            raise DataError("model.path", self.path, f"its tokenizer cannot be loaded: {why_not(error)}") from error
        if tokenizer.eos_token_id is None:
            raise DataError("model.path", self.path, "its tokenizer has no end-of-text token, which divides documents")
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer

    @property
    def tokens_digest(self) -> str:
        """Of the tokenizer's tokens and merges: the same for models that write the same text as the same tokens.

        Raises:
            DataError: as `fetch_tokenizer`.
        """
        tokenizer = self.fetch_tokenizer()
        fast = getattr(tokenizer, "backend_tokenizer", None)
        held = fast.to_str() if fast is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
        return hashlib.sha256(f"{tokenizer.eos_token_id} {held}".encode()).hexdigest()

    @property
    def _place(self) -> str:
        return self.path if self.folder is None else str(self.folder)


def pretrained(model: PretrainedModel) -> Pretrained:
    """The pretrained model that a configuration names."""
    return Pretrained.find(model.path, model.revision, model.gguf_file)


def _digest(file: Path) -> bytes:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()


def _elements(file: Path) -> int:
    """Numbers in a file of safetensors, by its header."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    return sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _may_be_read(name: str) -> bool:
    return not (is_stray(name) or name.startswith("LICENSE") or name.endswith(_UNREAD))
