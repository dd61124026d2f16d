"""Imbalance on purpose: the papers' counts, and severities that contain each other."""

import itertools
import math

import numpy as np
import pytest

from counterpoise import config
from counterpoise.data.imbalance import biased, keep, long_tailed, minority_size
from counterpoise.errors import DataError
from counterpoise.storage.schema import LabelSpace, cell_counts

NAMES = LabelSpace(("a", "b", "c"), ("x", "y"))
TAIL = LabelSpace(tuple(f"c{n}" for n in range(100)))

# FFR's published splits: majority cell -> minority cell at each rate. The released files at 0.9 were rounded down, and
# 166 of 5,335 is ⌈165.00000000000014⌉ in floating point where the rule gives 165.
FFR = [
    (5335, {0.95: 281, 0.99: 54, 0.999: 6}),  # CelebA
    (7797, {0.95: 411, 0.97: 242, 0.99: 79, 0.999: 8}),
    (934, {0.95: 50, 0.97: 29, 0.99: 10, 0.999: 1}),  # UTKFace
    (5731, {0.95: 302, 0.97: 178, 0.99: 58, 0.999: 6}),
    (10_000, {0.97: 310, 0.99: 102, 0.999: 11}),  # SpuCo Animals
]


def dataset(per_cell: int = 100, names: LabelSpace = NAMES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """labels, groups, splits: ``per_cell`` rows of each cell of each split."""
    parts = ("train", "validation", "test")
    cells = [
        (label, group, part) for part in parts for label in range(names.shape[0]) for group in range(names.shape[1])
    ]
    labels, groups, splits = (np.repeat(np.array(column), per_cell) for column in zip(*cells, strict=True))
    return labels.astype(np.int32), groups.astype(np.int32), splits.astype(object)


def counts_of(rows, labels, groups, splits, part, names=NAMES):
    rows = rows[splits[rows] == part]
    return cell_counts(labels[rows], groups[rows], names).tolist()


@pytest.mark.parametrize(("majority", "published"), FFR)
def test_minorities_are_as_in_the_published_splits(majority, published):
    assert {rate: minority_size(majority, rate) for rate in published} == published


def test_a_whole_number_is_not_rounded_up():
    assert minority_size(490, 0.98) == 10
    assert minority_size(294, 0.98) == 6
    assert minority_size(5335, 0.97) == 165
    assert minority_size(100, 0.5) == 100


def test_each_class_has_its_own_majority():
    rows = dataset()
    rule = config.Biased(kind="biased", rate=0.9, per_class=90)
    kept = keep(rule, *rows, NAMES, seed=0)
    assert counts_of(kept, *rows, "train") == [[90, 10], [10, 90], [90, 10]]
    assert counts_of(kept, *rows, "validation") == [[100, 12], [12, 100], [100, 12]]
    assert counts_of(kept, *rows, "test") == [[100, 100]] * 3


def test_majorities_can_be_named():
    rows = dataset()
    rule = config.Biased(kind="biased", rate=0.95, majority={"a": "y", "b": "y", "c": "x"})
    kept = keep(rule, *rows, NAMES, seed=0)
    assert counts_of(kept, *rows, "train") == [[6, 100], [6, 100], [100, 6]]


def test_a_minority_is_divided_over_the_other_groups():
    names = LabelSpace(("a", "b"), ("w", "x", "y", "z"))
    rule = config.Biased(kind="biased", rate=0.9)
    quotas = biased(np.full((2, 4), 99), rule, names)
    assert quotas == [[99, 4, 4, 3], [3, 99, 4, 4]]  # 11 in all, three groups


def test_validation_keeps_ten_where_it_has_them():
    rows = dataset(12)
    kept = keep(config.Biased(kind="biased", rate=0.99), *rows, NAMES, seed=0)
    assert counts_of(kept, *rows, "validation") == [[12, 10], [10, 12], [12, 10]]
    rows = dataset(4)
    kept = keep(config.Biased(kind="biased", rate=0.99), *rows, NAMES, seed=0)
    assert counts_of(kept, *rows, "validation") == [[4, 4]] * 3


def test_long_tails_are_those_of_cifar():
    # SYNAuG's training sets: 10,847, 12,608 and 19,573 images
    for factor, total in ((100, 10_847), (50, 12_608), (10, 19_573)):
        counts = long_tailed(np.full(100, 500), config.LongTailed(kind="long_tailed", factor=factor), TAIL)
        assert sum(counts) == total
        assert (counts[0], counts[-1]) == (500, 500 // factor)


def test_a_long_tail_thins_classes_whatever_their_groups():
    rows = dataset(100)
    rule = config.LongTailed(kind="long_tailed", factor=100, largest=150)
    kept = keep(rule, *rows, NAMES, seed=0)
    assert np.sum(counts_of(kept, *rows, "train"), 1).tolist() == [150, 15, 1]
    assert np.sum(counts_of(kept, *rows, "validation"), 1).tolist() == [150, 15, 10]


def test_counts_as_given():
    rows = dataset(100)
    rule = config.Counts(kind="counts", counts={"a": 40, "c": {"y": 0}})
    kept = keep(rule, *rows, NAMES, seed=0)
    train = counts_of(kept, *rows, "train")
    assert sum(train[0]) == 40
    assert train[1:] == [[100, 100], [100, 0]]
    assert counts_of(kept, *rows, "validation")[1:] == [[100, 100], [100, 10]]


def rules(kind: str) -> list[config.Imbalance]:
    """From mild to severe."""
    if kind == "biased":
        return [config.Biased(kind=kind, rate=rate) for rate in (0.5, 0.8, 0.9, 0.95, 0.98, 0.999)]
    if kind == "long_tailed":
        return [config.LongTailed(kind=kind, factor=factor) for factor in (1.5, 3, 10, 50, 100)]
    return [config.Counts(kind=kind, counts={"b": n, "c": {"x": n}}) for n in (90, 50, 10, 0)]


@pytest.mark.parametrize("kind", ["biased", "long_tailed", "counts"])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_more_severe_setting_keeps_a_subset(kind, seed):
    rows = dataset(120)
    kept = [set(keep(rule, *rows, NAMES, seed).tolist()) for rule in rules(kind)]
    for milder, severer in itertools.pairwise(kept):
        assert severer < milder


def test_another_seed_keeps_other_rows():
    rows = dataset(120)
    rule = config.Biased(kind="biased", rate=0.9)
    assert keep(rule, *rows, NAMES, 0).tolist() != keep(rule, *rows, NAMES, 1).tolist()


def test_rows_of_unknown_group_have_no_place_in_a_biased_dataset():
    labels, groups, splits = dataset(50)
    groups[:10] = -1
    kept = keep(config.Biased(kind="biased", rate=0.9, per_class=40), labels, groups, splits, NAMES, 0)
    assert (groups[kept] >= 0).all()


@pytest.mark.parametrize(
    ("available", "rule", "says"),
    [
        ([[100, 3], [50, 50]], {"rate": 0.9}, "already more biased than a rate of 0.9"),
        ([[100, 3], [50, 50]], {"rate": 0.9}, "per_class to at most 27"),
        ([[0, 9], [50, 50]], {"rate": 0.9}, "majority cell a × x has too few"),
        ([[20, 9], [50, 50]], {"rate": 0.9, "per_class": 30}, "at least 30"),
        ([[20, 9], [9, 50]], {"rate": 0.9, "majority": {"a": "x"}}, "majority group missing"),
        ([[20, 9], [9, 50]], {"rate": 0.9, "majority": {"a": "z", "b": "y"}}, "unknown group"),
    ],
)
def test_what_is_impossible_is_said(available, rule, says):
    names = LabelSpace(("a", "b"), ("x", "y"))
    with pytest.raises(DataError, match=says):
        biased(np.array(available), config.Biased(kind="biased", **rule), names)


def test_the_remedy_of_a_bias_that_is_too_mild_works():
    names = LabelSpace(("a",), ("x", "y"))
    rule = config.Biased(kind="biased", rate=0.9, per_class=27)
    assert biased(np.array([[100, 3]]), rule, names) == [[27, 3]]
    assert math.isclose(27 / 30, 0.9)
