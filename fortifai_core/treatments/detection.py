"""Detection: a calibrated classifier says how real a document is, and documents are drawn by it.

Drayson, Yilmaz and Lampos, "Machine-generated text detection prevents language model collapse" (EMNLP 2025, arXiv
2502.15654): with p the calibrated probability that a document is synthetic (temperature scaling, Guo et al. 2017),
documents are drawn by the weights (1 − p)^b; the authors' code draws without replacement from `max_repeats` copies of
each. Their classifier is a ModernBERT trained on other text. The one that is made here is a logistic regression on
runs of one and two words. It learns from the run's own text, of which it is known who wrote it, and never judges a
document by what it learned from any version of the same document.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fortifai_core.errors import DataError
from fortifai_core.seeds import derive_seed
from fortifai_core.treatments.documents import Document, Documents, Dropped
from fortifai_core.treatments.reading import batches

Floats = NDArray[np.float64]
Judge = Callable[[Iterable[Document]], Iterator[float]]

FEATURES = 2**16
# Documents of either class that a classifier learns from.
LEARNED_FROM = 4000
TEMPERATURES = (0.01, 100.0)


@dataclass(frozen=True)
class Detector:
    """A calibrated detector.

    Attributes:
        judge: log-odds of synthetic, document by document, before calibration.
        temperature: by which they are divided.
        error: expected calibration error of its probabilities on the text that it was calibrated on (10 bins).
        auc: probability that of a synthetic and a real document the synthetic one is the likelier, of the same text.
    """

    judge: Judge
    temperature: float
    error: float
    auc: float

    def probabilities(self, documents: Iterable[Document]) -> Iterator[float]:
        """The calibrated probability that each is synthetic."""
        for odds in self.judge(documents):
            yield float(sigmoid(np.array([odds]), self.temperature)[0])


def resample(
    documents: Documents, *, detector: Detector, bias: float, upsample: float, max_repeats: int, seed: int
) -> Iterator[Document | Dropped]:
    """Draw documents by the weights (1 − p)^bias, without replacement from `max_repeats` copies of each.

    So many are drawn as there are, times `upsample`; all copies of positive weight, where these are fewer. Holds a
    number a document.
    """
    probabilities = np.fromiter(detector.probabilities(documents), dtype=np.float64)
    counts = draws(
        (1 - probabilities) ** bias, size=round(len(probabilities) * upsample), max_repeats=max_repeats, seed=seed
    )
    for document, probability, count in zip(documents, probabilities.tolist(), counts.tolist(), strict=True):
        if not count:
            yield Dropped(document, "not drawn", probability)
        for _ in range(count):
            yield document.scored(probability)


def draws(weights: Floats, *, size: int, max_repeats: int, seed: int) -> NDArray[np.int64]:
    """How often each of some documents is drawn: int64 [documents].

    Without replacement, one after the other, from `max_repeats` copies of each, with chances in proportion to the
    weights of what is left.
    """
    copies = np.repeat(np.arange(len(weights)), max_repeats)
    chances = weights[copies]
    size = max(1, min(size, int(np.count_nonzero(chances))))
    if not chances.sum() > 0:
        return np.zeros(len(weights), dtype=np.int64)
    drawn = np.random.default_rng(seed).choice(copies, size=size, replace=False, p=chances / chances.sum())
    return np.bincount(drawn, minlength=len(weights)).astype(np.int64)


def sigmoid(odds: Floats, temperature: float = 1.0) -> Floats:
    """Probability of log-odds that are divided by a temperature."""
    from scipy.special import expit

    return np.asarray(expit(odds / temperature), dtype=np.float64)


def best_temperature(odds: Floats, synthetic: NDArray[np.bool_]) -> float:
    """The temperature at which the log-odds make the labels likeliest, both classes counting alike."""
    from scipy.optimize import minimize_scalar

    sides = np.where(synthetic, odds, -odds)
    weight = np.where(synthetic, 0.5 / max(1, synthetic.sum()), 0.5 / max(1, (~synthetic).sum()))

    def loss(log_temperature: float) -> float:
        return float(np.sum(weight * np.logaddexp(0, -sides / np.exp(log_temperature))))

    return float(np.exp(minimize_scalar(loss, bounds=tuple(np.log(TEMPERATURES)), method="bounded").x))


def calibration_error(probabilities: Floats, synthetic: NDArray[np.bool_], *, bins: int = 10) -> float:
    """Mean distance between stated and actual share of synthetic documents over bins of equal width, by their sizes.

    Both classes count alike, as in the temperature: what is stated is how probable a document is synthetic where half
    of all are.
    """
    place = np.minimum((probabilities * bins).astype(int), bins - 1)
    weight = np.where(synthetic, 0.5 / max(1, synthetic.sum()), 0.5 / max(1, (~synthetic).sum()))
    gaps = [abs(np.sum((weight * (probabilities - synthetic))[place == b])) for b in np.unique(place)]
    return float(sum(gaps))


def calibrated(judge: Judge, labelled: Documents, *, called: str) -> Detector:
    """A judge with its temperature and what it is worth, by documents of which it is known who wrote them.

    Raises:
        DataError: they are not of both classes.
    """
    from sklearn.metrics import roc_auc_score

    synthetic = np.fromiter((not document.real for document in labelled), dtype=bool)
    _both(int((~synthetic).sum()), int(synthetic.sum()), called)
    odds = np.fromiter(judge(labelled), dtype=np.float64)
    temperature = best_temperature(odds, synthetic)
    error = calibration_error(sigmoid(odds, temperature), synthetic)
    return Detector(judge, temperature, error, float(roc_auc_score(synthetic, odds)))


def make_detector(labelled: Documents, *, folds: int, seed: int, called: str) -> Detector:
    """Train and calibrate a classifier on documents of which it is known who wrote them.

    One for each of `folds` parts of the ids learns from the other parts; every document is judged by the one that has
    seen no version of it. Holds at most `LEARNED_FROM` documents of each class, drawn evenly.

    Raises:
        DataError: the documents outside some part are not of both classes.
    """
    sample = _sample(labelled, seed=seed)
    models = []
    for fold in range(folds):
        learned = [document for document in sample if fold_of(document, folds=folds) != fold]
        real = sum(document.real for document in learned)
        _both(real, len(learned) - real, called)
        models.append(_fit(learned))

    def judge(documents: Iterable[Document]) -> Iterator[float]:
        for group in batches(documents, 256):
            odds = np.zeros(len(group))
            for fold, model in enumerate(models):
                here = [n for n, document in enumerate(group) if fold_of(document, folds=folds) == fold]
                if here:
                    odds[here] = model.decision_function([group[n].text for n in here])
            yield from odds.tolist()

    return calibrated(judge, labelled, called=called)


def _both(real: int, synthetic: int, called: str) -> None:
    if not (real and synthetic):
        remedy = "a detector learns from text of both origins: give more documents in a split, or lower folds"
        raise DataError(called, f"{real} real and {synthetic} synthetic documents to learn from", remedy)


def classifier_judge(model: Any, tokenizer: Any, *, synthetic_label: int, longest: int, batch: int) -> Judge:
    """The judge that a sequence classifier of Hugging Face is: log-odds of one of its labels against the others.

    Args:
        longest: tokens of a document that it reads, its first ones.
    """

    def judge(documents: Iterable[Document]) -> Iterator[float]:
        import torch

        with torch.inference_mode():
            for group in batches(documents, batch):
                texts = [document.text for document in group]
                given = tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
                logits = model(**given.to(model.device)).logits.double()
                others = torch.cat([logits[:, :synthetic_label], logits[:, synthetic_label + 1 :]], dim=1)
                yield from (logits[:, synthetic_label] - others.logsumexp(dim=1)).tolist()

    return judge


def fold_of(document: Document, *, folds: int) -> int:
    """The part that a document and all its versions are in."""
    return derive_seed("detector-fold", document.id) % folds


def _sample(labelled: Documents, *, seed: int) -> list[Document]:
    """At most `LEARNED_FROM` of each class, those of the least hash, in their order."""
    least: dict[bool, list[tuple[int, int, Document]]] = {True: [], False: []}
    for number, document in enumerate(labelled):
        entry = (-derive_seed("detector-sample", seed, *document.name), number, document)
        if len(least[document.real]) < LEARNED_FROM:
            heapq.heappush(least[document.real], entry)
        else:
            heapq.heappushpop(least[document.real], entry)
    return [document for _, _, document in sorted(least[True] + least[False], key=lambda entry: entry[1])]


def _fit(documents: list[Document]) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = HashingVectorizer(
        ngram_range=(1, 2), token_pattern=r"\w+|[^\w\s]", n_features=FEATURES, alternate_sign=False
    )
    model = make_pipeline(words, LogisticRegression(class_weight="balanced", C=10.0, max_iter=1000))
    return model.fit([d.text for d in documents], [not d.real for d in documents])
