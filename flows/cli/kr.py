"""`fortifai kr build | check | compare`: questions about one's own text, what is wrong with them, what they show."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from flows.outputs import file_to_write
from flows.terminal import Terminal
from fortifai_core.corpus.documents import Document, FileQuestion
from fortifai_core.corpus.questions.baselines import Baseline
from fortifai_core.corpus.questions.build import KINDS
from fortifai_core.errors import ConfigError, DataError, within
from fortifai_core.outside import line as on_one_line
from fortifai_core.outside import markup
from fortifai_core.parsing import local_path

if TYPE_CHECKING:
    from flows.tools.kr_compare import Comparison

app = typer.Typer(
    help="KR-test questions about your own text: make them, check them, compare them. No service is asked."
)
out = Terminal()

Source = Annotated[str, typer.Argument(help="A text file (.txt, .jsonl, .parquet), a preset, or an experiment's YAML.")]


def documents_of(source: str, *, text_field: str = "text") -> list[Document]:
    """The documents of a file, or of the corpus of a preset or YAML; ids are what `location` then names.

    Raises:
        InputError: the file or preset is not there, or holds no text.
    """
    with within("SOURCE"):
        path = local_path(source)
    if path.name.endswith((".txt", ".jsonl", ".parquet", ".txt.gz", ".jsonl.gz", ".parquet.gz")):
        from storage.sources.textfiles import read_documents

        with within("SOURCE"):
            raw = read_documents(path, text_field=text_field)
        return [Document(f"document-{i}" if d.id is None else d.id, d.text, "text") for i, d in enumerate(raw)]
    from flows.load import load_experiment_config
    from storage.sources.sources import load_source

    config = load_experiment_config(source)
    read = load_source(config.corpus, splits=config.splits, seed=config.seeds[0])
    return list(read.documents)


@app.command()
def build(
    source: Source,
    target: Annotated[Path, typer.Option("--out", help="File to write: .json (the authors' form) or .jsonl.")],
    per_document: Annotated[int, typer.Option(min=2, help="At most so many questions a document.")] = 16,
    kinds: Annotated[str, typer.Option(help="What is exchanged.")] = ",".join(KINDS),
    seed: Annotated[int, typer.Option(min=0, help="Which of the possible exchanges are taken.")] = 0,
    text_field: Annotated[str, typer.Option(help="Column of the text in .jsonl and .parquet files.")] = "text",
) -> None:
    """Make questions from raw text: two statements of one article exchange a date, number, name or key phrase."""
    from fortifai_core.corpus.questions.baselines import baselines, word_counts
    from fortifai_core.corpus.questions.build import build_questions, common_words
    from storage.sources.questions import write_questions

    chosen: Any = [kind.strip() for kind in kinds.split(",") if kind.strip()]
    unknown = [kind for kind in chosen if kind not in KINDS]
    if unknown or not chosen:
        raise ConfigError("--kinds", kinds, f"choose from {', '.join(KINDS)}")
    target = file_to_write("--out", target, endings=(".json", ".jsonl"))
    documents = documents_of(source, text_field=text_field)
    made = build_questions(
        documents, per_document=per_document, kinds=chosen, seed=seed, common=common_words(documents)
    )
    write_questions(target, (asdict(question) for question in made))
    of_kind = {kind: sum(question.kind == kind for question in made) for kind in chosen}
    about = len({question.location for question in made})
    out.print(
        f"{len(made):,} questions about {about:,} of {len(documents):,} documents → {markup(target)}\n"
        + ", ".join(f"{count:,} by {kind}" for kind, count in of_kind.items())
    )
    answers = [(question.sentence_true, question.sentence_false) for question in made]
    _show(baselines(answers, word_counts(document.text for document in documents)))


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="A KR-test file: a JSON list, or JSONL.")],
    corpus: Annotated[str | None, typer.Option(help="The text that it is about, as in `kr build`.")] = None,
    text_field: Annotated[str, typer.Option(help="Column of the text in .jsonl and .parquet files.")] = "text",
    show: Annotated[int, typer.Option(min=1, help="Lines of problems that are printed.")] = 40,
) -> None:
    """Say what is wrong with a file of questions, line by line. Exit code 1 where there is something."""
    from fortifai_core.corpus.questions.baselines import word_counts
    from fortifai_core.corpus.questions.check import question_problems, seen_words, set_problems
    from storage.sources.questions import read_with_problems

    with within("FILE"):
        questions, unusable = read_with_problems(local_path(file))
    if not questions and not unusable:
        raise DataError("FILE", str(file), "it holds no question: add some")
    problems = [(problem.line, problem.remedy) for problem in unusable] + question_problems(questions)
    counts = seen_words(questions)
    if corpus is not None:
        documents = documents_of(corpus, text_field=text_field)
        counts = word_counts(document.text for document in documents)
        problems += _nowhere(questions, documents)
    for line, problem in sorted(problems)[:show]:
        typer.echo(on_one_line(f"{file}:{line}: {problem}"))
    if len(problems) > show:
        out.print(f"… and {len(problems) - show:,} more (--show {len(problems)})")
    together: list[str] = []
    if questions:
        together, guesses = set_problems(questions, counts)
        for problem in together:
            typer.echo(on_one_line(f"{file}: {problem}"))
        _show(guesses)
    wrong = len({line for line, _ in problems})
    verdict = f"{len(questions):,} questions are well-formed; {wrong:,} lines have a problem"
    if together:
        verdict += f", and so has the set as a whole ({len(together)}, above)"
    out.print(verdict)
    raise typer.Exit(1 if problems or together else 0)


@app.command()
def compare(
    experiment: Annotated[str, typer.Argument(help="An experiment's name or id; its models must be in the store.")],
    questions: Annotated[
        list[Path], typer.Option("--questions", help="A file of questions; given once, it meets the experiment's own.")
    ],
    store: Annotated[str | None, typer.Option("--store", help="Artifact store. [FORTIFAI_STORE]")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Answers scored at a time.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Ask every model of an experiment two sets of questions: do they tell the same story? Writes nothing."""
    from flows.stores import open_store
    from flows.tools.kr_compare import compare as ask
    from storage.store.experiments import load_experiment

    if len(questions) > 2:
        raise ConfigError("--questions", len(questions), "give two files, or one to compare with the experiment's own")
    opened = open_store(store)
    record = load_experiment(opened, experiment)
    with within("--questions"):
        files = [local_path(path) for path in questions]
    with Terminal(stderr=True).status("…") as status:
        comparison = ask(
            opened,
            record,
            files,
            batch=batch,
            on_model=lambda done, total, name: status.update(f"{done + 1} of {total} models: {markup(name)}"),
        )
    if as_json:
        typer.echo(json.dumps(asdict(comparison), indent=2))
    else:
        _show_comparison(comparison)


def _show_comparison(comparison: Comparison) -> None:
    names = [questions["name"] for questions in comparison.sets]
    table = Table(
        "run", "model", *[f"{markup(n)}: {k}" for n in names for k in ("split 0", "all")], box=None, pad_edge=False
    )
    for pair in zip(comparison.rows[::2], comparison.rows[1::2], strict=True):
        first = pair[0]
        cells = [
            "–" if row[name] is None else f"{row[name]:.1%} ({row[count]})"
            for row in pair
            for name, count in (("split_0", "split_0_questions"), ("total", "questions"))
        ]
        table.add_row(markup(f"{first['arm']} · seed {first['seed']}"), f"M{first['generation']}", *map(markup, cells))
    out.print(table)
    agreed = Table("correlation over", "points", "Pearson", "Spearman", box=None, pad_edge=False)
    for agreement in comparison.agreements:
        both = [
            "undefined" if math.isnan(c.estimate) else f"{c.estimate:+.2f} ({c.low:+.2f} to {c.high:+.2f})"
            for c in (agreement.pearson, agreement.spearman)
        ]
        agreed.add_row(agreement.level, str(agreement.points), *both)
    out.print()
    out.print(agreed)
    out.print("[dim]in brackets: 95% intervals over documents; the models are the same in every draw[/]")


def _nowhere(questions: list[FileQuestion], documents: list[Document]) -> list[tuple[int, str]]:
    ids = {document.id for document in documents}
    if not ids:
        raise DataError("--corpus", 0, "it holds no document")
    return [
        (question.line, f"location {location!r} is no document of the corpus")
        for question in questions
        for location in [question.location]
        if (location not in ids if isinstance(location, str) else not 0 <= location < len(documents))
    ]


def _show(guesses: dict[str, Baseline]) -> None:
    table = Table("knows no article, is right in", "", "95% interval", box=None, pad_edge=False)
    for name, guess in guesses.items():
        table.add_row(name, f"{guess.share:.1%}", f"{guess.low:.1%} to {guess.high:.1%}")
    out.print(table)
