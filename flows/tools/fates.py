"""`fortifai fates`: of an experiment on the almanac, where its facts died."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.tools.exporting import artifact_of, newest_text_of
from fortifai_core.config.corpus import AlmanacCorpus
from fortifai_core.corpus.almanac.readback import State, fact_states
from fortifai_core.corpus.almanac.world import Entity, entities_of
from fortifai_core.errors import InputError
from fortifai_core.measures.fates import Fates, Share, Step, fates_of
from fortifai_core.outside import markup
from storage.store.experiments import Experiment, StageRecord
from storage.store.store import ArtifactStore
from storage.tables import parquet


def fates_by_arm(store: ArtifactStore, record: Experiment) -> dict[str, Fates]:
    """What became of the facts of split 0 in each arm, over all its runs and generations.

    Of the text that a model read its newest version of split 0 is looked at; where it read others as well (as when
    text accumulates) a fact may have stood there.

    Raises:
        InputError: not an experiment on the almanac, one generation only, or something of it is not in the store.
    """
    corpus = record.config.get("corpus", {})
    if corpus.get("type") != "almanac":
        raise InputError("experiment", record.label, "only the almanac knows which facts are true: name one on it")
    world = AlmanacCorpus.model_validate(corpus)
    found: dict[str, list[Step]] = {}
    for arm, seed in dict.fromkeys((s.arm or "", s.seed or 0) for s in record.stages if s.role == "train"):
        entities = {e.id: e for e in entities_of(world, splits=record.config["splits"], seed=seed)[0]}
        found.setdefault(arm, []).extend(_steps(store, record, arm, seed, entities))
    if not any(found.values()):
        raise InputError("experiment", record.label, "a fact's way needs two models that were asked: run M1 at least")
    return {arm: fates_of(steps) for arm, steps in found.items() if steps}


def _steps(
    store: ArtifactStore, record: Experiment, arm: str, seed: int, entities: dict[str, Entity]
) -> Iterator[Step]:
    of_run = [stage for stage in record.stages if (stage.arm or "", stage.seed or 0) == (arm, seed)]
    trained = {stage.generation or 0: stage for stage in of_run if stage.role == "train"}
    asked = {s.generation: s for s in of_run if s.role == "evaluate" and s.generation in trained}
    before: tuple[dict[str, dict[str, State]], dict[str, dict[str, Any]]] | None = None
    for generation in sorted(trained):
        if generation not in asked:
            continue
        stage = asked[generation]
        evaluation = artifact_of(store, record, stage.kind, stage.key)
        rows = parquet.read_rows(evaluation.file("scores.parquet"))
        answers = {row["question"]: row for row in rows if row["document"] in entities}
        stated = _stated(store, record, trained[generation], entities)
        if before is not None:
            for question, answer in answers.items():
                document = answer["document"]
                attribute = question.removeprefix(f"{document}-")
                old = before[1].get(question)
                if old is not None:
                    yield Step(
                        (record.label, str(seed), document),
                        generation,
                        before[0].get(document, {}).get(attribute, "absent"),
                        stated.get(document, {}).get(attribute, "absent"),
                        knew=bool(old["correct"]),
                        knows=bool(answer["correct"]),
                        margin=old["logp_true"] - old["logp_false"],
                    )
        before = stated, answers


def _stated(
    store: ArtifactStore, record: Experiment, stage: StageRecord, entities: dict[str, Entity]
) -> dict[str, dict[str, State]]:
    """By document and attribute: what the text says that a model was trained on; copies of a document are one."""
    texts: dict[str, list[str]] = {}
    for path in newest_text_of(store, record, stage):
        for row in parquet.read_rows(path, columns=["document", "text"]):
            if row["document"] in entities:
                texts.setdefault(row["document"], []).append(row["text"])
    return {document: fact_states(entities[document], "\n".join(of)) for document, of in texts.items()}


def show(fates: dict[str, Fates], console: Console) -> None:
    """A row an arm."""
    tables: tuple[tuple[str, Callable[[Fates], dict[str, Share]]], ...] = (
        ("facts that the old text states truly: share that the new one does", lambda of: of.rewritten_true),
        ("… and share that the new one states falsely", lambda of: of.rewritten_false),
        ("facts known before: share known after training, by how the text states them", lambda of: of.learned),
        ("facts known before and not after: where they died", lambda of: of.deaths),
    )
    for title, shares in tables:
        _table(title, {arm: shares(one) for arm, one in fates.items()}, console, percent=True)
    margins = {arm: one.margin for arm, one in fates.items()}
    _table("nats by which a known fact's answer had been preferred, if it then", margins, console, percent=False)
    console.print(
        "[dim]split 0; in brackets 95% intervals over documents; by chance a model knows half of everything[/]"
    )


def _table(title: str, rows: dict[str, dict[str, Share]], console: Console, *, percent: bool) -> None:
    table = Table("arm", *next(iter(rows.values())), box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for arm, shares in rows.items():
        table.add_row(markup(arm), *(_in_words(share, percent) for share in shares.values()))
    console.print(f"[bold]{title}[/]", highlight=False)
    console.print(table)
    console.print()


def _in_words(share: Share, percent: bool) -> str:
    if share.interval is None:
        return "–"
    one = share.interval
    if percent:
        ends = f" [{100 * one.low:.0f} to {100 * one.high:.0f}]" if one.known else ""
        return f"{100 * one.estimate:.0f}%{ends} of {share.count:,}"
    ends = f" [{one.low:.1f} to {one.high:.1f}]" if one.known else ""
    return f"{one.estimate:.1f}{ends}, {share.count:,}"
