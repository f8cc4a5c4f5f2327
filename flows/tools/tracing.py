"""`fortifai trace`: a document's versions back to the real text, and in which generation each of its questions died."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from flows.tools.exporting import refuse_without_text
from fortifai_core.errors import InputError
from fortifai_core.measures.mutation import changes
from fortifai_core.outside import clipped, markup, visible
from storage.catalog.catalog import query
from storage.catalog.views import quote
from storage.store.experiments import Experiment
from storage.store.store import ArtifactStore

SHOWN = 10_000  # characters of a text in a terminal; `--json` has all of it


def trace(store: ArtifactStore, record: Experiment, what: str, *, arm: str | None, seed: int | None) -> dict[str, Any]:
    """Everything the store knows of one document, or of a question and its document.

    Returns:
        `document`, `versions` (real text first; each with version, generation, text, key, kept, tokens, and as
        `writer` the arm that wrote it if it is another, of a pool),
        `questions` (each with its fate and the generation in which it died), `arm`, `seed`.

    Raises:
        InputError: no document or question of the experiment is called so, there is no such run, or its texts are not
            here.
    """
    record.refuse_family("experiment", "it has no documents; `fortifai sql` lists its metrics and samples")
    runs = [(str(run.arm), int(run.seed or 0)) for run in record.stages if run.role == "train"]
    arm = runs[0][0] if arm is None else arm
    seed = next((s for a, s in runs if a == arm), 0) if seed is None else seed
    if (arm, seed) not in runs:
        known = ", ".join(f"{a} · seed {s}" for a, s in dict.fromkeys(runs))
        raise InputError("--arm", f"{arm} · seed {seed}", f"{record.label} has {known}")
    for stage in record.stages:
        if stage.role == "regenerate" and (stage.arm, stage.seed) == (arm, seed):
            manifest = store.peek(stage.kind, stage.key)
            if manifest is not None:
                refuse_without_text(record, manifest)
    here = f"experiment = {quote(record.label)} AND arm = {quote(arm)} AND seed = {seed}"
    of_question = f"SELECT document FROM question_fates WHERE {here} AND question = {quote(what)}"
    asked_about = query(store, of_question)[1]
    document = asked_about[0][0] if asked_about else what
    # the newest version's chain: one query gives every version, the real text (0) first
    columns = "ancestor_version, ancestor_generation, split, text, kept, len(tokens), ancestor_key"
    chain = query(
        store,
        f"""SELECT {columns} FROM chains WHERE {here} AND document = {quote(document)}
        QUALIFY version = max(version) OVER () ORDER BY ancestor_version""",
    )[1]
    if not chain:
        remedy = "no document or question of that id was rewritten in this run"
        near = query(store, f"SELECT DISTINCT document FROM chains WHERE {here} ORDER BY 1 LIMIT 3")[1]
        hint = f"; there are {', '.join(name for (name,) in near)}, …" if near else "; nothing was rewritten yet"
        raise InputError("document", what, remedy + hint)
    only = f"AND f.question = {quote(what)}" if asked_about else ""
    # of the run's own corpus: another seed's world has other questions under the same ids
    corpus = chain[0][-1]
    fates = query(
        store,
        f"""SELECT f.question, f.fate, f.died_in, q.context, q.true_answer, q.false_answer
        FROM (SELECT * FROM question_fates WHERE {here}) f
        LEFT JOIN (SELECT DISTINCT ON (question) * FROM questions WHERE key = {quote(corpus)}) q USING (question)
        WHERE f.document = {quote(document)} {only} ORDER BY f.question""",
    )[1]
    names = ("version", "generation", "split", "text", "kept", "tokens", "key")
    versions = [dict(zip(names, row, strict=True)) for row in chain]
    own = {stage.key for stage in record.stages if (stage.arm, stage.seed) == (arm, seed)}
    writers = {stage.key: stage.arm for stage in record.stages if stage.role == "regenerate" and stage.key not in own}
    asked = ("question", "fate", "died_in", "context", "true_answer", "false_answer")
    return {
        "document": document,
        "arm": arm,
        "seed": seed,
        "versions": [{**version, "writer": writers.get(version["key"])} for version in versions],
        "questions": [dict(zip(asked, row, strict=True)) for row in fates],
    }


def show(traced: dict[str, Any], console: Console) -> None:
    """Print each version with what is new in it in red, then the questions."""
    console.print(
        f"[bold]{markup(traced['document'])}[/] · {markup(traced['arm'])} · seed {traced['seed']}\n", highlight=False
    )
    before = None
    for version in traced["versions"]:
        text = clipped(version["text"], SHOWN)
        k, j = version["split"], version["version"]
        writer = "real text" if version["generation"] is None else f"written by M{version['generation']}"
        writer += "" if version["writer"] is None else f" of {markup(version['writer'])}"
        kept = "" if before is None else f", {version['kept']} of {version['tokens']} tokens kept"
        console.print(f"[bold]D{k}^({j})[/]  [dim]{writer}{kept} · {markup(version['key'][:12])}[/]", highlight=False)
        line = Text()
        for piece, new in [(text, False)] if before is None else changes(before, text):
            line.append(visible(piece), style="red" if new else "")
        console.print(line, highlight=False)
        console.print()
        before = text
    for question in traced["questions"]:
        when = f"died in M{question['died_in']}" if question["fate"] == "died" else question["fate"]
        answers = " / ".join(clipped(question[name], SHOWN) for name in ("true_answer", "false_answer"))
        asked = f"{question['question']}: {when}\n  {clipped(question['context'], SHOWN)} … {answers}"
        console.print(markup(asked), highlight=False)
