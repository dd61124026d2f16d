"""Progress in plain lines; errors in plain words."""

import pickle

import pytest

from counterpoise.core import progress as module
from counterpoise.core.progress import Progress
from counterpoise.errors import DataError, did_you_mean, one_of


def test_lines_have_rate_and_time_left(capsys, monkeypatch):
    monkeypatch.setattr(module, "_LINE_SECONDS", 0.0)
    with Progress("sampling", total=4, unit="images") as progress:
        progress.advance(1)
        progress.advance(3)
    out, err = capsys.readouterr()
    assert out == ""
    first, last = err.splitlines()
    assert first.startswith("sampling: 1/4 images, ")
    assert first.endswith("s left")
    assert last.startswith("sampling: 4/4 images, ")
    assert "/s, " in first


def test_nothing_is_said_when_nothing_is_done(capsys):
    with Progress("sampling", total=4, unit="images"):
        pass
    assert capsys.readouterr().err == ""


def test_an_error_says_where_what_and_what_to_do_and_survives_a_trip():
    error = DataError("this column is missing", where="labels.csv", found="a, b", allowed="c", remedy="rename it")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is DataError
    assert str(copy).splitlines() == [
        "this column is missing",
        "  where:   labels.csv",
        "  found:   a, b",
        "  allowed: c",
        "  do:      rename it",
    ]


@pytest.mark.parametrize(("word", "hint"), [("ffq", "did you mean 'ffr'?"), ("zzz", None)])
def test_a_near_spelling_is_offered(word, hint):
    assert did_you_mean(word, ["erm", "ffr"]) == hint


def test_long_lists_are_cut():
    assert one_of(range(20), limit=2) == "0, 1, … (18 more)"
