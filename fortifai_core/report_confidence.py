"""The paper's Figure 1 for a report: how sure base model, M0 and the last model are of the next token, by text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from fortifai_core.report_data import ArmResult

TEXTS = {"real": "held-out real text", "seen": "text it was trained on", "self": "text it wrote itself"}
BINS = 10
_WIDTH, _HEIGHT, _GAP, _LEFT, _TOP, _BOTTOM = 820.0, 190.0, 28.0, 40.0, 34.0, 26.0


def shares(counts: Sequence[int]) -> list[float]:
    """A histogram over `drift_model.EDGES` as shares in tenths: (0, 0.1], (0.1, 0.2], …, (0.9, 1].

    Raises:
        ValueError: a histogram over other edges.
    """
    from fortifai_core.drift_model import EDGES

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


def confidence_svg(arm: ArmResult, colour: int) -> str:
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
    title = f"How sure {arm.title} is of the next token: shares of tokens by their probability"
    parts = [
        f'<svg class="chart confidence" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(title)}">'
    ]
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


CONFIDENCE_CSS = (
    ".confidence .step{fill:none;stroke-width:2;stroke-linejoin:round}"
    ".confidence .base{stroke:var(--soft);stroke-dasharray:2 3}"
    ".confidence .first{stroke:var(--c);stroke-width:1.25;opacity:.7}"
    ".confidence .own{stroke:var(--c);stroke-width:2.5}"
)
