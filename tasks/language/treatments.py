"""Treatments in a plan: which stages treat what a generation is trained on, and what is refused before any compute."""

from __future__ import annotations

from collections.abc import Iterator

from fortifai_core.config.corpus import AlmanacCorpus, Corpus, MixtureCorpus
from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.config.treatment import CustomTreatment, Detector, Treatment, Verifier, Weights
from fortifai_core.corpus.schedule import training_set
from fortifai_core.errors import ConfigError
from fortifai_core.treatments.own import TREATMENTS, VERIFIERS


def named_treatments(config: ExperimentConfig) -> Iterator[tuple[str, ExperimentConfig, Treatment]]:
    """Every treatment of every arm: where the configuration names it, the experiment as it is under the arm, and it."""
    for index, arm in enumerate(config.resolved_arms()):
        for number, treatment in enumerate(arm.experiment.treatments):
            yield f"{treatments_field(config, index)}.{number}", arm.experiment, treatment


def treatments_field(config: ExperimentConfig, arm: int) -> str:
    """Where an arm's treatments are named."""
    own = bool(config.arms) and config.arms[arm].treatments is not None
    return f"arms.{arm}.treatments" if own else "treatments"


def somebodys_code(treatment: Treatment) -> str | None:
    """What names the code of somebody else that a treatment runs, if it does."""
    match treatment:
        case CustomTreatment():
            return f"treatment {treatment.function}"
        case Verifier() if treatment.checker != "almanac":
            return f"verifier {treatment.checker}"
        case Detector() if treatment.classifier is not None:
            return f"classifier {treatment.classifier}"
    return None


def code_digests(config: ExperimentConfig) -> dict[str, str]:
    """What stands for somebody else's code in keys; each is loaded and tried on a few documents here.

    Raises:
        InputError: it is not installed or not allowed, fails, or is not what it should be.
    """
    from fortifai_core.config.custom_code import source_of
    from fortifai_core.treatments.own import try_checker, try_treatment
    from storage.sources.classifiers import check_classifier

    found: dict[str, str] = {}
    for field, _, treatment in named_treatments(config):
        name = somebodys_code(treatment)
        if name is None:
            continue
        match treatment:
            case CustomTreatment():
                found[name] = source_of(TREATMENTS, treatment.function, f"{field}.function").digest
                try_treatment(treatment.function, treatment.options, field)
            case Verifier():
                found[name] = source_of(VERIFIERS, treatment.checker, f"{field}.checker").digest
                try_checker(treatment.checker, treatment.options, field)
            case Detector(classifier=str(path), synthetic_label=label):
                found[name] = check_classifier(path, synthetic_label=label, field=field)
    return found


def check_treatments(config: ExperimentConfig) -> None:
    """Refuse treatments that find nothing to treat, or not what they need.

    Raises:
        ConfigError: naming the field, its value and the remedy.
    """
    for field, under, treatment in named_treatments(config):
        texts = [training_set(under.reading, i) for i in range(1, under.generations)]
        both = [{version.real for version in text} for text in texts]
        if not any(False in origins for origins in both):
            remedy = "has nothing to treat, for M_0 reads real text alone: raise generations"
            if under.generations > 1:
                remedy = "has nothing to treat: no generation reads synthetic text"
            raise ConfigError(field, treatment.label, remedy)
        if treatment.of == "real" and not any(origins == {True, False} for origins in both):
            remedy = (
                "no generation after M_0 reads real text beside synthetic: treat all of it, or choose another regime"
            )
            raise ConfigError(f"{field}.of", "real", remedy)
        if isinstance(treatment, Weights) and not any(origins == {True, False} for origins in both):
            remedy = "needs real text beside synthetic, which no generation reads: choose another regime, as fresh-mix"
            raise ConfigError(field, treatment.label, remedy)
        if isinstance(treatment, Verifier) and treatment.checker == "almanac" and not _has_almanac(under.corpus):
            remedy = (
                f"knows the truth of an almanac alone, and corpus.type is {under.corpus.type}: name your own checker"
            )
            raise ConfigError(f"{field}.checker", "almanac", remedy)


def _has_almanac(corpus: Corpus) -> bool:
    parts = corpus.parts if isinstance(corpus, MixtureCorpus) else [corpus]
    return any(isinstance(part, AlmanacCorpus) for part in parts)
