"""Methods over settings, as lines with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from counterpoise.evaluation import catalogue
from counterpoise.evaluation.scores import Summary
from counterpoise.report.figures import COLORS, plain

Table = Mapping[str, Mapping[str, Summary]]  # method -> metric -> mean and interval

_KINDS = (("o", "-"), ("s", "--"), ("^", ":"))  # marker and line


def trend(tables: Mapping[str, Table], metrics: Sequence[str]) -> Figure:
    """A panel for each metric, in %: settings along the axis in their order, a line for each method.

    Args:
        tables: By setting.
        metrics: Which to draw.
    """
    settings = list(tables)
    methods = list(dict.fromkeys(method for table in tables.values() for method in table))
    step = min(0.06, 0.6 / len(methods))
    figure = Figure(figsize=(5 * len(metrics), 3.6), layout="constrained")
    for axis, metric in zip(figure.subplots(1, len(metrics), squeeze=False).flat, metrics, strict=True):
        for number, method in enumerate(methods):
            found = [(x, tables[setting].get(method, {}).get(metric)) for x, setting in enumerate(settings)]
            points = [(x, one) for x, one in found if one is not None]
            if not points:
                continue
            aside = step * (number - (len(methods) - 1) / 2)  # so that intervals do not cover each other
            marker, dashes = _KINDS[number // len(COLORS) % len(_KINDS)]  # when the colours come round again
            reach = [50 * (one.interval[1] - one.interval[0]) if one.interval else 0.0 for _, one in points]
            axis.errorbar(
                [x + aside for x, _ in points],
                [100 * one.mean for _, one in points],
                yerr=reach,
                color=COLORS[number % len(COLORS)],
                marker=marker,
                ls=dashes,
                ms=4,
                lw=1.5,
                elinewidth=0.8,
                label=method,
            )
        axis.set_xticks(range(len(settings)), settings)
        axis.set_title(f"{catalogue.metric(metric).title}, %", loc="left", fontsize=10)
        axis.grid(axis="y", color="#dfdfd9")
        plain(axis)
    figure.axes[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
