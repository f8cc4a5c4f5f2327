"""The documents as the tests read them: their commands, their Python, their links and pictures."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "fortifai_core/LAB.md", "deployments/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
REFERENCE = ROOT / "docs" / "reference.md"
_FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_PYTHON = re.compile(
    r"(?:<!-- run: ([\w, -]+) -->\n)?```python\n(.*?)^```$(?:\n+```text\n(.*?)^```$)?", flags=re.DOTALL | re.MULTILINE
)
_COMMAND = re.compile(r"(?:^|\$\(|[;&|] )(?:[A-Z_]+=\S+ )*((?:fortifai|make|python -m) [^|;&)>]*)")


@dataclass(frozen=True)
class Block:
    """One block of Python; `programs` are those that it is a part of, `output` what the page says it prints."""

    programs: tuple[str, ...]
    source: str
    output: str | None


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def code_spans(page: Path) -> list[str]:
    """What stands between backticks in the text; a line's end within counts as a space."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def fenced(page: Path, language: str) -> list[str]:
    """The blocks of one language."""
    return [code for kind, code in _FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands_in(page: Path) -> Iterator[list[str]]:
    """Every `fortifai …`, `make …` and `python -m …` of a page as words, from its text and its console blocks."""
    lines = [line[2:] for block in fenced(page, "console") for line in block.splitlines() if line.startswith("$ ")]
    for line in [*code_spans(page), *lines]:
        plain = line.partition(" #")[0]
        for command in _COMMAND.findall(plain):
            yield shlex.split(command)


def programs_of(page: Path) -> dict[str, list[Block]]:
    """The programs of a page: blocks that a comment `<!-- run: a, b -->` gives a name, or else each by itself."""
    programs: dict[str, list[Block]] = {}
    for number, (names, source, output) in enumerate(_PYTHON.findall(page.read_text(encoding="utf-8"))):
        block = Block(tuple(n.strip() for n in names.split(",")) if names else (f"block {number}",), source, output)
        for name in block.programs:
            programs.setdefault(name, []).append(block)
    return programs


def links_in(page: Path) -> list[str]:
    """Targets of all links and pictures that lead to a place in the repository."""
    found = re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", prose(page)))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ +(.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def pictures_in(page: Path) -> list[tuple[str, str]]:
    """(target, the paragraph after it) of every picture of a page."""
    return re.findall(r"^!\[[^\]]*\]\(([^)\s]+)\)\n\n((?:.+\n)*)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
