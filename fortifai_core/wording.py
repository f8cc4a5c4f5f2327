"""How arms, numbers, shares, durations and intervals are written: once, for page, figure, terminal and UI."""

from __future__ import annotations

import hashlib
import math
import re

from fortifai_core.interval import Interval

# How the first word of a label is written; the label of a user's own loss stays as it is.
_HEADS = {"ce": "CE", "tce": "TCE", "focal": "Focal", "elbo": "ELBO", "ddpm": "DDPM", "dynamic": "Dynamic"}

LONGEST_STEM = 80  # characters


def arm_title(label: str) -> str:
    """An arm's label for people.

    >>> [arm_title(label) for label in ("tce-0.9-live", "ddpm", "dynamic-q0.8", "mine")]
    ['TCE 0.9 live', 'DDPM', 'Dynamic q0.8', 'mine']
    """
    head, _, tail = label.partition("-")
    return f"{_HEADS[head]} {tail.replace('-', ' ')}".rstrip() if head in _HEADS else label


def run_title(label: str, seed: int | None) -> str:
    """One run of an arm: `TCE 0.9 · seed 1`."""
    return f"{arm_title(label)} · seed {seed or 0}"


def file_stem(name: str) -> str:
    """A file's name for an arm or a measure, whatever a user called it; a long one ends in a digest of the whole."""
    stem = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "arm"
    if len(stem) <= LONGEST_STEM:
        return stem
    return f"{stem[:LONGEST_STEM]}-{hashlib.sha256(repr(name).encode()).hexdigest()[:8]}"


def counted(many: int, noun: str) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{many} {noun}" if many == 1 else f"{many} {noun}s"


def number(value: float) -> str:
    """Three significant digits, all of those before the point, and a true minus."""
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"
    return text.replace("-", "−")


def percent(share: float, digits: int = 1) -> str:
    """A share in percent, where a heading has the sign: `84.2`."""
    return f"{100 * share:.{digits}f}"


def share(value: float, digits: int = 0) -> str:
    """A share with its sign: `84%`."""
    return f"{percent(value, digits)}%"


def threshold(value: float, *, of_shares: bool) -> str:
    """A threshold as it was set: `75%`, `62.5%` or `300`."""
    return f"{100 * value:g}%" if of_shares else f"{value:g}"


def points(difference: float) -> str:
    """A difference of shares in points, with its sign: `+3.1`, `−0.4`, `0.0`."""
    text = percent(abs(difference))
    return text if text == "0.0" else f"{'+' if difference > 0 else '−'}{text}"


def duration(seconds: float) -> str:
    """`4.2 s`, `42 s`, `3 min 05 s` or `2 h 10 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def moment(generations: float) -> str:
    """A time in generations: `1.69`, or `not reached`."""
    return "not reached" if math.isinf(generations) else f"{generations:.2f}"


def between_moments(interval: Interval) -> str:
    """`0.63 to 1.15`, `from 0.63 on` where the runs set no upper end, or `no interval`."""
    if math.isinf(interval.low):
        return "no interval"
    if math.isinf(interval.high):
        return f"from {moment(interval.low)} on"
    return f"{moment(interval.low)} to {moment(interval.high)}"


def plus_minus(interval: Interval) -> str:
    """`84.2 ± 3.1`, in percent; the longer of the interval's two arms."""
    text = percent(interval.estimate)
    return f"{text} ± {percent(interval.margin)}" if interval.known else text


def span(interval: Interval) -> str:
    """`80.1–87.9`, in percent; `no interval` where none can be made."""
    return f"{percent(interval.low)}–{percent(interval.high)}" if interval.known else "no interval"


def with_interval(interval: Interval) -> str:
    """`0.31 (0.25 to 0.38)`, or the estimate alone."""
    there = interval.known and interval.low < interval.high
    return number(interval.estimate) + (f" ({number(interval.low)} to {number(interval.high)})" if there else "")


def in_bytes(count: float) -> str:
    """A number of bytes, as people read it.

    >>> in_bytes(64_000), in_bytes(540_300_000), in_bytes(1.26e9)
    ('64 kB', '540 MB', '1.3 GB')
    """
    if count < 1e6:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.0f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
