"""The matplotlib figures for MLflow."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from counterpoise.report.content import CellSamples
from counterpoise.report.figures import all_figures, cells, counts, intervals, samples, tradeoff


def texts(axis) -> list[str]:
    return [text.get_text() for text in axis.texts]


def test_every_figure_can_be_saved(make_report):
    figures = all_figures(make_report(shown=4))
    assert list(figures) == ["counts", "accuracy", "cells", "samples"]
    for figure in figures.values():
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=50)
        assert np.asarray(Image.open(buffer)).std() > 5


def test_without_synthesis_and_with_dollar_signs(make_report):
    report = make_report(classes=("$5", "a_$x", "c"), groups=(), methods=("erm",), seeds=1, samples=[])
    figures = all_figures(report)
    assert list(figures) == ["counts", "accuracy", "cells"]
    for figure in figures.values():
        figure.savefig(io.BytesIO(), format="svg")


def test_counts_are_written_and_empty_cells_framed(make_report):
    report = make_report(methods=("erm", "usb"))
    real, usb = counts(report).axes
    assert texts(real) == [f"{n:,}" for row in report.audit["counts"] for n in row]
    assert texts(usb) == [f"{n:,}" for row in report.trained_on(report.plans[0]) for n in row]
    assert len(real.patches) == len(report.audit["empty_cells"])
    assert usb.get_title(loc="left") == "usb (synthetic)"


def test_cells_show_the_baseline_and_the_changes(make_report):
    report = make_report(methods=("erm", "ffr"))
    erm, ffr = cells(report).axes
    before, after = report.cell_accuracies("erm"), report.cell_accuracies("ffr")
    assert texts(erm)[0] == f"{100 * before[0][0]:.0f}"
    assert texts(ffr)[1] == f"{100 * (after[0][1] - before[0][1]):+.0f}"
    assert texts(ffr)[5] == "–"  # no test images there


def test_the_dots_are_where_the_means_are(make_report):
    report = make_report(methods=("erm", "ffr"))
    axis = intervals(report).axes[0]
    drawn = [line.get_xdata() for line in axis.lines if line.get_markersize() == 7 and line.get_marker() == "o"]
    means = [100 * report.estimate(method, "worst_group_accuracy").mean for method in ("erm", "ffr")]
    assert [float(x[0]) for x in drawn] == pytest.approx(means)


def test_the_sample_grid_survives_broken_images(make_report):
    report = make_report(samples=[CellSamples("square", "red", None, [b"broken"], [], [(None, "black")])])
    samples(report).savefig(io.BytesIO(), format="png", dpi=30)


def test_the_tradeoff_has_a_cross_of_intervals_at_every_mean(make_board):
    board = make_board()
    (axis,) = tradeoff(board).axes
    marks = {line.get_label(): line for line in axis.lines if line.get_markersize() == 8}
    assert list(marks) == board.methods
    for method, line in marks.items():
        accuracy, worst = board.estimate(method, "accuracy"), board.estimate(method, "worst_group_accuracy")
        assert [*line.get_xdata(), *line.get_ydata()] == pytest.approx([100 * accuracy.mean, 100 * worst.mean])
        across, up = [other for other in axis.lines if other.get_color() == line.get_color() and other is not line]
        assert list(across.get_xdata()) == pytest.approx([100 * accuracy.low, 100 * accuracy.high])
        assert list(up.get_ydata()) == pytest.approx([100 * worst.low, 100 * worst.high])
        assert (line.get_marker() == "s") == (method in board.synthetic)
    tradeoff(make_board(seeds=1)).savefig(io.BytesIO(), format="png", dpi=30)
