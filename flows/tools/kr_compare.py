"""`fortifai kr compare`: two sets of questions, asked of every saved model of an experiment, and how far they agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from flows.tools.exporting import reading_of_arm
from fortifai_core.config.corpus import AlmanacCorpus, Corpus, MixtureCorpus
from fortifai_core.corpus.documents import Question
from fortifai_core.corpus.schedule import splits_seen
from fortifai_core.corpus.splitting import assign_questions
from fortifai_core.errors import InputError, within
from fortifai_core.outcomes.agreement import LEVELS, Agreement, Answered, agreement
from storage.store.experiments import Experiment, StageRecord
from storage.store.store import ArtifactStore
from storage.tables import parquet
from storage.tables.questions import read_questions as read_question_table

_CORPUS: TypeAdapter[Corpus] = TypeAdapter(Corpus)
OWN = "the experiment's own"
OnModel = Callable[[int, int, str], None]


@dataclass(frozen=True)
class QuestionSet:
    """Questions about one corpus; each has the split of its document."""

    name: str
    questions: list[Question]


@dataclass(frozen=True)
class Comparison:
    """`rows`: one a model and set, with its right answers on split 0 and on all splits seen."""

    sets: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    agreements: list[Agreement]


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
    artifacts = [(stage, store.read(stage.kind, stage.key)) for stage in models]
    trained = [(stage, found) for stage, found in artifacts if found is not None and found.manifest.removed is None]
    if not trained:
        remedy = f"none of its models is in the store with its weights: `fortifai resume {record.label} --weights`"
        raise InputError("experiment", record.label, remedy)
    sets: dict[str, list[QuestionSet]] = {}
    answers: list[list[tuple[Any, Any]]] = [[], []]
    rows = []
    for number, (stage, artifact) in enumerate(trained):
        on_model(number, len(trained), f"{stage.arm} · seed {stage.seed} · g{stage.generation}")
        corpus = stage.parents["corpus"]
        if corpus not in sets:
            sets[corpus] = question_sets(store, record, stage, files)
        dtype = record.config["evaluation"].get("dtype")
        base = stage.parents.get("base", "")
        adapted = store.read("model", base) if base else None
        model = load_model(artifact.path, base=adapted.path if adapted else None, dtype=dtype)
        tokenizer = load_tokenizer(artifact.path / "tokenizer")
        seen = set(splits_seen(reading_of_arm(record, stage.arm), stage.generation or 0))
        for answers_of_set, question_set in zip(answers, sets[corpus], strict=True):
            correct, asked = _ask(model, tokenizer, question_set, seen, record=record, batch=batch)
            answers_of_set.append((correct, asked))
            in_first = [
                right
                for right, was_asked, question in zip(correct, asked, question_set.questions, strict=True)
                if was_asked and question.split == 0
            ]
            rows.append(
                {
                    "set": question_set.name,
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
    names = [{"name": s.name, "questions": len(s.questions)} for s in next(iter(sets.values()))]
    return Comparison(names, rows, [agreement(first, second, level=level, draws=draws) for level in LEVELS])


def question_sets(
    store: ArtifactStore, record: Experiment, stage: StageRecord, files: Sequence[Path]
) -> list[QuestionSet]:
    """The two sets, cut into the splits of the corpus that this model was trained on."""
    corpus = store.read("corpus", stage.parents["corpus"])
    if corpus is None:
        raise InputError("experiment", record.label, "its corpus is not in the store; run it first")
    split_of = {
        document: int(path.stem.rpartition("-")[2])
        for path in corpus.files("split-*.parquet")
        for document in parquet.iter_column(path, "document")
    }
    if len(files) < 2 and not corpus.has("questions.parquet"):
        raise InputError("--questions", "one file", "this experiment has no questions of its own: give two files")
    sets = [_from_file(path, record, stage, split_of) for path in files]
    if len(files) > 1:
        return sets
    return [QuestionSet(OWN, read_question_table(corpus.file("questions.parquet"))), *sets]


def _from_file(path: Path, record: Experiment, stage: StageRecord, split_of: dict[str, int]) -> QuestionSet:
    """Questions of a file; those about documents that are in no split (held out, or not used) are left out."""
    from storage.sources.questions import attach, read_questions
    from storage.sources.sources import load_source

    corpus = _CORPUS.validate_python(record.config["corpus"])
    if isinstance(corpus, (AlmanacCorpus, MixtureCorpus)):
        with within("--questions"):
            questions = attach(
                read_questions(path),
                locate=lambda location: location if isinstance(location, str) else None,
                prefix=path.stem,
                meaning="a document's id",
            )
    else:
        # the corpus's own reader knows what a location is: a line of WikiText, the number of a document
        asked = corpus.model_copy(update={"questions": str(path)})
        questions = load_source(asked, splits=record.config["splits"], seed=stage.seed or 0).questions
    kept = assign_questions([question for question in questions if question.document in split_of], split_of)
    if not kept:
        raise InputError(
            "--questions", str(path), "none of its questions is about a document of this experiment's splits"
        )
    return QuestionSet(path.name, kept)


def _ask(
    model: Any, tokenizer: Any, question_set: QuestionSet, seen: set[int], *, record: Experiment, batch: int
) -> tuple[list[bool], list[bool]]:
    """Whether each question was answered right, and whether it was asked: its split has been seen."""
    from fortifai_core.corpus.tokenization import automatic_bos
    from fortifai_core.measures.retention import score_questions

    was_asked = [question.split in seen for question in question_set.questions]
    scores = score_questions(
        model,
        lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        [question for question in question_set.questions if question.split in seen],
        variant=record.config["evaluation"]["kr_score"],
        batch=batch,
        bos_id=automatic_bos(tokenizer),
    )
    right = {score.question: score.correct for score in scores}
    return [right.get(question.id, False) for question in question_set.questions], was_asked


def _joined(
    trained: Sequence[tuple[StageRecord, Any]], sets: dict[str, list[QuestionSet]], answers: list[list[tuple[Any, Any]]]
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
            split += [question.split for question in pair[index].questions if question.split is not None]
        correct = np.zeros((len(trained), len(document)), bool)
        asked = np.zeros_like(correct)
        for row, ((stage, _), (right, there)) in enumerate(zip(trained, of_set, strict=True)):
            place = slice(start[stage.parents["corpus"]], start[stage.parents["corpus"]] + len(right))
            correct[row, place], asked[row, place] = right, there
        joined.append(Answered(document, split, correct, asked))
    return joined
