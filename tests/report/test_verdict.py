"""What the report claims, and what it must not claim."""

from __future__ import annotations

import pytest

from counterpoise.report.content import Plan, Report, ResultRow
from counterpoise.report.verdict import compare, verdict

Summary = dict[str, tuple[float, float | None, float | None]]


def report(
    worst: Summary, synthetic: list[str], baseline: str | None = "erm", seeds: int = 3, **more: Summary
) -> Report:
    """A report in which only the summaries matter."""
    summary = {m: {"worst_group_accuracy": v} | {n: t[m] for n, t in more.items() if m in t} for m, v in worst.items()}
    rows = [ResultRow(method, seed, {}, {}, []) for method in worst for seed in range(seeds)]
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
        summary=summary,
        baseline=baseline,
        plans=[Plan("synthetic", synthetic, [[1, 1], [1, 1]], [[1, 1], [1, 1]])] if synthetic else [],
    )


@pytest.mark.parametrize(
    ("one", "two", "order"),
    [
        ((0.6, 0.55, 0.65), (0.5, 0.45, 0.54), "higher"),
        ((0.4, 0.35, 0.44), (0.5, 0.45, 0.54), "lower"),
        ((0.6, 0.54, 0.66), (0.5, 0.45, 0.54), "overlap"),  # ends that touch show nothing
        ((0.6, None, None), (0.5, 0.45, 0.54), "unknown"),
        ((0.6, float("nan"), float("nan")), (0.5, 0.45, 0.54), "unknown"),
    ],
)
def test_compare(one, two, order):
    assert compare(report({"ffr": one, "erm": two}, ["ffr"]), "ffr", "erm", "worst_group_accuracy") == order


def test_help_is_said_when_the_intervals_are_apart():
    said = verdict(
        report(
            {"erm": (0.2, 0.15, 0.25), "usb": (0.27, 0.2, 0.34), "ffr": (0.6, 0.55, 0.65), "asb": (0.5, 0.4, 0.6)},
            ["usb", "ffr", "asb"],
            accuracy={"erm": (0.9, 0.88, 0.92), "ffr": (0.8, 0.78, 0.82)},
        )
    )
    assert said.tone == "good"
    assert said.headline == "Synthetic images helped: with ffr, worst-group accuracy goes from 20.0% to 60.0%."
    text = " ".join(said.lines)
    assert "intervals over 3 seeds do not overlap: erm 15.0% to 25.0%, ffr 55.0% to 65.0%" in text
    assert "asb is above erm by more than the intervals, too" in text
    assert "usb is not shown to differ from erm" in text
    assert "Overall accuracy with ffr: 80.0%, with erm 90.0%: down by more than the intervals." in text


def test_overlap_is_not_called_help_nor_equality():
    said = verdict(report({"erm": (0.4, 0.3, 0.5), "usb": (0.48, 0.4, 0.56), "asb": (0.39, 0.3, 0.48)}, ["usb", "asb"]))
    assert (said.tone, said.headline) == ("open", "Synthetic images are not shown to help.")
    assert "usb and asb are not shown to differ from erm: the intervals overlap." in said.lines
    assert "(+8.0 points)" in said.lines[0]
    assert not any(word in " ".join(said.lines) for word in ("same", "equal", "improve"))


def test_harm_is_said():
    said = verdict(
        report({"erm": (0.6, 0.58, 0.62), "usb": (0.4, 0.38, 0.42), "asb": (0.3, 0.28, 0.32)}, ["usb", "asb"])
    )
    assert said.tone == "bad"
    assert said.headline == "Synthetic images made it worse: with usb, worst-group accuracy goes from 60.0% to 40.0%."
    assert "usb and asb are below erm by more than the intervals." in said.lines


def test_a_method_on_real_images_that_does_better_is_not_hidden():
    methods = {"erm": (0.2, 0.15, 0.25), "resample": (0.7, 0.66, 0.74), "ffr": (0.6, 0.55, 0.65)}
    said = verdict(report(methods, ["ffr"]))
    assert said.tone == "good"
    assert (
        "Without synthetic images, resample reaches 70.0%: that is above ffr by more than the intervals." in said.lines
    )


def test_one_seed_shows_nothing():
    said = verdict(report({"erm": (0.2, None, None), "ffr": (0.6, None, None)}, ["ffr"], seeds=1))
    assert (said.tone, said.headline) == ("open", "One seed cannot show whether synthetic images help.")
    assert "(+40.0 points)" in said.lines[0]


def test_intervals_that_come_with_one_seed_are_not_believed():
    said = verdict(report({"erm": (0.2, 0.2, 0.2), "ffr": (0.6, 0.6, 0.6)}, ["ffr"], seeds=1))
    assert said.tone == "open"


def test_without_a_baseline_nothing_is_said_of_help():
    said = verdict(report({"usb": (0.4, 0.3, 0.5), "ffr": (0.6, 0.55, 0.65)}, ["usb", "ffr"], baseline=None))
    assert said.tone == "open"
    assert "baseline" in said.headline
    assert "ffr" in said.lines[0]


def test_without_synthetic_images_the_methods_are_compared():
    said = verdict(report({"erm": (0.2, 0.15, 0.25), "group_dro": (0.4, 0.35, 0.45)}, []))
    assert said.headline == "No synthetic images were used."
    assert said.lines == ["group_dro reaches 40.0% worst-group accuracy, above erm by more than the intervals."]


def test_nothing_trained():
    assert verdict(report({}, [], baseline=None)).headline == "Nothing has been trained yet."
