"""Measures of realism against closed forms, other libraries and slow direct computations."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import _compute_fid

from counterpoise.scoring.realism import density_and_coverage, domain_probe, fid, realism


def normal(n, d, seed, mean=0.0, scale=1.0):
    return mean + scale * np.random.default_rng(seed).standard_normal((n, d))


def correlated(n, d, seed):
    return normal(n, d, seed) @ normal(d, d, seed + 1) + normal(1, d, seed + 2)


def with_moments(mean, deviation, n=50):
    """Values with exactly this mean and sample deviation."""
    values = normal(n, 1, 0)[:, 0]
    return (mean + deviation * (values - values.mean()) / values.std(ddof=1))[:, None]


# -- FID ---------------------------------------------------------------------------------------------------------------


def test_fid_of_two_gaussians_on_a_line():
    """(μ₁ − μ₂)² + (σ₁ − σ₂)²"""
    assert fid(with_moments(1, 2), with_moments(4, 0.5)) == pytest.approx(3**2 + 1.5**2)


def test_fid_of_a_shift_is_its_square_and_of_a_stretch_the_sum_of_variances():
    features = correlated(300, 5, 0)
    assert fid(features, features + np.arange(5)) == pytest.approx(30)
    centered = features - features.mean(axis=0)
    assert fid(centered, 3 * centered) == pytest.approx((3 - 1) ** 2 * np.trace(np.cov(centered.T)))


def test_fid_is_scipys_and_torchmetrics():
    real, synthetic = correlated(9000, 8, 0), correlated(700, 8, 10)  # the first in several blocks
    (mean, cov), (other_mean, other_cov) = ((side.mean(axis=0), np.cov(side.T)) for side in (real, synthetic))
    root = scipy.linalg.sqrtm(cov @ other_cov).real
    expected = ((mean - other_mean) ** 2).sum() + np.trace(cov + other_cov - 2 * root)
    torchmetrics = _compute_fid(*map(torch.from_numpy, (mean, cov, other_mean, other_cov)))
    assert fid(real, synthetic) == pytest.approx(expected, rel=1e-9)
    assert fid(real, synthetic) == pytest.approx(float(torchmetrics), rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(10, 12), (2, 2), (200, 7)])
def test_fid_of_fewer_images_than_dimensions(n, m):
    """In the subspace that the images span, an eigenvalue computation has no trouble either."""
    real, synthetic = correlated(n, 60, 0), correlated(m, 60, 0)[:, ::-1].copy()
    values = np.linalg.eigvals(np.cov(real.T) @ np.cov(synthetic.T))
    apart = ((real.mean(axis=0) - synthetic.mean(axis=0)) ** 2).sum()
    traces = np.trace(np.cov(real.T)) + np.trace(np.cov(synthetic.T))
    found = fid(real, synthetic)
    assert found == pytest.approx(apart + traces - 2 * np.sqrt(values.real.clip(0)).sum(), rel=1e-3)
    assert fid(real, real) == pytest.approx(0, abs=1e-9 * traces)
    assert fid(synthetic, real) == pytest.approx(found)


def test_fid_is_exact_where_covariances_are_singular():
    """Two lines at a right angle: tr((Σ₁Σ₂)^½) = 0; the same line: (σ₁ − σ₂)²."""
    along, across = (np.zeros((50, 2048)) for _ in range(2))
    along[:, 0] = with_moments(0, 3)[:, 0]
    across[:, 1] = with_moments(0, 4)[:, 0]
    assert fid(along, across) == pytest.approx(3**2 + 4**2)
    assert fid(along, across[:, [1, 0, *range(2, 2048)]]) == pytest.approx(1)


# -- density and coverage ----------------------------------------------------------------------------------------------


def direct(real, synthetic, k):
    """Naeem et al.'s definitions, image by image."""
    radii = []
    for i, image in enumerate(real):
        radii.append(sorted(math.dist(image, other) for j, other in enumerate(real) if i != j)[k - 1])
    inside = [[math.dist(x, y) < radius for y in synthetic] for x, radius in zip(real, radii, strict=True)]
    return np.sum(inside) / (k * len(synthetic)), np.mean(np.any(inside, axis=1))


@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_are_the_definitions(k):
    real, synthetic = correlated(60, 3, 0), correlated(45, 3, 0) + 0.4
    assert density_and_coverage(real, synthetic, k) == pytest.approx(direct(real, synthetic, k), abs=1e-12)


def test_a_case_by_hand():
    """Real 0, 1, 3, 7 have their nearest neighbour at 1, 1, 2, 4."""
    real = np.array([[0.0], [1.0], [3.0], [7.0]])
    assert density_and_coverage(real, np.array([[0.5], [4.0]]), k=1) == (4 / 2, 4 / 4)  # 0.5 in two balls, 4 in two
    assert density_and_coverage(real, np.array([[3.5], [20.0]]), k=1) == (2 / 2, 2 / 4)
    assert density_and_coverage(real, np.array([[-1.0]]), k=1) == (0.0, 0.0)  # on the edge is outside
    assert density_and_coverage(real, np.array([[2.0]]), k=3) == (4 / 3, 4 / 4)


def test_identical_sets_cover_each_other():
    features = correlated(100, 16, 0)
    density, coverage = density_and_coverage(features, features)
    assert coverage == 1
    assert density == pytest.approx(1, abs=0.25)


def test_a_real_outlier_does_not_make_synthetic_outliers_dense():
    """Section 3.2: the outlier's ball holds all synthetic images, which improved precision calls perfect."""
    real = np.concatenate([normal(100, 2, 0), [[50.0, 50.0]]])
    density, coverage = density_and_coverage(real, normal(100, 2, 1, mean=40, scale=1))
    assert density == pytest.approx(1 / 5)
    assert coverage == pytest.approx(1 / 101)


def test_expected_values_of_equal_distributions():
    """Density 1; coverage 1 − (n−1)…(n−k) / ((m+n−1)…(m+n−k)), whatever the distribution (Lemmas 1 and 2)."""
    n, m, k = 60, 40, 3
    found = [density_and_coverage(normal(n, 4, 2 * s), normal(m, 4, 2 * s + 1), k) for s in range(200)]
    density, coverage = np.mean(found, axis=0)
    left_out = math.prod((n - i) / (n + m - i) for i in range(1, k + 1))
    assert density == pytest.approx(1, abs=0.03)
    assert coverage == pytest.approx(1 - left_out, abs=0.01)


def test_the_block_size_changes_nothing():
    real, synthetic = normal(130, 20, 0), normal(90, 20, 1, mean=0.2)
    whole = density_and_coverage(real, synthetic, block=1000)
    assert all(density_and_coverage(real, synthetic, block=block) == whole for block in (1, 7, 64, 130))


def test_features_far_from_the_origin_are_told_apart():
    """|x|² + |y|² − 2xy in float32 would cancel to nothing here."""
    real, synthetic = correlated(60, 3, 0), correlated(45, 3, 0) + 0.4
    expected = density_and_coverage(real, synthetic)
    assert density_and_coverage(real + 1e6, synthetic + 1e6) == expected


# -- domain probe ------------------------------------------------------------------------------------------------------


def test_the_probe_guesses_where_there_is_no_difference():
    found = [domain_probe(normal(400, 10, 2 * s), normal(300, 10, 2 * s + 1), seed=s) for s in range(20)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.02)


def test_the_probe_finds_a_difference_whatever_its_scale():
    apart = normal(300, 10, 1)
    apart[:, 3] += 8
    assert domain_probe(normal(300, 10, 0) * 1e-4, apart * 1e-4, seed=0) > 0.99


def test_the_probes_accuracy_is_that_of_the_best_line():
    """Two Gaussians at distance δ: Φ(δ/2)."""
    found = domain_probe(normal(20_000, 2, 0), normal(20_000, 2, 1) + np.array([1.5, 0]), seed=0)
    assert found == pytest.approx(0.5 * (1 + math.erf(0.75 / 2**0.5)), abs=0.01)


def test_the_probe_is_fair_to_unequal_numbers_and_repeats_itself():
    real, synthetic = normal(1000, 5, 0), normal(60, 5, 1)
    assert domain_probe(real, synthetic, 3) == domain_probe(real, synthetic, 3)
    found = [domain_probe(real, normal(60, 5, 10 + s), seed=s) for s in range(30)]
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)  # and not 1000 / 1060


# -- all of it ---------------------------------------------------------------------------------------------------------


def test_rows_of_all_classes_and_reasons():
    real, synthetic = normal(66, 4, 0), normal(51, 4, 1)
    labels = np.repeat([0, 1, 2], [60, 5, 1])
    other_labels = np.repeat([0, 1], [50, 1])
    rows = realism(real, labels, synthetic, other_labels, ["many", "few", "one"], k=5, seed=0)
    assert [row["class"] for row in rows] == ["all", "many", "few", "one"]
    assert [(row["n_real"], row["n_synthetic"]) for row in rows] == [(66, 51), (60, 50), (5, 1), (1, 0)]
    assert rows[0]["fid"] == fid(real, synthetic)
    assert (rows[1]["density"], rows[1]["coverage"]) == density_and_coverage(real[:60], synthetic[:50])
    assert rows[1]["probe"] == domain_probe(real[:60], synthetic[:50], 0)
    assert rows[0]["missing"] == rows[1]["missing"] == {}
    assert set(rows[2]["missing"]) == {"fid", "density", "coverage", "probe"}
    assert rows[2]["missing"]["coverage"] == "needs 6 real and 1 synthetic images"
    assert rows[3]["fid"] is rows[3]["density"] is rows[3]["coverage"] is rows[3]["probe"] is None
