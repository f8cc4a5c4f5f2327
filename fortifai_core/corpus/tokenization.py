"""A byte-level BPE tokenizer made from the pretraining text, and batched encoding with any tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from fortifai_core.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
_SMALLEST_VOCABULARY = 257  # the 256 bytes and END_OF_TEXT
_BATCH = 512


def train_tokenizer(texts: Iterable[str], *, vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer: any text can be encoded, and decoding gives it back exactly.

    The same texts give the same tokenizer. `<|endoftext|>` (id 0) begins, ends and pads.

    Args:
        texts: what the merges are learned from.
        vocabulary: entries, all of them counted; little text may give fewer merges than that.

    Raises:
        DataError: there is no text, or `vocabulary` is below 257.
    """
    if vocabulary < _SMALLEST_VOCABULARY:
        raise DataError("model.vocabulary", vocabulary, f"must be at least {_SMALLEST_VOCABULARY}: one entry a byte")
    texts = iter(texts)
    first = next((text for text in texts if text), None)
    if first is None:
        raise DataError("model.vocabulary", vocabulary, "there is no pretraining text to learn a tokenizer from")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(chain([first], texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def encode_documents(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """`iter_encoded` of them all."""
    return list(iter_encoded(tokenizer, texts))


def iter_encoded(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> Iterator[list[int]]:
    """Token ids of the text of every document, without any special token; `_BATCH` of them are in memory.

    A text that spells out a special token, such as `<|endoftext|>`, is encoded as the text it is.
    """
    texts = iter(texts)
    while some := list(islice(texts, _BATCH)):
        yield from tokenizer(
            some,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # a document may be longer than the model's input: it is cut into sequences later
        )["input_ids"]


def automatic_bos(tokenizer: Any) -> int | None:
    """The token that the tokenizer puts before every text by itself, as in the model's own training; or none."""
    first = tokenizer("a")["input_ids"][0]
    return int(first) if first == tokenizer.bos_token_id else None
