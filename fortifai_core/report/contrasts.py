"""Contrasts of an experiment's arms, from the table `results` of its report: judged, in words, and drawn."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from fortifai_core.charts.chart import Chart, Point, Series
from fortifai_core.outcomes.contrasts import Contrast
from fortifai_core.outcomes.definitions import FIRST, Definition, language_definitions
from fortifai_core.outcomes.profile import Compared, compared
from fortifai_core.report.contents import ReportTable, table
from fortifai_core.report.profile import COMPARED, compared_row
from fortifai_core.report.tables import ALL

# What contrasts are judged by: a measure of the definitions of collapse, with its title here.
MEASURES = {
    "kr-split-0": "retention of split 0",
    "log-perplexity-real": "perplexity on held-out text",
    "model-kl": "model KL",
}
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


def contrast_chart(values: Values, contrasts: Sequence[Contrast]) -> Chart:
    """Retention of split 0: each contrast after each generation, in points, with its 95% interval."""

    measured = values["kr-split-0"]

    def points(contrast: Contrast) -> Iterable[Point]:
        for generation in _reached(measured, contrast):
            effect = contrast.effect(measured[generation], share=True)
            if effect is not None:
                yield Point.of(generation, effect.interval(), scale=100)

    series = (Series(contrast.name, place, tuple(points(contrast))) for place, contrast in enumerate(contrasts))
    title = "Retention of split 0: differences between arms in points, after each generation"
    return Chart(title, tuple(one for one in series if one.points), style="dots", signed=True, floor=-2, ceiling=2)


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
