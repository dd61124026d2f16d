"""Pixels, decoded once: a view at a size is a memory-mapped array in a local cache folder.

Every epoch of every method reads the same images. Decoding and resizing them once turns an epoch into reading memory;
what is hot stays in the operating system's page cache, what is cold costs no memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock
from jaxtyping import Int, UInt8

from counterpoise.errors import StoreError
from counterpoise.view import View


class Pixels:
    """The decoded images of several views, one after the other, as if they were one array (n, size, size, 3).

    Each view is decoded on its own, so that "real" is decoded once however many mixtures it is part of.

    Args:
        views: At least one.
        size: Height and width in pixels.

    Raises:
        DataError: An image cannot be read.
        StoreError: The cache folder cannot be written.
    """

    def __init__(self, views: Sequence[View], size: int) -> None:
        self._parts = [_decoded(view, size) for view in views]
        self._starts = np.cumsum([0, *(len(part) for part in self._parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, positions: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n size size 3"]:
        """Copies of the images at these positions, in this order."""
        if len(self._parts) == 1:
            return self._parts[0][positions]
        images = np.empty((len(positions), *self._parts[0].shape[1:]), np.uint8)
        part_of = np.searchsorted(self._starts, positions, side="right") - 1
        for number, part in enumerate(self._parts):
            here = part_of == number
            images[here] = part[positions[here] - self._starts[number]]
        return images


def cache_folder() -> Path:
    """Where decoded images are kept: COUNTERPOISE_CACHE, or ``~/.cache/counterpoise``. May be deleted at any time."""
    return Path(os.environ.get("COUNTERPOISE_CACHE") or Path.home() / ".cache" / "counterpoise")


def _decoded(view: View, size: int) -> np.ndarray:
    if not len(view):
        return np.empty((0, size, size, 3), np.uint8)
    path = cache_folder() / "pixels" / f"{view.digest}-{size}.npy"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # fits that start together decode once
            if not path.exists():
                _decode(view, size, path)
        return np.load(path, mmap_mode="r")
    except OSError as error:
        remedy = "set COUNTERPOISE_CACHE to a folder that you may write to, with space left"
        raise StoreError(
            "decoded images cannot be cached here", where=path.parent, found=error, remedy=remedy
        ) from error


def _decode(view: View, size: int, path: Path) -> None:
    temporary = path.with_name(f".{path.name}")  # what a killed process left is overwritten: the lock is ours
    try:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(len(view), size, size, 3))
        for position, image in view.decoded(size):
            array[position] = image
        array.flush()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
