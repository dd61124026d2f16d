"""Numbers as text: one form for terminal, page, figures and Markdown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

MISSING = "–"  # for a value that is not defined


def percent(value: int | float | None) -> str:
    """Return a share in percent with one decimal; – without a value."""
    return MISSING if value is None or math.isnan(value) else f"{100 * value:.1f}"


def points(change: int | float | None) -> str:
    """Return a difference of shares with its sign, in percentage points; empty without a value."""
    if change is None:
        return ""
    text = f"{100 * change:+.1f}"
    return "±0.0" if text in ("+0.0", "-0.0") else text.replace("-", "−")


def whole_points(change: int | float) -> str:
    """Return a difference in percentage points, already times 100, with its sign and without decimals."""
    return f"{round(change) + 0.0:+.0f}".replace("-", "−")


def bounds(ends: Sequence[int | float | None] | None, written: Callable[[int | float | None], str] = percent) -> str:
    """Return " [low, high]" to follow a mean, each end as ``written``; empty if there is no interval."""
    return "" if ends is None or None in ends else f" [{', '.join(map(written, ends))}]"


def number(value: int | float | None) -> str:
    """Return three significant digits, or more before the point, without an exponent; – without a value."""
    if value is None:
        return MISSING
    if value == 0 or abs(value) < 5e-7:
        return "0"
    places = max(2 - math.floor(math.log10(abs(value))), 0)
    return f"{value:,.{places}f}"


def count(value: int | float) -> str:
    """Return a whole number with thousands separators."""
    return f"{value:,.0f}"


def p_value(value: int | float | None) -> str:
    """Return a p value with three decimals; – without a value."""
    return MISSING if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: int | float) -> str:
    """Return a duration in seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
