"""Trend figures: metrics of methods over settings, as lines with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from counterpoise.evaluation import catalogue
from counterpoise.evaluation.estimate import Estimate
from counterpoise.report.figures import COLORS, plain

Table = Mapping[str, Mapping[str, Estimate]]  # method -> metric -> mean and interval

_KINDS = (("o", "-"), ("s", "--"), ("^", ":"))  # marker and line


def trend(tables: Mapping[str, Table], metrics: Sequence[str]) -> Figure:
    """Draw a panel for each metric, in %: settings along the axis in their order, a line for each method.

    Args:
        tables: Estimates by setting.
        metrics: The metrics to draw.
    """
    settings = list(tables)
    methods = list(dict.fromkeys(method for table in tables.values() for method in table))
    step = min(0.06, 0.6 / len(methods))
    figure = Figure(figsize=(5 * len(metrics), 3.6), layout="constrained")
    for axis, metric in zip(figure.subplots(1, len(metrics), squeeze=False).flat, metrics, strict=True):
        for index, method in enumerate(methods):
            estimates = [(x, tables[setting].get(method, {}).get(metric)) for x, setting in enumerate(settings)]
            points = [(x, estimate.scaled(100)) for x, estimate in estimates if estimate is not None]
            if not points:
                continue
            offset = step * (index - (len(methods) - 1) / 2)  # so that intervals do not overlap
            marker, dashes = _KINDS[index // len(COLORS) % len(_KINDS)]  # distinguishes repeated colours
            axis.errorbar(
                [x + offset for x, _ in points],
                [estimate.mean for _, estimate in points],
                yerr=[estimate.half_width or 0.0 for _, estimate in points],
                color=COLORS[index % len(COLORS)],
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
