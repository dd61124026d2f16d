"""Which image is where in an epoch, and how it is cropped: drawn once for all workers from (seed, epoch).

Nothing here depends on the number of workers or on earlier epochs, so a fit that resumes at epoch 7, or with another
number of workers, sees the very images it would have seen.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

_ORDER, _AUGMENTATION = 0, 1  # streams of random numbers


def stage_groups(
    labels: Int[np.ndarray, " n"],
    groups: Int[np.ndarray, " n"],
    synthetic: np.ndarray,
    by: Literal["cell", "cell_source"],
) -> Int[np.ndarray, " n"]:
    """The group of each training image, numbered 0, 1, … over those that occur.

    FFR §4.2: without synthetic images, or with stages that see one source each, a group is a cell (y, b); where real
    and synthetic images are mixed it is (y, b, real or synthetic).

    Args:
        labels: Classes.
        groups: Values of the nuisance attribute; all 0 or all -1 for a dataset without groups.
        synthetic: Boolean (n,): which images are synthetic.
        by: ``cell`` or ``cell_source``.
    """
    columns = [labels, groups] + ([synthetic] if by == "cell_source" else [])
    return np.unique(np.stack(columns, 1), axis=0, return_inverse=True)[1].reshape(-1)


def epoch_order(
    groups: Int[np.ndarray, " n"], sampling: Literal["uniform", "group_balanced"], seed: int, epoch: int
) -> Int[np.ndarray, " n"]:
    """Positions of the images that an epoch shows, in order.

    ``uniform`` is a permutation. ``group_balanced`` draws n images with replacement, each with a probability
    proportional to 1 / (size of its group), so that every group is shown equally often on average (FFR §4,
    "Resampling").
    """
    random = np.random.default_rng([seed, epoch, _ORDER])
    if sampling == "uniform":
        return random.permutation(len(groups))
    sizes = np.bincount(groups)
    weights = 1 / sizes[groups]
    return random.choice(len(groups), size=len(groups), p=weights / weights.sum())


def batches(order: Int[np.ndarray, " n"], batch_size: int) -> list[np.ndarray]:
    """The order cut into the fewest batches of at most ``batch_size``, of sizes that differ by at most one.

    Equal sizes, because a last batch of two or three images would take a full step on a very noisy gradient.
    """
    return np.array_split(order, -(-len(order) // batch_size))


@dataclass(frozen=True)
class Augmentation:
    """How each image of an epoch is flipped and moved; row i belongs to the i-th image of the epoch's order."""

    flip: Tensor  # bool (n,)
    shift: Tensor  # int (n, 2): down, right, in pixels

    def __getitem__(self, part: slice) -> Augmentation:
        return Augmentation(self.flip[part], self.shift[part])


def epoch_augmentation(augmentation: Collection[str], n: int, size: int, seed: int, epoch: int) -> Augmentation | None:
    """The epoch's flips (with probability ½) and crops (moved by up to an eighth of the side, edges repeated)."""
    if not augmentation:
        return None
    random = np.random.default_rng([seed, epoch, _AUGMENTATION])
    flip = random.random(n) < (0.5 if "flip" in augmentation else 0)
    reach = size // 8 if "crop" in augmentation else 0
    return Augmentation(torch.from_numpy(flip), torch.from_numpy(random.integers(-reach, reach + 1, (n, 2))))


def augment(images: UInt8[Tensor, "n height width 3"], how: Augmentation) -> UInt8[Tensor, "n height width 3"]:
    """The images flipped and moved, in one gather; pixels from beyond an edge repeat the edge."""
    n, height, width, _ = images.shape
    how = Augmentation(how.flip.to(images.device), how.shift.to(images.device))
    rows = torch.arange(height, device=images.device) - how.shift[:, :1]
    columns = torch.arange(width, device=images.device) - how.shift[:, 1:]
    columns = torch.where(how.flip[:, None], width - 1 - columns, columns)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    return images[torch.arange(n, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]]
