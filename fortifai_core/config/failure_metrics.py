"""Which measures can say that an arm has failed: their names, on which side failure lies, and who measures them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from fortifai_core import wording

DEFAULT = "kr-split-0"


@dataclass(frozen=True)
class FailureMetric:
    """One measure of a generation.

    Attributes:
        name: as in the view `metrics` (those of split 0's newest text end in `-0`).
        title: for people.
        falls: failure is falling below the threshold; otherwise rising above it.
        share: its values lie between 0 and 1.
        role: the stage that measures it, `evaluate` or `drift`.
        first: the first generation that has it.
    """

    name: str
    title: str
    falls: bool
    share: bool
    role: Literal["evaluate", "drift"]
    first: int = 0

    @property
    def verb(self) -> str:
        return "fell below" if self.falls else "rose above"

    def level(self, threshold: float) -> str:
        """The threshold as people read it: `75%` or `300`."""
        return wording.threshold(threshold, of_shares=self.share)


_KNOWN = (
    FailureMetric("kr-total", "retention over all splits seen", True, True, "evaluate"),
    FailureMetric("perplexity-real", "perplexity on held-out real text", False, False, "evaluate"),
    FailureMetric("model-kl", "model KL from M0", False, False, "drift"),
    FailureMetric("perplexity-base-self", "the base model's perplexity on what M_i wrote", False, False, "drift"),
    FailureMetric("facts-true-0", "facts of split 0 still stated truly", True, True, "drift"),
    FailureMetric("tail-types-kept-0", "rare words of split 0 still in use", True, True, "drift"),
    FailureMetric("self-bleu-0", "self-BLEU of split 0's newest text", False, True, "drift"),
)
CHOICES = "kr-split-0 (or of any split), " + ", ".join(metric.name for metric in _KNOWN)


def failure_metric(name: str) -> FailureMetric:
    """The measure of that name.

    Raises:
        KeyError: there is none that failure could be judged by.
    """
    split = re.fullmatch(r"kr-split-(\d{1,4})", name)
    if split:
        k = int(split[1])
        return FailureMetric(name, f"retention of split {k}", True, True, "evaluate", first=k)
    found = {metric.name: metric for metric in _KNOWN}
    return found[name]
