"""The collapse profile as people read it: sentences, tables, one figure, and plain JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from fortifai_core.charts.palette import arm_class
from fortifai_core.charts.svg import LETTER, element, text
from fortifai_core.outcomes.definitions import Definition
from fortifai_core.outcomes.inference import Effect
from fortifai_core.outcomes.profile import ONE_RUN, Compared, Profile, Rank, Verdict
from fortifai_core.outside import xml
from fortifai_core.report.contents import ReportTable, finite, table
from fortifai_core.wording import arm_title, number, share

_LEFT, _TOP, _ROW, _LINE = 158.0, 14.0, 24.0, 15.0
_LARGEST, _SMALLEST = 9.0, 3.5  # radii

VERDICTS = (
    "arm", "definition", "title", "literature", "source", "rule", "verdict", "generation", "at", "value", "low", "high",
    "p", "p_holm", "runs", "clusters", "why", "until",
)  # fmt: skip
COMPARED = (
    "arm", "against", "measure", "at", "difference", "low", "high", "margin", "outcome", "p_holm_differs",
    "p_holm_equal", "runs", "clusters", "logarithmic", "value", "error", "spread",
    "freedom", "shared",
)  # fmt: skip
RANKING = ("arm", "measure", "at", "best", "worst", "value", "low", "high")
LOGRANK = ("arm", "against", "statistic", "p", "runs", "runs_against")


def summary(profile: Profile) -> list[str]:
    """What the profile says of each arm, claiming no more than the tests allow; then what was corrected for."""
    lines = []
    if not profile.collapsed:
        lines.append(_nothing(profile))
    lines += [_of_arm(profile, arm) for arm in profile.arms]
    others = [arm for arm in profile.arms[1:] if any(c.arm == arm for c in profile.compared)]
    lines += [_against(profile, arm) for arm in others]
    for arm, test in profile.failures.items():
        told = "at different times" if test.p_value <= profile.level else "at times that are not told apart"
        lines.append(
            f"{arm_title(arm)} and {arm_title(profile.arms[0])} fail {told} (log-rank, {test.runs[0]} and "
            f"{test.runs[1]} runs, p = {test.p_value:.2g}, not corrected)."
        )
    lines.append(corrected(profile))
    return lines


def corrected(profile: Profile) -> str:
    """What was corrected for, and what an error rests on."""
    tested = sum(not math.isnan(v.p) for v in profile.verdicts)
    compared = sum(not math.isnan(c.p_differs) for c in profile.compared)
    runs = {v.effect.runs for v in profile.verdicts if v.effect is not None} or {0}
    few, many = min(runs), max(runs)
    scope = f"{few} runs an arm" if few == many else f"{few} to {many} runs an arm, by measure"
    if many == 1:
        alone = sum(v.why == ONE_RUN for v in profile.verdicts)
        without = f"; verdicts that cannot be told for want of a second: {alone}" if alone else ""
        scope = f"one run an arm: other seeds may differ{without}"
    return (
        f"Corrected together for {tested} verdicts ({len(profile.arms)} arms, {len(profile.definitions)} definitions) "
        f"and for {compared} comparisons (Holm, {share(profile.level)} each); {scope}."
    )


def _nothing(profile: Profile) -> str:
    told = [v for v in profile.verdicts if v.status == "did not"]
    open_ = len(profile.verdicts) - len(told)
    if not told:
        return "Nothing is shown to have collapsed, and nothing not to have: this experiment is too small to tell."
    found = f"{len(told)} of {len(profile.verdicts)} verdicts are that it did not"
    if open_:
        return f"Nothing is shown to have collapsed: {found}; the other {open_} cannot be told."
    return f"Nothing collapsed: {found}."


def _words(definition: Definition, *said: str, whole: bool = True) -> str:
    """A definition in a list: `perplexity (any rise, M3)`; not `whole`: its measure, `perplexity (1.2×)`."""
    head, _, rest = definition.title.partition(", ")
    head = head if head.isupper() else head[0].lower() + head[1:]  # MAUVE is a name
    brackets = ", ".join([*([rest] if rest and whole else []), *said])
    return f"{head} ({brackets})" if brackets else head


def _of_arm(profile: Profile, arm: str) -> str:
    verdicts = profile.of(arm)
    fell = [_words(v.definition, f"M{v.generation}") for v in verdicts if v.status == "collapsed"]
    sound = [v for v in verdicts if v.status == "did not"]
    held = [_words(v.definition, *([] if v.until is None else [f"to M{v.until}"])) for v in sound]
    unknown = [_words(v.definition) for v in verdicts if v.status == "cannot be told"]
    parts = [f"collapsed by {', '.join(fell)}"] if fell else []
    parts += [f"did not by {', '.join(held)}"] if held else []
    parts += [f"cannot be told by {', '.join(unknown)}"] if unknown else []
    return f"{arm_title(arm)}: {'; '.join(parts)}."


def _against(profile: Profile, arm: str) -> str:
    first = arm_title(profile.arms[0])
    mine = [c for c in profile.compared if c.arm == arm]
    differs = [_words(c.definition, _signed(c), whole=False) for c in mine if c.outcome == "differs"]
    equal = [_words(c.definition, whole=False) for c in mine if c.outcome == "equal"]
    unknown = sum(c.outcome == "cannot be told" for c in mine)
    parts = [f"differs in {', '.join(differs)}"] if differs else []
    parts += [f"no difference beyond the margin in {', '.join(equal)}"] if equal else []
    parts += [f"{unknown} of {len(mine)} measures cannot tell"] if unknown else []
    return f"{arm_title(arm)} against {first}: {'; '.join(parts)}."


def _signed(compared: Compared) -> str:
    return compared.definition.difference(compared.effect.value)


def profile_tables(profile: Profile) -> list[ReportTable]:
    """Verdicts, comparisons, ranking and log-rank tests; those that have rows."""
    first = profile.arms[0]
    made = [
        table("profile", VERDICTS, map(_verdict_row, profile.verdicts)),
        table("profile-differences", COMPARED, (compared_row(first, c) for c in profile.compared)),
        table("ranking", RANKING, _ranking_rows(profile)),
        table(
            "log-rank",
            LOGRANK,
            ((arm, first, t.statistic, t.p_value, *t.runs) for arm, t in profile.failures.items()),
        ),
    ]
    return [one for one in made if one.rows]


def as_json(profile: Profile) -> dict[str, Any]:
    """The same, and the sentences, as plain values."""
    tables = {one.name.replace("-", "_"): one for one in profile_tables(profile)}
    rows = {
        name: [dict(zip(one.columns, row, strict=True)) for row in zip(*one.columns.values(), strict=True)]
        for name, one in tables.items()
    }
    headers, cells = wide_rows(profile)
    return {
        "arms": list(profile.arms),
        "table": {"headers": headers, "rows": cells},
        "level": profile.level,
        "summary": summary(profile) if profile.definitions else [],
        "not_measured": dict(profile.missing),
        **rows,
    }


def wide_rows(profile: Profile) -> tuple[list[str], list[list[str]]]:
    """A row a definition, a column an arm: for a terminal and the UI."""
    headers = ["definition", "collapse is", *map(arm_title, profile.arms)]
    rows = [
        [d.title, d.rule, *(_cell(profile.verdict(arm, d.name)) for arm in profile.arms)] for d in profile.definitions
    ]
    return headers, rows


def _cell(verdict: Verdict) -> str:
    """`collapsed in M3 (0.41)`."""
    effect = verdict.effect
    return verdict.words if effect is None else f"{verdict.words} ({verdict.definition.shown(effect.value)})"


def _ends(
    definition: Definition, effect: Effect, *, least: float = -1.0
) -> tuple[float | None, float | None, float | None]:
    """Value and interval as they are shown: ratios where the statistic is a logarithm, shares from `least` to 1."""
    interval = effect.interval()

    def shown(value: float) -> float | None:
        if not math.isfinite(value):  # among them the ends of what has no interval
            return None
        if definition.log:
            return math.exp(min(value, 700.0))
        return min(1.0, max(least, value)) if definition.share else value

    return shown(interval.estimate), shown(interval.low), shown(interval.high)


def _least(definition: Definition) -> float:
    """The least value of a share; a difference of two goes down to −1."""
    return 0.0 if definition.against is None else -1.0


def _verdict_row(verdict: Verdict) -> tuple[Any, ...]:
    d, effect = verdict.definition, verdict.effect
    seen = (None, None, None) if effect is None else _ends(d, effect, least=_least(d))
    size = (0, 0) if effect is None else (effect.runs, effect.clusters)
    return (
        verdict.arm, d.name, d.title, d.number, d.source, d.rule, verdict.status, verdict.generation, verdict.at, *seen,
        finite(verdict.p), finite(verdict.adjusted), *size, verdict.why, verdict.until,
    )  # fmt: skip


def compared_row(first: str, compared: Compared) -> tuple[Any, ...]:
    """What `COMPARED` names, of a comparison with `first`."""
    effect, d = compared.effect, compared.definition
    on_scale = (finite(effect.value), finite(effect.error), finite(effect.spread))
    p_values = finite(compared.p_differs), finite(compared.p_equal)
    return (
        compared.arm, first, d.measure, compared.at, *_ends(d, effect), d.margin, compared.outcome, *p_values,
        effect.runs, effect.clusters, d.log, *on_scale, finite(effect.freedom), effect.shared,
    )  # fmt: skip


def _ranking_rows(profile: Profile) -> Iterator[tuple[Any, ...]]:
    d = profile.headline
    if d is not None:
        for rank in profile.ranking:
            yield (rank.arm, d.measure, profile.ranked_at, rank.best, rank.worst, *_ends(d, rank.value, least=0.0))


def ranking_words(profile: Profile) -> list[tuple[str, str, str]]:
    """(place or places, arm, value with its interval), the best first."""
    d = profile.headline
    return (
        [] if d is None else [(_places(rank), arm_title(rank.arm), _value(d, rank.value)) for rank in profile.ranking]
    )


def _places(rank: Rank) -> str:
    return str(rank.best) if rank.best == rank.worst else f"{rank.best} to {rank.worst}"


def _value(definition: Definition, effect: Effect) -> str:
    def shown(value: float | None) -> str:
        if value is None:
            return "–"
        return share(value, 1) if definition.share else number(value)

    value, low, high = _ends(definition, effect, least=0.0)
    return shown(value) + (f" ({shown(low)} to {shown(high)})" if effect.known else "")


def profile_svg(profile: Profile, *, width: int, standalone: bool = False) -> str:
    """Definitions × arms: a filled square collapsed, a filled disc did not, a ring cannot be told.

    Form says it as well as colour; size is the evidence, −log₁₀ of the corrected p.
    """
    if not profile.definitions or not profile.arms:
        return ""
    columns = len(profile.arms)
    titles = [arm_title(arm) for arm in profile.arms]
    # so wide a margin that the last heading, which stands over the middle of its column, is not cut
    half, wide = LETTER / 2 * len(titles[-1]), width - _LEFT
    margin = max(8.0, (half - wide / (2 * columns)) / (1 - 1 / (2 * columns)))
    step = (wide - margin) / columns
    # headings that would run into each other stand at several heights
    heights = max(1, min(columns, math.ceil(max(len(title) for title in titles) * LETTER / step)))
    top = _TOP + heights * _LINE
    parts = [
        text(title, _LEFT + step * (i + 0.5), _TOP + _LINE * (i % heights), "middle", f"name {arm_class(i)}")
        for i, title in enumerate(titles)
    ]
    for row, definition in enumerate(profile.definitions):
        y = top + _ROW * (row + 0.5)
        parts.append(text(definition.title, _LEFT - 14, y + 4, "end"))
        parts += [
            _mark(profile.verdict(arm, definition.name), _LEFT + step * (i + 0.5), y, step)
            for i, arm in enumerate(profile.arms)
        ]
    bottom = top + _ROW * len(profile.definitions) + 18
    x = _LEFT - 14.0
    for kind, words in (("collapsed", "collapsed"), ("sound", "did not"), ("untold", "cannot be told")):
        parts += [_shape(kind, x + 6, bottom - 4, 5.5), text(words, x + 17, bottom)]
        x += 26 + 6.6 * len(words) + 12
    parts.append(text("larger: more evidence", x, bottom))
    title = "Collapse profile: each definition of collapse, by arm"
    return element("chart profile", parts, title=title, width=width, height=round(bottom + 10), standalone=standalone)


_KINDS: Mapping[str, str] = {"collapsed": "collapsed", "did not": "sound", "cannot be told": "untold"}


def _mark(verdict: Verdict, x: float, y: float, step: float) -> str:
    evidence = 0.0 if math.isnan(verdict.adjusted) else -math.log10(max(1e-4, verdict.adjusted)) / 4
    radius = _SMALLEST + (_LARGEST - _SMALLEST) * evidence
    tip = f"{arm_title(verdict.arm)}, {_words(verdict.definition)}: {verdict.describe()}"
    if verdict.effect is not None:
        tip += f"; {verdict.definition.shown(verdict.effect.value)} at M{verdict.at}, {verdict.definition.rule}"
    label = ""
    if verdict.status == "collapsed" and step > 44:
        label = text(f"M{verdict.generation}", x + 13, y + 4)
    return f"<g><title>{xml(tip)}</title>{_shape(_KINDS[verdict.status], x, y, radius)}</g>{label}"


def _shape(kind: str, x: float, y: float, radius: float) -> str:
    if kind != "collapsed":
        return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"/>'
    corners = [(-radius, -radius), (radius, -radius), (radius, radius), (-radius, radius)]
    points = " ".join(f"{x + 0.9 * dx:.1f},{y + 0.9 * dy:.1f}" for dx, dy in corners)
    return f'<polygon class="collapsed" points="{points}"/>'
