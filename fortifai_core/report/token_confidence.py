"""The paper's Figure 1 for a report: how sure base model, M0 and the last model are of the next token, by text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from fortifai_core.charts.svg import COLOURS_LIGHT, STYLE
from fortifai_core.report.data import ArmResult

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
    found: dict[tuple[str, str], list[int]] = {}
    for run in arm.runs:
        own = run.generations[generation].confidence
        if not own:
            return {}
        for key, counts in own.items():
            before = found.get(key, [0] * len(counts))
            found[key] = [a + b for a, b in zip(before, counts, strict=True)]
    return found


def confidence_svg(arm: ArmResult, colour: int, *, standalone: bool = False) -> str:
    """Three panels, one a text: shares of target tokens by probability. Empty where nothing was measured."""
    last = arm.generations - 1
    end, start = pooled(arm, last), pooled(arm, 0)
    if not end:
        return ""
    lines: dict[str, tuple[str, Mapping[tuple[str, str], list[int]], str]] = {
        "base model": ("base", end, "base"),
        f"M{last}": ("generation", end, f"own c{colour % 6}"),
    }
    if last and start:
        lines = {"M0": ("generation", start, f"first c{colour % 6}"), **lines}
    size = f' xmlns="http://www.w3.org/2000/svg" width="{_WIDTH:g}" height="{_HEIGHT:g}"' if standalone else ""
    title = f"How sure {arm.title} is of the next token: shares of tokens by their probability"
    parts = [
        f'<svg class="chart confidence"{size} viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" '
        f'aria-label="{escape(title)}">'
    ]
    if standalone:
        parts.append(f'<style>{STYLE}{CONFIDENCE_CSS}</style><rect class="paper" width="100%" height="100%"/>')
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

    for index, (text, words) in enumerate(TEXTS.items()):
        left = _LEFT + index * (panel + _GAP)
        parts.append(f'<text x="{left:.1f}" y="14">{escape(words)}</text>')
        for level in range(int(max(top, step) / step + 1e-9) + 1):
            at = y(level * step)
            parts.append(f'<line class="grid" x1="{left:.1f}" y1="{at}" x2="{left + panel:.1f}" y2="{at}"/>')
            if not index:
                label = f"{100 * level * step:.0f}%"
                parts.append(f'<text x="{left - 6:.1f}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
        for tick in (0.0, 0.5, 1.0):
            at = left + panel * tick
            anchor = "start" if not tick else "end" if tick == 1 else "middle"
            parts.append(f'<text x="{at:.1f}" y="{bottom + 18:.1f}" text-anchor="{anchor}">{tick:g}</text>')
        for name, (_, _, kind) in lines.items():
            if (name, text) not in curves:
                continue
            corners = []
            for bin_, share in enumerate(curves[name, text]):
                corners += [(left + panel * bin_ / BINS, y(share)), (left + panel * (bin_ + 1) / BINS, y(share))]
            path = " ".join(f"{x:.1f},{height}" for x, height in corners)
            tip = f"{name} on {words}: {curves[name, text][-1]:.0%} of tokens above 0.9"
            parts.append(f'<polyline class="step {kind}" points="{path}"><title>{escape(tip)}</title></polyline>')
    return "".join(parts) + "</svg>"


def confidence_png(arms: Sequence[ArmResult], path: Path) -> bool:
    """All arms for slides, on white, one row an arm; False, and no file, where none has histograms."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [(i, arm) for i, arm in enumerate(arms) if pooled(arm, arm.generations - 1)]
    if not shown:
        return False
    figure = Figure(figsize=(9.6, 0.6 + 2.1 * len(shown)), dpi=150, layout="constrained")
    panels = figure.subplots(len(shown), len(TEXTS), sharey=True, squeeze=False)
    edges = [i / BINS for i in range(BINS + 1)]
    for row, (colour_index, arm) in zip(panels, shown, strict=True):
        last = arm.generations - 1
        end, start = pooled(arm, last), pooled(arm, 0)
        colour = COLOURS_LIGHT[colour_index % 6]
        curves: list[tuple[str, str, Mapping[tuple[str, str], list[int]], dict[str, object]]] = [
            ("base model", "base", end, {"color": "#6a655d", "linestyle": ":", "linewidth": 1.5}),
            ("M0", "generation", start, {"color": colour, "linewidth": 1, "alpha": 0.7}),
            (f"M{last}", "generation", end, {"color": colour, "linewidth": 2.5}),
        ]
        for axes, (text, words) in zip(row, TEXTS.items(), strict=True):
            for name, who, counts, style in curves:
                if sum(counts.get((who, text), [])):
                    axes.stairs(shares(counts[who, text]), edges, label=name, baseline=None, **style)
            axes.set_title(f"{arm.title}: {words}", fontsize=9, loc="left")
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(length=0, labelsize=8)
            axes.grid(axis="y", color="#e4dfd6")
        row[0].legend(frameon=False, fontsize=8)
    FigureCanvasAgg(figure).print_png(path, metadata={"Software": None})
    return True


CONFIDENCE_CSS = (
    ".confidence .step{fill:none;stroke-width:2;stroke-linejoin:round}"
    ".confidence .base{stroke:var(--soft);stroke-dasharray:2 3}"
    ".confidence .first{stroke:var(--c);stroke-width:1.25;opacity:.7}"
    ".confidence .own{stroke:var(--c);stroke-width:2.5}"
)
