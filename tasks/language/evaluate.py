"""Builder of an evaluation: the KR-test on every split seen so far, perplexity and confidence on real text."""

from __future__ import annotations

from typing import Any

from fortifai_core.corpus.tokenization import automatic_bos
from storage.tables import parquet
from storage.tables.questions import read_questions
from tasks.engine.context import Context
from tasks.language.files import CLUSTERS, base_folder, cluster_rows, metric_row
from tasks.language.specs import EvaluateSpec

WINDOW = 256  # of held-out text


def _window_of(model: Any) -> int:
    """Tokens of held-out text that the model reads at once: a shorter one than others reads as many as it can."""
    from fortifai_core.language.scoring import text_setting

    core = model.get_base_model() if hasattr(model, "get_base_model") else model
    return min(WINDOW, text_setting(core, "max_position_embeddings") or WINDOW)


def build_evaluation(context: Context[EvaluateSpec]) -> dict[str, Any]:
    """Score M_i; keeps every question's score."""
    from fortifai_core.measures.retention import retention, score_questions
    from fortifai_core.measures.text_counts import losses_by_sequence, perplexity_of
    from storage.tables.models import load_model, load_tokenizer

    spec = context.spec
    artifact, corpus = context.artifact(spec.model), context.artifact(spec.corpus)
    tokenizer = load_tokenizer(artifact.path / "tokenizer")
    model = load_model(artifact.path, base=base_folder(context, spec.base), dtype=spec.dtype).to(context.device)
    metrics: list[dict[str, Any]] = []
    questions = []
    if corpus.has("questions.parquet"):
        asked_of = read_questions(corpus.file("questions.parquet"))
        questions = [question for question in asked_of if question.split in spec.splits]
    if questions:
        scores = score_questions(
            model,
            lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
            questions,
            variant=spec.kr_score,
            batch=context.runtime.inference_batch,
            bos_id=automatic_bos(tokenizer),
        )
        asked = list(zip(scores, questions, strict=True))
        rows = [
            {
                "question": score.question,
                "document": question.document,
                "split": question.split,
                "logp_true": score.logp_true,
                "logp_false": score.logp_false,
                "correct": score.correct,
            }
            for score, question in asked
        ]
        parquet.write_table(context.directory / "scores.parquet", rows, schema="scores")
        for split in spec.splits:
            of_split = [score for score, question in asked if question.split == split]
            if of_split:
                metrics.append(metric_row(f"kr-split-{split}", split, retention(of_split), len(of_split)))
        metrics.append(metric_row("kr-total", None, retention(scores), len(scores)))
    if spec.perplexity:
        held_out = parquet.read_table_columns(corpus.file("validation.parquet"), ["document", "tokens"])
        batch = max(1, context.runtime.inference_batch // 8)
        losses, counts = losses_by_sequence(model, held_out["tokens"], batch=batch, sequence_length=_window_of(model))
        metrics.append(metric_row("perplexity-real", None, perplexity_of(losses, counts), int(counts.sum())))
        names = held_out["document"]
        parquet.write_table(
            context.directory / CLUSTERS, cluster_rows("log-perplexity-real", names, losses, counts), schema="clusters"
        )
    if metrics:
        parquet.write_table(context.directory / "metrics.parquet", metrics, schema="metrics")
    return {row["metric"]: row["value"] for row in metrics}
