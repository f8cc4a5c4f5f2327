"""Contrasts of an experiment's arms, from the table `results` of its report: judged, in words, and drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from fortifai_core.charts.svg import LETTER, element, line, text
from fortifai_core.outcomes.contrasts import Contrast
from fortifai_core.outcomes.definitions import FIRST, Definition, language_definitions
from fortifai_core.outcomes.profile import Compared, compared
from fortifai_core.outside import xml
from fortifai_core.report.contents import ReportTable, table
from fortifai_core.report.profile import COMPARED, compared_row
from fortifai_core.report.tables import ALL

# What contrasts are judged by: a measure of the definitions of collapse, with its title here.
MEASURES = {
    "kr-split-0": "retention of split 0",
    "log-perplexity-real": "perplexity on held-out text",
    "model-kl": "model KL",
}
_TOP, _ROW, _GAP = 34.0, 24.0, 24.0
# measure → generation → arm → seed → value
Values = dict[str, dict[int, dict[str, dict[int, float]]]]


def values_of(rows: Iterable[Mapping[str, str]]) -> Values:
    """Each run's own values, of what the contrasts are judged by."""
    found: Values = {measure: {} for measure in MEASURES}
    for row in rows:
        measure = row["metric"] if row["metric"] in found else f"log-{row['metric']}"
        if row["seed"] == ALL or measure not in found:
            continue
        value = float(row["value"])
        generation = found[measure].setdefault(int(row["generation"]), {})
        generation.setdefault(row["arm"], {})[int(row["seed"])] = math.log(value) if "log-" in measure else value
    return found


def contrasts_of(values: Values, contrasts: Sequence[Contrast]) -> tuple[Compared, ...]:
    """Every contrast by every measure, in the last generation that each run of its arms has; one correction for all."""
    definitions = {one.measure: one for one in reversed(language_definitions())}
    found = []
    for contrast in contrasts:
        for measure in MEASURES:
            definition, reached = definitions[measure], _reached(values[measure], contrast)
            effect = contrast.effect(values[measure][reached[-1]], share=definition.share) if reached else None
            if effect is not None:
                found.append((contrast.name, definition, reached[-1], effect))
    return compared(found)


def _reached(generations: Mapping[int, Mapping[str, Mapping[int, float]]], contrast: Contrast) -> list[int]:
    """The generations that each run of its arms has: where some were stopped, later ones are of those that did well."""
    seeds = {arm: {seed for arms in generations.values() for seed in arms.get(arm, ())} for arm in contrast.arms}

    def has_all(arms: Mapping[str, Mapping[int, float]]) -> bool:
        return all(of and of == {*arms.get(arm, ())} for arm, of in seeds.items())

    return [generation for generation, arms in sorted(generations.items()) if generation >= FIRST and has_all(arms)]


def contrast_table(found: Sequence[Compared], contrasts: Sequence[Contrast]) -> ReportTable:
    """The columns of the table `profile-differences`; `against` says what was taken from what."""
    words = {contrast.name: contrast.words for contrast in contrasts}
    return table("contrasts", COMPARED, (compared_row(words[one.arm], one) for one in found))


def contrast_rows(found: Sequence[Compared]) -> list[list[str]]:
    """The headings; then a row a contrast: its name, and what each measure tells, in words."""
    heads = {_head(one): "" for one in found}
    rows: dict[str, dict[str, str]] = {}
    for one in found:
        rows.setdefault(one.arm, dict(heads))[_head(one)] = f"{_interval(one.definition, one)}: {_outcome(one)}"
    return [["", *heads], *([name, *cells.values()] for name, cells in rows.items())]


def _head(one: Compared) -> str:
    return f"{MEASURES[one.definition.measure]}, M{one.at}"


def contrast_svg(found: Sequence[Compared], *, width: int, standalone: bool = False) -> str:
    """A row a contrast, a panel a measure: its difference with its 95% interval, over a band that counts as none.

    A square differs, a disc is equal within the band, a ring cannot be told: form says it as well as colour. Panels
    have their own scales; what is better lies to the left in each.
    """
    if not found:
        return ""
    names = list(dict.fromkeys(one.arm for one in found))
    heads = list(dict.fromkeys(map(_head, found)))
    left = 20 + LETTER * max(map(len, names))
    step, bottom = (width - left) / len(heads), _TOP + _ROW * len(names)
    parts = [text(name, 8, _TOP + _ROW * (row + 0.5) + 4) for row, name in enumerate(names)]
    for i, head in enumerate(heads):
        mine = [one for one in found if _head(one) == head]
        panel = _Panel(mine, left + i * step, step - _GAP)
        parts += [text(head, panel.x(0.0), _TOP - 10, "middle"), *panel.ground(_TOP, bottom)]
        parts += [panel.mark(one, _TOP + _ROW * (names.index(one.arm) + 0.5)) for one in mine]
    x, y = 8.0, bottom + 44
    for outcome, kind, words in (
        ("differs", "sound", "better"),
        ("differs", "collapsed", "worse"),
        ("equal", "label", "equal"),
        ("cannot be told", "untold", "cannot be told"),
    ):
        parts += [_shape(outcome, kind, x + 6, y - 4), text(words, x + 17, y)]
        x += 38 + 6.6 * len(words)
    parts.append(text("to the left is better; band: no difference that counts", x, y))
    title = "Differences between arms with their intervals: better, worse, equal, or not to be told"
    return element("chart", parts, title=title, width=width, height=y + 10, standalone=standalone)


class _Panel:
    """One measure's differences on its scale: 0 in the middle, what is better to the left."""

    def __init__(self, found: Sequence[Compared], left: float, width: float) -> None:
        self.definition, self.middle, self.half = found[0].definition, left + width / 2, width / 2
        ends = [abs(end) for one in found for end in _ends(one) if math.isfinite(end)]
        self.reach = 1.05 * max(2 * self.definition.tolerance, *ends)
        self.worse = -1 if self.definition.falls else 1

    def x(self, value: float) -> float:
        return self.middle + self.worse * self.half * max(-1.0, min(1.0, value / self.reach))

    def ground(self, top: float, bottom: float) -> list[str]:
        """The band, the line of no difference, and what the ends of the scale are."""
        first, last = sorted(map(self.x, (-self.definition.tolerance, self.definition.tolerance)))
        place = f'x="{first:.1f}" y="{top:.1f}" width="{last - first:.1f}" height="{bottom - top:.1f}"'
        parts = [f'<rect class="wrong" {place}/>', line("zero", self.x(0.0), top, self.x(0.0), bottom)]
        for side, anchor in ((-1, "start"), (1, "end")):
            end = self.definition.difference(side * self.worse * self.reach)
            parts.append(text(end, self.middle + side * self.half, bottom + 16, anchor))
        return parts

    def mark(self, one: Compared, y: float) -> str:
        low, high, value = _ends(one)
        kind = {"equal": "label", "cannot be told": "untold"}.get(one.outcome)
        kind = kind or ("sound" if self.x(value) < self.middle else "collapsed")
        tip = f"<title>{xml(f'{one.arm}: {_interval(self.definition, one)}: {_outcome(one)}')}</title>"
        whisker = line("untold", self.x(low), y, self.x(high), y) if math.isfinite(low) else ""
        return f"<g>{tip}{whisker}{_shape(one.outcome, kind, self.x(value), y)}</g>"


def _ends(one: Compared) -> tuple[float, float, float]:
    interval = one.effect.interval()
    return interval.low, interval.high, one.effect.value


def _shape(outcome: str, kind: str, x: float, y: float) -> str:
    if outcome == "differs":
        return f'<rect class="{kind}" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"/>'
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="5"/>'


def _interval(definition: Definition, one: Compared) -> str:
    shown = definition.difference(one.effect.value)
    ends = one.effect.interval()
    if not ends.known:
        return shown
    low, high = (definition.difference(end).removesuffix(" points") for end in (ends.low, ends.high))
    return f"{shown} ({low} to {high})"


def _outcome(one: Compared) -> str:
    if one.outcome == "equal":
        return f"equal within {one.definition.difference(one.definition.tolerance)}"
    return one.outcome
