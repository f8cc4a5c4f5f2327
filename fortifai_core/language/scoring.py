"""Log-probabilities of given tokens under a model, each sequence by itself or with every common beginning read once."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np

from fortifai_core.errors import StageFailed
from fortifai_core.language import shared_contexts
from fortifai_core.language.shared_contexts import Row, ScoredSequence

# Logits that exist at once where a model makes them itself, as float32: half a gibibyte.
LOGITS_AT_ONCE = 2**27
# Tokens that go through the model at a time on a CPU: few enough for its cache, enough for a GEMM at its full rate.
CPU_TOKENS = 1_024


def log_probabilities(
    model: Any, sequences: Sequence[ScoredSequence], *, batch: int, shared: bool | None = None
) -> list[np.ndarray]:
    """log p of each sequence's last tokens: one float64 [targets] a sequence, in the order given, in nats.

    Padding stands behind the tokens, where a causal model does not look. The head, if it is a linear layer, is run
    only where a token is asked for, and the log-softmax is taken in float32. Neither `batch` nor `shared` changes a
    result but by rounding: sums within a product and a softmax are taken in another order.

    Args:
        model: token ids [rows, length] → object with `.logits` [rows, length, vocabulary]; left in the mode it was in.
        sequences: each with more tokens than targets, and a target at least.
        batch: sequences at a time; fewer where their tokens or logits would be many.
        shared: read every common beginning once; None: where the model's code takes it and enough tokens are saved.

    Raises:
        StageFailed: the model's logits are not numbers.
    """
    import torch

    from fortifai_core.language.decoding import inference
    from fortifai_core.language.parts import parts_of

    result: list[np.ndarray] = [np.empty(0)] * len(sequences)
    with inference(model) as core:
        if shared is None:
            shared = shared_contexts.worthwhile(core, sequences)
        parameter = next(core.parameters(), torch.empty(0))
        parts = parts_of(core)
        tokens = CPU_TOKENS if parameter.device.type == "cpu" else 2**62
        if parts is None:
            tokens = min(tokens, max(1, LOGITS_AT_ONCE // (text_setting(core, "vocab_size") or 1)))
        for rows in shared_contexts.batches(
            shared_contexts.rows_of(sequences, shared=shared, members=max(2, batch)),
            batch=batch,
            tokens=tokens,
            masks=shared,
        ):
            given: dict[str, Any] = {"input_ids": shared_contexts.padded(rows)}
            if shared:
                given["position_ids"], given["attention_mask"] = shared_contexts.tree_of(rows, dtype=parameter.dtype)
            given = {name: tensor.to(parameter.device) for name, tensor in given.items()}
            states, first = _states(core, parts, given, rows)
            _score(states, first, parts, rows, sequences, result)
    if any(bool(np.isnan(of_sequence).any()) for of_sequence in result):
        raise StageFailed("scoring: the model's logits are not numbers; its training has diverged")
    return result


def text_setting(core: Any, name: str) -> int | None:
    """A number from the configuration of a model's text part; None where it has none of that name."""
    config: Any = getattr(core, "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config()
    value = getattr(config, name, None)
    return value if isinstance(value, int) else None


def _states(core: Any, parts: Any, given: dict[str, Any], rows: Sequence[Row]) -> tuple[Any, int]:
    """What logits are made of, [rows, length − first, …], from place `first` on: states, or the logits themselves."""
    if parts is not None:
        return parts.body(**given, use_cache=False).last_hidden_state, 0
    accepted = inspect.signature(core.forward).parameters
    if "use_cache" in accepted:
        given["use_cache"] = False
    if "logits_to_keep" not in accepted:
        return core(**given).logits, 0
    import torch

    ids = given["input_ids"]
    first = min(place for row in rows for asked in row.asked for place in asked)
    return core(**given, logits_to_keep=torch.arange(first, ids.shape[1], device=ids.device)).logits, first


def _score(
    states: Any, first: int, parts: Any, rows: Sequence[Row], sequences: Sequence[ScoredSequence], result: Any
) -> None:
    """Put the scores of every sequence of some rows into `result`; logits of a place are made once."""
    import torch

    width = states.shape[1]
    asked = [
        number * width + place - first for number, row in enumerate(rows) for places in row.asked for place in places
    ]
    members = [index for row in rows for index in row.members]
    wanted = np.concatenate([np.asarray(sequences[index].answer, dtype=np.int64) for index in members])
    places, of = np.unique(np.array(asked), return_inverse=True)
    scores = np.empty(len(wanted))
    states = states.flatten(0, 1)
    size = len(places) if parts is None else parts.rows
    for start in range(0, len(places), size):
        chosen = states[torch.as_tensor(places[start : start + size], device=states.device)]
        logits = chosen.float() if parts is None else parts.logits(chosen)
        here = np.nonzero((of >= start) & (of < start + size))[0]
        row, token = (torch.as_tensor(values, device=states.device) for values in (of[here] - start, wanted[here]))
        scores[here] = (logits[row, token] - logits.logsumexp(-1)[row]).double().cpu().numpy()
    ends = np.cumsum([sequences[index].targets for index in members])
    for index, of_sequence in zip(members, np.split(scores, ends[:-1]), strict=True):
        result[index] = of_sequence
