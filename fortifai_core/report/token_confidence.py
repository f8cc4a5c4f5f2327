"""The paper's Figure 1 for a report: how sure base model, M0 and the last model are of the next token, by text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fortifai_core.charts.palette import arm_class
from fortifai_core.charts.svg import element, line, text
from fortifai_core.outside import xml
from fortifai_core.report.data import ArmResult
from fortifai_core.wording import share

TEXTS = {"real": "held-out real text", "seen": "text it was trained on", "self": "text it wrote itself"}
BINS = 10
_WIDTH, _HEIGHT, _GAP, _LEFT, _TOP, _BOTTOM = 820.0, 190.0, 28.0, 40.0, 34.0, 26.0


def shares(counts: Sequence[int]) -> list[float]:
    """A histogram over `drift_model.EDGES` as shares in tenths: (0, 0.1], (0.1, 0.2], …, (0.9, 1].

    Raises:
        ValueError: a histogram over other edges.
    """
    from fortifai_core.measures.model_drift import EDGES

    if len(counts) != len(EDGES) - 1:
        raise ValueError(f"a histogram of {len(counts)} bins; {len(EDGES) - 1} were written")
    total = sum(counts)
    result = [0.0] * BINS
    for high, count in zip(EDGES[1:].tolist(), counts, strict=True):
        result[min(BINS - 1, -(-round(high * 1000) // 100) - 1)] += count / total if total else 0.0
    return result


def pooled(arm: ArmResult, generation: int) -> Mapping[tuple[str, str], list[int]]:
    """Counts of all runs of an arm together, by (base or generation, text); empty where a run has none."""
    together: dict[tuple[str, str], list[int]] = {}
    for run in arm.runs:
        histograms = run.generations[generation].confidence
        if not histograms:
            return {}
        for key, counts in histograms.items():
            before = together.get(key, [0] * len(counts))
            together[key] = [a + b for a, b in zip(before, counts, strict=True)]
    return together


def confidence_svg(arm: ArmResult, colour: int, *, standalone: bool = False) -> str:
    """Three panels, one a text: shares of target tokens by probability. Empty where nothing was measured."""
    last = arm.generations - 1
    end, start = pooled(arm, last), pooled(arm, 0)
    if not end:
        return ""
    lines: dict[str, tuple[str, Mapping[tuple[str, str], list[int]], str]] = {
        "base model": ("base", end, "base"),
        f"M{last}": ("generation", end, f"last {arm_class(colour)}"),
    }
    if last and start:
        lines = {"M0": ("generation", start, f"first {arm_class(colour)}"), **lines}
    parts = []
    panel = (_WIDTH - _LEFT - 2 * _GAP - 8) / len(TEXTS)
    curves = {
        (name, text): shares(counts[who, text])
        for name, (who, counts, _) in lines.items()
        for text in TEXTS
        if sum(counts.get((who, text), []))
    }
    top = max(max(curve) for curve in curves.values())
    step = next(s for s in (0.1, 0.2, 0.25, 0.5) if top <= 4 * s or s == 0.5)
    bottom = _HEIGHT - _BOTTOM

    def y(value: float) -> float:
        return round(bottom - (bottom - _TOP) * value / max(top, step), 1)

    for index, (read, words) in enumerate(TEXTS.items()):
        left = _LEFT + index * (panel + _GAP)
        parts.append(text(words, left, 14))
        for level in range(int(max(top, step) / step + 1e-9) + 1):
            at = y(level * step)
            parts.append(line("grid", left, at, left + panel, at))
            if not index:
                parts.append(text(share(level * step), left - 6, at + 4, "end"))
        for tick in (0.0, 0.5, 1.0):
            anchor = "start" if not tick else "end" if tick == 1 else "middle"
            parts.append(text(f"{tick:g}", left + panel * tick, bottom + 18, anchor))
        for name, (_, _, kind) in lines.items():
            if (name, read) not in curves:
                continue
            corners = []
            for bin_, height in enumerate(curves[name, read]):
                corners += [(left + panel * bin_ / BINS, y(height)), (left + panel * (bin_ + 1) / BINS, y(height))]
            path = " ".join(f"{x:.1f},{top_}" for x, top_ in corners)
            tip = f"{name} on {words}: {share(curves[name, read][-1])} of tokens above 0.9"
            parts.append(f'<polyline class="step {kind}" points="{path}"><title>{xml(tip)}</title></polyline>')
    title = f"How sure {arm.title} is of the next token: shares of tokens by their probability"
    size = {"width": _WIDTH, "height": _HEIGHT}
    return element("chart confidence", parts, title=title, standalone=standalone, **size)
