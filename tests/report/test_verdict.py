"""What the report claims, and what it must not claim."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from counterpoise.evaluation.compare import table
from counterpoise.report.content import PlanTable, Report, ResultRow
from counterpoise.report.verdict import against, standings, verdict

WORST = "worst_group_accuracy"
NOISE = np.array([0.01, -0.02, 0.015, -0.005, 0.0])  # of each seed, in all methods alike
WOBBLE = {"erm": 0, "usb": 1, "ffr": 2, "asb": 3, "resample": 4, "control": 2}  # and a little of their own


def seeds(method: str, level: float, own: float = 0.006, count: int = 5) -> list[float]:
    """Values of ``count`` seeds: what all methods have in common, and a little of the method's own."""
    return (level + NOISE[:count] + own * np.roll([1, -1, 0.5, -0.5, 0], WOBBLE[method])[:count]).tolist()


def report(
    levels: dict[str, float], synthetic: list[str], baseline: str | None = "erm", count: int = 5, **changes
) -> Report:
    """A report in which only worst-group accuracies matter, and ``more``: other metrics' levels."""
    more = changes.pop("more", {})
    metrics = {WORST: levels, **more}
    values = {name: {m: seeds(m, v, count=count) for m, v in column.items()} for name, column in metrics.items()}
    rows = [
        ResultRow(m, seed, {name: column[m][seed] for name, column in values.items() if m in column}, {}, [])
        for m in levels
        for seed in range(count)
    ]
    flat = [{"method": row.method, "seed": row.seed, **row.metrics} for row in rows]
    return Report(
        title="t",
        dataset="",
        command="",
        created="",
        config_yaml="",
        classes=["a", "b"],
        groups=["x", "y"],
        audit={},
        rows=rows,
        summary=table(flat, metrics, 0.95),
        baseline=baseline,
        plans=[PlanTable("synthetic", synthetic, [[1, 1], [1, 1]], [[1, 1], [1, 1]])] if synthetic else [],
        **changes,
    )


def test_help_is_said_when_a_method_is_better_than_all_that_do_without():
    said = verdict(
        report(
            {"erm": 0.2, "usb": 0.205, "ffr": 0.6, "asb": 0.5},
            ["usb", "ffr", "asb"],
            more={"accuracy": {"erm": 0.9, "ffr": 0.8}, "balanced_accuracy": {"erm": 0.5, "ffr": 0.501}},
        )
    )
    assert said.tone == "good"
    assert said.headline == "Synthetic images helped: with ffr, worst-group accuracy goes from 20.0% to 60.0%."
    text = "\n".join(said.lines)
    low, high = stats.ttest_rel(seeds("ffr", 0.6), seeds("erm", 0.2)).confidence_interval(0.95)
    assert f"Better than erm: ffr (+40.0 points [{100 * low:+.1f}, {100 * high:+.1f}]), asb (+30.0 points" in text
    assert "best method without" not in text  # that is erm
    assert "Against erm, no difference that these seeds can show: usb (+0.5 points [" in text
    assert "Overall accuracy with ffr: 80.0%, with erm 90.0%: worse (−10.0 points" in text
    assert "Balanced accuracy with ffr: 50.1%, with erm 50.0%: no difference that these seeds can show" in text
    assert "over 5 seeds" in text
    assert "Holm" in text


def test_a_gain_is_stated_against_the_best_rival_without_synthesis():
    levels = {"erm": 0.08, "asb": 0.752, "control": 0.548}
    control = {"method": "asb", "base": "erm", "epochs": 30, "images_shown": 36_000}
    said = verdict(report(levels, ["asb"], control="control", control_of=control))
    low, high = stats.ttest_rel(seeds("asb", 0.752), seeds("control", 0.548)).confidence_interval(0.95)
    assert said.tone == "good"
    assert said.headline == (
        "Synthetic images helped: worst-group accuracy is 75.2% with asb and 54.8% with control, the best without "
        f"(+20.4 points [{100 * low:+.1f}, {100 * high:+.1f}])."
    )
    assert "8.0%" not in said.headline  # twice the training lifts erm as well
    assert "The control of asb: erm for 30 epochs, as many steps." in said.lines


def test_what_is_not_shown_is_called_neither_help_nor_equality():
    said = verdict(report({"erm": 0.4, "usb": 0.404, "asb": 0.399}, ["usb", "asb"]))
    assert (said.tone, said.headline) == ("open", "Synthetic images are not shown to help.")
    assert said.lines[0].startswith("Against erm, no difference that these seeds can show: usb (+0.4")
    assert not any(word in " ".join(said.lines) for word in ("same", "equal", "improve"))


def test_pairing_shows_what_overlapping_intervals_hide():
    told = report({"erm": 0.4, "usb": 0.42}, ["usb"])
    high, low = told.estimate("erm", WORST).high, told.estimate("usb", WORST).low
    assert low < high
    assert verdict(told).tone == "good"


def test_harm_is_said():
    said = verdict(report({"erm": 0.6, "usb": 0.4, "asb": 0.3}, ["usb", "asb"]))
    assert said.tone == "bad"
    assert said.headline == "Synthetic images made it worse: with usb, worst-group accuracy goes from 60.0% to 40.0%."
    assert any(line.startswith("Worse than erm: usb (−20.0 points [") for line in said.lines)


def test_synthesis_did_not_help_where_a_method_without_it_does_better():
    said = verdict(report({"erm": 0.2, "resample": 0.7, "ffr": 0.6, "usb": 0.3}, ["ffr", "usb"]))
    assert said.tone == "bad"
    assert said.headline == (
        "Synthetic images did not help: without them, resample has 70.0% worst-group accuracy, ffr 60.0%."
    )
    assert said.lines[0].startswith(
        "The best method without synthetic images is resample with 70.0%: ffr is worse (−10.0"
    )
    assert any(line.startswith("Better than erm: resample (") and "ffr" in line for line in said.lines)


def test_better_than_erm_but_not_than_the_equal_compute_control_is_no_help():
    told = report({"erm": 0.2, "usb": 0.6, "control": 0.598}, ["usb"], control="control")
    said = verdict(told)
    assert said.tone == "open"
    assert said.headline == (
        "Synthetic images are not shown to help: without them, control has 59.8% worst-group accuracy."
    )
    assert "control with 59.8%: usb is not shown to be better (+0.2 points" in said.lines[0]
    assert "Against control, no difference that these seeds can show: usb (+0.2" in "\n".join(said.lines)
    to_base, to_control = standings(told)
    assert list(to_base) == ["usb", "control"]
    assert list(to_control) == ["usb"]
    assert verdict(report({"erm": 0.2, "usb": 0.6, "control": 0.3}, ["usb"], control="control")).tone == "good"


def test_a_metric_of_which_less_is_better():
    gaps = {"equalized_odds_max": {"erm": 0.6, "usb": 0.2, "asb": 0.7}}
    told = report({"erm": 0.4, "usb": 0.4, "asb": 0.4}, ["usb", "asb"], more=gaps, by="equalized_odds_max")
    said = verdict(told)
    assert said.headline == "Synthetic images helped: with usb, equalized odds max goes from 60.0% to 20.0%."
    assert "Worse than erm: asb (+10.0 points" in "\n".join(said.lines)


def test_one_seed_shows_nothing():
    said = verdict(report({"erm": 0.2, "resample": 0.5, "ffr": 0.6}, ["ffr"], count=1))
    assert (said.tone, said.headline) == ("open", "One seed cannot show whether synthetic images help.")
    assert "points). Another seed may reverse this" in said.lines[0]
    assert "resample" in said.lines[1]


def test_without_a_baseline_nothing_is_said_of_help():
    said = verdict(report({"usb": 0.4, "ffr": 0.6}, ["usb", "ffr"], baseline=None))
    assert said.tone == "open"
    assert "baseline" in said.headline
    assert "ffr" in said.lines[0]


def test_without_synthetic_images_the_methods_are_compared():
    said = verdict(report({"erm": 0.2, "resample": 0.4}, []))
    assert said.headline == "No synthetic images were used."
    assert said.lines[0].startswith("Better than erm: resample (+20.0 points")


def test_without_groups_the_worst_is_a_class():
    said = verdict(report({"erm": 0.2, "ffr": 0.6}, ["ffr"]))
    told = report({"erm": 0.2, "ffr": 0.6}, ["ffr"])
    assert "worst-group" in said.headline
    assert "worst-class" in verdict(Report(**{**vars(told), "groups": []})).headline


def test_nothing_trained():
    assert verdict(report({}, [], baseline=None)).headline == "Nothing has been trained yet."


@pytest.mark.parametrize("count", [1, 5])
def test_against_speaks_of_the_metric_that_judges(count):
    told = report({"erm": 0.2, "ffr": 0.6}, ["ffr"], count=count, more={"accuracy": {"erm": 0.9, "ffr": 0.8}})
    assert against(told, ["ffr"], "erm")["ffr"].metric == WORST
    assert against(told, ["ffr"], "erm", "accuracy")["ffr"].mean < 0 < against(told, ["ffr"], "erm")["ffr"].mean
    assert against(told, ["erm"], "erm") == {}
