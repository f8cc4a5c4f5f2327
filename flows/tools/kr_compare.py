"""`fortifai kr compare`: two sets of questions, asked of every saved model of an experiment, and how far they agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from fortifai_core.config.corpus import AlmanacCorpus, Corpus, MixtureCorpus
from fortifai_core.config.stages import Regime
from fortifai_core.corpus.documents import Question
from fortifai_core.corpus.schedule import splits_seen
from fortifai_core.errors import InputError
from fortifai_core.outcomes.agreement import LEVELS, Agreement, Answered, agreement
from storage.store.experiments import Experiment, StageRecord
from storage.store.store import Artifact, ArtifactStore
from storage.tables import parquet

_CORPUS: TypeAdapter[Corpus] = TypeAdapter(Corpus)
OWN = "the experiment's own"
OnModel = Callable[[int, int, str], None]


@dataclass(frozen=True)
class QuestionSet:
    """Questions with the split of each, in one corpus."""

    name: str
    questions: list[Question]
    split: list[int]


@dataclass(frozen=True)
class Comparison:
    """`rows`: one a model and set, with its right answers on split 0 and on all splits seen."""

    sets: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    agreements: list[Agreement]

    def to_json(self) -> dict[str, Any]:
        return {"sets": self.sets, "rows": self.rows, "agreements": [asdict(one) for one in self.agreements]}


def compare(
    store: ArtifactStore,
    record: Experiment,
    files: Sequence[Path],
    *,
    batch: int = 64,
    draws: int = 1000,
    on_model: OnModel = lambda done, total, name: None,
) -> Comparison:
    """Ask every trained model of the experiment both sets of questions. Nothing is written into the store.

    Args:
        files: two files of questions about the experiment's corpus; or one, which is compared with its own questions.
        batch: answers scored at a time.
        on_model: told before each model is asked.

    Raises:
        InputError: no model is left in the store, or a set has no question about a split.
        DataError: a question that is not valid or points nowhere.
    """
    from transformers.utils import logging

    from storage.tables.models import load_model, load_tokenizer

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    models = [stage for stage in record.stages if stage.role == "train"]
    found = [(stage, store.find(stage.kind, stage.key)) for stage in models]
    trained = [(stage, artifact) for stage, artifact in found if artifact is not None]
    if not trained:
        raise InputError("experiment", record.label, "none of its models is in the store; run it first")
    regime = Regime(record.config["regime"])
    sets: dict[str, list[QuestionSet]] = {}
    answers: list[list[tuple[Any, Any]]] = [[], []]
    rows = []
    for number, (stage, artifact) in enumerate(trained):
        on_model(number, len(trained), f"{stage.arm} · seed {stage.seed} · g{stage.generation}")
        corpus = stage.parents["corpus"]
        if corpus not in sets:
            sets[corpus] = question_sets(store, record, stage, files)
        base = stage.parents.get("base", "")
        adapted = store.find("model", base) if base else None
        model = load_model(artifact.path, base=adapted.path if adapted else None)
        tokenizer = load_tokenizer(artifact.path / "tokenizer")
        seen = set(splits_seen(regime, stage.generation or 0))
        for of_set, one in zip(answers, sets[corpus], strict=True):
            correct, asked = _ask(model, tokenizer, one, seen, record=record, batch=batch)
            of_set.append((correct, asked))
            in_first = [right for right, there, k in zip(correct, asked, one.split, strict=True) if there and k == 0]
            rows.append(
                {
                    "set": one.name,
                    "arm": stage.arm,
                    "seed": stage.seed,
                    "generation": stage.generation,
                    "split_0": sum(in_first) / len(in_first) if in_first else None,
                    "split_0_questions": len(in_first),
                    "total": sum(correct) / sum(asked),
                    "questions": sum(asked),
                }
            )
    first, second = _joined(trained, sets, answers)
    names = [{"name": one.name, "questions": len(one.questions)} for one in next(iter(sets.values()))]
    return Comparison(names, rows, [agreement(first, second, level=level, draws=draws) for level in LEVELS])


def question_sets(
    store: ArtifactStore, record: Experiment, stage: StageRecord, files: Sequence[Path]
) -> list[QuestionSet]:
    """The two sets, cut into the splits of the corpus that this model was trained on."""
    corpus = store.find("corpus", stage.parents["corpus"])
    if corpus is None:
        raise InputError("experiment", record.label, "its corpus is not in the store; run it first")
    split_of = {
        document: int(path.stem.rpartition("-")[2])
        for path in corpus.files("split-*.parquet")
        for document in parquet.read_table_columns(path, ["document"])["document"]
    }
    found = [_own(corpus)] if len(files) == 1 else []
    found += [_from_file(path, record, stage, split_of) for path in files]
    return found


def _own(corpus: Artifact) -> QuestionSet:
    if not corpus.files("questions.parquet"):
        raise InputError("--questions", "one file", "this experiment has no questions of its own: give two files")
    rows = parquet.read_rows(corpus.file("questions.parquet"))
    questions = [
        Question(r["question"], r["document"], r["context"], r["true_answer"], r["false_answer"]) for r in rows
    ]
    return QuestionSet(OWN, questions, [row["split"] for row in rows])


def _from_file(path: Path, record: Experiment, stage: StageRecord, split_of: dict[str, int]) -> QuestionSet:
    """Questions of a file; those about documents that are in no split (held out, or not used) are left out."""
    from storage.sources.questions import attach, read_items
    from storage.sources.sources import load_source

    corpus = _CORPUS.validate_python(record.config["corpus"])
    field = "--questions"
    if isinstance(corpus, (AlmanacCorpus, MixtureCorpus)):
        questions = attach(
            read_items(path, field=field),
            locate=lambda location: location if isinstance(location, str) else None,
            prefix=path.stem,
            meaning="a document's id",
            field=field,
        )
    else:
        # the corpus's own reader knows what a location is: a line of WikiText, the number of a document
        asked = corpus.model_copy(update={"questions": str(path)})
        questions = load_source(asked, splits=record.config["splits"], seed=stage.seed or 0).questions
    kept = [question for question in questions if question.document in split_of]
    if not kept:
        raise InputError(field, str(path), "none of its questions is about a document of this experiment's splits")
    return QuestionSet(path.name, kept, [split_of[question.document] for question in kept])


def _ask(
    model: Any, tokenizer: Any, asked: QuestionSet, seen: set[int], *, record: Experiment, batch: int
) -> tuple[list[bool], list[bool]]:
    from fortifai_core.measures.retention import score_questions
    from tasks.language.evaluate import automatic_bos

    there = [split in seen for split in asked.split]
    scores = score_questions(
        model,
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        [question for question, known in zip(asked.questions, there, strict=True) if known],
        variant=record.config["evaluation"]["kr_score"],
        batch=batch,
        bos_id=automatic_bos(tokenizer),
    )
    right = {score.question: score.correct for score in scores}
    return [right.get(question.id, False) for question in asked.questions], there


def _joined(
    trained: Sequence[tuple[StageRecord, Any]],
    sets: dict[str, list[QuestionSet]],
    answers: list[list[tuple[Any, Any]]],
) -> list[Answered]:
    """Answers of all models as one table a set; each seed's world has documents of its own."""
    import numpy as np

    joined = []
    for index, of_set in enumerate(answers):
        document: list[str] = []
        split: list[int] = []
        start: dict[str, int] = {}
        for corpus, pair in sets.items():
            start[corpus] = len(document)
            document += [f"{corpus}/{question.document}" for question in pair[index].questions]
            split += pair[index].split
        correct = np.zeros((len(trained), len(document)), bool)
        asked = np.zeros_like(correct)
        for row, ((stage, _), (right, there)) in enumerate(zip(trained, of_set, strict=True)):
            place = slice(start[stage.parents["corpus"]], start[stage.parents["corpus"]] + len(right))
            correct[row, place], asked[row, place] = right, there
        joined.append(Answered(document, split, correct, asked))
    return joined
