"""What the documents say is true: their commands exist, their Python runs, their links and pictures lead somewhere."""

from __future__ import annotations

import csv
import importlib.util
import math
import re
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaForCausalLM

from documents import (
    PAGES,
    REFERENCE,
    ROOT,
    Block,
    anchors_of,
    code_spans,
    commands_in,
    fenced,
    links_in,
    name_of,
    pictures_in,
    programs_of,
)
from flows.cli.reference import commands, reference
from flows.load import benchmark_overrides, load_any_config, load_experiment_config, presets, validate
from fortifai_core.errors import ConfigError

README = ROOT / "README.md"
EVERY = dict(commands())
LEAVES = {name: command for name, command in EVERY.items() if not hasattr(command, "commands")}
ROOMS = ("flows", "tasks", "fortifai_core", "kernels", "storage", "deployments")
each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def targets() -> set[str]:
    """The targets that `make help` shows."""
    told = subprocess.run(["make", "-s", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return {line.split()[0] for line in told.splitlines() if len(line.split()) > 1}


# ------------------------------------------------------------------------------------------------ commands


def check_fortifai(words: list[str]) -> None:
    """The command, its options, its presets and its overrides exist."""
    depth = max((d for d in range(1, len(words) + 1) if " ".join(words[:d]) in EVERY), default=0)
    assert depth, f"no such command: {words}"
    command, rest = EVERY[" ".join(words[:depth])], words[depth:]
    options = {text: p for p in getattr(command, "params", []) for text in (*p.opts, *p.secondary_opts)}
    values: dict[str, list[str]] = {}
    positional: list[str] = []
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            positional.append(word)
            continue
        name, equals, value = word.partition("=")
        assert name == "--help" or name in options, f"no option {name}: {words}"
        if name != "--help" and not options[name].is_flag:
            assert equals or rest, f"{name} has no value: {words}"
            values.setdefault(name, []).append(value if equals else rest.pop(0))
    arguments = [p for p in getattr(command, "params", []) if p.param_type_name == "argument"]
    assert len(positional) <= len(arguments) or any(p.nargs == -1 for p in arguments), words
    if words[1] in ("run", "plan", "init") and positional and not positional[0].endswith(".yaml"):
        limit = values.get("--limit", [None])[0]
        asked = benchmark_overrides(values.get("--benchmarks", [None])[0], int(limit) if limit else None, [])
        load_any_config(positional[0], [*values.get("--set", []), *asked])


@each_page
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    there = targets()
    for words in commands_in(page):
        match words[0]:
            case "fortifai":
                check_fortifai(words)
            case "make":
                asked = [word for word in words[1:] if "=" not in word]
                assert set(asked) <= there, words
            case _:
                assert importlib.util.find_spec(words[2]) is not None, words


def test_pages_name_commands_at_all() -> None:
    assert len([words for words in commands_in(README) if words[0] == "fortifai"]) > 5


@pytest.mark.parametrize("wrong", ["forget", "run tiny --sets a=1", "run tinny", "run tiny --set splits=x", "ls tiny"])
def test_a_wrong_command_is_noticed(wrong: str) -> None:
    with pytest.raises((AssertionError, ConfigError)):
        check_fortifai(["fortifai", *wrong.split()])


@pytest.mark.parametrize("name", EVERY)
def test_every_command_has_help_and_so_have_its_options(name: str) -> None:
    assert EVERY[name].help, name
    assert not [p.name for p in getattr(EVERY[name], "params", []) if not p.help]


def test_every_command_is_explained_on_a_page_written_by_hand() -> None:
    named = {
        " ".join(words[:depth])
        for page in PAGES
        if page != REFERENCE
        for words in commands_in(page)
        for depth in (2, 3)
    }
    assert not set(LEAVES) - named


def test_the_reference_of_the_command_line_is_the_program_as_it_is() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == reference(), "stale: run `make docs`"


def test_the_workflows_call_targets_that_exist() -> None:
    files = sorted((ROOT / ".github" / "workflows").glob("*.yaml"))
    jobs = [job for file in files for job in yaml.safe_load(file.read_text())["jobs"].values()]
    called = {word for job in jobs for step in job["steps"] for word in re.findall(r"^make (\S+)", step.get("run", ""))}
    assert {"test", "docs"} <= called <= targets()


# ------------------------------------------------------------------------------------------------ Python and YAML


def loss_of(names: dict[str, Any]) -> float:
    """Cross entropy of a program's model on its text."""
    text, model = names["text"], names["model"]
    with torch.no_grad():
        logits = model(text).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten()))


def execute(blocks: list[Block]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block.source, "<document>", "exec"), names)
    return names


def the_loop_learns_and_tokens_die(names: dict[str, Any], before: float, output: str) -> None:
    assert before > 0.9 * math.log(64)
    assert loss_of(names) < before / 4
    assert names["head"].statistics.live_fraction < 0.5
    assert "100% of the tokens are live" in output


def the_trainer_learns_and_saves(names: dict[str, Any], before: float, output: str) -> None:
    assert names["head"].statistics is not None
    assert loss_of(names) < before
    assert LlamaForCausalLM.from_pretrained("trained") is not None


def the_sft_trainer_takes_our_loss(names: dict[str, Any], before: float, output: str) -> None:
    statistics = names["head"].statistics
    assert statistics is not None and statistics.tokens > 0
    assert loss_of(names) < before


def lightning_learns_and_tokens_die(names: dict[str, Any], before: float, output: str) -> None:
    assert names["trainer"].global_step == 30
    assert loss_of(names) < before / 4
    trainer = names["trainer"]
    assert trainer.callback_metrics["live"] == trainer.lightning_module.head.statistics.live_fraction < 0.5


def the_watch_alerts_in_the_trainers_log(names: dict[str, Any], before: float, output: str) -> None:
    logged = [line for line in names["trainer"].state.log_history if "watch/alerts" in line]
    assert [line["step"] for line in logged] == [0, 20, 40, 60]
    assert logged[0]["watch/alerts"] == 0 < logged[1]["watch/alerts"]
    assert Path("watch.parquet").stat().st_size > 0


def the_watch_alerts_in_the_loop(names: dict[str, Any], before: float, output: str) -> None:
    assert output.startswith("20 [") and "top-mass" in output and not names["watch"].should_stop


def the_watch_alerts_under_trl(names: dict[str, Any], before: float, output: str) -> None:
    logged = [line for line in names["trainer"].state.log_history if "watch/alerts" in line]
    assert [line["step"] for line in logged] == [0, 20, 40] and logged[-1]["watch/alerts"] > 0
    assert "mean_token_accuracy" not in logged[-1], "TRL's own averages stay in its own lines"


def the_watch_alerts_in_lightnings_log(names: dict[str, Any], before: float, output: str) -> None:
    (table,) = Path("watched").rglob("metrics.csv")
    with table.open(encoding="utf-8") as file:
        logged = {int(row["step"]): float(row["watch/alerts"]) for row in csv.DictReader(file)}
    assert list(logged) == [0, 20, 40, 60] and logged[0] == 0 < logged[60]
    assert loss_of(names) < before


# What has to be true after a program, beyond that it ran; `before` is the loss after its first block.
AFTERWARDS: dict[tuple[str, str], Callable[[dict[str, Any], float, str], None]] = {
    ("docs/kernels.md", "loop"): the_loop_learns_and_tokens_die,
    ("docs/kernels.md", "trainer"): the_trainer_learns_and_saves,
    ("docs/kernels.md", "sft"): the_sft_trainer_takes_our_loss,
    ("docs/kernels.md", "lightning"): lightning_learns_and_tokens_die,
    ("docs/watch.md", "trainer"): the_watch_alerts_in_the_trainers_log,
    ("docs/watch.md", "loop"): the_watch_alerts_in_the_loop,
    ("docs/watch.md", "sft"): the_watch_alerts_under_trl,
    ("docs/watch.md", "lightning"): the_watch_alerts_in_lightnings_log,
}
PROGRAMS = {(name_of(page), name): blocks for page in PAGES for name, blocks in programs_of(page).items()}


@pytest.mark.filterwarnings("ignore")  # of other people's deprecations
@pytest.mark.parametrize("place", [*PROGRAMS, *(AFTERWARDS.keys() - PROGRAMS.keys())], ids=" ".join)
def test_every_python_block_runs(
    place: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if place[1] == "lightning":
        pytest.importorskip("lightning", reason="Lightning is not installed here: pip install lightning")
    monkeypatch.chdir(tmp_path)
    blocks = PROGRAMS[place]
    before = loss_of(execute(blocks[:1])) if place in AFTERWARDS else 0.0
    capsys.readouterr()
    names = execute(blocks)
    printed = capsys.readouterr().out
    told = "".join(block.output or "" for block in blocks)
    if told:
        assert printed == told
    if place in AFTERWARDS:
        AFTERWARDS[place](names, before, printed)


def test_there_are_python_blocks_and_none_is_overlooked() -> None:
    counted = sum(len(fenced(page, "python")) for page in PAGES)
    assert counted == len({block.source for blocks in PROGRAMS.values() for block in blocks}) >= 6


@each_page
def test_every_configuration_on_a_page_is_one(page: Path) -> None:
    for block in fenced(page, "yaml"):
        assert validate(yaml.safe_load(block)).arm_labels


# ------------------------------------------------------------------------------------------------ links and pictures


@each_page
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in links_in(page):
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        assert place.exists(), target
        assert not anchor or anchor in anchors_of(place), target


@each_page
def test_every_picture_has_the_command_that_makes_it_beside_it(page: Path) -> None:
    shown = re.findall(r"^!\[", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    pictures = pictures_in(page)
    assert len(pictures) == len(shown)
    for target, below in pictures:
        # that the command exists, the test above sees
        assert re.match(r"\*Made by `(fortifai|make|python) ", below), target


def test_every_picture_is_shown() -> None:
    shown = {(page.parent / target).resolve() for page in PAGES for target, _ in pictures_in(page)}
    files = {path for path in (ROOT / "docs").rglob("*") if path.suffix in (".svg", ".png")}
    assert files == shown


@each_page
def test_every_path_of_the_repository_that_a_page_names_is_there(page: Path) -> None:
    for span in code_spans(page):
        if re.fullmatch(rf"(?:{'|'.join(ROOMS)}|tests|docs)/[\w./-]*", span):
            assert (ROOT / span).exists(), span
        if re.fullmatch(rf"(?:{'|'.join(ROOMS)})(?:\.\w+)+", span):
            assert importlib.util.find_spec(span) is not None, span


def test_the_architecture_names_every_package() -> None:
    named = set(code_spans(ROOT / "docs" / "architecture.md"))
    packages = {p.parent.relative_to(ROOT).as_posix() for room in ROOMS for p in (ROOT / room).rglob("__init__.py")}
    assert not packages - named


def test_every_preset_is_on_the_page_of_experiments() -> None:
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|", (ROOT / "docs" / "experiments.md").read_text(), flags=re.MULTILINE)
    assert set(presets()) <= set(rows)


def test_tiny_5seeds_is_tiny_with_more_seeds() -> None:
    tiny, more = load_experiment_config("tiny"), load_experiment_config("tiny-5seeds")
    assert more.model_copy(update={"name": "tiny", "seeds": tiny.seeds}) == tiny
    assert len(more.seeds) == 5


def test_the_readme_is_read_in_two_minutes() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_the_citation_has_the_version_of_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
