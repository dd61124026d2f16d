"""Matplotlib versions of the page's pictures, for MLflow."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image, ImageOps

from counterpoise.evaluation.catalogue import OVERALL, PRIMARY, WORST_GROUP, metric
from counterpoise.report import content
from counterpoise.report.content import CellSamples, Grid, Rates, Report, Results
from counterpoise.report.format import MISSING, count, whole_points

_SHADES = LinearSegmentedColormap.from_list("counts", ["#f4f4f0", "#27648c"])
_GAINS = LinearSegmentedColormap.from_list("gains", ["#a8410c", "#f4f4f0", "#16705f"])
COLORS = ("#1f6f9f", "#c4581a", "#2a7d5f", "#8a4fa0", "#a8821a", "#b23a58", "#3e8f96")
_BASELINE, _SOFT, _WARN = "#7b828c", "#5c636d", "#a8410c"
_SAMPLES, _SIDE = 6, 64  # images of each kind in the sample grid, and their pixels
_WRITTEN = 400  # largest number of cells of a heatmap with numbers


def all_figures(report: Report) -> dict[str, Figure]:
    """Return every figure that the report has data for, by name."""
    made = {"counts": counts(report)}
    if report.rows:
        drawn = intervals(report)
        made |= {"accuracy": drawn} if drawn else {}
        made["cells"] = cells(report)
    if report.samples:
        made["samples"] = samples(report)
    return made


def counts(report: Report) -> Figure:
    """Draw training images per cell: real ones, and with those of each plan."""
    grids = {"real": report.audit["counts"]}
    grids |= {f"{', '.join(plan.methods)} ({plan.name})": report.trained_on(plan) for plan in report.plans}
    most = max(max(map(max, grid)) for grid in grids.values())
    figure, axes = _panels(report, list(grids))
    for axis, grid in zip(axes, grids.values(), strict=True):
        _heat(axis, report, grid, LogNorm(1, max(most, 2)), _SHADES, count)
        for row, column in np.argwhere(np.asarray(grid) == 0):
            axis.add_patch(_frame(int(column), int(row)))
    return figure


def intervals(report: Results) -> Figure | None:
    """Draw the primary metrics of each method, or else the judging one: mean, interval and single seeds.

    Returns None if no method has any of them.
    """
    shown = [name for name in PRIMARY if name in report.defined] or [n for n in (report.by,) if n in report.defined]
    if not shown:
        return None
    figure = Figure(figsize=(7, len(shown) * (0.8 + 0.32 * len(report.methods))), layout="constrained")
    for axis, name in zip(figure.subplots(len(shown), squeeze=False).flat, shown, strict=True):
        for height, method in enumerate(report.methods):
            estimate, color = report.estimate(method, name), _color(report, method)
            if estimate is None:
                continue
            percent = estimate.scaled(100)
            if percent.bounds:
                axis.plot(percent.bounds, [height, height], color=color, lw=2, solid_capstyle="round")
                if method == report.baseline:
                    axis.axvspan(*percent.bounds, color=_BASELINE, alpha=0.14, lw=0)
            seeds = [100 * value for value in report.values(method, name)]
            axis.plot(seeds, [height + 0.28] * len(seeds), "o", ms=3, mfc="none", mec=color)
            axis.plot([percent.mean], [height], "o", ms=7, color=color, mec="white")
        axis.set_yticks(range(len(report.methods)), report.methods)
        axis.set_ylim(len(report.methods) - 0.4, -0.6)
        title = metric(name, bool(report.groups)).title
        axis.set_title(f"{title} accuracy, %", loc="left", fontsize=10)
        axis.grid(axis="x", color="#dfdfd9")
        plain(axis)
    return figure


def cells(report: Results) -> Figure:
    """Draw the baseline's accuracy per cell, and each other method's change, in points."""
    before = report.cell_accuracies(report.baseline) if report.baseline else None
    figure, axes = _panels(report, report.methods)
    for axis, method in zip(axes, report.methods, strict=True):
        rates = report.cell_accuracies(method)
        if before is None or method == report.baseline:
            _heat(axis, report, _percent(rates), Normalize(0, 100), _SHADES, count)
        else:
            change = _percent(content.gains(rates, before))
            _heat(axis, report, change, Normalize(-50, 50), _GAINS, whole_points)
    return figure


def tradeoff(report: Results) -> Figure | None:
    """Draw overall against worst-group accuracy, in percent: the mean of each method, and both intervals.

    Returns None if no method has both.
    """
    both = (OVERALL.name, WORST_GROUP.name)
    if not any(all(report.estimate(method, name) for name in both) for method in report.methods):
        return None
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axis = figure.subplots()
    for method in report.methods:
        across, up = (report.estimate(method, name) for name in both)
        if across is None or up is None:
            continue
        color, x, y = _color(report, method), across.scaled(100), up.scaled(100)
        if x.bounds:
            axis.plot(x.bounds, [y.mean, y.mean], color=color, lw=1.2, alpha=0.6)
        if y.bounds:
            axis.plot([x.mean, x.mean], y.bounds, color=color, lw=1.2, alpha=0.6)
        marker = "s" if method in report.synthetic_methods else "o"
        axis.plot([x.mean], [y.mean], marker, ms=8, color=color, mec="white", label=_short(method, 24))
    names = [metric(name, bool(report.groups)).title for name in both]
    axis.set_xlabel(f"{names[0]} accuracy, %", color=_SOFT)
    axis.set_ylabel(f"{names[1]} accuracy, %", color=_SOFT)
    axis.grid(color="#dfdfd9")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9, labelcolor=_SOFT)
    plain(axis)
    return figure


def samples(report: Report) -> Figure:
    """Draw some cells' real images beside the synthetic ones used and those filtered out."""
    shown = report.shown_samples()[: content.OPEN_CELLS]
    rows = [np.concatenate([_strip(images) for images in _kinds(cell)], axis=1) for cell in shown]
    height, width, _ = rows[0].shape
    figure = Figure(figsize=(9, 9 * height * len(rows) / width + 0.6), layout="constrained")
    axis = figure.subplots()
    axis.imshow(np.concatenate(rows), interpolation="nearest")
    names = [_short(cell.label + (f" × {cell.group}" if cell.group else ""), 30) for cell in shown]
    axis.set_yticks(np.arange(len(rows)) * height + height / 2, names, fontsize=7)
    axis.xaxis.tick_top()
    axis.set_xticks(np.arange(3) * width / 3, ["real", "synthetic", "filtered"], fontsize=8, ha="left")
    plain(axis)
    return figure


def grid(
    strips: Sequence[Sequence[Sequence[bytes | None]]], rows: Sequence[str], columns: Sequence[str], title: str
) -> Figure:
    """Draw strips of encoded images under labels; None is a grey square.

    Args:
        strips: Images by row and column; all strips are of one length.
        rows: Labels of the rows.
        columns: Labels of the columns.
        title: One line or several.
    """
    side = _side(strips)
    pictures = [np.concatenate([_squares(strip, side) for strip in row], axis=1) for row in strips]
    canvas = np.concatenate(pictures)
    height, width, _ = canvas.shape
    margin = 0.3 + 0.07 * min(max(map(len, rows)), 40)
    figure = Figure(figsize=(max(width / 100 + margin, 6.5), height / 100 + 0.9), layout="constrained")
    axis = figure.subplots()
    axis.imshow(canvas, interpolation="nearest")
    axis.set_yticks((np.arange(len(rows)) + 0.5) * height / len(rows), [_short(name, 40) for name in rows], fontsize=8)
    axis.xaxis.tick_top()
    letters = max(4, width // len(columns) // 8)
    axis.set_xticks(
        np.arange(len(columns)) * width / len(columns), [_short(n, letters) for n in columns], fontsize=8, ha="left"
    )
    axis.set_title(_short(title, 400), loc="left", fontsize=8, color=_SOFT)
    plain(axis)
    return figure


def _side(strips: Sequence[Sequence[Sequence[bytes | None]]]) -> int:
    """Return the side of a square in pixels: the images' own, within bounds."""
    for data in (data for row in strips for strip in row for data in strip if data is not None):
        with Image.open(io.BytesIO(data)) as image:
            return min(max(*image.size, _SIDE), 2 * _SIDE)
    return _SIDE


def _squares(strip: Sequence[bytes | None], side: int) -> UInt8[np.ndarray, "height width 3"]:
    """Return images side by side on white, each fitted into a square, with a gap after the last."""
    canvas = Image.new("RGB", (len(strip) * (side + 2) + 10, side + 4), "white")
    for number, data in enumerate(strip):
        picture = Image.new("RGB", (side, side), (235, 235, 235))
        if data is not None:
            with Image.open(io.BytesIO(data)) as image:
                smaller = max(image.size) < side
                resampling = Image.Resampling.NEAREST if smaller else Image.Resampling.LANCZOS
                picture = ImageOps.pad(image.convert("RGB"), (side, side), resampling, color="white")
        canvas.paste(picture, (number * (side + 2), 2))
    return np.asarray(canvas)


def _kinds(cell: CellSamples) -> tuple[list[bytes], list[bytes], list[bytes]]:
    return cell.real, cell.accepted, [image for image, _ in cell.rejected if image is not None]


def _strip(images: Sequence[bytes]) -> UInt8[np.ndarray, "height width 3"]:
    """Return the images side by side on white, with space for the most images shown."""
    strip = np.full((_SIDE + 4, _SAMPLES * (_SIDE + 4) + 16, 3), 255, np.uint8)
    for number, data in enumerate(images[:_SAMPLES]):
        left = number * (_SIDE + 4)
        try:
            with Image.open(io.BytesIO(data)) as image:
                picture = np.asarray(image.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.NEAREST))
        except OSError:
            picture = np.full((_SIDE, _SIDE, 3), 235, np.uint8)
        strip[2 : 2 + _SIDE, left : left + _SIDE] = picture
    return strip


def _panels(report: Results, titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    width = max(1.6, 0.55 * len(report.columns)) + 1.4
    height = max(1.2, 0.26 * len(report.classes)) + 0.8
    columns = min(len(titles), 3)
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, title in zip(axes, titles, strict=False):
        axis.set_title(_short(title, 40), loc="left", fontsize=9)
    for axis in axes[len(titles) :]:
        axis.remove()
    return figure, axes[: len(titles)]


def _heat(
    axis: Axes,
    report: Results,
    grid: Grid | Rates,
    norm: Normalize,
    shades: LinearSegmentedColormap,
    written: Callable[[float], str],
) -> None:
    values = np.array([[np.nan if value is None else value for value in row] for row in grid], float)
    drawn = np.ma.masked_invalid(np.maximum(values, 1) if isinstance(norm, LogNorm) else values)
    axis.imshow(drawn, cmap=shades, norm=norm, aspect="auto")
    axis.set_xticks(range(len(report.columns)), [_short(name, 14) for name in report.columns], fontsize=7)
    axis.set_yticks(range(len(report.classes)), [_short(name, 24) for name in report.classes], fontsize=7)
    for (row, column), value in np.ndenumerate(values) if values.size <= _WRITTEN else ():
        red, green, blue, _ = shades(norm(drawn[row, column])) if not np.isnan(value) else (1, 1, 1, 1)
        ink = "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.45 else "black"
        text = MISSING if np.isnan(value) else written(float(value))
        axis.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)
    plain(axis)


def _frame(column: int, row: int) -> Rectangle:
    return Rectangle((column - 0.48, row - 0.48), 0.96, 0.96, fill=False, hatch="////", edgecolor=_WARN, lw=0.8)


def plain(axis: Axes) -> None:
    """Remove an axis's frame and tick marks."""
    axis.tick_params(length=0, labelcolor=_SOFT)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _percent(rates: Rates) -> Rates:
    return [[None if rate is None else 100 * rate for rate in row] for row in rates]


def _color(report: Results, method: str) -> str:
    others = [name for name in report.methods if name != report.baseline]
    return _BASELINE if method == report.baseline else COLORS[others.index(method) % len(COLORS)]


def _short(text: str, length: int) -> str:
    # A class name may hold a dollar sign, which matplotlib would take for the start of a formula.
    return (text if len(text) <= length else text[: length - 1] + "…").replace("$", r"\$")
