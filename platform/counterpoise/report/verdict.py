"""The results in words. What the intervals do not show is not claimed.

Two methods are said to differ if their intervals over seeds do not overlap. That is stricter than a test of the
difference, and the other way round nothing follows: overlap means "not shown to differ", never "the same".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from counterpoise.report.content import PRIMARY, Report

Order = Literal["higher", "lower", "overlap", "unknown"]
_WORST, _BALANCED = PRIMARY


@dataclass(frozen=True)
class Verdict:
    """One sentence, and those that it rests on. ``tone`` is good, open (nothing shown) or bad."""

    tone: Literal["good", "open", "bad"]
    headline: str
    lines: list[str]


def compare(report: Report, method: str, other: str, metric: str) -> Order:
    """Where the method's interval lies against the other's; unknown if one has no interval."""
    one, two = _ends(report, method, metric), _ends(report, other, metric)
    if one is None or two is None:
        return "unknown"
    return "higher" if one[0] > two[1] else "lower" if one[1] < two[0] else "overlap"


def verdict(report: Report) -> Verdict:
    """Whether the synthetic images helped where accuracy is lowest."""
    base = report.baseline
    measured = [method for method in report.synthetic_methods if report.interval(method, _WORST)]
    if not report.rows:
        return Verdict("open", "Nothing has been trained yet.", [])
    if not measured:
        lines = [] if base is None else _others(report, base, [m for m in report.methods if m != base])
        return Verdict("open", "No synthetic images were used.", lines)
    if base is None or not report.interval(base, _WORST):
        best = _best(report, measured)
        line = f"Best is {best} with {_value(report, best)} {_worst(report)}; add a method without synthetic images."
        return Verdict(
            "open", "There is no real-only baseline, so nothing shows whether synthetic images help.", [line]
        )
    orders = {method: compare(report, method, base, _WORST) for method in measured}
    if "unknown" in orders.values():
        return _one_seed(report, base, measured)
    return _repeated(report, base, measured, orders)


def _one_seed(report: Report, base: str, measured: Sequence[str]) -> Verdict:
    best = _best(report, measured)
    change = _mean(report, best) - _mean(report, base)
    return Verdict(
        "open",
        "One seed cannot show whether synthetic images help.",
        [
            f"In this run {_worst(report)} is {_value(report, base)} with {base} and {_value(report, best)} with "
            f"{best} ({_points(change)}). Another seed may turn that round: run three or more.",
            *_alternatives(report, base, best),
        ],
    )


def _repeated(report: Report, base: str, measured: Sequence[str], orders: dict[str, Order]) -> Verdict:
    better, worse, same = (
        [method for method in measured if orders[method] == kind] for kind in ("higher", "lower", "overlap")
    )
    best = _best(report, better or measured)
    change = f"{_worst(report)} goes from {_value(report, base)} to {_value(report, best)}"
    lines = []
    if better:
        tone, headline = "good", f"Synthetic images helped: with {best}, {change}."
        lines.append(
            f"The {report.confidence:.0%} intervals over {report.seeds} seeds do not overlap: "
            f"{base} {_bounds(report, base)}, {best} {_bounds(report, best)}."
        )
        if others := [method for method in better if method != best]:
            lines.append(f"{_list(others)} {_is(others)} above {base} by more than the intervals, too.")
    elif worse and not same:
        tone, headline = "bad", f"Synthetic images made it worse: with {best}, {change}."
    else:
        tone, headline = "open", "Synthetic images are not shown to help."
        lines.append(f"With {best}, the best of them, {change} ({_points(_mean(report, best) - _mean(report, base))}).")
    if same:
        lines.append(f"{_list(same)} {_is(same)} not shown to differ from {base}: the intervals overlap.")
    if worse:
        lines.append(f"{_list(worse)} {_is(worse)} below {base} by more than the intervals.")
    return Verdict(tone, headline, [*lines, *_alternatives(report, base, best), *_price(report, base, best)])  # type: ignore[arg-type]


def _alternatives(report: Report, base: str, best: str) -> list[str]:
    """The best method on real images only: what one would do without a generator."""
    others = [m for m in report.methods if m not in (base, *report.synthetic_methods) and report.interval(m, _WORST)]
    if not others:
        return []
    other = _best(report, others)
    order = {
        "higher": f"{best} is above that by more than the intervals",
        "lower": f"that is above {best} by more than the intervals",
        "overlap": f"{best} is not shown to differ from that",
        "unknown": "with one seed, which is better is not shown",
    }[compare(report, best, other, _WORST)]
    return [f"Without synthetic images, {other} reaches {_value(report, other)}: {order}."]


def _others(report: Report, base: str, methods: Sequence[str]) -> list[str]:
    said = {
        "higher": "above {base} by more than the intervals",
        "lower": "below {base} by more than the intervals",
        "overlap": "not shown to differ from {base}: the intervals overlap",
        "unknown": "against {base} not comparable with one seed",
    }
    return [
        f"{method} reaches {_value(report, method)} {_worst(report)}, "
        f"{said[compare(report, method, base, _WORST)].format(base=base)}."
        for method in methods
        if report.interval(method, _WORST) and report.interval(base, _WORST)
    ]


def _price(report: Report, base: str, best: str) -> list[str]:
    """What the method does to the averages over all cells and all images."""
    lines = []
    for metric, title in ((_BALANCED, "Balanced accuracy"), ("accuracy", "Overall accuracy")):
        if report.interval(base, metric) and report.interval(best, metric):
            order = {
                "higher": "up by more than the intervals",
                "lower": "down by more than the intervals",
                "overlap": "not shown to differ",
                "unknown": "",
            }[compare(report, best, base, metric)]
            lines.append(
                f"{title} with {best}: {_value(report, best, metric)}, with {base} "
                f"{_value(report, base, metric)}: {order}."
            )
    return lines


def _worst(report: Report) -> str:
    return "worst-group accuracy" if report.groups else "worst-class accuracy"


def _best(report: Report, methods: Sequence[str]) -> str:
    return max(methods, key=lambda method: _mean(report, method))


def _mean(report: Report, method: str, metric: str = _WORST) -> float:
    interval = report.interval(method, metric)
    assert interval is not None
    return interval[0]


def _value(report: Report, method: str, metric: str = _WORST) -> str:
    return f"{_mean(report, method, metric):.1%}"


def _ends(report: Report, method: str, metric: str = _WORST) -> tuple[float, float] | None:
    _, low, high = report.interval(method, metric) or (None, None, None)
    return None if low is None or high is None else (low, high)


def _bounds(report: Report, method: str) -> str:
    ends = _ends(report, method)
    assert ends is not None
    return f"{ends[0]:.1%} to {ends[1]:.1%}"


def _points(change: float) -> str:
    return f"{100 * change:+.1f} points".replace("-", "−")


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"
