"""Numbers as text, and Markdown tables."""

import pytest

from counterpoise.report.format import bounds, count, duration, number, p_value, percent, points, whole_points
from counterpoise.report.markdown import table


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (0.00234567, "0.00235"), (0.9, "0.900"), (12.345, "12.3"), (1234.5, "1,234")],
)
def test_number(value, text):
    assert number(value) == text


def test_each_kind_of_number():
    assert [percent(value) for value in (0.1234, None, float("nan"), 1.0)] == ["12.3", "–", "–", "100.0"]
    assert [points(value) for value in (0.1, -0.104, 0.0001, -0.0001, None)] == ["+10.0", "−10.4", "±0.0", "±0.0", ""]
    assert [duration(value) for value in (0.04, 59.96, 61, 3599.8, 7260)] == [
        "0.0 s", "60.0 s", "1 min 01 s", "1 h 00 min", "2 h 01 min"
    ]  # fmt: skip
    assert [p_value(value) for value in (0.0004, 0.04567, 1.0, None)] == ["< 0.001", "0.046", "1.000", "–"]
    assert [whole_points(value) for value in (10.4, -10.5, 0.4, -0.4)] == ["+10", "−10", "+0", "+0"]
    assert [count(value) for value in (0, 1234, 1234.5)] == ["0", "1,234", "1,234"]


def test_intervals_follow_their_mean():
    assert percent(0.3) + bounds((0.25, 0.35)) == "30.0 [25.0, 35.0]"
    assert points(0.01) + bounds([-0.02, 0.04], points) == "+1.0 [−2.0, +4.0]"
    assert bounds(None) == bounds((None, None)) == ""


def test_a_bar_in_a_cell_does_not_end_it():
    assert table(["a", "b"], [["1|2", ""]]) == "| a | b |\n| --- | --- |\n| 1\\|2 |  |"
