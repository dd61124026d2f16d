"""Methods against each other: by scipy where it has the same thing, by hand where it has not."""

import numpy as np
import pytest
from scipy import stats

from counterpoise.config import Evaluation
from counterpoise.evaluation.catalogue import COSTS, metric
from counterpoise.evaluation.compare import differences, holm, ranks, table
from counterpoise.evaluation.estimate import Estimate
from counterpoise.evaluation.scores import evaluate
from counterpoise.storage.schema import LabelSpace

WORST = "worst_group_accuracy"


def rows_of(metric=WORST, **values):
    """Rows of ``method=[value of seed 0, of seed 1, …]``."""
    return [
        {"method": method, "seed": seed, metric: value}
        for method, column in values.items()
        for seed, value in enumerate(column)
    ]


def compared(rows, methods, other="erm", metric=WORST, confidence=0.95):
    return {found.method: found for found in differences(rows, methods, other, metric, confidence)}


def test_a_paired_difference_is_scipys():
    random = np.random.default_rng(0)
    erm = random.uniform(0.1, 0.6, 5)
    ffr = erm + 0.05 + random.normal(0, 0.02, 5)
    found = compared(rows_of(erm=erm.tolist(), ffr=ffr.tolist()), ["ffr"])["ffr"]
    theirs = stats.ttest_rel(ffr, erm)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval(0.95)))
    assert found.mean == pytest.approx(np.mean(ffr - erm))
    assert (found.seeds, found.outcome) == (5, "better")
    # unpaired, the seeds' own spread would hide it
    assert stats.ttest_ind(ffr, erm).pvalue > 0.3


def test_holm_by_hand():
    # sorted: .01 × 4, .02 × 3 = .06, .03 × 2 = .06, .9 × 1
    assert holm([0.02, 0.9, 0.01, 0.03]) == pytest.approx([0.06, 0.9, 0.04, 0.06])
    assert holm([0.03, 0.01, 0.025]) == pytest.approx([0.05, 0.03, 0.05])  # .025 × 2 = .05, and .03 may not be less
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_the_chance_of_any_false_claim():
    """Four methods that are all like the reference: in at most 5 % of leaderboards one of them is called different."""
    random = np.random.default_rng(1)
    claims = uncorrected = 0
    for _ in range(400):
        noise = random.normal(0.5, 0.05, (5, 5))
        rows = rows_of(erm=noise[0], a=noise[1], b=noise[2], c=noise[3], d=noise[4])
        found = compared(rows, ["a", "b", "c", "d"]).values()
        claims += any(one.outcome != "not shown" for one in found)
        uncorrected += any(one.p <= 0.05 for one in found)
    assert claims / 400 <= 0.07
    assert uncorrected / 400 > 0.09


def test_what_one_comparison_shows_several_may_not():
    erm, same = [0.1, 0.2, 0.3, 0.2], [0.1, 0.25, 0.25, 0.21]
    ffr = [0.14, 0.22, 0.37, 0.27]
    alone = compared(rows_of(erm=erm, ffr=ffr), ["ffr"])["ffr"]
    among = compared(rows_of(erm=erm, ffr=ffr, a=same, b=same), ["ffr", "a", "b"])["ffr"]
    assert 0.05 / 3 < alone.p == among.p <= 0.05
    assert alone.corrected == alone.p
    assert among.corrected == pytest.approx(3 * alone.p)
    assert (alone.outcome, among.outcome) == ("better", "not shown")
    assert (alone.low, alone.high) == (among.low, among.high)


@pytest.mark.parametrize(
    ("metric", "outcome"), [(WORST, "better"), ("group_std", "worse"), ("unheard_of", "not shown")]
)
def test_better_follows_the_metrics_direction(metric, outcome):
    rows = rows_of(metric, erm=[0.1, 0.2, 0.3], ffr=[0.4, 0.51, 0.59])
    assert compared(rows, ["ffr"], metric=metric)["ffr"].outcome == outcome


def test_only_seeds_that_both_have_count():
    rows = rows_of(erm=[0.1, 0.2, 0.3, 0.2, 0.1], ffr=[0.4, 0.51, 0.59])
    rows += [{"method": "late", "seed": 7, WORST: 0.5}, {"method": "lost", "seed": 0, WORST: None}]
    found = compared(rows, ["ffr", "late", "lost", "erm", "never"])
    assert list(found) == ["ffr"]
    assert found["ffr"].seeds == 3
    assert found["ffr"].p == pytest.approx(stats.ttest_rel([0.4, 0.51, 0.59], [0.1, 0.2, 0.3]).pvalue)
    assert compared(rows, ["ffr"], other="never") == {}


@pytest.mark.parametrize(
    ("erm", "ffr"),
    [
        ([0.2], [0.9]),  # one seed
        ([0.2, 0.3], [0.5, 0.6]),  # differences without a spread, but for rounding
        ([0.2, 0.3], [0.2, 0.3]),
    ],
)
def test_without_a_spread_nothing_is_shown(erm, ffr):
    (found,) = differences(rows_of(erm=erm, ffr=ffr), ["ffr"], "erm", WORST, 0.95)
    assert (found.p, found.corrected, found.low, found.high, found.outcome) == (None, None, None, None, "not shown")
    assert found.mean == pytest.approx(np.mean(ffr) - np.mean(erm))


def test_a_method_without_a_p_value_still_counts_in_the_correction():
    rows = rows_of(erm=[0.1, 0.2, 0.3], ffr=[0.4, 0.51, 0.59], steady=[0.2, 0.3, 0.4])
    found = compared(rows, ["ffr", "steady"])
    assert found["steady"].p is None
    assert found["ffr"].corrected == pytest.approx(2 * found["ffr"].p)


def test_means_and_intervals():
    rows = rows_of(erm=[0.0, 0.1], ffr=[0.7, 0.74, 0.81]) + rows_of("accelerator_seconds", slow=[10.0, 14.0, 12.0])
    found = table(rows, [WORST, "accelerator_seconds"], 0.95)
    reach = stats.t.ppf(0.975, 2) * np.std([0.7, 0.74, 0.81], ddof=1) / np.sqrt(3)
    assert found["ffr"][WORST].to_json() == pytest.approx([0.75, 0.75 - reach, 0.75 + reach])
    assert found["erm"][WORST].to_json() == pytest.approx([0.05, 0.0, 0.05 + 12.7062 * 0.05], abs=1e-4)  # cut at 0
    wide = table(rows_of(erm=[0.4, 0.9]), [WORST], 0.95)["erm"][WORST]
    assert wide.bounds == (0.0, 1.0)
    slow = found["slow"]["accelerator_seconds"]
    reach = 4.302653 * 2 / 3**0.5
    assert slow.to_json() == pytest.approx([12, 12 - reach, 12 + reach], abs=1e-4)
    assert slow.half_width == pytest.approx(reach, abs=1e-4)
    assert (slow.seeds, found["erm"][WORST].seeds) == (3, 2)
    assert WORST not in found["slow"]


def test_one_seed_has_the_interval_of_its_test_images():
    rows = [{"method": "erm", "seed": 3, "accuracy": 0.8, "few": 0.5, "intervals": {"accuracy": [0.75, 0.85]}}]
    found = table(rows, ["accuracy", "few"], 0.95)["erm"]
    assert found == {"accuracy": Estimate(0.8, 0.75, 0.85, 1), "few": Estimate(0.5, None, None, 1)}
    twice = [*rows, {**rows[0], "seed": 4, "accuracy": 0.82}]
    assert table(twice, ["accuracy"], 0.95)["erm"]["accuracy"].bounds != (0.75, 0.85)


def test_ranks_share_places_and_know_the_direction():
    values = {"a": 0.5, "b": 0.7, "c": 0.1 + 0.2, "d": 0.3, "e": 0.7}
    means = {name: {WORST: Estimate(value, None, None, 1)} for name, value in values.items()}
    means["none"] = {}
    assert list(ranks(means, WORST).items()) == [("b", 1), ("e", 1), ("a", 3), ("c", 4), ("d", 4), ("none", None)]
    gaps = {name: {"group_std": Estimate(value, None, None, 1)} for name, value in values.items() if name in "ab"}
    assert ranks(gaps, "group_std") == {"a": 1, "b": 2}


def test_the_direction_of_every_metric_is_known():
    random = np.random.default_rng(0)
    labels, groups = random.integers(0, 3, 300), random.integers(0, 2, 300)
    names = LabelSpace(("cat", "dog", "cow"), ("day", "night"))
    train = np.array([[500, 2], [30, 30], [5, 3]])
    perfect = evaluate(labels, groups, np.eye(3)[labels], names, train, Evaluation(bootstrap=0)).metrics
    guessed = evaluate(labels, groups, random.random((300, 3)), names, train, Evaluation(bootstrap=0)).metrics
    for name, best in perfect.items():
        if name != "demographic_parity":  # a perfect classifier of unequal groups has a gap there
            assert (best > guessed[name]) == metric(name).higher_is_better, name
    assert metric("demographic_parity").higher_is_better is False
    assert [metric(cost).higher_is_better for cost in COSTS] == [False, False]
    assert metric("unheard_of").higher_is_better is None
