"""Intervals: do they cover as often as they say, and do they equal what other libraries compute?"""

import numpy as np
import pytest
from scipy import stats

from counterpoise.evaluation.intervals import percentile_interval, resampled_confusions, t_interval


def resample(confusion, resamples, seed=0):
    return np.concatenate(list(resampled_confusions(confusion, resamples, seed)))


def test_resamples_keep_the_cells_sizes_and_have_their_proportions():
    confusion = np.array([[[30, 10, 0], [0, 0, 0], [5, 5, 90]], [[1, 0, 0], [2, 2, 2], [0, 0, 7]]])
    drawn = resample(confusion, 4000)
    assert drawn.shape == (4000, 2, 3, 3)
    np.testing.assert_array_equal(drawn.sum(-1), np.broadcast_to(confusion.sum(-1), (4000, 2, 3)))
    np.testing.assert_allclose(drawn.mean(0), confusion, atol=0.3)
    assert drawn[:, 0, 0, 0].var() == pytest.approx(40 * 0.75 * 0.25, rel=0.1)  # binomial
    assert (drawn[:, 0, 0, 2] == 0).all()  # what never happened is not drawn


def test_resamples_do_not_depend_on_the_chunks(monkeypatch):
    confusion = np.random.default_rng(0).integers(0, 9, (3, 4, 4))
    whole = resample(confusion, 50)
    monkeypatch.setattr("counterpoise.evaluation.intervals._CHUNK", 7 * confusion.size)
    np.testing.assert_array_equal(resample(confusion, 50), whole)
    assert not np.array_equal(resample(confusion, 50, seed=1), whole)


def test_bootstrap_intervals_cover_as_often_as_they_say():
    random = np.random.default_rng(0)
    covered = 0
    for trial in range(300):
        right = random.binomial(200, 0.8)
        confusion = np.array([[[right, 200 - right], [0, 0]]])
        accuracy = resample(confusion, 500, seed=trial)[:, 0, 0, 0] / 200
        low, high = percentile_interval(accuracy, 0.9)
        covered += low <= 0.8 <= high
    assert 0.84 <= covered / 300 <= 0.95


def test_the_bootstrap_of_an_accuracy_is_scipys():
    right = np.repeat([1.0, 0.0], [70, 30])
    theirs = stats.bootstrap((right,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(0))
    accuracy = resample(np.array([[[70, 30], [0, 0]]]), 9999)[:, 0, 0, 0] / 100
    assert percentile_interval(accuracy, 0.95).tolist() == pytest.approx(list(theirs.confidence_interval), abs=0.011)


def test_t_interval_by_hand_and_by_scipy():
    values = [0.70, 0.74, 0.81]
    low, high = t_interval(values, 0.95)
    reach = 4.302653 * np.std(values, ddof=1) / np.sqrt(3)  # t with two degrees of freedom
    assert (low, high) == pytest.approx((0.75 - reach, 0.75 + reach), abs=1e-6)
    assert (low, high) == pytest.approx(tuple(stats.ttest_1samp(values, 0).confidence_interval(0.95)))
    assert t_interval([0.5], 0.95) is None
