"""Mixup and CutMix: two images of a batch are combined, and their losses are weighted accordingly.

With mixing ``m`` of a batch, image i becomes lam · image i + (1 - lam) · image partner(i), and its loss is

    m.lam * loss(logits, labels) + (1 - m.lam) * loss(logits, labels[m.partners])
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from counterpoise.config.training import Mix
from counterpoise.core.rng import Epoch, stream

Box = tuple[int, int, int, int]  # top, bottom, left, right: rows top … bottom - 1, columns left … right - 1


@dataclass(frozen=True)
class Mixing:
    """Partners and shares by which the images of a batch are mixed.

    Attributes:
        partners: For each image the position, within the batch, of the image that it is mixed with.
        lam: Share of the image itself, in [0, 1]; for CutMix the share outside the box.
        box: For CutMix: the area pasted from the partner.
    """

    partners: Int[np.ndarray, " _"]
    lam: float
    box: Box | None


def epoch_mixing(
    mix: Mix,
    batches: Sequence[Int[np.ndarray, " _"]],
    synthetic: Bool[np.ndarray, " n"],
    image_size: int,
    seed: int,
    epoch: int,
) -> list[Mixing]:
    """Draw the mixing of each batch of an epoch: lam and the box for a batch, partners for each image.

    Args:
        mix: With pairs ``any`` partners are a permutation of the batch (Zhang et al. 2018, Yun et al. 2019); with
            ``real_synthetic`` each is drawn among the batch's images of the other source. In a batch of one source the
                images stay as they are.
        batches: The result of :func:`counterpoise.training.loading.batches.epoch_batches`.
        synthetic: True for synthetic images.
        image_size: Height and width in pixels.
        seed: The fit's seed.
        epoch: From 0.
    """
    random, mixings = stream(seed, epoch, Epoch.MIX), []
    for batch in batches:
        lam, box = float(random.beta(mix.alpha, mix.alpha)), None
        if mix.name == "cutmix":
            row, column = random.integers(0, image_size, 2).tolist()
            box = cut_box(lam, row, column, image_size)
            lam = 1 - (box[1] - box[0]) * (box[3] - box[2]) / image_size**2
        if mix.pairs == "any":
            partners = random.permutation(len(batch))
        else:
            partners = _other_source_partners(synthetic[batch], random)
        mixings.append(Mixing(partners, lam, box))
    return mixings


def cut_box(lam: float, row: int, column: int, size: int) -> Box:
    """Return a box of √(1 - lam) of the image's side around (row, column), cut off at the edges.

    Source: Yun et al. 2019, eq. 2.
    """
    half = int(size * math.sqrt(1 - lam) / 2)
    return max(row - half, 0), min(row + half, size), max(column - half, 0), min(column + half, size)


def apply_mixing(
    images: UInt8[Tensor, "m 3 height width"] | Float[Tensor, "m 3 height width"],
    partners: UInt8[Tensor, "m 3 height width"] | Float[Tensor, "m 3 height width"],
    mixing: Mixing,
) -> UInt8[Tensor, "m 3 height width"] | Float[Tensor, "m 3 height width"]:
    """Mix augmented images with their partners.

    Mixup gives float32 for uint8 images, in the same range; CutMix keeps the type.

    Args:
        images: A batch, or a worker's part of it.
        partners: The partner of each image; for a whole batch ``images[mixing.partners]``.
        mixing: The batch's mixing.
    """
    if mixing.box is None:
        return images * mixing.lam + partners * (1 - mixing.lam)
    top, bottom, left, right = mixing.box
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = partners[..., top:bottom, left:right]
    return mixed


def _other_source_partners(synthetic: Bool[np.ndarray, " b"], random: np.random.Generator) -> Int[np.ndarray, " b"]:
    partners = np.arange(len(synthetic))
    if synthetic.any() and not synthetic.all():
        for members in (synthetic, ~synthetic):
            partners[members] = random.choice(np.flatnonzero(~members), int(members.sum()))
    return partners
