"""How many different things a set of documents says: the Vendi score over a language model's own embeddings.

Friedman and Dieng, "The Vendi Score" (TMLR 2023, arXiv 2210.02410): exp of the von Neumann entropy of K/n, K the n × n
matrix of similarities with ones on its diagonal. It is the effective number of dissimilar documents: 1 where all are
the same, n where none is like another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fortifai_core.errors import DataError, StageFailed


def vendi_score(similarities: np.ndarray) -> float:
    """exp(−Σ λ ln λ) over the eigenvalues λ of K/n, in [1, n].

    Args:
        similarities: K, float [n, n], positive semi-definite with ones on its diagonal.

    Raises:
        DataError: there are no documents.
    """
    count = len(similarities)
    if not count:
        raise DataError("documents", 0, "there is nothing whose variety could be measured")
    eigenvalues = np.linalg.eigvalsh(np.asarray(similarities, dtype=np.float64) / count)
    positive = eigenvalues[eigenvalues > 1e-12]  # what is below is rounding, and 0 · ln 0 is 0
    return float(np.exp(-np.sum(positive * np.log(positive))))


def similarities_of(embeddings: np.ndarray, *, centre: np.ndarray) -> np.ndarray:
    """Cosines of embeddings around a centre: float64 [n, n] from float [n, width].

    A language model's embeddings all point one way (Ethayarajh 2019), so that around 0 any two texts are alike. What
    lies on the centre is like nothing but itself.
    """
    moved = np.asarray(embeddings, dtype=np.float64) - centre
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    directions = moved / np.where(lengths > 0, lengths, 1.0)
    cosines = directions @ directions.T
    np.fill_diagonal(cosines, 1.0)
    return cosines


def embed(model: Any, documents: Sequence[Sequence[int]], *, batch: int) -> np.ndarray:
    """Of each document the mean of the model's last hidden states over its tokens: float64 [document, width].

    Raises:
        StageFailed: the hidden states are not numbers.
    """
    import torch

    from fortifai_core.language.decoding import inference

    found: list[np.ndarray] = []
    with inference(model) as core:
        device = next((p.device for p in core.parameters()), torch.device("cpu"))
        for start in range(0, len(documents), batch):
            group = documents[start : start + batch]
            ids = torch.zeros((len(group), max(map(len, group))), dtype=torch.long)
            real = torch.zeros(ids.shape, dtype=torch.long)
            for row, tokens in enumerate(group):
                ids[row, : len(tokens)] = torch.as_tensor(tokens, dtype=torch.long)
                real[row, : len(tokens)] = 1
            ids, real = ids.to(device), real.to(device)
            states = core.base_model(input_ids=ids, attention_mask=real).last_hidden_state.double()
            found.append(((states * real[..., None]).sum(1) / real.sum(1, keepdim=True)).cpu().numpy())
    made = np.concatenate(found) if found else np.zeros((0, 1))
    if not np.isfinite(made).all():
        raise StageFailed("embeddings: the model's hidden states are not numbers")
    return made
