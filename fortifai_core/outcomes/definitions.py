"""What has been called collapse: each definition that can be measured here, its source, and its threshold.

Schaeffer et al., "Position: Model Collapse Does Not Mean What You Think" (arXiv 2503.03150) count eight definitions in
the literature. Six can be judged in an experiment of this kind, by one or several measures each; two cannot, and
`NOT_MEASURED` says why. Every threshold and every margin stands here, fixed before any experiment is looked at: none
was chosen by a result. They are round numbers that say "half", "double" or "a tenth", and each verdict names its own.

A definition judges a statistic against a bound: as it is, as the difference to its value at M_0 of the same run, or
to that of the real text. On a logarithmic scale differences are ratios.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fortifai_core import wording

# Generations that stand for what a statistic is compared with: M_0, and the real text, which no model has written.
FIRST, REAL = 0, -1


@dataclass(frozen=True)
class Definition:
    """One definition of collapse, as it is measured.

    Attributes:
        name, title: of the definition, as an identifier and for people.
        measure: the statistic's name.
        number: which of the eight of arXiv 2503.03150, in words; empty for one of its own.
        source: who defines collapse like that, or measures it by that.
        falls: collapse is falling below the threshold; otherwise rising above it.
        threshold, margin: in the statistic's own units; ratios (below 1 / above 1) on a logarithmic scale. Arms that
            differ by less than the margin are called equal.
        against: the generation whose value is subtracted, or None.
        log: the statistic is a logarithm.
        share: the statistic is a share, written in percent.
        learned: the statistic is a model's, so that beyond the threshold at M_0 there was nothing to lose.
    """

    name: str
    title: str
    measure: str
    number: str
    source: str
    falls: bool
    threshold: float
    margin: float
    against: int | None = None
    log: bool = False
    share: bool = False
    learned: bool = True

    @property
    def bound(self) -> float:
        """The threshold on the scale of the statistic."""
        return math.log(self.threshold) if self.log else self.threshold

    @property
    def tolerance(self) -> float:
        """The margin on that scale."""
        return math.log(1 + self.margin) if self.log else self.margin

    @property
    def rule(self) -> str:
        """`below 75%`, `above 2 × M0's`, `below 0.5 × the real text's`, `0.69 above M0's`."""
        side = "below" if self.falls else "above"
        if self.against is None:
            return f"{side} {self.shown(self.bound)}"
        whose = "M0's" if self.against == FIRST else "the real text's"
        if self.log:
            return f"{side} {wording.number(self.threshold)} × {whose}"
        amount = f"{100 * abs(self.threshold):g} points" if self.share else wording.number(abs(self.threshold))
        return f"{amount} {side} {whose}"

    def shown(self, value: float) -> str:
        """A statistic, or a difference of two, as people read it."""
        if not math.isfinite(value):
            return "–"
        if self.log:
            ratio = math.exp(min(value, 700.0))
            return wording.number(ratio) + ("×" if self.against is not None else "")
        if self.share:
            return wording.points(value) if self.against is not None else wording.share(value, 1).replace(".0%", "%")
        return wording.number(value)

    def difference(self, value: float) -> str:
        """A difference between two arms: points, a factor, or a plain number with its sign."""
        if self.log:
            return f"{wording.number(math.exp(min(value, 700.0)))}×"
        if self.share:
            return f"{wording.points(value)} points"
        return f"{'+' if value > 0 else ''}{wording.number(value)}"


_RISK, _ANY = "catastrophic increase of population risk", "any increase of population risk"
_VARIANCE, _TAIL = "collapsing variance", "disappearance of real tail data"
_MODES, _INVENTED = "entanglement of real data modes", "appearance of hallucinated data"
_SHUMAILOV = "Shumailov et al., Nature 631, 2024"
_DOHMATOB = "Dohmatob et al., arXiv 2410.04840"
_ALEMOHAMMAD = "Alemohammad et al., arXiv 2307.01850"
_FORTIFAI = "ForTIFAI"
_ANY_RISK = 1.01  # "any" needs a smallest amount that counts, or its absence could never be shown


def language_definitions(retention: float = 0.75) -> tuple[Definition, ...]:
    """Those of language models. `retention`: the experiment's own failure threshold, if it fails by retention."""
    return (
        Definition(
            "retention", "Retention", "kr-split-0", "", _FORTIFAI, True, retention, 0.05, share=True,
        ),
        Definition(
            "facts-true", "Facts still true", "facts-true-0", "", "this software's almanac", True, 0.5, 0.05,
            share=True, learned=False,
        ),
        Definition("risk-any", "Perplexity, any rise", "log-perplexity-real", _ANY, _DOHMATOB, False, _ANY_RISK, 0.02,
                   against=FIRST, log=True),
        Definition("risk", "Perplexity, doubled", "log-perplexity-real", _RISK, _SHUMAILOV, False, 2.0, 0.02,
                   against=FIRST, log=True),
        Definition("model-kl", "Model KL", "model-kl", "", "this software: a token half as likely", False,
                   math.log(2), 0.05),
        Definition("unigram-kl", "Unigram KL", "unigram-kl-0", "", f"{_FORTIFAI}, Figure 7", False, 0.1, 0.02,
                   learned=False),
        Definition("entropy", "Entropy", "entropy", _VARIANCE, "Gambetta et al., arXiv 2410.12341", True, 0.5, 0.05,
                   against=FIRST, log=True),
        Definition("tail-types", "Rare words", "tail-types-kept-0", _TAIL, _SHUMAILOV, True, 0.5, 0.05,
                   share=True, learned=False),
        Definition("tail-mass", "Tail mass", "log-tail-mass-kept-0", _TAIL, "Dohmatob et al., arXiv 2402.07043", True,
                   0.5, 0.1, log=True, learned=False),
        Definition("distinct-2", "Distinct bigrams", "log-distinct-2-0", _VARIANCE, "Guo et al., arXiv 2311.09807",
                   True, 0.5, 0.05, against=REAL, log=True, learned=False),
        Definition("unlike", "Unlike each other", "log-unlike-0", _VARIANCE, "self-BLEU: Zhu et al., arXiv 1802.01886",
                   True, 0.5, 0.05, against=REAL, log=True, learned=False),
        Definition("compression", "Compressed size", "log-compressed-share-0", _VARIANCE,
                   "Shaib et al., arXiv 2403.00553", True, 0.5, 0.05, against=REAL, log=True, learned=False),
        Definition("vendi", "Variety (Vendi)", "log-vendi-0", _VARIANCE, "Friedman and Dieng, arXiv 2210.02410",
                   True, 0.5, 0.05, against=REAL, log=True, learned=False),
        Definition("mauve", "MAUVE", "mauve-0", "", "Pillutla et al., arXiv 2102.01454", True, 0.5, 0.05,
                   learned=False),
        Definition("facts-false", "Facts turned false", "facts-false-0", _INVENTED, _SHUMAILOV, False, 0.1, 0.02,
                   share=True, learned=False),
    )  # fmt: skip


GAUSSIAN = (
    Definition("variance", "Variance", "log-variance", _VARIANCE, _SHUMAILOV, True, 0.1, 0.25, against=FIRST, log=True),
)
MIXTURE = (
    Definition("variance", "Variance", "log-covariance-trace", _VARIANCE, _SHUMAILOV, True, 0.1, 0.25,
               against=FIRST, log=True),
    Definition("modes", "Modes kept apart", "class-agreement", _MODES, _SHUMAILOV, True, -0.25, 0.05,
               against=FIRST, share=True),
    Definition("components", "Components surviving", "component-survival", _TAIL, _SHUMAILOV, True, 0.5, 0.1,
               share=True),
    Definition("risk-any", "Risk, any rise", "real-log-likelihood", _ANY, _DOHMATOB, True, -0.01, 0.02, against=FIRST),
    Definition("risk", "Risk, a nat", "real-log-likelihood", _RISK, _SHUMAILOV, True, -1.0, 0.02, against=FIRST),
)  # fmt: skip
ZIPF = (
    Definition("tail-types", "Tail types", "tail-survival", _TAIL, _SHUMAILOV, True, 0.5, 0.05, share=True,
               learned=False),
    Definition("tail-mass", "Tail mass", "log-tail-mass", _TAIL, "Dohmatob et al., arXiv 2402.07043", True, 0.5, 0.1,
               against=FIRST, log=True),
    Definition("entropy", "Entropy", "log-entropy", _VARIANCE, "Gambetta et al., arXiv 2410.12341", True, 0.5, 0.05,
               against=FIRST, log=True),
    Definition("distance", "Total variation", "total-variation", _RISK, _SHUMAILOV, False, 0.5, 0.05),
)  # fmt: skip
IMAGES = (
    Definition("coverage", "Coverage", "coverage", _TAIL, _SHUMAILOV, True, 0.75, 0.1, share=True),
    Definition("recall", "Recall", "log-recall", _TAIL, _ALEMOHAMMAD, True, 0.5, 0.1, against=FIRST, log=True),
    Definition("variance", "Variance", "log-pixel-spread", _VARIANCE, _SHUMAILOV, True, 0.1, 0.25,
               against=FIRST, log=True),
    Definition("precision", "Precision", "log-precision", _INVENTED, _ALEMOHAMMAD, True, 0.5, 0.1,
               against=FIRST, log=True),
    Definition("risk-any", "Fréchet, any rise", "log-frechet", _ANY, _ALEMOHAMMAD, False, _ANY_RISK, 0.1,
               against=FIRST, log=True),
    Definition("risk", "Fréchet, doubled", "log-frechet", _RISK, _ALEMOHAMMAD, False, 2.0, 0.1,
               against=FIRST, log=True),
)  # fmt: skip
FAMILIES: dict[str, tuple[Definition, ...]] = {
    "gaussian": GAUSSIAN,
    "gmm": MIXTURE,
    "zipf": ZIPF,
    "vae": IMAGES,
    "diffusion": IMAGES,
}
NOT_MEASURED = {
    "asymptotically diverging population risk": "an asymptote is not seen in finitely many generations",
    "change in scaling law": "needs models of several sizes or corpora of several lengths: several experiments",
}


def not_measured(judged: Iterable[Definition]) -> dict[str, str]:
    """Of the eight definitions of arXiv 2503.03150 those that none of these stands for, and why."""
    eight = (_RISK, _ANY, "asymptotically diverging population risk", _VARIANCE, "change in scaling law", _MODES,
             _TAIL, _INVENTED)  # fmt: skip
    there = {definition.number for definition in judged}
    return {name: NOT_MEASURED.get(name, "no measure of it was taken here") for name in eight if name not in there}
