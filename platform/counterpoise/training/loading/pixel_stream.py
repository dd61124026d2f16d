"""Pixels that are decoded each time they are asked for, where there is no room to keep them decoded."""

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
    """The images of a view as if they were an array (n, size, size, 3): read from the store in any order.

    Parquet files are read by row group. The encoded images of the row groups used last are held in memory, some tenth
    of what they take decoded, so that a dataset of moderate size is read once and then only decoded. Of a larger one
    shuffled batches read a row group (up to 1,024 images) for nearly every image that they show.

    Args:
        view: At least one row.
        size: Height and width in pixels.
        held_bytes: How much to hold at most (but always the row group used last).
    """

    def __init__(self, view: ImageView, size: int, held_bytes: int = _HELD_BYTES) -> None:
        self.shape = (len(view), size, size, 3)
        self._view, self._held_bytes = view, held_bytes
        self._groups = list(view.row_groups())
        self._group_of, self._place = np.empty((2, len(view)), np.int64)  # of a position: its group, its place there
        for number, group in enumerate(self._groups):
            self._group_of[group.positions] = number
            self._place[group.positions] = np.arange(len(group.positions))
        self._held: OrderedDict[int, pa.Array] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, positions: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n size size 3"]:
        """The images at these positions, in this order.

        Raises:
            DataError: An image cannot be read.
            StoreError: A file cannot be read.
        """
        pixels = np.empty((len(positions), *self.shape[1:]), np.uint8)
        encoded = [b""] * len(positions)
        groups = self._group_of[positions]

        def fetch(group: int) -> None:
            images = self._images(group)
            for number in np.flatnonzero(groups == group):
                encoded[number] = images[int(self._place[positions[number]])].as_py()

        def decode(number: int) -> None:
            pixels[number] = self._view.decode(int(positions[number]), encoded[number], self.shape[1])

        with ThreadPoolExecutor(decoding_threads()) as threads:
            for _ in threads.map(fetch, np.unique(groups).tolist()):
                pass
            for _ in threads.map(decode, range(len(positions))):
                pass
        return pixels

    def _images(self, group: int) -> pa.Array:
        """The group's encoded images; of those held, the ones that were not used for longest make room."""
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
