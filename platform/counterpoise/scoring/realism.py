"""Realism measures: similarity of synthetic to real images, as functions of feature arrays.

- FID: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", 2017, eq. 6.
- Density and coverage: Naeem et al., "Reliable Fidelity and Diversity Metrics for Generative Models", 2020.
- Domain probe: Ye-Bin et al., "SYNAuG: Exploiting Synthetic Data for Data Imbalance Problems", 2023, where a linear
  classifier tells real from synthetic features in 74 % of 2,500 + 2,500 cases.

No array of all pairs is ever built: 50,000 real and 50,000 synthetic images of 512 features need 0.4 GB in addition
(measured), half of it a centred copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from counterpoise.core.rng import stream

METRICS = ("fid", "density", "coverage", "probe")
PROBE_LEAST = 10  # images of each kind; with fewer, the probe's held-out half is too small
_ROWS = 4096  # features factored at a time


def fid(real: Float[np.ndarray, "n d"], synthetic: Float[np.ndarray, "m d"]) -> float:
    """Compute the Fréchet distance of Gaussians fitted to the features: ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½); ≥ 0.

    With Σ = RᵀR, the eigenvalues of Σ₁Σ₂ are those of the symmetric (R₁R₂ᵀ)(R₁R₂ᵀ)ᵀ, so the last trace is the sum of
    R₁R₂ᵀ's singular values: no square root of a matrix, nothing complex, and exact for fewer images than dimensions.

    FID is biased: for equal distributions it is above 0, and the larger the fewer images there are.

    Args:
        real: Features of real images, at least two rows.
        synthetic: Features of synthetic images, at least two rows.
    """
    mean, root = _gaussian(real)
    other_mean, other_root = _gaussian(synthetic)
    between = np.linalg.svd(root @ other_root.T, compute_uv=False).sum()
    distance = ((mean - other_mean) ** 2).sum() + (root**2).sum() + (other_root**2).sum() - 2 * between
    return max(float(distance), 0.0)


def density_and_coverage(
    real: Float[np.ndarray, "n d"], synthetic: Float[np.ndarray, "m d"], k: int = 5, block: int = 512
) -> tuple[float, float]:
    """Compute density and coverage of the real images' neighbourhoods by synthetic images.

    A real image's neighbourhood is the open ball up to its k-th nearest other real image. Density is the number of
    neighbourhoods that a synthetic image lies in, over k, on average; coverage is the share of neighbourhoods with a
    synthetic image in them. For equal distributions, the expected density is 1, and the expected coverage of many
    images 1 − 2⁻ᵏ: 0.97 for k = 5.

    Args:
        real: Features of real images, more than k rows.
        synthetic: Features of synthetic images, at least one row.
        k: Number of neighbours.
        block: Real images compared with all others at a time; bounds memory, does not change the result.

    Returns:
        Density, 0 or more; coverage in [0, 1].
    """
    center = real.mean(axis=0, dtype=np.float64)  # the nearer to the origin, the smaller the cancellation in float32
    real, synthetic = (
        np.subtract(side, center, out=np.empty(side.shape, np.float32), casting="same_kind")
        for side in (real, synthetic)
    )
    lengths, other_lengths = ((side**2).sum(axis=1) for side in (real, synthetic))
    inside = covered = 0
    for start in range(0, len(real), block):
        part = slice(start, start + block)
        distances = _squared_distances(real[part], real, lengths[part], lengths)
        diagonal = np.arange(len(distances))
        distances[diagonal, start + diagonal] = np.inf
        distances.partition(k - 1, axis=1)
        radii = distances[:, k - 1].copy()
        distances = _squared_distances(real[part], synthetic, lengths[part], other_lengths)
        filled = np.count_nonzero(distances < radii[:, None], axis=1)
        inside, covered = inside + int(filled.sum()), covered + int((filled > 0).sum())
    return inside / (k * len(synthetic)), covered / len(real)


def domain_probe(real: Float[np.ndarray, "n d"], synthetic: Float[np.ndarray, "m d"], seed: int) -> float:
    """Compute the accuracy of a linear classifier that tells real from synthetic images; chance is 0.5.

    Both kinds are reduced to the size of the smaller one, by seed. A logistic regression is fitted on standardised
    features of one half, and its accuracy measured on the other. SYNAuG, section 3.3.

    Args:
        real: Features of real images, at least two rows.
        synthetic: Features of synthetic images, at least two rows.
        seed: Seed of the drawn images and halves.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng, count = stream(seed), min(len(real), len(synthetic))
    halves = [np.array_split(rng.permutation(len(side))[:count], 2) for side in (real, synthetic)]
    fitted, held_out = (
        (
            np.concatenate([real[ours], synthetic[theirs]]).astype(np.float64),
            np.repeat([0, 1], [len(ours), len(theirs)]),
        )
        for ours, theirs in zip(*halves, strict=True)
    )
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float(probe.fit(*fitted).score(*held_out))


def realism(
    real: Float[np.ndarray, "n d"],
    real_labels: Int[np.ndarray, " n"],
    synthetic: Float[np.ndarray, "m d"],
    synthetic_labels: Int[np.ndarray, " m"],
    classes: Sequence[str],
    k: int = 5,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Compute all measures, of all images together (the first row, ``all``) and of each class.

    Returns:
        JSON-serializable rows: ``class``, ``n_real``, ``n_synthetic``, the measures (:data:`METRICS`; None if there
        are too few images), and ``missing``: measure -> reason why it is None.
    """
    rows = [_row("all", real, synthetic, k, seed)]
    for label, name in enumerate(classes):
        rows.append(_row(name, real[real_labels == label], synthetic[synthetic_labels == label], k, seed))
    return rows


def _row(name: str, real: np.ndarray, synthetic: np.ndarray, k: int, seed: int) -> dict[str, Any]:
    row: dict[str, Any] = {"class": name, "n_real": len(real), "n_synthetic": len(synthetic)}
    row |= dict.fromkeys(METRICS) | {"missing": {}}
    least = {"fid": (2, 2), "density": (k + 1, 1), "coverage": (k + 1, 1), "probe": (PROBE_LEAST, PROBE_LEAST)}
    for metric, (of_real, of_synthetic) in least.items():
        if len(real) < of_real or len(synthetic) < of_synthetic:
            row["missing"][metric] = f"needs {of_real} real and {of_synthetic} synthetic images"
    if "fid" not in row["missing"]:
        row["fid"] = fid(real, synthetic)
    if "density" not in row["missing"]:
        row["density"], row["coverage"] = density_and_coverage(real, synthetic, k)
    if "probe" not in row["missing"]:
        row["probe"] = domain_probe(real, synthetic, seed)
    return row


def _gaussian(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean, and an R of at most d rows with RᵀR the covariance, by blockwise QR factorisation in float64."""
    mean = features.mean(axis=0, dtype=np.float64)
    root = np.empty((0, features.shape[1]))
    for start in range(0, len(features), _ROWS):
        root = np.asarray(np.linalg.qr(np.concatenate([root, features[start : start + _ROWS] - mean]), mode="r"))
    return mean, root / np.sqrt(len(features) - 1)


def _squared_distances(
    some: np.ndarray, others: np.ndarray, lengths: np.ndarray, other_lengths: np.ndarray
) -> np.ndarray:
    distances = some @ others.T
    distances *= -2
    distances += lengths[:, None]
    distances += other_lengths
    return distances
