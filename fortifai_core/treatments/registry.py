"""From a treatment as configured to the function that does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from fortifai_core.config.treatment import (
    CustomTreatment,
    Deduplicate,
    Detector,
    SurpriseFilter,
    TokenEdit,
    Treatment,
    Verifier,
    Weights,
)
from fortifai_core.corpus.almanac.world import Entity
from fortifai_core.treatments.detection import Detector as MadeDetector
from fortifai_core.treatments.detection import Judge, calibrated, make_detector, resample
from fortifai_core.treatments.documents import Documents, Treat
from fortifai_core.treatments.duplicates import deduplicate
from fortifai_core.treatments.editing import token_edit
from fortifai_core.treatments.own import own_checker, own_treatment
from fortifai_core.treatments.reading import Reader
from fortifai_core.treatments.surprise import surprise_filter
from fortifai_core.treatments.verification import almanac_checker, verify
from fortifai_core.treatments.weights import weigh


@dataclass(frozen=True)
class Material:
    """What treatments work with besides the documents.

    Attributes:
        called: how the configuration names the treatment, for the errors.
        reader: the model that `treatment.reads` asks for.
        suppress: ids that are never drawn.
        labelled: text of which it is known who wrote it, of both origins.
        judge: a classifier that somebody else made.
        entities: the almanac's ground truth, by documents.
        shares: how much of D_split^(version) the generation will read; all, where it is not among them.
        told: filled with numbers that the treatment has to say of itself.
    """

    seed: int
    called: str
    reader: Reader | None = None
    suppress: Sequence[int] = ()
    labelled: Documents | None = None
    judge: Judge | None = None
    entities: Mapping[str, Entity] = field(default_factory=dict)
    shares: Mapping[tuple[int, int], float] = field(default_factory=dict)
    told: dict[str, float] = field(default_factory=dict)


def treatment_of(config: Treatment, material: Material) -> Treat:
    """The function that does what is configured.

    Raises:
        InputError: a user's own function that cannot be loaded, or a detector without text of both origins.
    """
    seed, called = material.seed, material.called
    match config:
        case SurpriseFilter():
            assert material.reader is not None
            return partial(surprise_filter, losses=material.reader.losses, keep=config.keep)
        case TokenEdit():
            assert material.reader is not None
            return partial(
                token_edit,
                logits=material.reader.logits,
                threshold=config.threshold,
                temperature=config.temperature,
                top_k=config.top_k,
                suppress=material.suppress,
                seed=seed,
            )
        case Detector():
            detector = _detector(config, material)
            material.told.update({"detector-auc": detector.auc, "detector-calibration-error": detector.error})
            return partial(
                resample,
                detector=detector,
                bias=config.bias,
                upsample=config.upsample,
                max_repeats=config.max_repeats,
                seed=seed,
            )
        case Verifier():
            own = config.checker != "almanac"
            checker = own_checker(config.checker, config.options, field=called) if own else None
            return partial(
                verify,
                checker=checker or almanac_checker(material.entities),
                false_accept=config.false_accept,
                false_reject=config.false_reject,
                seed=seed,
                called=called,
            )
        case Weights():
            return partial(
                weigh,
                real=config.real,
                read=lambda document: material.shares.get((document.split, document.version), 1.0),
            )
        case Deduplicate():
            return partial(deduplicate, near=config.near, ngram=config.ngram)
        case CustomTreatment():
            return own_treatment(config.function, config.options, seed=seed, field=called)


def _detector(config: Detector, material: Material) -> MadeDetector:
    assert material.labelled is not None
    if material.judge is not None:
        return calibrated(material.judge, material.labelled, called=material.called)
    return make_detector(material.labelled, folds=config.folds, seed=material.seed, called=material.called)
