"""Token editing: tokens that the base model is too sure of are drawn anew (ToEdit).

Zhu et al., "How to synthesize text data without model collapse?" (ICML 2025, arXiv 2412.14689), Algorithm 1: with the
prior P of a pretrained model and a threshold p (0.99 there),

    x'_t = x_t where P(x_t | x_<t) < p, else x'_t drawn from P(· | x_<t).

Every token is judged and drawn given the text as it came, so that one pass over it is enough. At temperature 1 a token
that is drawn anew stays what it was with probability p or more: few of them change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from fortifai_core.seeds import derive_seed
from fortifai_core.treatments.documents import Document, Documents

Logits = Callable[[Iterable[Document]], Iterator[tuple[Document, Iterator[Any]]]]


def token_edit(
    documents: Documents,
    *,
    logits: Logits,
    threshold: float,
    temperature: float,
    top_k: int,
    suppress: Sequence[int],
    seed: int,
) -> Iterator[Document]:
    """Draw anew every token of probability `threshold` or more. Holds one document, and logits of a part of it.

    The score of a document is the share of its tokens that were drawn, whether or not they changed.

    Args:
        logits: each document with what its tokens were foretold from, in parts [tokens, vocabulary].
        suppress: ids that are never drawn.
    """
    import torch

    from fortifai_core.config.stages import Regeneration
    from fortifai_core.language.decoding import draw, warpers

    warp = warpers(Regeneration(decoding="sample", temperature=temperature, top_k=top_k))
    for document, parts in logits(documents):
        # one for each place, so that no token's draw depends on which others are drawn
        uniforms = np.random.default_rng(derive_seed("token-edit", seed, *document.name)).random(len(document.tokens))
        edited, drawn = list[int](), 0
        for given in parts:
            here = slice(len(edited), len(edited) + len(given))
            tokens = torch.tensor(document.tokens[here], device=given.device)
            known = torch.log_softmax(given.double(), dim=-1).gather(1, tokens[:, None])[:, 0]
            sure = torch.nonzero(known >= np.log(threshold))[:, 0]
            if len(sure):
                scores = given[sure].clone()
                scores[:, torch.tensor(list(suppress), dtype=torch.long, device=given.device)] = -torch.inf
                no_text: Any = None  # none of the warpers reads it
                chances = torch.as_tensor(uniforms[here], device=given.device)[sure]
                tokens[sure] = draw(warp(no_text, scores), chances)
                drawn += len(sure)
            edited += tokens.tolist()
        changed = document if edited == document.tokens else document.edited(tokens=edited)
        yield changed.scored(drawn / len(edited))
