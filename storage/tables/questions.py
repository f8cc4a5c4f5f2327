"""KR-test questions as a table of an artifact, and back: one `Question` from the corpus to the score."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fortifai_core.corpus.documents import Question
from storage.tables import parquet


def write_questions(path: Path, questions: Iterable[Question]) -> int:
    """Write questions (schema `questions`); returns how many.

    Raises:
        DataError: there is none.
    """
    rows = (
        {
            "question": question.id,
            "document": question.document,
            "split": question.split,
            "context": question.context,
            "true_answer": question.true_answer,
            "false_answer": question.false_answer,
        }
        for question in questions
    )
    return parquet.write_table(path, rows, schema="questions")


def read_questions(path: Path) -> list[Question]:
    """The questions that `write_questions` wrote, in its order.

    Raises:
        ArtifactDamaged: the file is missing, unreadable or empty.
    """
    return [
        Question(
            row["question"], row["document"], row["context"], row["true_answer"], row["false_answer"], row["split"]
        )
        for row in parquet.read_rows(path)
    ]
