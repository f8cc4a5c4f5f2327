"""The survival strip: every question of an arm as a column, every generation as a row, right answers in colour.

Within each split the questions stand in the order in which they died, so that the coloured field's edge is the curve of
survival. Many questions share a bin, whose depth of colour is their share of right answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fortifai_core.charts.palette import DEPTHS, arm_class
from fortifai_core.charts.svg import element, text
from fortifai_core.report.data import ArmResult

_LEFT, _TOP, _ROW, _GAP = 38.0, 22.0, 20.0, 5.0


@dataclass(frozen=True)
class Fate:
    """One question in one run; `died_in` is the generation after its last right answer, None while it lives."""

    seed: int
    question: str
    document: str
    split: int
    first_asked: int
    answers: tuple[bool, ...]

    @property
    def last_right(self) -> int | None:
        right = [i for i, answer in enumerate(self.answers) if answer]
        return self.first_asked + right[-1] if right else None

    @property
    def fate(self) -> str:
        """`alive`, `died` or `never learned`."""
        if self.last_right is None:
            return "never learned"
        return "alive" if self.answers[-1] else "died"

    @property
    def died_in(self) -> int | None:
        last = self.last_right
        return None if last is None or self.answers[-1] else last + 1


@dataclass(frozen=True)
class Band:
    """The questions of one split. rows: [generation][bin], the bin's share of right answers; None: not yet asked."""

    split: int
    questions: int
    rows: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Strip:
    """One arm's strip, its splits side by side."""

    title: str
    colour: int
    bands: tuple[Band, ...]
    generations: int


def fates(arm: ArmResult) -> list[Fate]:
    """Every question of every run, with its answers in all generations that asked it."""
    everything = []
    for run in arm.runs:
        answers: dict[str, tuple[str, int, int, list[bool]]] = {}
        for result in run.generations:
            scores = result.scores
            for question, document, split, right in zip(
                scores.question, scores.document, scores.split, scores.correct, strict=True
            ):
                answers.setdefault(question, (document, split, result.generation, []))[3].append(bool(right))
        everything += [
            Fate(run.seed, question, document, split, first, tuple(given))
            for question, (document, split, first, given) in answers.items()
        ]
    return everything


def strip_of(arm: ArmResult, colour: int, *, bins: int = 256) -> Strip | None:
    """The strip of an arm, in at most about `bins` columns; None where there are no questions."""
    everything = fates(arm)
    bands = []
    for split in sorted({fate.split for fate in everything}):
        asked = [fate for fate in everything if fate.split == split]
        # the longest lived first; those never answered rightly last
        asked.sort(key=lambda f: (-_lived(f), -sum(f.answers), f.seed, f.question))
        count = min(len(asked), max(1, round(bins * len(asked) / len(everything))))
        rows = []
        for generation in range(arm.generations):
            row: list[float | None] = []
            for bin_ in range(count):
                members = asked[bin_ * len(asked) // count : (bin_ + 1) * len(asked) // count]
                given = [
                    f.answers[generation - f.first_asked]
                    for f in members
                    if 0 <= generation - f.first_asked < len(f.answers)
                ]
                row.append(sum(given) / len(given) if given else None)
            rows.append(tuple(row))
        bands.append(Band(split, len(asked), tuple(rows)))
    return Strip(arm.title, colour, tuple(bands), arm.generations) if bands else None


def _lived(fate: Fate) -> float:
    if fate.last_right is None:
        return -1
    return math.inf if fate.answers[-1] else fate.last_right


def strip_svg(strip: Strip, *, width: int, standalone: bool = False) -> str:
    """The strip as an SVG element; one path for each depth of colour, so that thousands of answers stay small."""
    height = round(_TOP + strip.generations * _ROW + 4)
    title = f"Which questions {strip.title} still answers, by split and generation"
    parts = [text(f"M{i}", _LEFT - 8, _TOP + i * _ROW + 14, "end") for i in range(strip.generations)]
    total = sum(len(band.rows[0]) for band in strip.bands)
    unit = (width - _LEFT - 2 - _GAP * (len(strip.bands) - 1)) / total
    left = _LEFT
    paths: dict[int, list[str]] = {}
    labels_fit = width / max(1, len(strip.bands)) > 52
    for band in strip.bands:
        words = f"split {band.split}" if labels_fit else str(band.split)
        parts.append(text(words, left, 13))
        for generation, row in enumerate(band.rows):
            y = _TOP + generation * _ROW
            for start, end, depth in _runs(row):
                x, wide = left + start * unit, (end - start) * unit
                paths.setdefault(depth, []).append(f"M{x:.1f} {y:g}h{wide:.1f}v{_ROW - 2:g}h-{wide:.1f}z")
        left += len(band.rows[0]) * unit + _GAP
    for depth in sorted(paths):
        kind = "wrong" if depth == 0 else f"right d{depth} {arm_class(strip.colour)}"
        parts.append(f'<path class="{kind}" d="{"".join(paths[depth])}"/>')
    return element("chart strip", parts, title=title, width=width, height=height, standalone=standalone)


def _runs(row: Sequence[float | None]) -> list[tuple[int, int, int]]:
    """Neighbours of equal depth together: (first bin, bin after the last, depth 0 … DEPTHS); blanks left out."""
    runs: list[tuple[int, int, int]] = []
    for place, share in enumerate(row):
        if share is None:
            continue
        depth = math.ceil(share * DEPTHS - 1e-9)
        if runs and runs[-1][1] == place and runs[-1][2] == depth:
            runs[-1] = (runs[-1][0], place + 1, depth)
        else:
            runs.append((place, place + 1, depth))
    return runs
