"""Gathers the report's paragraph: one document of split 0, chosen by a rule, in every version of two arms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fortifai_core.measures.mutation import Mutation, Version
from storage.tables import parquet
from tasks.engine.context import Context
from tasks.engine.stages import Reference
from tasks.language.files import split_file
from tasks.language.specs import ReportSpec, RunResults

if TYPE_CHECKING:
    from fortifai_core.config.experiment import ExperimentConfig

ARMS = 2
# Longer documents are shown in part: what fits on a slide.
WHOLE_CHARACTERS, EXCERPT_TOKENS = 900, 160


def mutations(context: Context[ReportSpec], config: ExperimentConfig) -> tuple[Mutation, ...]:
    """The same document in the first two arms of the first seed; none where no question is asked about split 0,
    or its text was removed."""
    seed = config.seeds[0]
    rewriting = [run for run in context.spec.runs if run.seed == seed and 0 in run.generations[0].regenerate]
    order = {label: number for number, label in enumerate(config.arm_labels)}
    runs = sorted(rewriting, key=lambda run: order[run.arm])[:ARMS]
    if not runs:
        return ()
    corpus = context.artifact(runs[0].corpus)
    if not corpus.has("questions.parquet") or not corpus.has(split_file(0)):
        return ()
    asked = {row["document"] for row in parquet.read_rows(corpus.file("questions.parquet")) if row["split"] == 0}
    real = _find([corpus.file(split_file(0))], asked)
    if real is None:
        return ()
    name = real["document"]
    start, note = _part(config, real)
    decode = _decoder(context, runs[0]) if note else None

    def shown(row: dict[str, Any]) -> str:
        if decode is None:
            return str(row["text"])
        # what is cut out in the middle of a character reads as a replacement character
        return decode(row["tokens"][start : start + EXCERPT_TOKENS]).strip("�")

    from tasks.language.drift import entities_by_document

    entity = entities_by_document(config.corpus, splits=config.splits, world=seed).get(name)
    found = []
    for run in runs:
        written = _written(run)
        if any(context.manifest(reference).removed for _, reference in written):
            continue  # of one that was carried here without its texts
        versions = [Version(None, shown(real))]
        for generation, reference in written:
            row = _find(context.artifact(reference).files("part-*.parquet"), {name})
            if row is not None:
                versions.append(Version(generation, shown(row)))
        found.append(Mutation(name, run.arm, seed, tuple(versions), excerpt=note, entity=entity))
    return tuple(found)


def _written(run: RunResults) -> list[tuple[int, Reference]]:
    """The text of split 0 after each generation; of a pool what is read next, whoever wrote it."""
    found = []
    for number, results in enumerate(run.generations):
        after = run.generations[number + 1].pool if number + 1 < len(run.generations) else {}
        written = after.get(0) or results.regenerate.get(0)
        if written is not None:
            found.append((results.generation, written))
    return found


def _find(paths: Iterable[Path], names: set[str]) -> dict[str, Any] | None:
    """The first row about one of these documents; no more is read than needed."""
    for path in sorted(paths):
        for row in parquet.iter_rows(path, columns=["document", "text", "tokens"]):
            if row["document"] in names:
                return row
    return None


def _part(config: ExperimentConfig, real: dict[str, Any]) -> tuple[int, str]:
    """(first token shown, which part it is, in words); a version has as many tokens as the one before it."""
    if len(real["text"]) <= WHOLE_CHARACTERS:
        return 0, ""
    rewriting = config.regeneration
    head = rewriting.head_tokens or rewriting.context_tokens
    start = head if rewriting.head == "copy" and len(real["tokens"]) >= head + EXCERPT_TOKENS else 0
    end = min(len(real["tokens"]), start + EXCERPT_TOKENS)
    before = " the first that are rewritten," if start else ""
    return start, f"tokens {start:,} to {end:,} of {len(real['tokens']):,},{before} cut for length".replace(",,", ",")


def _decoder(context: Context[ReportSpec], run: RunResults) -> Callable[[list[int]], str]:
    from storage.tables.models import load_tokenizer

    tokenizer = load_tokenizer(context.artifact(run.generations[0].train).path / "tokenizer")
    return lambda tokens: str(tokenizer.decode(tokens, skip_special_tokens=True))
