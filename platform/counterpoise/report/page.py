"""The report as one HTML page: without scripts or external files, readable on paper, on a phone and in dark mode."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from counterpoise.evaluation import catalogue
from counterpoise.evaluation.catalogue import COSTS, PRIMARY
from counterpoise.report import content, figures, format
from counterpoise.report.content import Grid, PlanTable, Report, Results
from counterpoise.report.leaderboard import REGIMES, Leaderboard
from counterpoise.report.verdict import standings, verdict

_LARGEST = 144  # pixels a side of an image on the page; larger ones are scaled down
_TICKS = (0.05, 0.1, 0.2)


def render(report: Report) -> str:
    """Return the page of a run, as HTML."""
    environment = _environment(report)
    return environment.get_template("report.html.j2").render(
        **_shared(environment, report),
        scales=_scales(report),
        metrics=_metric_columns(report),
        plans=_distinct(report.plans),
        open_cells=content.OPEN_CELLS,
        most_cells=content.MOST_CELLS,
    )


def render_leaderboard(board: Leaderboard) -> str:
    """Return the page of a comparison, as HTML."""
    environment = _environment(board)
    best = dict(_metric_columns(board))
    before = board.cell_accuracies(board.baseline) if board.baseline else None
    return environment.get_template("leaderboard.html.j2").render(
        **_shared(environment, board),
        scales=_scales(board),
        metrics=[(name, None if name in COSTS else best.get(name)) for name in board.columns_shown],
        regimes=REGIMES,
        differences=[found for each in standings(board) for found in each.values()],
        tradeoff=None if (drawn := figures.tradeoff(board)) is None else _drawn(drawn),
        before=before,
    )


def _environment(results: Results) -> Environment:
    environment = Environment(
        loader=PackageLoader("counterpoise.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": format.percent,
        "points": format.points,
        "number": format.number,
        "count": format.count,
        "p_value": format.p_value,
        "duration": format.duration,
        "picture": picture,
        "depth": depth,
    }
    metric = partial(catalogue.metric, grouped=bool(results.groups))
    environment.globals |= {"metric": metric, "gains": content.gains, "total": total, "catalogue": catalogue}
    return environment


def _shared(environment: Environment, results: Results) -> dict[str, Any]:
    return {
        "r": results,
        "verdict": verdict(results),
        "colors": dict(zip(results.methods, _colors(results), strict=True)),
        "style": _style(environment),
    }


# -- values for the templates ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """The axis of a dot plot, from ``low`` to ``high``, with ticks."""

    metric: str
    low: float
    high: float
    ticks: list[float]

    def at(self, value: int | float) -> str:
        """Return a value's position on the axis, in percent of its length."""
        share = (value - self.low) / (self.high - self.low)
        return f"{100 * min(max(share, 0.0), 1.0):.2f}%"


def _scales(results: Results) -> list[Scale]:
    """Return the axes of a page's dot plots: the judging metric, and the primary ones."""
    names = dict.fromkeys((results.by, *PRIMARY))
    return [scale for name in names if (scale := dot_scale(results, name))]


def dot_scale(report: Results, metric: str) -> Scale | None:
    """Return an axis that fits all methods' intervals and seeds; None if no method has this metric."""
    found = {m: estimate for m in report.methods if (estimate := report.estimate(m, metric))}
    shown = [value for estimate in found.values() for value in (estimate.mean, *(estimate.bounds or ()))]
    shown += [value for method in found for value in report.values(method, metric)]
    if not shown:
        return None
    least, most = max(min(shown), 0.0), min(max(shown), 1.0)
    step = next((step for step in _TICKS if (most - least) / step <= 6), _TICKS[-1])
    low, high = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
    high = max(high, low + 1)
    return Scale(metric, low * step, high * step, [tick * step for tick in range(low, high + 1)])


def depth(number: int, most: int) -> str:
    """Return a count's shade in [0, 1], on a logarithmic scale, so that rare cells remain distinguishable."""
    return f"{math.log1p(number) / math.log1p(most):.3f}" if most > 0 else "0"


def picture(data: bytes | None) -> Markup:
    """Return an image as an element with embedded bytes; small ones are shown without smoothing."""
    try:
        uri, small = _data_uri(data or b"")
    except OSError:
        return Markup('<span class="noimage" title="cannot be read">×</span>')
    return Markup('<img src="{}" alt=""{}>').format(uri, Markup(' class="small"') if small else "")


def _drawn(figure: Figure) -> Markup:
    """Return a figure as an element, with a white background also in dark mode."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Markup('<img class="plate" src="data:image/png;base64,{}" alt="">').format(data)


def _data_uri(data: bytes) -> tuple[str, bool]:
    with Image.open(io.BytesIO(data)) as image:
        kind, size = image.format or "", max(image.size)
        if size > _LARGEST or kind not in ("PNG", "JPEG", "WEBP"):
            small = image.convert("RGB")
            small.thumbnail((_LARGEST, _LARGEST))
            buffer = io.BytesIO()
            small.save(buffer, "PNG" if size <= 64 else "JPEG", quality=88)
            data, kind = buffer.getvalue(), "PNG" if size <= 64 else "JPEG"
    return f"data:image/{kind.lower()};base64,{base64.b64encode(data).decode()}", size <= 64


def _metric_columns(report: Results) -> list[tuple[str, str | None]]:
    """Return the metrics that some method has, in reading order, each with the method of the best mean."""
    columns = []
    for name in report.defined:
        means = {m: found.mean for m in report.methods if (found := report.estimate(m, name))}
        better = catalogue.metric(name).higher_is_better
        pick = max if better else min
        best = pick(means, key=means.__getitem__) if better is not None and len(means) > 1 else None
        columns.append((name, best))
    return columns


def _distinct(plans: Sequence[PlanTable]) -> list[PlanTable]:
    """Merge plans that gave the same images to each cell, for all their methods."""
    merged: dict[str, PlanTable] = {}
    for plan in plans:
        same = merged.get(repr((plan.wanted, plan.chosen)))
        methods = [*(same.methods if same else []), *plan.methods]
        merged[repr((plan.wanted, plan.chosen))] = PlanTable(
            same.name if same else plan.name, list(dict.fromkeys(methods)), plan.wanted, plan.chosen
        )
    return list(merged.values())


def _colors(report: Results) -> list[str]:
    """Return one colour per method, the same everywhere; grey for the baseline."""
    hues = iter(range(1, len(report.methods) + 1))
    return ["var(--m0)" if m == report.baseline else f"var(--m{(next(hues) - 1) % 7 + 1})" for m in report.methods]


def _style(environment: Environment) -> Markup:
    assert environment.loader is not None
    return Markup(environment.loader.get_source(environment, "style.css")[0])


def total(grid: Grid) -> int:
    """Return the sum of a grid."""
    return sum(map(sum, grid))
