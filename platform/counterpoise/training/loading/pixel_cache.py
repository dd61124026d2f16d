"""Cache of decoded images in a local folder, shared by all views and processes.

Every epoch of every method reads the same images. Decoding and resizing them once turns an epoch into reading files:
hot pages stay in the operating system's page cache, cold ones take no memory. Images that do not fit into the cache are
decoded each time they are shown.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, UInt8

from counterpoise.storage.view import ImageView
from counterpoise.training.loading.pixel_block import OpenBlocks
from counterpoise.training.loading.pixel_room import cache_folder, cache_limit
from counterpoise.training.loading.pixel_view import ViewPixels


class PixelCache:
    """The decoded images of several views, concatenated, readable like an array (n, size, size, 3).

    Missing images are decoded at once, in the order of their files, as far as they fit.

    Args:
        views: At least one.
        size: Height and width in pixels.

    Raises:
        ConfigError: COUNTERPOISE_CACHE_LIMIT is not a number.
        DataError: An image cannot be read.
        StoreError: The store cannot be read, or the cache folder cannot be written.
    """

    def __init__(self, views: Sequence[ImageView], size: int) -> None:
        cache_limit()  # a wrong one is an error even if it does not matter today
        self.shape = (sum(map(len, views)), size, size, 3)
        self._starts = np.cumsum([0, *map(len, views)])
        folder = cache_folder() / "pixels"
        opened = OpenBlocks(folder, size)
        self._parts = [ViewPixels(view, size, folder, opened) if len(view) else None for view in views]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, positions: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n size size 3"]:
        """Return copies of the images at these positions, in this order.

        Raises:
            DataError: An image cannot be read.
            StoreError: The store cannot be read, or the cache folder cannot be used.
        """
        if len(self._parts) == 1 and self._parts[0] is not None:
            return self._parts[0].get(positions)
        images = np.empty((len(positions), *self.shape[1:]), np.uint8)
        part_of = np.searchsorted(self._starts, positions, side="right") - 1
        for index, part in enumerate(self._parts):
            places = np.flatnonzero(part_of == index)
            if part is not None and len(places):
                part.read(positions[places] - self._starts[index], images, places)
        return images
