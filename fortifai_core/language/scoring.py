"""Log-probabilities of given tokens under a model, each sequence by itself or with every context read once."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fortifai_core.errors import StageFailed
from fortifai_core.language import shared_contexts
from fortifai_core.language.shared_contexts import ScoredSequence

# logits held at once, as float32: half a gibibyte
LOGITS_AT_ONCE = 2**27


def log_probabilities(
    model: Any, sequences: Sequence[ScoredSequence], *, batch: int, shared: bool | None = None
) -> list[np.ndarray]:
    """log p of each sequence's last tokens: one float64 [targets] a sequence, in the order given, in nats.

    Args:
        model: token ids [rows, length] → object with `.logits` [rows, length, vocabulary]; left in the mode it was in.
        sequences: each with more tokens than targets, and a target at least.
        batch: sequences at a time; fewer where their logits would be large.
        shared: read every context once; None: where the model's code takes it and enough tokens are saved.

    Raises:
        StageFailed: the model's logits are not numbers.
    """
    if shared is None:
        core = model.get_base_model() if hasattr(model, "get_base_model") else model
        shared = shared_contexts.worthwhile(core, sequences)
    return (shared_log_probabilities if shared else sequence_log_probabilities)(model, sequences, batch=batch)


def text_setting(core: Any, name: str) -> int | None:
    """A number from the configuration of a model's text part; None where it has none of that name."""
    config: Any = getattr(core, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    value = getattr(config, name, None)
    return value if isinstance(value, int) else None


def _batches(
    sequences: Sequence[ScoredSequence], *, batch: int, vocabulary: int
) -> Iterator[tuple[list[int], int, int]]:
    """(indices, first and last position + 1 of the logits needed), by length, within `LOGITS_AT_ONCE`."""
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i].tokens), sequences[i].targets, i))
    rows: list[int] = []
    first = last = 0
    for index in order:
        end = len(sequences[index].tokens) - 1
        begin = end - sequences[index].targets
        wider, longer = (min(first, begin), max(last, end)) if rows else (begin, end)
        if rows and (len(rows) == batch or (len(rows) + 1) * (longer - wider) * vocabulary > LOGITS_AT_ONCE):
            yield rows, first, last
            rows, wider, longer = [], begin, end
        rows.append(index)
        first, last = wider, longer
    if rows:
        yield rows, first, last


def sequence_log_probabilities(model: Any, sequences: Sequence[ScoredSequence], *, batch: int) -> list[np.ndarray]:
    """`log_probabilities` with each sequence by itself; arguments, result and errors are the same.

    Padding stands behind the tokens, where a causal model does not look. Logits are computed where they are needed
    only, if the model takes `logits_to_keep` (those of transformers do), and the log-softmax is taken in float32.
    """
    import torch

    from fortifai_core.language.decoding import inference

    result: list[np.ndarray] = [np.empty(0)] * len(sequences)
    with inference(model) as core:
        accepted = inspect.signature(core.forward).parameters
        vocabulary = text_setting(core, "vocab_size") or 1
        device = next((p.device for p in core.parameters()), torch.device("cpu"))
        for rows, first, last in _batches(sequences, batch=batch, vocabulary=vocabulary):
            ids = torch.zeros((len(rows), last + 1), dtype=torch.long)
            for row, index in enumerate(rows):
                tokens = torch.as_tensor(sequences[index].tokens, dtype=torch.long)
                ids[row, : len(tokens)] = tokens
            ids = ids.to(device)
            options: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
            if "logits_to_keep" in accepted:
                options["logits_to_keep"] = torch.arange(first, last, device=device)
                logits = core(input_ids=ids[:, :last], **options).logits.float()
            else:
                logits = core(input_ids=ids[:, :last], **options).logits[:, first:last].float()
            target = ids[:, first + 1 : last + 1, None]
            scores = (logits.gather(-1, target) - logits.logsumexp(-1, keepdim=True))[..., 0].double().cpu().numpy()
            for row, index in enumerate(rows):
                end = len(sequences[index].tokens) - 1 - first
                result[index] = scores[row, end - sequences[index].targets : end].copy()
    return _checked(result)


def shared_log_probabilities(model: Any, sequences: Sequence[ScoredSequence], *, batch: int) -> list[np.ndarray]:
    """`sequence_log_probabilities` with every context read once, for models that `shared_contexts` knows.

    The same numbers but for rounding: the sums within a softmax are taken in another order.
    """
    import torch

    from fortifai_core.language.decoding import inference

    result: list[np.ndarray] = [np.empty(0)] * len(sequences)
    with inference(model) as core:
        parameter = next(core.parameters())
        vocabulary = text_setting(core, "vocab_size") or 1
        at_once = max(1, LOGITS_AT_ONCE // vocabulary)
        for rows in shared_contexts.batches(shared_contexts.rows_of(sequences), batch=batch, logits=at_once):
            tensors = shared_contexts.inputs(rows, sequences, dtype=parameter.dtype)
            ids, positions, mask = (tensor.to(parameter.device) for tensor in tensors)
            first = min(len(row.prefix) for row in rows) - 1
            logits = core(
                input_ids=ids,
                position_ids=positions,
                attention_mask=mask,
                use_cache=False,
                logits_to_keep=torch.arange(first, ids.shape[1], device=ids.device),
            ).logits.float()
            total = logits.logsumexp(-1)
            for place, row in enumerate(rows):
                for index, start in zip(row.members, row.starts, strict=True):
                    count = sequences[index].targets
                    # the first token of an answer is foretold at the context's end, the others within the answer
                    asked = torch.tensor([len(row.prefix) - 1, *range(start, start + count - 1)], device=ids.device)
                    wanted = ids[place, start : start + count]
                    scores = logits[place, asked - first, wanted] - total[place, asked - first]
                    result[index] = scores.double().cpu().numpy()
    return _checked(result)


def _checked(log_probabilities: list[np.ndarray]) -> list[np.ndarray]:
    if any(bool(np.isnan(of_sequence).any()) for of_sequence in log_probabilities):
        raise StageFailed("scoring: the model's logits are not numbers; its training has diverged")
    return log_probabilities
