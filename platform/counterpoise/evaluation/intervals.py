"""Confidence intervals: bootstrap of test images for one classifier, Student's t over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from counterpoise.core.rng import BOOTSTRAP, stream

_CHUNK = 2_000_000  # counts in memory at once


def resampled_confusions(
    confusion: Int[np.ndarray, "groups classes classes"], resamples: int, seed: int
) -> Iterator[Int[np.ndarray, "chunk groups classes classes"]]:
    """Yield confusion counts of bootstrap test sets, stratified by cell, in chunks.

    Drawing n of a cell's n images with replacement and counting their predictions is one multinomial draw of n with
    the cell's proportions, so nothing is drawn per image.
    """
    random = stream(seed, BOOTSTRAP)
    images = confusion.sum(-1)
    uniform = np.full(confusion.shape, 1 / confusion.shape[-1])  # any value serves for cells without images
    share = np.divide(confusion, images[..., None], out=uniform, where=images[..., None] > 0)
    while resamples > 0:
        chunk = min(resamples, max(1, _CHUNK // confusion.size))
        yield random.multinomial(images, share, size=(chunk, *images.shape))
        resamples -= chunk


def percentile_interval(values: Float[np.ndarray, "resamples ..."], confidence: float) -> Float[np.ndarray, "2 ..."]:
    """Return the ends of the central ``confidence`` interval of resampled values (Efron's percentile method).

    The interval is biased low for a minimum such as worst-group accuracy (the least of several noisy cells is biased
    downwards), and has no width for a cell whose images were all classified alike.
    """
    tail = (1 - confidence) / 2
    return np.quantile(values, [tail, 1 - tail], axis=0)


def t_interval(values: Sequence[int | float], confidence: float) -> tuple[float, float] | None:
    """Compute the confidence interval of the mean of independent runs (Student's t); None for fewer than two."""
    if len(values) < 2:
        return None
    mean, error = np.mean(values), np.std(values, ddof=1) / np.sqrt(len(values))
    from scipy.special import stdtrit  # the quantile of scipy.stats, which takes most of a second to import

    reach = stdtrit(len(values) - 1, (1 + confidence) / 2) * error
    return float(mean - reach), float(mean + reach)
