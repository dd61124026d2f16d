"""Augmentation of an epoch's images: drawn once for all workers from (seed, epoch).

An image's augmentation is a function of seed, epoch and the image's position in the epoch, never of its batch or of the
worker that computes it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from counterpoise.config.training import Transform
from counterpoise.core.rng import Epoch, stream
from counterpoise.errors import ConfigError, did_you_mean, one_of

if TYPE_CHECKING:  # takes more than a second; flip and crop do without
    from torchvision.transforms import v2

_TRIALS = 32  # an event of probability 0.1 is observed with probability 0.97
_OF_BATCHES = ("CutMix", "MixUp")


@dataclass(frozen=True)
class Drawn:
    """Random choices of an epoch; row i belongs to the i-th image that the epoch shows."""

    flip: Bool[Tensor, " n"]
    shift: Int[Tensor, "n 2"]  # down, right, in pixels
    seeds: Int[np.ndarray, " n"]  # for torchvision's transforms


class Augmenter:
    """A list of transforms, ready for use.

    ::

        augmenter = Augmenter(["flip", {"ColorJitter": {"hue": 0.1}}], image_size=32)
        drawn = augmenter.draw(len(order), seed, epoch)
        changed = augmenter.apply(images, drawn, slice(0, 128))

    ``flip`` (with probability ½) and ``crop`` (a shift by up to an eighth of the side, edges repeated) come first, in
    one gather; torchvision's transforms follow in the given order.

    Args:
        transforms: See :data:`counterpoise.config.training.Transform`.
        image_size: Height and width in pixels.
        where: The list's key path, for errors.

    Raises:
        ConfigError: As in :func:`check_transforms`, except for errors that appear only when a transform is applied.
    """

    def __init__(self, transforms: Sequence[Transform], image_size: int, where: str = "training.augmentation") -> None:
        self._moves = [transform for transform in transforms if isinstance(transform, str)]
        self._others = [transform for _, transform in _built(transforms, where)]
        self._size = image_size

    def draw(self, n: int, seed: int, epoch: int) -> Drawn:
        """Draw the random choices for the n images that an epoch shows."""
        random = stream(seed, epoch, Epoch.AUGMENTATION)
        flip = random.random(n) < (0.5 if "flip" in self._moves else 0)
        reach = self._size // 8 if "crop" in self._moves else 0
        shift = random.integers(-reach, reach + 1, (n, 2))
        seeds = stream(seed, epoch, Epoch.TRANSFORMS).integers(0, 2**63, n)
        return Drawn(torch.from_numpy(flip), torch.from_numpy(shift), seeds)

    def apply(
        self, images: UInt8[Tensor, "m size size 3"], drawn: Drawn, places: slice | Int[np.ndarray, " m"]
    ) -> UInt8[Tensor, "m size size 3"]:
        """Return the augmented images, on their device.

        torchvision's transforms always run on the CPU, so that random choices are the same with and without a GPU. With
        any of these, apply them before the images move to the device.

        Args:
            images: A part of the epoch's images.
            drawn: The epoch's random choices.
            places: Positions of these images in the order that the epoch shows them.
        """
        if self._moves and len(images):
            images = _moved(images, drawn.flip[places], drawn.shift[places])
        if self._others and len(images):
            images = _changed(images, self._others, drawn.seeds[places])
        return images


def _moved(
    images: UInt8[Tensor, "m height width 3"], flip: Bool[Tensor, " m"], shift: Int[Tensor, "m 2"]
) -> UInt8[Tensor, "m height width 3"]:
    """Flip the images, then shift them, in one gather; pixels beyond an edge repeat the edge."""
    m, height, width, _ = images.shape
    flip, shift = flip.to(images.device), shift.to(images.device)
    rows = torch.arange(height, device=images.device) - shift[:, :1]
    columns = torch.arange(width, device=images.device) - shift[:, 1:]
    columns = torch.where(flip[:, None], width - 1 - columns, columns)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    return images[torch.arange(m, device=images.device)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _changed(
    images: UInt8[Tensor, "m height width 3"], transforms: list[v2.Transform], seeds: Int[np.ndarray, " m"]
) -> UInt8[Tensor, "m height width 3"]:
    """Apply all transforms to each image, with its own seed.

    The transforms use torch's global CPU generator, whose state is restored. Only that generator is seeded, because
    torch.manual_seed also looks for GPUs, which takes half a millisecond for each image.
    """
    changed = []
    with torch.random.fork_rng(devices=[]):
        for image, seed in zip(images.permute(0, 3, 1, 2).cpu(), seeds.tolist(), strict=True):
            torch.default_generator.manual_seed(seed)
            for transform in transforms:
                image = transform(image)
            changed.append(image.permute(1, 2, 0))
    return torch.stack(changed).to(images.device)


# -- checking ----------------------------------------------------------------------------------------------------------


def check_transforms(transforms: Sequence[Transform], image_size: int, where: str = "training.augmentation") -> None:
    """Build the transforms and apply them to a grey image some dozen times.

    Args:
        transforms: ``flip``, ``crop``, or one transform of torchvision.transforms.v2 and its arguments.
        image_size: Height and width in pixels.
        where: The list's key path, for errors.

    Raises:
        ConfigError: A name is unknown, arguments are wrong, or the result is not a uint8 image of the same size.
    """
    built = _built(transforms, where)
    with torch.random.fork_rng(devices=[]):
        for trial in range(_TRIALS if built else 0):
            torch.default_generator.manual_seed(trial)
            _try(built, image_size)


def _try(built: list[tuple[str, v2.Transform]], size: int) -> None:
    image, culprit = torch.full((3, size, size), 128, dtype=torch.uint8), ""
    expected = _looks(image)
    for where, transform in built:
        before = _looks(image)
        try:
            image = transform(image)
        except Exception as error:  # torchvision has no error types of its own
            raise ConfigError(
                f"{type(transform).__name__} cannot change a uint8 image",
                where=where,
                found=f"{type(error).__name__}: {error}",
                remedy="check its arguments in torchvision.transforms.v2, or use another transform",
            ) from error
        culprit = where if _looks(image) != before else culprit
    if _looks(image) != expected:
        raise ConfigError(
            "these transforms change the type or the size of images",
            where=culprit,
            found=_looks(image),
            allowed=expected,
            remedy=f"end with a transform that restores the size, such as {{Resize: {{size: [{size}, {size}]}}}}",
        )


def _looks(image: Any) -> str:
    if not isinstance(image, Tensor):
        return type(image).__name__
    return f"{str(image.dtype).removeprefix('torch.')} of shape {tuple(image.shape)}"


# -- building ----------------------------------------------------------------------------------------------------------


def _built(transforms: Sequence[Transform], where: str) -> list[tuple[str, v2.Transform]]:
    """Return (key path, transform) of torchvision's transforms."""
    return [
        (f"{where}.{number}", _build(transform, f"{where}.{number}"))
        for number, transform in enumerate(transforms)
        if not isinstance(transform, str)
    ]


def _build(transform: Transform, where: str) -> v2.Transform:
    if isinstance(transform, str):
        remedy = "inside another transform use torchvision's RandomHorizontalFlip or RandomCrop"
        raise ConfigError(
            "this transform cannot be nested inside another one", where=where, found=transform, remedy=remedy
        )
    if len(transform) != 1:
        remedy = "give each transform its own entry in the list"
        raise ConfigError(
            "an entry of the list must hold exactly one transform", where=where, found=one_of(transform), remedy=remedy
        )
    ((name, arguments),) = transform.items()
    kind = _kind(name, where)
    try:
        return kind(**dict(_arguments(arguments, where)))
    except (TypeError, ValueError, RuntimeError) as error:
        allowed = [parameter for parameter in inspect.signature(kind).parameters if parameter != "self"]
        raise ConfigError(
            f"wrong arguments for {name}", where=where, found=f"{arguments}: {error}", allowed=one_of(allowed)
        ) from error


def _kind(name: str, where: str) -> type[v2.Transform]:
    if name in _OF_BATCHES:
        remedy = f"use the stage's `mix: {{name: {name.lower()}}}`"
        raise ConfigError("this transform mixes the images of a batch", where=where, found=name, remedy=remedy)
    from torchvision.transforms import v2

    kinds = {key: kind for key, kind in vars(v2).items() if inspect.isclass(kind) and issubclass(kind, v2.Transform)}
    known = [key for key in kinds if key not in ("Transform", *_OF_BATCHES)]
    if name not in known:
        raise ConfigError(
            "unknown transform",
            where=where,
            found=name,
            allowed=one_of(["flip", "crop", *known], limit=8) + "; all of torchvision.transforms.v2 for images",
            remedy=did_you_mean(name, known),
        )
    return kinds[name]


def _arguments(arguments: dict[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    """Yield arguments as torchvision takes them.

    YAML gives enumerations by value, and RandomApply's transforms as in the list itself.
    """
    from torchvision.transforms import InterpolationMode, v2

    enumerations: dict[str, type[Enum]] = {"interpolation": InterpolationMode, "policy": v2.AutoAugmentPolicy}
    for key, value in arguments.items():
        if key in enumerations and isinstance(value, str):
            yield key, enumerations[key](value)
        elif key == "transforms" and isinstance(value, list):
            yield key, [_build(transform, f"{where}.{key}.{number}") for number, transform in enumerate(value)]
        else:
            yield key, value
