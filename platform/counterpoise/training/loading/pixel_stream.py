"""Stream of decoded images, for views that do not fit into the cache: decoded at every access."""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
from jaxtyping import Int, UInt8

from counterpoise.storage.view import ImageView, decoding_threads

_HELD_BYTES = 512 << 20


class PixelStream:
    """The images of a view, readable like an array (n, size, size, 3) in any order.

    Parquet files are read by row group. The encoded images of the row groups used last stay in memory, at about a tenth
    of their decoded size, so that a dataset of moderate size is read once and then only decoded. On a larger dataset,
    shuffled batches read a row group (up to 1,024 images) for nearly every image that they show.

    Args:
        view: At least one row.
        size: Height and width in pixels.
        held_bytes: Upper bound on encoded images in memory (the row group used last always stays).
    """

    def __init__(self, view: ImageView, size: int, held_bytes: int = _HELD_BYTES) -> None:
        self.shape = (len(view), size, size, 3)
        self._view, self._held_bytes = view, held_bytes
        self._groups = list(view.row_groups())
        self._group_of, self._place = np.empty((2, len(view)), np.int64)  # position -> its group, its row in it
        for index, group in enumerate(self._groups):
            self._group_of[group.positions] = index
            self._place[group.positions] = np.arange(len(group.positions))
        self._held: OrderedDict[int, pa.Array] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, positions: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n size size 3"]:
        """Return the images at these positions, in this order.

        Raises:
            DataError: An image cannot be read.
            StoreError: A file cannot be read.
        """
        pixels = np.empty((len(positions), *self.shape[1:]), np.uint8)
        encoded = [b""] * len(positions)
        groups = self._group_of[positions]

        def fetch(group: int) -> None:
            images = self._images(group)
            for index in np.flatnonzero(groups == group):
                encoded[index] = images[int(self._place[positions[index]])].as_py()

        def decode(index: int) -> None:
            pixels[index] = self._view.decode(int(positions[index]), encoded[index], self.shape[1])

        with ThreadPoolExecutor(decoding_threads()) as threads:
            for _ in threads.map(fetch, np.unique(groups).tolist()):
                pass
            for _ in threads.map(decode, range(len(positions))):
                pass
        return pixels

    def _images(self, group: int) -> pa.Array:
        """Return the group's encoded images; those used longest ago are dropped to make room."""
        with self._lock:
            if group in self._held:
                self._held.move_to_end(group)
                return self._held[group]
        images = self._view.encoded(self._groups[group])
        with self._lock:
            self._held[group] = images
            while len(self._held) > 1 and sum(held.nbytes for held in self._held.values()) > self._held_bytes:
                self._held.popitem(last=False)
        return images
