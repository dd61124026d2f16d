"""Plans against hand-worked cases and FFR's published numbers."""

import numpy as np
import pytest
from pydantic import TypeAdapter

from counterpoise.config import Plan
from counterpoise.config.schema import variants_at
from counterpoise.errors import PlanError
from counterpoise.storage.schema import LabelSpace
from counterpoise.synthesis.selection.strategies import target_counts

NAMES = LabelSpace(("a", "b"), ("x", "y"))
COUNTS = np.array([[90, 10], [5, 45]])
TAIL = LabelSpace(("a", "b", "c"))


def make(**settings):
    return TypeAdapter(Plan).validate_python(settings)


def plan(strategy: str, cells=COUNTS, names: LabelSpace = NAMES, **options) -> list[list[int]]:
    return target_counts(make(strategy=strategy, **options), np.asarray(cells), names).tolist()


def test_usb_fills_every_cell_to_the_largest_of_all():
    assert plan("usb") == [[0, 80], [85, 45]]


def test_asb_spends_usbs_budget_evenly():
    assert plan("asb") == [[52, 52], [52, 52]]  # (80 + 85 + 45) // 4


def test_balanced():
    assert plan("balanced") == plan("asb")
    assert plan("balanced", budget=103) == [[25, 25], [25, 25]]


def test_uniformize_by_class():
    # class b lacks 50 images: first 40 for its rarer group, which then is as large as the other, then 5 for each
    assert plan("uniformize", by="class") == [[0, 0], [45, 5]]
    assert plan("uniformize", [[500], [50], [5]], TAIL, by="class") == [[0], [450], [495]]


def test_uniformize_by_cell_levels_the_classes_within_each_group():
    assert plan("uniformize") == [[0, 35], [85, 0]]
    assert plan("uniformize", [[90, 0], [5, 0]]) == [[0, 0], [85, 0]]  # a group without images stays empty


def test_fill():
    assert plan("fill", target=50) == [[0, 40], [45, 5]]
    assert plan("fill", target=60, by="class") == [[0, 0], [10, 0]]
    assert plan("fill", target=500, cells=[[500], [50], [5]], names=TAIL, by="class") == [[0], [450], [495]]


@pytest.mark.parametrize(
    ("row", "amount", "added"),
    [
        ([5, 45], 0, [0, 0]),
        ([5, 45], 39, [39, 0]),
        ([5, 45], 41, [41, 0]),
        ([5, 45], 42, [41, 1]),
        ([3, 1, 2], 4, [0, 3, 1]),
        ([7, 7, 7], 5, [2, 2, 1]),
    ],
)
def test_an_amount_for_a_class_goes_to_its_smallest_groups(row, amount, added):
    names = LabelSpace(("a",), tuple("xyz"[: len(row)]))
    result = plan("custom", [row], names, counts={"a": amount})[0]
    assert result == added
    assert np.ptp(np.array(row) + result) <= max(np.ptp(row) - amount, 1)


def test_biased_mirrors_the_majorities():
    # AIM-Fair's sets for CelebA, smiling × male: 20,000 images with nine in ten of a class in its majority group
    counts = [[1000, 9000], [9000, 1000]]
    assert plan("biased", counts, rate=0.9, budget=20_000) == counts
    assert plan("biased", rate=0.9, budget=20) == [[9, 1], [1, 9]]


def test_biased_divides_the_minority():
    names = LabelSpace(("a", "b"), ("x", "y", "z"))
    counts = [[50, 3, 2], [1, 2, 50]]
    assert plan("biased", counts, names, rate=0.8, budget=40) == [[16, 2, 2], [2, 2, 16]]
    assert plan("biased", counts, names, rate=0.85, budget=40) == [[17, 2, 1], [2, 1, 17]]


def test_biased_with_usbs_budget():
    # usb would add 210: 105 for each class, of which ⌊0.9 · 105 + ½⌋ = 95 to the majority
    assert plan("biased", rate=0.9) == [[95, 10], [10, 95]]


def test_custom():
    assert plan("custom", counts={"b": {"x": 12}}) == [[0, 0], [12, 0]]
    assert plan("custom", counts={"a": 10}) == [[0, 10], [0, 0]]


# FFR's experiments at growing bias: class × group, images in all, USB's budget, ASB's share of a cell. CelebA-HQ and
# UTKFace as in the released splits; SpuCo Animals from the sizes of its majorities and minorities.
PUBLISHED = [
    ([[592, 5335], [7797, 866]], 14_590, 16_598, 4_149),
    ([[281, 5335], [7797, 411]], 13_824, 17_364, 4_341),
    ([[166, 5335], [7797, 242]], 13_540, 17_648, 4_412),
    ([[54, 5335], [7797, 79]], 13_265, 17_923, 4_480),
    ([[6, 5335], [7797, 8]], 13_146, 18_042, 4_510),
    ([[103, 934], [5731, 636]], 7_404, 15_520, 3_880),
    ([[50, 934], [5731, 302]], 7_017, 15_907, 3_976),
    ([[29, 934], [5731, 178]], 6_872, 16_052, 4_013),
    ([[10, 934], [5731, 58]], 6_733, 16_191, 4_047),
    ([[1, 934], [5731, 6]], 6_672, 16_252, 4_063),
    ([[10_000, 500]] * 4, 42_000, 38_000, 4_750),
    ([[10_000, 310]] * 4, 41_240, 38_760, 4_845),
    ([[10_000, 102]] * 4, 40_408, 39_592, 4_949),
    ([[10_000, 11]] * 4, 40_044, 39_956, 4_994),
]


@pytest.mark.parametrize(("counts", "total", "budget", "each"), PUBLISHED)
def test_budgets_are_those_of_ffrs_experiments(counts, total, budget, each):
    names = LabelSpace(tuple("abcd"[: len(counts)]), ("x", "y"))
    assert np.sum(counts) == total
    usb = np.array(plan("usb", counts, names))
    assert usb.sum() == budget
    assert len(np.unique(usb + counts)) == 1
    assert np.unique(plan("asb", counts, names)).tolist() == [each]


def test_synaugs_amounts_for_cifar100():
    # 39,153, 37,392 and 30,427 images to make every class 500
    for factor, amount in ((100, 39_153), (50, 37_392), (10, 30_427)):
        counts = np.floor(500 * factor ** (-np.arange(100) / 99) + 1e-9).astype(np.int64)[:, None]
        names = LabelSpace(tuple(map(str, range(100))))
        assert np.sum(plan("uniformize", counts, names, by="class")) == amount


@pytest.mark.parametrize("strategy", ["usb", "asb", "uniformize", "balanced"])
def test_plans_do_not_change_the_counts_they_are_given(strategy):
    before = COUNTS.copy()
    plan(strategy)
    assert (before == COUNTS).all()


@pytest.mark.parametrize(
    ("options", "counts", "names", "says"),
    [
        ({"strategy": "asb"}, [[5, 5], [5, 5]], NAMES, "budget is too small"),
        ({"strategy": "balanced", "budget": 3}, COUNTS, NAMES, "3 images for 4 cells"),
        ({"strategy": "biased", "rate": 0.9}, [[5], [3]], LabelSpace(("a", "b")), "needs groups"),
        ({"strategy": "biased", "rate": 0.9}, [[5, 5], [3, 9]], NAMES, "class 'a' has no majority"),
        ({"strategy": "biased", "rate": 0.9, "budget": 1}, COUNTS, NAMES, "one image per class"),
        ({"strategy": "custom", "counts": {"aa": 3}}, COUNTS, NAMES, "where:   plans.mine.counts"),
        ({"strategy": "custom", "counts": {"aa": 3}}, COUNTS, NAMES, "did you mean 'a'"),
        ({"strategy": "custom", "counts": {"a": {"z": 3}}}, COUNTS, NAMES, "plans.mine.counts.a"),
        ({"strategy": "custom", "counts": {"a": {"x": 3}}}, [[5], [3]], LabelSpace(("a", "b")), "no groups"),
    ],
)
def test_what_is_impossible_is_said(options, counts, names, says):
    with pytest.raises(PlanError, match=says):
        target_counts(make(**options), np.asarray(counts), names, where="plans.mine")


@pytest.mark.parametrize("options", [{"strategy": "usb", "budget": 7}, {"strategy": "asb", "by": "class"}])
def test_parameters_without_an_effect_are_errors(options):
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        make(**options)


def test_every_strategy_that_the_config_knows_gives_counts():
    needed = {"biased": {"rate": 0.9}, "fill": {"target": 50}, "custom": {"counts": {"a": 3}}}
    for strategy in variants_at(("plans", "mine")).kinds:
        assert np.sum(plan(strategy, **needed.get(strategy, {}))) > 0
