"""The survival strip: every question of an arm as a column, every generation as a row, right answers in colour.

Within each split the questions stand in the order in which they died, so that the coloured field's edge is the curve of
survival. Many questions share a bin, whose depth of colour is their share of right answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from fortifai_core.charts.svg import COLOURS_LIGHT, STYLE
from fortifai_core.report.data import ArmResult

DEPTHS = 6
STRIP_CSS = ".strip .wrong{fill:var(--line);opacity:.75}.strip .right{fill:var(--c)}" + "".join(
    f".strip .d{i}{{opacity:{i / DEPTHS:.2f}}}" for i in range(1, DEPTHS + 1)
)
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
    found = []
    for run in arm.runs:
        answers: dict[str, tuple[str, int, int, list[bool]]] = {}
        for result in run.generations:
            scores = result.scores
            for question, document, split, right in zip(
                scores.question, scores.document, scores.split, scores.correct, strict=True
            ):
                answers.setdefault(question, (document, split, result.generation, []))[3].append(bool(right))
        found += [
            Fate(run.seed, question, document, split, first, tuple(given))
            for question, (document, split, first, given) in answers.items()
        ]
    return found


def strip_of(arm: ArmResult, colour: int, *, bins: int = 256) -> Strip | None:
    """The strip of an arm, in at most about `bins` columns; None where there are no questions."""
    everything = fates(arm)
    bands = []
    for split in sorted({one.split for one in everything}):
        own = [one for one in everything if one.split == split]
        # the longest lived first; those never answered rightly last
        own.sort(key=lambda f: (-_lived(f), -sum(f.answers), f.seed, f.question))
        count = min(len(own), max(1, round(bins * len(own) / len(everything))))
        rows = []
        for generation in range(arm.generations):
            row: list[float | None] = []
            for bin_ in range(count):
                members = own[bin_ * len(own) // count : (bin_ + 1) * len(own) // count]
                given = [
                    f.answers[generation - f.first_asked]
                    for f in members
                    if 0 <= generation - f.first_asked < len(f.answers)
                ]
                row.append(sum(given) / len(given) if given else None)
            rows.append(tuple(row))
        bands.append(Band(split, len(own), tuple(rows)))
    return Strip(arm.title, colour, tuple(bands), arm.generations) if bands else None


def _lived(fate: Fate) -> float:
    if fate.last_right is None:
        return -1
    return math.inf if fate.answers[-1] else fate.last_right


def strip_height(strip: Strip) -> int:
    """Height of its drawing, in its own units."""
    return round(_TOP + strip.generations * _ROW + 4)


def strip_svg(strip: Strip, *, width: int, standalone: bool = False) -> str:
    """The strip as an SVG element; one path for each depth of colour, so that thousands of answers stay small."""
    height = strip_height(strip)
    space = f' xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"' if standalone else ""
    title = f"Which questions {strip.title} still answers, by split and generation"
    parts = [
        f'<svg class="chart strip"{space} viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}">',
        f'<style>{STYLE}{STRIP_CSS}</style><rect class="paper" width="{width}" height="{height}"/>'
        if standalone
        else "",
    ]
    for generation in range(strip.generations):
        y = _TOP + generation * _ROW + 14
        parts.append(f'<text x="{_LEFT - 8:g}" y="{y:g}" text-anchor="end">M{generation}</text>')
    total = sum(len(band.rows[0]) for band in strip.bands)
    unit = (width - _LEFT - 2 - _GAP * (len(strip.bands) - 1)) / total
    left = _LEFT
    paths: dict[int, list[str]] = {}
    labels_fit = width / max(1, len(strip.bands)) > 52
    for band in strip.bands:
        words = f"split {band.split}" if labels_fit else str(band.split)
        parts.append(f'<text x="{left:.1f}" y="13">{words}</text>')
        for generation, row in enumerate(band.rows):
            y = _TOP + generation * _ROW
            for start, end, depth in _runs(row):
                x, wide = left + start * unit, (end - start) * unit
                paths.setdefault(depth, []).append(f"M{x:.1f} {y:g}h{wide:.1f}v{_ROW - 2:g}h-{wide:.1f}z")
        left += len(band.rows[0]) * unit + _GAP
    for depth in sorted(paths):
        kind = "wrong" if depth == 0 else f"right d{depth} c{strip.colour % 6}"
        parts.append(f'<path class="{kind}" d="{"".join(paths[depth])}"/>')
    return "".join(parts) + "</svg>"


def _runs(row: Sequence[float | None]) -> list[tuple[int, int, int]]:
    """Neighbours of equal depth together: (first bin, bin after the last, depth 0 … DEPTHS); blanks left out."""
    found: list[tuple[int, int, int]] = []
    for place, share in enumerate(row):
        if share is None:
            continue
        depth = math.ceil(share * DEPTHS - 1e-9)
        if found and found[-1][1] == place and found[-1][2] == depth:
            found[-1] = (found[-1][0], place + 1, depth)
        else:
            found.append((place, place + 1, depth))
    return found


def strips_png(strips: Sequence[Strip], path: Path, *, title: str) -> None:
    """All arms' strips one above the other, for slides, on white."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows = max(strip.generations for strip in strips)
    figure = Figure(figsize=(9.6, 0.9 + len(strips) * (0.34 * rows + 0.5)), dpi=150, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    for place, strip in enumerate(strips):
        axes = figure.add_subplot(len(strips), 1, place + 1)
        colour = to_rgb(COLOURS_LIGHT[strip.colour % 6])
        left = 0.0
        total = sum(len(band.rows[0]) for band in strip.bands)
        gap = total / 120
        for band in strip.bands:
            for generation, row in enumerate(band.rows):
                for start, end, depth in _runs(row):
                    tint = tuple(1 - (1 - c) * depth / DEPTHS for c in colour) if depth else to_rgb("#eae6df")
                    box = (left + start, generation), end - start, 0.9
                    axes.add_patch(Rectangle(*box, facecolor=tint, linewidth=0))
            axes.text(left, -0.25, f"split {band.split}", fontsize=8, color="#6a655d")
            left += len(band.rows[0]) + gap
        axes.set_xlim(0, left - gap)
        axes.set_ylim(strip.generations, -0.9)
        axes.set_yticks([g + 0.45 for g in range(strip.generations)], [f"M{g}" for g in range(strip.generations)])
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(strip.title, loc="left", fontsize=10, color=colour, fontweight="bold")
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})
