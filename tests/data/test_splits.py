"""Splits that are drawn: which, from what, in which shares, in every cell."""

import numpy as np
import pytest

from counterpoise.config import Splits
from counterpoise.data.splits import draw_splits, draw_tints
from counterpoise.errors import DataError

LABELS = np.repeat(np.arange(4, dtype=np.int32), [400, 100, 40, 7])
GROUPS = (np.arange(len(LABELS)) % 2).astype(np.int32)


def given(*parts: str) -> np.ndarray:
    return np.array([parts[n % len(parts)] for n in range(len(LABELS))], dtype=object)


def test_all_three_are_drawn_in_their_shares_from_each_cell():
    splits = draw_splits(LABELS, GROUPS, None, Splits(train=0.7, validation=0.1, test=0.2), seed=0)
    for part, share in (("train", 0.7), ("validation", 0.1), ("test", 0.2)):
        assert abs(np.sum(splits == part) - share * len(LABELS)) <= 2
        for label in range(4):
            for group in range(2):
                cell = (label == LABELS) & (group == GROUPS)
                assert abs(np.sum(splits[cell] == part) - share * cell.sum()) <= 2


def test_the_seed_decides():
    draws = [draw_splits(LABELS, GROUPS, None, None, seed).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_a_tenth_of_train_becomes_validation_if_there_is_none():
    before = given("train", "train", "test")
    after = draw_splits(LABELS, GROUPS, before, None, seed=0)
    assert ((before == "test") == (after == "test")).all()
    assert abs(np.sum(after == "validation") - 0.1 * np.sum(before == "train")) <= 1


def test_shares_say_how_much_of_train_is_taken():
    before = given("train", "validation")
    after = draw_splits(LABELS, GROUPS, before, Splits(train=0.5, validation=0.2, test=0.3), seed=0)
    assert ((before == "validation") == (after == "validation")).all()
    assert abs(np.sum(after == "test") - 0.3 * np.sum(before == "train")) <= 1


@pytest.mark.parametrize(
    ("parts", "shares", "says"),
    [
        (("train", "validation"), None, "there is no test split"),
        (("test",), None, "there is no training split"),
        (("train", "validation", "test"), Splits(), "already has all three splits"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(parts, shares, says):
    with pytest.raises(DataError, match=says):
        draw_splits(LABELS, GROUPS, given(*parts), shares, seed=0)


def test_tints_are_even_in_each_class_and_differ_by_seed():
    splits = draw_splits(LABELS, GROUPS, None, None, seed=0)
    tints = draw_tints(LABELS, splits, 3, seed=0)
    for label in range(4):
        for part in ("train", "test"):
            counts = np.bincount(tints[(label == LABELS) & (splits == part)], minlength=3)
            assert counts.max() - counts.min() <= 1
    assert (tints != draw_tints(LABELS, splits, 3, seed=1)).any()
