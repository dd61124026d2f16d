"""Conclusions in words, from paired tests over seeds.

Methods are compared by their differences seed by seed (:mod:`counterpoise.evaluation.compare`). Nothing is claimed that
the seeds do not show, and "not shown" never means equal. Synthetic images are said to help only if a method that uses
them is better than real images alone, and better than the best method without synthetic images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from counterpoise.evaluation import catalogue
from counterpoise.evaluation.compare import Difference, differences
from counterpoise.report.content import Results
from counterpoise.report.format import bounds, percent, points

Against = Mapping[str, Difference]


@dataclass(frozen=True)
class Conclusion:
    """A headline and the sentences that it rests on. ``tone`` is good, open (nothing shown) or bad."""

    tone: Literal["good", "open", "bad"]
    headline: str
    lines: list[str]


def against(results: Results, methods: Sequence[str], other: str, metric: str | None = None) -> dict[str, Difference]:
    """Compare each method with one other, by the given or the judging metric; Holm-corrected over the methods."""
    rows = [{"method": row.method, "seed": row.seed, **row.metrics} for row in results.rows]
    compared = differences(rows, methods, other, metric or results.by, results.confidence)
    return {difference.method: difference for difference in compared}


def standings(results: Results) -> tuple[Against, Against]:
    """Compare all methods with the baseline, and all but the baseline with the control; empty without them."""
    fixed = (results.baseline, results.control)
    others = [method for method in results.methods if method not in fixed]
    to_base = [*others, *([results.control] if results.control else [])]
    return (
        against(results, to_base, results.baseline) if results.baseline else {},
        against(results, others, results.control) if results.control else {},
    )


def verdict(results: Results) -> Conclusion:
    """Return the conclusion on the synthetic images, by the judging metric."""
    if not results.rows:
        return Conclusion("open", "Nothing has been trained yet.", [])
    conclusion = _verdict(results)
    return replace(conclusion, lines=[*conclusion.lines, *_stand_in(results)])


def _verdict(results: Results) -> Conclusion:
    base, control = results.baseline, results.control
    measured = [method for method in results.synthetic_methods if _value(results, method) is not None]
    to_base, to_control = standings(results)
    if not results.synthetic_methods:
        return Conclusion("open", "No synthetic images were used.", _groups(to_base, base))
    if not measured:
        headline = f"Nothing shows whether synthetic images help: {_metric(results)} is not defined here."
        return Conclusion("open", headline, _groups(to_base, base))
    best = _best(results, measured)
    if base is None or _value(results, base) is None:
        line = f"Best is {best} with {_shown(results, best)} {_metric(results)}; add a method without synthetic images."
        return Conclusion(
            "open", "There is no real-only baseline: nothing shows whether synthetic images help.", [line]
        )
    if results.seeds < 2:
        return _one_seed(results, base, best)
    rival = _best(results, [m for m in results.methods if m not in measured and _value(results, m) is not None])
    to_rival = {base: to_base, control: to_control}.get(rival) or against(results, measured, rival)
    said = _judged(results, measured, rival, to_base, to_rival)
    best = _named(results, measured, to_base, to_rival)
    lines = [] if rival == base else [_rival(results, rival, best, to_rival.get(best))]
    if results.control_in_words:
        lines.append(f"The {results.control_in_words}.")
    lines += [*_groups(to_base, base), *_groups(to_control, control), *_price(results, base, best), _how(results)]
    return Conclusion(said.tone, said.headline, lines)


def _judged(results: Results, measured: Sequence[str], rival: str, to_base: Against, to_rival: Against) -> Conclusion:
    """Return tone and headline."""
    base, best = str(results.baseline), _named(results, measured, to_base, to_rival)
    metric, value = _metric(results), _shown(results, best)
    change = f"with {best}, {metric} goes from {_shown(results, base)} to {value}"
    if _helped(best, to_base, to_rival):
        gain = change if rival == base else _gain(results, best, rival, to_rival[best])
        return Conclusion("good", f"Synthetic images helped: {gain}.", [])
    if all(_is(to_rival, method, "worse") for method in measured):
        if rival == base:
            return Conclusion("bad", f"Synthetic images made it worse: {change}.", [])
        headline = f"Synthetic images did not help: without them, {rival} has {_shown(results, rival)} {metric}, "
        return Conclusion("bad", f"{headline}{best} {value}.", [])
    if rival != base and any(_is(to_base, method, "better") for method in measured):
        headline = (
            f"Synthetic images are not shown to help: without them, {rival} has {_shown(results, rival)} {metric}."
        )
        return Conclusion("open", headline, [])
    return Conclusion("open", "Synthetic images are not shown to help.", [])


def _gain(results: Results, best: str, rival: str, found: Difference) -> str:
    """Return a gain over the best method without synthetic images, in words."""
    value, without = _shown(results, best), _shown(results, rival)
    return f"{_metric(results)} is {value} with {best} and {without} with {rival}, the best without ({_change(found)})"


def _named(results: Results, measured: Sequence[str], to_base: Against, to_rival: Against) -> str:
    """Return the method to name: the best of those that helped, or else of all with synthetic images."""
    return _best(results, [m for m in measured if _helped(m, to_base, to_rival)] or measured)


def _helped(method: str, to_base: Against, to_rival: Against) -> bool:
    return _is(to_base, method, "better") and _is(to_rival, method, "better")


def _is(found: Against, method: str, outcome: str) -> bool:
    return method in found and found[method].outcome == outcome


def _one_seed(results: Results, base: str, best: str) -> Conclusion:
    lines = [
        f"In this run {_metric(results)} is {_shown(results, base)} with {base} and {_shown(results, best)} with "
        f"{best} ({_points(_mean(results, best) - _mean(results, base))}). Another seed may reverse this: run five."
    ]
    others = [
        m for m in results.methods if m not in (base, *results.synthetic_methods) and _value(results, m) is not None
    ]
    if others:
        other = _best(results, others)
        lines.append(f"Without synthetic images, {other} reaches {_shown(results, other)}.")
    return Conclusion("open", "One seed cannot show whether synthetic images help.", lines)


def _rival(results: Results, rival: str, best: str, found: Difference | None) -> str:
    """Return the comparison with the best method without synthetic images."""
    change = "they share no seed" if found is None else _change(found)
    outcome = "not shown" if found is None else found.outcome
    ending = {
        "better": f"{best} is better ({change})",
        "worse": f"{best} is worse ({change})",
        "not shown": f"{best} is not shown to be better ({change})",
    }[outcome]
    return f"The best method without synthetic images is {rival} with {_shown(results, rival)}: {ending}."


def _groups(found: Against, other: str | None) -> list[str]:
    """Return which methods are better and worse than one other, and for which no difference is shown."""
    lines = []
    for outcome, words in (
        ("better", f"Better than {other}"),
        ("worse", f"Worse than {other}"),
        ("not shown", f"Against {other}, no difference that these seeds can show"),
    ):
        matches = [difference for difference in found.values() if difference.outcome == outcome]
        if matches:
            lines.append(f"{words}: {', '.join(f'{match.method} ({_change(match)})' for match in matches)}.")
    return lines


def _price(results: Results, base: str, best: str) -> list[str]:
    """Return the method's effect on the averages over all cells and all images."""
    lines = []
    for metric in catalogue.AVERAGES:
        found = against(results, [best], base, metric).get(best) if metric != results.by else None
        if found:
            outcome = {"not shown": "no difference that these seeds can show"}.get(found.outcome, found.outcome)
            values = f"{_shown(results, best, metric)}, with {base} {_shown(results, base, metric)}"
            lines.append(
                f"{_metric(results, metric).capitalize()} with {best}: {values}: {outcome} ({_change(found)})."
            )
    return lines


def _stand_in(results: Results) -> list[str]:
    """Return the reason why another metric judges than the first choice."""
    first = catalogue.JUDGES[0]
    if first in results.defined or results.by == first or results.by != catalogue.judge(results.defined):
        return []
    return [f"Judged by {_metric(results)}: {_metric(results, first)} is not defined on these images."]


def _how(results: Results) -> str:
    return (
        f"These are mean differences over {results.seeds} seeds, each with its {results.confidence:.0%} interval. "
        "Better and worse rest on a paired t test, corrected for the number of methods (Holm)."
    )


def _change(found: Difference) -> str:
    return f"{_points(found.mean)}{bounds((found.low, found.high), points)}"


def _metric(results: Results, metric: str | None = None) -> str:
    return catalogue.metric(metric or results.by, bool(results.groups)).phrase


def _best(results: Results, methods: Sequence[str]) -> str:
    pick = max if catalogue.metric(results.by).higher_is_better else min
    return pick(methods, key=lambda method: _mean(results, method))


def _value(results: Results, method: str, metric: str | None = None) -> float | None:
    estimate = results.estimate(method, metric or results.by)
    return None if estimate is None else estimate.mean


def _mean(results: Results, method: str, metric: str | None = None) -> float:
    value = _value(results, method, metric)
    assert value is not None
    return value


def _shown(results: Results, method: str, metric: str | None = None) -> str:
    return f"{percent(_mean(results, method, metric))}%"


def _points(change: float) -> str:
    return f"{points(change)} points"
