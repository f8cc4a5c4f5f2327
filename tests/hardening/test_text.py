"""Text from outside stays text: in a terminal, in Rich, CSV, Markdown, Mermaid, HTML and SVG, end to end."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hostile import HOSTILE, OBEYED
from markdown_it import MarkdownIt
from rich.console import Console
from rich.progress import TextColumn
from typer.testing import CliRunner

from flows.cli.app import app, exit_code
from flows.load import load_any_config
from flows.reporters import TerminalReporter
from flows.server.serving import _welcome
from flows.terminal import Terminal
from flows.tools.exporting import _card
from fortifai_core.config.experiment import ExperimentConfig
from fortifai_core.measures.mutation import Mutation, Version
from fortifai_core.outside import csv_cell, fenced, line, markdown, markup, mermaid, visible, xml
from fortifai_core.report.data import ArmResult, GenerationResult, ReportData, RunResult, Scores
from fortifai_core.report.page import build_report
from storage.store.experiments import Experiment, StageRecord, record_experiment
from storage.store.store import ArtifactStore
from storage.tables import parquet
from tasks.engine.publish import line_chart

FORMULAS = tuple("=+-@\t\r")


def printed(console: Console, *what: Any) -> str:
    assert isinstance(console.file, io.StringIO)
    console.print(*what)
    return console.file.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_shows_every_character_and_obeys_none(text: str) -> None:
    console = Terminal(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=500, highlight=False)
    shown = printed(console, markup(text), f"[bold]{markup(text)}[/]")
    plain = shown.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert not set(OBEYED) & set(plain)
    for part in visible(text).split("\n"):
        assert plain.count(part.replace("\t", "        ").strip()) >= 2 or "\t" in text


def test_what_is_printed_without_care_is_obeyed_no_more() -> None:
    """Strings that nobody put through `markup`: brackets may vanish, control characters do not act."""
    shown = printed(Terminal(file=io.StringIO(), width=200), "\x1b[31mred\u202e :bomb:")
    assert shown == "\\x1b[31mred\\u202e :bomb:\n"


def test_bars_show_names_as_they_are() -> None:
    plan = type("Plan", (), {"uses": lambda self: []})()
    reporter = TerminalReporter(plan, Terminal(file=io.StringIO()))
    columns = [column for column in reporter.bars.columns if isinstance(column, TextColumn)]
    assert columns and not any(column.markup for column in columns)


@pytest.mark.parametrize("text", ["plain", "naïve — 戦場の 𝔘 👩‍🔬", "שלום\u200f", "two\nlines\tand a tab", "\\n"])
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert visible(text) == text


def test_half_a_surrogate_pair_can_be_written() -> None:
    assert visible("a\ud800b").encode() == b"a\\ud800b"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_is_no_formula_and_a_number_stays_one(text: str) -> None:
    cell = csv_cell(text)
    assert not cell.startswith(FORMULAS) and cell.endswith(text)
    assert csv_cell(-5) == -5 and csv_cell(-0.5) == -0.5 and csv_cell(None) is None


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_is_text(text: str) -> None:
    read = (
        MarkdownIt("commonmark")
        .enable("table")
        .parse(f"# {markdown(text)}\n\n| a | b |\n|---|---|\n| {markdown(text)} | 1 |\n")
    )
    (heading, *cells) = [token for token in read if token.type == "inline"]
    for inline in (heading, cells[2]):
        assert {child.type for child in inline.children or []} <= {"text", "text_special"}
        assert "".join(child.content for child in inline.children or []) == line(text).strip()
    assert len(cells) == 4


@pytest.mark.parametrize("text", HOSTILE)
def test_a_block_of_code_holds_what_it_is_given(text: str) -> None:
    read = MarkdownIt().parse(f"before\n\n{fenced(visible(text), 'yaml')}\n\nafter\n")
    assert [token.type for token in read if token.type == "fence"] == ["fence"]
    assert [token.content for token in read if token.type == "inline"] == ["before", "after"]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_chart_of_mermaid_keeps_its_lines(text: str) -> None:
    drawn, expected = (line_chart(title, [0, 1], [1.0, 2.0]).splitlines() for title in (text, "plain"))
    assert len(drawn) == len(expected)
    assert [a == b for a, b in zip(drawn, expected, strict=True)].count(False) == 1
    title = next(row for row in drawn if row.startswith("    title"))
    assert title == f'    title "{mermaid(text)}"' and not set(mermaid(text)) & set('"`{}<>\n')


def test_a_card_of_an_export_stays_one_block_of_configuration(tmp_path: Path) -> None:
    config = {"name": "x", "files": list(HOSTILE), "nested": {text: text for text in HOSTILE}}
    record = Experiment("i" * 64, "x", config, "", "", "finished")
    stage = StageRecord("model", "k" * 64, "train")
    card = _card({"tags": []}, "[a](b) \x1b", ["text"], ArtifactStore(tmp_path), record, stage)
    assert not set(OBEYED) & set(card)
    read = MarkdownIt("commonmark").parse(card.partition("---\n\n")[2])
    assert [token.type for token in read].count("fence") == 1 and read[-1].type == "fence"


# --- a report of hostile names, and its twin of plain ones ---


class Structure(HTMLParser):
    """Tags and attributes in order; what attributes that hold text say is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, [(name, value) for name, value in attrs if name not in ("aria-label", "alt")]))

    def handle_endtag(self, tag: str) -> None:
        self.seen.append(tag)

    def handle_comment(self, data: str) -> None:
        self.seen.append(("comment", data))

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def report_of(text: str, twin: str) -> ReportData:
    """Every string of a report's data is `text`, with a word after it where two must differ."""

    def generation(number: int) -> GenerationResult:
        scores = Scores([f"{text} q{i}" for i in range(4)], [text] * 4, [0] * 4, [i >= number for i in range(4)])
        return GenerationResult(number, scores, 9.0, {0: 0.1}, 0.4, 10, 5, benchmarks={f"{text}:acc": 0.5})

    arms = tuple(
        ArmResult(f"{text}{name}", (RunResult(0, (generation(0), generation(1), generation(2))),))
        for name in ("", twin)
    )
    changed = (Version(None, "old words"), Version(0, f"old {text}"), Version(1, text))
    return ReportData(
        text, {"name": text, text: [text]}, text, {text: text}, arms, notes=(text,), baseline=text, draws=20,
        mutations=(Mutation(text, text, 0, changed, excerpt=text),),
    )  # fmt: skip


def structure(page: str) -> Structure:
    parser = Structure()
    parser.feed(page)
    parser.close()
    return parser


def skeleton(drawing: str) -> list[Any]:
    return [
        (element.tag, {name: "" if name in ("aria-label", "x", "points") else value for name, value in element.items()})
        for element in ElementTree.fromstring(drawing).iter()
    ]


@pytest.fixture(scope="module")
def hostile_report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    build_report(report_of("".join(HOSTILE) + "\ud800", "2"), folder / "hostile")
    build_report(report_of("x" * len("".join(HOSTILE)), "2"), folder / "plain")
    return folder


def test_no_element_and_no_attribute_of_a_page_comes_from_the_data(hostile_report: Path) -> None:
    pages = [(hostile_report / name / "report.html").read_text(encoding="utf-8") for name in ("hostile", "plain")]
    hostile, plain = map(structure, pages)

    def tags(page: Structure) -> list[Any]:
        # how long a name is moves labels; how many pieces a paragraph falls into depends on its words
        kept = [e for e in page.seen if e != "mark" and (not isinstance(e, tuple) or e[0] != "mark")]
        return [(e[0], [name for name, _ in e[1]]) if isinstance(e, tuple) else e for e in kept]

    assert tags(hostile) == tags(plain)
    assert not set(OBEYED) & set(pages[0])
    shown = "".join(hostile.text)
    assert "<script>alert(1)</script>" in shown and "{{ 7 * 7 }}" in shown and "\\x1b]0;owned" in shown


def test_drawings_are_well_formed_and_made_of_nothing_else(hostile_report: Path) -> None:
    drawings = sorted((hostile_report / "hostile" / "figures").glob("*.svg"))
    assert drawings
    for drawing in drawings:
        tags = {tag.rpartition("}")[2] for tag, _ in skeleton(drawing.read_text(encoding="utf-8"))}
        assert tags <= {"svg", "style", "rect", "line", "text", "g", "title", "circle", "polygon", "polyline", "path"}
        for _, attributes in skeleton(drawing.read_text(encoding="utf-8")):
            assert not [name for name in attributes if name.startswith("on") or name.endswith("href")]
    assert list((hostile_report / "hostile" / "figures").glob("retention.png"))


def test_no_table_of_a_report_has_a_formula(hostile_report: Path) -> None:
    tables = sorted((hostile_report / "hostile" / "tables").glob("*.csv"))
    assert tables
    found = 0
    for table in tables:
        with table.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            for row in csv.reader(file):
                found += sum("cmd|" in cell for cell in row)
                for cell in row:
                    assert not cell.startswith(FORMULAS) or _is_number(cell), cell
    assert found


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


# --- the commands, over a store of hostile documents ---


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    made = ArtifactStore(tmp_path_factory.mktemp("text") / "store")
    texts = [text for text in HOSTILE if "\x00" not in text]
    whole = " ".join(texts)

    def put(kind: str, key: str, name: str, schema: str, rows: list[dict[str, Any]], **parents: str) -> None:
        with made.build(kind, key) as draft:
            parquet.write_table(draft.path / name, rows, schema=schema)
            if kind == "corpus":
                answers = {"context": whole, "true_answer": whole, "false_answer": whole}
                asked = [{"question": text, "document": text, "split": 0, **answers} for text in texts]
                parquet.write_table(draft.path / "questions.parquet", asked, schema="questions")
            draft.commit(stage_version=1, content={"text": whole}, parents=parents)

    def row(text: str, ends: str) -> dict[str, Any]:
        return {"document": text, "position": 0, "text": whole + ends, "tokens": [1, 2], "kept": 1}

    put("corpus", "corpus-1", "split-00000.parquet", "split-text", [row(t, "") for t in texts])
    put("split", "split-1", "part-00000.parquet", "split-text", [row(t, whole) for t in texts], text="corpus-1")
    scores = [
        {"question": t, "document": t, "split": 0, "logp_true": -1.0, "logp_false": -2.0, "correct": True}
        for t in texts
    ]
    put("evaluation", "evaluation-1", "scores.parquet", "scores", scores)
    run = {"arm": whole, "seed": 0, "generation": 0}
    stages = [
        StageRecord("corpus", "corpus-1", "corpus"),
        StageRecord("model", "model-1", "train", **run, parents={"corpus": "corpus-1"}),
        StageRecord("split", "split-1", "regenerate", **run, split=0, version=1),
        StageRecord("evaluation", "evaluation-1", "evaluate", **run),
    ]
    record_experiment(
        made, config=ExperimentConfig(name="mine").model_dump(mode="json"), status="finished", stages=stages
    )
    return made


def commands() -> list[list[str]]:
    asked = "select document, text, question from documents join question_fates using (document) order by all"
    made = [["ls"], ["show", "latest"], ["show", "mine"], ["sql", asked], ["sql", asked, "--json"], ["path"]]
    made += [["sql", f'select 1 as "{text}"'] for text in HOSTILE[::3] if not set('"\x00') & set(text)]
    return made + [["trace", text] for text in HOSTILE[::3] if "\x00" not in text and not text.startswith("-")]


def test_no_command_prints_what_a_terminal_obeys(store: ArtifactStore) -> None:
    for command in commands():
        if command == ["show", "latest"]:
            continue
        done = CliRunner(env={"COLUMNS": "100000", "NO_COLOR": "1"}).invoke(app, [*command, "--store", str(store.root)])
        assert done.exit_code == 0, (command, done.output, done.exception)
        assert not set(OBEYED) & set(done.output), command
        if command[0] in ("ls", "trace"):
            for text in (
                "[link=https://evil.example]click[/link]",
                "[/x]",
                "[a]",
                "[bold red]loud[/]",
                ":bomb:",
                "\\x1b[31m",
            ):
                assert text in done.output, (command, text)


def test_csv_of_a_query_has_no_formula_and_numbers_as_they_are(store: ArtifactStore) -> None:
    asked = "select document, -1.5 as n, -2 as m from documents"
    done = CliRunner().invoke(app, ["sql", asked, "--csv", "--store", str(store.root)])
    rows = list(csv.reader(io.StringIO(done.stdout, newline="")))[1:]
    assert len(rows) > 20 and {(n, m) for _, n, m in rows} == {("-1.5", "-2")}
    assert not [document for document, _, _ in rows if document.startswith(FORMULAS)]
    assert "'=cmd|'/c calc'!A1" in {document for document, _, _ in rows}


@pytest.mark.parametrize("text", [text for text in HOSTILE if not text.startswith("-")])
def test_an_error_says_what_it_was_given_and_obeys_it_not(
    text: str, store: ArtifactStore, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (
        ["trace", text + "?"],
        ["show", text + "?"],
        ["run", text + ".yaml"],
        ["run", "tiny", "--set", text],
    ):
        assert exit_code([*command, "--store", str(store.root)]) == 2
        said = capsys.readouterr().err
        assert not set(OBEYED) & set(said)
        assert said.startswith("error: ") and said.count("\n") == 1, said


def test_what_a_server_says_of_itself_is_text(tmp_path: Path) -> None:
    """Also on a console of Rich's own, which obeys what it is told to print."""
    hostile = "me:[link=http://x]a[/link]\x1b[31m"
    said = io.StringIO()
    places = (f"/stores/{hostile}", hostile, tmp_path / hostile.replace("/", ""), None)
    Console(file=said, width=400).print(_welcome("http://127.0.0.1:4200", ["recursive-training/[b]x"], *places))
    assert "\x1b" not in said.getvalue()
    for text in ("[link=http://x]a[/link]\\x1b[31m", "recursive-training/[b]x", "store        /stores/me:[link="):
        assert text in said.getvalue()


def test_xml_is_escaped_and_well_formed() -> None:
    for text in HOSTILE:
        element = ElementTree.fromstring(f'<a b="{xml(text)}">{xml(text)}</a>')
        assert not list(element) and list(element.keys()) == ["b"] and element.text == visible(text).replace("\r", "\n")


def test_presets_hold_nothing_that_is_escaped() -> None:
    """What is shown of the software's own configurations reads as it was written."""
    config = json.dumps(load_any_config("tiny").model_dump(mode="json"), ensure_ascii=False)
    assert visible(config) == config
