"""Which images an epoch shows, and in which batches: drawn once for all workers from (seed, epoch).

Nothing here depends on the number of workers or on what happened in earlier epochs, so a fit that resumes at epoch 7,
or with another number of workers, sees the very images it would have seen.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from counterpoise.config.training import Mixture

Sampling = Literal["uniform", "class_balanced", "square_root", "group_balanced", "errors"]

# Streams of random numbers, of which each is a function of (seed, epoch) by itself.
ORDER, AUGMENTATION, SUBSAMPLE, REAL, SYNTHETIC, TRANSFORMS, MIX = range(7)


def generator(seed: int, epoch: int, stream: int) -> np.random.Generator:
    """The random numbers of a stream in an epoch."""
    return np.random.default_rng([seed, epoch, stream])


def stage_groups(
    labels: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    synthetic: Bool[np.ndarray, " n"],
    by: Literal["cell", "cell_source"],
) -> Int[np.ndarray, " n"]:
    """The group of each training image, numbered 0, 1, … over those that occur.

    FFR §4.2: without synthetic images, or with stages that see one source each, a group is a cell (y, b); where real
    and synthetic images are mixed it is (y, b, real or synthetic).

    Args:
        labels: Classes.
        groups: Values of the nuisance attribute; all 0 or all -1 for a dataset without groups.
        synthetic: Which images are synthetic.
        by: ``cell`` or ``cell_source``.
    """
    columns = [labels, groups] + ([synthetic] if by == "cell_source" else [])
    return np.unique(np.stack(columns, 1), axis=0, return_inverse=True)[1].reshape(-1)


def image_weights(
    sampling: Sampling,
    labels: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    wrong: Bool[np.ndarray, " n"] | None = None,
    upweight: float = 20.0,
    source: Bool[np.ndarray, " n"] | None = None,
) -> Float[np.ndarray, " n"]:
    """How probable each image is to be the next that is shown; the sum is 1.

    - ``uniform``: all alike.
    - ``class_balanced``: 1 / (size of its class): every class is shown equally often.
    - ``square_root``: (size of its class)^-½, so that a class is shown in proportion to the root of its size, half way
      from uniform to class-balanced (Mahajan et al. 2018; q = ½ in Kang et al. 2020, eq. 1).
    - ``group_balanced``: 1 / (size of its group) (FFR §4, "Resampling").
    - ``errors``: ``upweight`` times as often where a reference model is wrong (JTT, Liu et al. 2021, Algorithm 1, whose
      epochs grow with the images repeated; ours show n images as all others do).

    Args:
        sampling: One of these.
        labels: Classes.
        groups: What :func:`stage_groups` gives.
        wrong: ``errors``: which images the reference gets wrong.
        upweight: ``errors``: λ_up.
        source: Which images are synthetic, if batches are composed by ``real_share``: each source is then drawn from
            by itself, so that sizes are those of a class or group within its source.

    Raises:
        ValueError: ``errors`` without ``wrong``.
    """
    if sampling == "uniform":
        weights = np.ones(len(labels))
    elif sampling == "errors":
        if wrong is None:
            raise ValueError("sampling by errors needs to know which images are wrong")
        weights = np.where(wrong, upweight, 1.0)
    else:
        number = groups if sampling == "group_balanced" else labels
        sizes = _sizes(number if source is None else 2 * number + source)
        weights = 1 / np.sqrt(sizes) if sampling == "square_root" else 1 / sizes
    return weights / weights.sum()


def _sizes(numbers: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """For each image, how many there are with its number."""
    _, which, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    return counts[which]


def subsample(cells: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, " m"]:
    """Positions of as many images of each class or cell as the rarest that occurs has, ascending.

    SYNAuG tunes the last layer on such a subset of the real images. It is drawn once for a stage, all its epochs
    see the same images.

    Args:
        cells: Class, or number of the cell, of each image.
        seed: The fit's.
    """
    random, least = generator(seed, 0, SUBSAMPLE), int(np.unique(cells, return_counts=True)[1].min())
    chosen = [random.choice(np.flatnonzero(cells == cell), least, replace=False) for cell in np.unique(cells)]
    return np.sort(np.concatenate(chosen))


def epoch_batches(
    weights: Float[np.ndarray, " n"],
    synthetic: Bool[np.ndarray, " n"],
    mixture: Mixture,
    batch_size: int,
    seed: int,
    epoch: int,
) -> list[Int[np.ndarray, " _"]]:
    """Positions of the images in each batch of an epoch.

    Where weights are all equal, every image is shown once, in an order drawn anew; otherwise n images are drawn with
    replacement. These are cut into the fewest batches of at most ``batch_size``, of sizes that differ by at most one.

    With ``mixture.real_share`` there are as many batches of these sizes, but each has round(share · size) real images
    and at least one of each source, in random order. Each source goes on its own through one permutation of its images
    after the other, across epochs (FG has half real, half synthetic), so that in the long run all its images are shown
    equally often however many steps it takes to get through them; where weights within a source differ, it is drawn
    from with replacement. `mixture.subsample` is the caller's: it decides which images there are at all.

    Args:
        weights: What :func:`image_weights` gives.
        synthetic: Which images are synthetic.
        mixture: The stage's.
        batch_size: Over all workers.
        seed: The fit's.
        epoch: From 0.

    Raises:
        ValueError: With ``real_share``: a source has no images, or a batch has no room for both.
    """
    if mixture.real_share is None:
        return _cut(_epoch_order(weights, seed, epoch), batch_size)
    _check_sources(synthetic)
    if batch_size < 2:
        raise ValueError("a batch of real and synthetic images has at least two")
    sizes = np.array([max(len(batch), 2) for batch in _cut(np.arange(len(weights)), batch_size)])
    real = np.clip(np.round(mixture.real_share * sizes).astype(int), 1, sizes - 1)
    parts = []
    for stream, members, counts in ((REAL, ~synthetic, real), (SYNTHETIC, synthetic, sizes - real)):
        positions = np.flatnonzero(members)
        order = _source_order(weights[positions], int(counts.sum()), seed, epoch, stream)
        parts.append(np.split(positions[order], np.cumsum(counts)[:-1]))
    random = generator(seed, epoch, ORDER)  # within a batch: workers take slices of it, of both sources each
    return [random.permutation(np.concatenate(pair)) for pair in zip(*parts, strict=True)]


def shown_shares(
    weights: Float[np.ndarray, " n"],
    synthetic: Bool[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    mixture: Mixture,
    classes: int,
) -> Float[np.ndarray, " classes"]:
    """The share that each class is expected to have among the images that :func:`epoch_batches` shows; the sum is 1.

    It is the prior that losses such as balanced softmax correct for: what a network is shown counts, not what there
    is. A real share counts as it is given, without a batch's rounding.

    Raises:
        ValueError: With ``real_share``: a source has no images.
    """
    shown = weights / weights.sum()
    if mixture.real_share is not None:
        _check_sources(synthetic)
        share = np.where(synthetic, 1 - mixture.real_share, mixture.real_share)
        shown = share * shown / np.where(synthetic, shown[synthetic].sum(), shown[~synthetic].sum())
    return np.bincount(labels, shown, minlength=classes)


def _check_sources(synthetic: Bool[np.ndarray, " n"]) -> None:
    if synthetic.all() or not synthetic.any():
        missing = "real" if synthetic.all() else "synthetic"
        raise ValueError(f"batches of real and synthetic images: there are no {missing} ones")


def _epoch_order(weights: Float[np.ndarray, " n"], seed: int, epoch: int) -> Int[np.ndarray, " n"]:
    random = generator(seed, epoch, ORDER)
    if _equal(weights):
        return random.permutation(len(weights))
    return random.choice(len(weights), size=len(weights), p=weights)


def _source_order(
    weights: Float[np.ndarray, " n"], count: int, seed: int, epoch: int, stream: int
) -> Int[np.ndarray, " count"]:
    """Which ``count`` of a source's n images an epoch shows.

    Every epoch takes ``count``, so epoch e takes those from e · count on of an endless row of permutations, and each
    permutation is drawn by its number in that row.
    """
    n = len(weights)
    if not _equal(weights):
        return generator(seed, epoch, stream).choice(n, size=count, p=weights / weights.sum())
    first, start = divmod(epoch * count, n)
    needed = range(first, first + -(-(start + count) // n))
    row = np.concatenate([generator(seed, number, stream).permutation(n) for number in needed])
    return row[start : start + count]


def _equal(weights: Float[np.ndarray, " n"]) -> bool:
    return bool((weights == weights[0]).all())


def _cut(order: Int[np.ndarray, " n"], batch_size: int) -> list[Int[np.ndarray, " _"]]:
    """Even batches, because a last one of two or three images would take a full step on a very noisy gradient."""
    return np.array_split(order, -(-len(order) // batch_size))
