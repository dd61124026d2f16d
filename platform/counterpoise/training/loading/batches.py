"""Order and batches of an epoch's images: drawn once for all workers from (seed, epoch).

Nothing depends on the number of workers or on earlier epochs, so a fit that resumes at epoch 7, or with another number
of workers, sees the same images as an uninterrupted one.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from counterpoise.config.training import Mixture
from counterpoise.core.rng import Epoch, stream

Sampling = Literal["uniform", "class_balanced", "square_root", "group_balanced", "errors"]


def stage_groups(
    labels: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    synthetic: Bool[np.ndarray, " n"],
    by: Literal["cell", "cell_source"],
) -> Int[np.ndarray, " n"]:
    """Return the group of each training image, numbered 0, 1, … over those that occur.

    FFR §4.2: without synthetic images, or with stages that see one source each, a group is a cell (y, b); where real
    and synthetic images are mixed it is (y, b, real or synthetic).

    Args:
        labels: Classes.
        groups: Values of the nuisance attribute; all 0 or all -1 for a dataset without groups.
        synthetic: True for synthetic images.
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
    """Return the probability of each image to be the next that is shown; the sum is 1.

    - ``uniform``: equal.
    - ``class_balanced``: 1 / (size of its class): every class is shown equally often.
    - ``square_root``: (size of its class)^-½, so that a class is shown in proportion to the root of its size, half-way
      from uniform to class-balanced (Mahajan et al. 2018; q = ½ in Kang et al. 2020, eq. 1).
    - ``group_balanced``: 1 / (size of its group) (FFR §4, "Resampling").
    - ``errors``: ``upweight`` times as often where a reference model is wrong (JTT, Liu et al. 2021, Algorithm 1).
      JTT's epochs grow with the repeated images; here an epoch shows n images, as with every other sampling.

    Args:
        sampling: One of the names above.
        labels: Classes.
        groups: The result of :func:`stage_groups`.
        wrong: For ``errors``: True for images that the reference misclassifies.
        upweight: For ``errors``: λ_up.
        source: True for synthetic images, if ``real_share`` composes the batches. Each source is then sampled
            separately, so that sizes are those of a class or group within its source.

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
        stratum = groups if sampling == "group_balanced" else labels
        sizes = _sizes(stratum if source is None else 2 * stratum + source)
        weights = 1 / np.sqrt(sizes) if sampling == "square_root" else 1 / sizes
    return weights / weights.sum()


def _sizes(strata: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Return, for each image, the number of images of its stratum."""
    _, stratum_of, counts = np.unique(strata, return_inverse=True, return_counts=True)
    return counts[stratum_of]


def subsample(cells: Int[np.ndarray, " n"], seed: int) -> Int[np.ndarray, " m"]:
    """Return positions of an equal number of images of each class or cell, ascending.

    The number is the size of the rarest class or cell that occurs. SYNAuG tunes the last layer on such a subset of the
    real images. It is drawn once for a stage; all its epochs see the same images.

    Args:
        cells: Class, or number of the cell, of each image.
        seed: The fit's seed.
    """
    random, least = stream(seed, 0, Epoch.SUBSAMPLE), int(np.unique(cells, return_counts=True)[1].min())
    positions = [random.choice(np.flatnonzero(cells == cell), least, replace=False) for cell in np.unique(cells)]
    return np.sort(np.concatenate(positions))


def epoch_batches(
    weights: Float[np.ndarray, " n"],
    synthetic: Bool[np.ndarray, " n"],
    mixture: Mixture,
    batch_size: int,
    seed: int,
    epoch: int,
) -> list[Int[np.ndarray, " _"]]:
    """Return positions of the images in each batch of an epoch.

    With equal weights every image is shown once, in a newly drawn order; otherwise n images are drawn with replacement.
    These are cut into the fewest batches of at most ``batch_size``, of sizes that differ by at most one.

    With ``mixture.real_share`` there are as many batches of these sizes, but each has round(share · size) real images
    and at least one of each source, in random order. Each source goes separately through one permutation of its images
    after the other, across epochs (FG has half real, half synthetic). In the long run all its images are therefore
    shown equally often, however many steps a pass takes. A source whose weights differ is sampled with replacement. The
    caller has already applied ``mixture.subsample``.

    Args:
        weights: The result of :func:`image_weights`.
        synthetic: True for synthetic images.
        mixture: The stage's mixture.
        batch_size: Images of a batch over all workers.
        seed: The fit's seed.
        epoch: From 0.

    Raises:
        ValueError: With ``real_share``: a source has no images, or a batch is too small for both.
    """
    if mixture.real_share is None:
        return _cut(_epoch_order(weights, seed, epoch), batch_size)
    _check_sources(synthetic)
    if batch_size < 2:
        raise ValueError("a batch of real and synthetic images has at least two")
    sizes = np.array([max(len(batch), 2) for batch in _cut(np.arange(len(weights)), batch_size)])
    real = np.clip(np.round(mixture.real_share * sizes).astype(int), 1, sizes - 1)
    parts = []
    for source, members, counts in ((Epoch.REAL, ~synthetic, real), (Epoch.SYNTHETIC, synthetic, sizes - real)):
        positions = np.flatnonzero(members)
        order = _source_order(weights[positions], int(counts.sum()), seed, epoch, source)
        parts.append(np.split(positions[order], np.cumsum(counts)[:-1]))
    random = stream(seed, epoch, Epoch.ORDER)  # within a batch, so that each worker's slice holds both sources
    return [random.permutation(np.concatenate(pair)) for pair in zip(*parts, strict=True)]


def shown_shares(
    weights: Float[np.ndarray, " n"],
    synthetic: Bool[np.ndarray, " n"],
    labels: Int[np.ndarray, " n"],
    mixture: Mixture,
    classes: int,
) -> Float[np.ndarray, " classes"]:
    """Return the expected share of each class among the images of :func:`epoch_batches`; the sum is 1.

    It is the prior that losses such as balanced softmax correct for: that of the images shown, not of the dataset. A
    real share counts as given, without a batch's rounding.

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
    random = stream(seed, epoch, Epoch.ORDER)
    if _equal(weights):
        return random.permutation(len(weights))
    return random.choice(len(weights), size=len(weights), p=weights)


def _source_order(
    weights: Float[np.ndarray, " n"], count: int, seed: int, epoch: int, source: Epoch
) -> Int[np.ndarray, " count"]:
    """Return positions of the ``count`` images, of a source's n, that an epoch shows.

    The epochs read an endless sequence of permutations, ``count`` positions each, so that epoch e begins at e · count.
    Each permutation is drawn by its number in the sequence.
    """
    n = len(weights)
    if not _equal(weights):
        return stream(seed, epoch, source).choice(n, size=count, p=weights / weights.sum())
    first, start = divmod(epoch * count, n)
    needed = range(first, first + -(-(start + count) // n))
    row = np.concatenate([stream(seed, number, source).permutation(n) for number in needed])
    return row[start : start + count]


def _equal(weights: Float[np.ndarray, " n"]) -> bool:
    return bool((weights == weights[0]).all())


def _cut(order: Int[np.ndarray, " n"], batch_size: int) -> list[Int[np.ndarray, " _"]]:
    """Cut into even batches: a last one of two or three images would take a full step on a very noisy gradient."""
    return np.array_split(order, -(-len(order) // batch_size))
