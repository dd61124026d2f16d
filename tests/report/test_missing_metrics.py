"""Whatever metrics are undefined, everything that shows results shows the others, and "–"."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from counterpoise.cli import tables
from counterpoise.evaluation.catalogue import COSTS, METRICS, judge, metric
from counterpoise.evaluation.compare import ranks, table
from counterpoise.evaluation.estimate import table_to_json
from counterpoise.report.figures import all_figures
from counterpoise.report.page import render, render_leaderboard
from counterpoise.report.verdict import verdict

RATES = [name for name in METRICS if name not in COSTS]
GROUPED = {name for name in RATES if METRICS[name].needs_groups}
SUBSETS = {
    **{f"without {name}": set(RATES) - {name} for name in RATES},
    "all": set(RATES),
    "unknown groups": set(RATES) - GROUPED,
    "accuracy alone": {"accuracy"},
    "few alone": {"few"},
    "none": set(),
}


def with_metrics(results, defined, absent):
    """The results with random values of the defined metrics; the others are not there, or None."""
    random = np.random.default_rng(0)
    rows = []
    for row in results.rows:
        kept = {name: value for name, value in row.metrics.items() if name in COSTS}
        values = {name: float(random.random()) for name in RATES if name in defined}
        gone = dict.fromkeys(set(RATES) - defined) if absent == "null" else {}
        intervals = {name: (value * 0.9, min(value * 1.1, 1.0)) for name, value in values.items()}
        rows.append(replace(row, metrics=kept | values | gone, intervals=intervals))
    flat = [{"method": row.method, "seed": row.seed, "intervals": row.intervals, **row.metrics} for row in rows]
    summary = table(flat, METRICS, 0.95)
    return replace(results, rows=rows, summary=summary, by=judge(defined))


def printed(lines) -> str:
    console = Console(file=io.StringIO(), width=200)
    for line in lines:
        console.print(line)
    return console.file.getvalue()


@pytest.mark.parametrize(("absent", "seeds"), [("missing", 3), ("null", 1)])
@pytest.mark.parametrize("defined", SUBSETS.values(), ids=SUBSETS.keys())
def test_every_subset_of_metrics_can_be_told(make_report, make_board, defined, seeds, absent):
    small = {"classes": ("triangle", "square"), "groups": ("red", "green"), "shown": 1}
    report = with_metrics(make_report(seeds=seeds, **small), defined, absent)
    board = with_metrics(make_board(seeds=seeds, report=small), defined, absent)
    places = ranks(board.summary, board.by)
    board = replace(board, places=places)

    for page in (render(report), render_leaderboard(board)):
        text = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.S)
        assert not re.search(r"\b(None|nan|Undefined)\b", text)
        assert verdict(report).headline.split(":")[0].replace("worst-", "worst\u2011") in text
    page = render(report)
    for name in RATES:
        assert (f">{metric(name).title}" in page) == (name in defined)
    assert ("accuracy" in all_figures(report)) == bool(
        defined & {"worst_group_accuracy", "balanced_accuracy", report.by}
    )

    said = board.to_json()
    json.dumps(said, allow_nan=False)
    shown = set(board.columns_shown) - set(COSTS)
    assert all(row["metrics"].keys() - set(COSTS) == shown for row in said["methods"])
    assert shown <= defined
    assert {row["place"] is None for row in said["methods"]} == {board.by not in defined}
    told = printed(tables.leaderboard({**said, "files": {}}))
    assert "None" not in told

    rows = [{"method": r.method, "seed": r.seed, "metrics": dict(r.metrics)} for r in report.rows]
    stages = {"fitted": 0, "found": 1}
    missing = len({"accuracy", "balanced_accuracy", "worst_group_accuracy"} - defined)
    lines = printed(tables.rows({"rows": rows, "stages": stages})).splitlines()
    assert {line.split().count("–") for line in lines if line.startswith("erm")} == {missing}
    lines = printed([tables.comparison(table_to_json(report.summary), 0.95)]).splitlines()
    assert {line.split().count("–") for line in lines if line.startswith("erm")} == {missing}


@pytest.mark.parametrize(
    ("defined", "line"),
    [
        (set(RATES), None),
        (set(RATES) - {"worst_group_accuracy"}, "Judged by balanced accuracy: worst-group accuracy"),
        (set(RATES) - GROUPED, "Judged by mean class accuracy: worst-group accuracy"),
        ({"accuracy"}, "Judged by overall accuracy: worst-group accuracy"),
    ],
)
def test_the_metric_that_stands_in_is_named(make_report, defined, line):
    said = verdict(with_metrics(make_report(), defined, "missing"))
    told = [one for one in said.lines if one.startswith("Judged by")]
    assert told == ([] if line is None else [f"{line} is not defined on these images."])


def test_where_nothing_can_judge_nothing_is_claimed(make_report):
    said = verdict(with_metrics(make_report(), {"few"}, "missing"))
    assert said.tone == "open"
    assert said.headline == "Nothing shows whether synthetic images help: worst-group accuracy is not defined here."
