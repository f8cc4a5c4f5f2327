"""`fortifai bench synthetic`: how often the estimate of a synthetic share is right, on mixtures of known share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fortifai_core.errors import InputError
from fortifai_core.outcomes.resampling import Floats
from fortifai_core.seeds import derive_seed
from fortifai_core.watch.synthetic import LEAST, Confidence, share_of

SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
TEMPERATURES = (1.0, 0.7)


@dataclass(frozen=True)
class Row:
    """Mixtures of one known share under one condition.

    Attributes:
        condition: whether the text is what the estimate supposes.
        temperature, supposed: at which the text's synthetic part was written, and the model's own that is referred to.
        told: share of the mixtures of which anything was told.
        covered: of these, in how many the interval held the share; None where nothing was told.
        estimate: mean over these. `width`: of the interval.
        gap: nats a token between the model's own and real text.
    """

    condition: str
    temperature: float
    supposed: float
    share: float
    mixtures: int
    documents: int
    told: float
    covered: float | None
    estimate: float | None
    width: float | None
    gap: float


def bench_synthetic(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    *,
    others: Sequence[str] = (),
    tokens: int = 96,
    documents: int = 80,
    mixtures: int = 300,
    most: int = 300,
    say: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Mix real and own documents in known shares, estimate the share of each mixture, and count.

    Every document is scored once. For each mixture, real and own documents are divided anew: one part is the reference,
    of the other the mixture is drawn, without replacement.

    Args:
        texts: real documents of one kind. Two thirds are scored, the last third gives prompts.
        others: real documents of another kind; mixtures of share 0 are made of them, with the first kind as reference.
        documents: of a mixture.
        most: real documents that are looked at.

    Raises:
        InputError: too few documents are long enough.
    """
    confidence = Confidence(model, tokenizer, tokens=tokens)
    windows = confidence.windows(texts)[:most]
    third = len(windows) // 3
    least = max(LEAST, documents)
    if third < least:
        raise InputError("--text", f"{len(windows)} documents", f"give {3 * least} of {tokens} tokens at least")
    prompts = windows[2 * third :] + windows[:third]
    say(f"{len(windows)} real documents of {tokens} tokens")
    real = confidence.of(windows[: 2 * third])
    written = {}
    for temperature in TEMPERATURES:
        say(f"the model's own text, temperature {temperature:g}")
        writer = Confidence(model, tokenizer, tokens=tokens, temperature=temperature)
        written[temperature] = confidence.of(writer.own(prompts))
    warm, cool = TEMPERATURES
    strange = confidence.of(confidence.windows(others)[: 2 * third]) if others else np.zeros(0)
    if others and len(strange) < least:
        raise InputError("--other", f"{len(strange)} documents", f"give {least} of {tokens} tokens at least")
    table = []
    for share in SHARES:
        for name, of_text, supposed in (
            ("as supposed", warm, warm),
            ("as supposed", cool, cool),
            ("written otherwise", cool, warm),
            ("written otherwise", warm, cool),
        ):
            own = None if of_text == supposed else written[supposed]
            counted = _mixtures(share, real, real, written[of_text], own, documents, mixtures)
            table.append(Row(name, of_text, supposed, share, mixtures, documents, *counted))
    for temperature in TEMPERATURES if len(strange) else ():
        counted = _mixtures(0.0, real, strange, written[temperature], None, documents, mixtures)
        table.append(Row("another kind of text", temperature, temperature, 0.0, mixtures, documents, *counted))
    return table


def _mixtures(
    share: float, real: Floats, of_text: Floats, written: Floats, own: Floats | None, documents: int, mixtures: int
) -> tuple[float, float | None, float | None, float | None, float]:
    """What is told, covered and estimated, how wide, and the gap; `own`: the reference, where not of `written`."""
    synthetic = round(share * documents)
    found = []
    for number in range(mixtures):
        rng = np.random.default_rng(derive_seed("synthetic", str(share), number))
        reals, writs = rng.permutation(real), rng.permutation(written)
        half, half_own = len(real) // 2, len(written) // 2
        rest = reals[half:] if of_text is real else rng.permutation(of_text)
        text = np.concatenate([writs[half_own:][:synthetic], rest[: documents - synthetic]])
        of_own = writs[:half_own] if own is None else rng.permutation(own)[:half_own]
        found.append(share_of(text, reals[:half], of_own, seed=number))
    told = [each for each in found if each.told]
    gap = float(np.mean(written if own is None else own) - np.mean(real))
    if not told:
        return 0.0, None, None, None, gap
    truth = synthetic / documents
    return (
        len(told) / mixtures,
        float(np.mean([each.share.low <= truth <= each.share.high for each in told])),
        float(np.mean([each.share.estimate for each in told])),
        float(np.mean([each.share.high - each.share.low for each in told])),
        gap,
    )
