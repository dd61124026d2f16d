"""Decoded images of one view: read from the blocks of the cache, and decoded where they are not there."""

from __future__ import annotations

import functools
import os
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, UInt8

from counterpoise.core.progress import warn
from counterpoise.storage.view import ImageView, decoding_threads
from counterpoise.training.loading.pixel_block import (
    ROWS,
    Block,
    DiskFullError,
    OpenBlocks,
    block_name,
    cache_errors,
    checksum,
)
from counterpoise.training.loading.pixel_fill import BlockRows, fill
from counterpoise.training.loading.pixel_room import reserve

_TOUCH_SECONDS = 600.0  # between notes of a block's use, and between searches for room
_IDLE_SECONDS = 1800.0  # without a note: nobody uses the block
_PARALLEL_BYTES = 4 << 20  # from here on, threads read a batch faster than one
_MOST_READERS = 8
_MEMORY_BYTES = 256 << 20  # views up to this are held in memory: small images are shown so fast that system calls count


class ViewPixels:
    """The decoded images of a view, readable like an array in any order.

    Missing ones are decoded at once if there is room for them. This is the only time when blocks of other views are
    evicted, however recent, so that two fits that do not fit together do not evict each other's images over and over.
    Images that are evicted later are decoded when they are shown; now and then a place is sought for them among the
    blocks that nobody has used for long.

    Args:
        view: At least one row.
        size: Height and width in pixels.
        folder: Folder of decoded images.
        opened: Open blocks, which several views may share.

    Attributes:
        names: Paths of the view's blocks in the folder.
    """

    def __init__(self, view: ImageView, size: int, folder: Path, opened: OpenBlocks) -> None:
        self._view, self._size, self._folder, self._opened = view, size, folder, opened
        self.names, self._block, self._row = _addresses(view, size)
        self._checked = np.zeros(len(view), bool)  # read once by this object, and equal to their checksums
        self._touched = np.full(len(self.names), -np.inf)  # when this object last noted the use of each block
        self._kept = np.zeros(len(self.names), bool)  # blocks that have the space for all their rows
        self._next_search = 0.0
        self._small = len(view) * size * size * 3 <= _MEMORY_BYTES
        self._shown = 0
        self._memory: np.ndarray | None = None  # the images of a small view, as far as they are held
        self._held = np.zeros(len(view), bool)
        _live.add(self)
        granted = self._search(idle_seconds=0.0)
        try:
            fill(view, size, folder, self.names, granted)
        except DiskFullError as error:
            self._stop(error)

    def read(
        self,
        positions: Int[np.ndarray, " n"],
        images: UInt8[np.ndarray, "m size size 3"],
        places: Int[np.ndarray, " n"],
    ) -> None:
        """Write the images at these positions of the view to these places in ``images``."""
        if self._remembers(len(positions)):
            images[places] = self._remembered(positions)
        else:
            self._read(positions, images, places)

    def get(self, positions: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n size size 3"]:
        """Return the images at these positions of the view."""
        if self._remembers(len(positions)):
            return self._remembered(positions)
        images = np.empty((len(positions), self._size, self._size, 3), np.uint8)
        self._read(positions, images, np.arange(len(positions)))
        return images

    def _remembers(self, count: int) -> bool:
        """Return True if images are kept in memory: those of a small view, once it is shown a second time."""
        self._shown += count
        if self._memory is None and self._small and self._shown > len(self._view):
            self._memory = np.empty((len(self._view), self._size, self._size, 3), np.uint8)
        return self._memory is not None

    def _remembered(self, positions: Int[np.ndarray, " n"]) -> UInt8[np.ndarray, "n size size 3"]:
        assert self._memory is not None
        if not self._held[positions].all():
            new = np.unique(positions[~self._held[positions]])
            self._read(new, self._memory, new)
            self._held[new] = True
        return self._memory[positions]

    def _read(
        self,
        positions: Int[np.ndarray, " n"],
        images: UInt8[np.ndarray, "m size size 3"],
        places: Int[np.ndarray, " n"],
    ) -> None:
        if not len(positions):
            return
        order = np.argsort(self._block[positions], kind="stable")
        positions, places = positions[order], places[order]
        parallel = len(positions) * images[0].nbytes >= _PARALLEL_BYTES
        threads = min(decoding_threads(), _MOST_READERS) if parallel else 1
        with cache_errors(self._folder):
            self._touch(self._block[positions])
            self._announce(positions)
            if threads == 1:
                missing = ~self._read_cached(positions, images, places)
            else:
                with ThreadPoolExecutor(threads) as pool:
                    pieces = np.array_split(positions, threads), np.array_split(places, threads)
                    found = pool.map(lambda *piece: self._read_cached(piece[0], images, piece[1]), *pieces)
                    missing = ~np.concatenate(list(found))
        if missing.any():
            self._decode(positions[missing], images, places[missing])

    def _announce(self, positions: Int[np.ndarray, " n"]) -> None:
        for number, row in zip(self._block[positions].tolist(), self._row[positions].tolist(), strict=True):
            block = self._opened.get(self.names[number])
            if block:
                block.announce(row)

    def _read_cached(
        self,
        positions: Int[np.ndarray, " n"],
        images: UInt8[np.ndarray, "m size size 3"],
        places: Int[np.ndarray, " n"],
    ) -> Bool[np.ndarray, " n"]:
        """Read images in the order of their blocks; return the mask of those that are in the cache."""
        found = np.zeros(len(positions), bool)
        numbers, rows = self._block[positions].tolist(), self._row[positions].tolist()
        checked, data, step = self._checked[positions].tolist(), images.data.cast("B"), images[0].nbytes
        last, block, again = -1, None, False
        for index, (number, row, start) in enumerate(zip(numbers, rows, (places * step).tolist(), strict=True)):
            pixels = data[start : start + step]
            if number != last:
                last, block, again = number, self._opened.get(self.names[number]), False
            mark = block.read(row, pixels) if block else 0
            if not mark and not again:  # perhaps it has been decoded since the block was opened
                block, again = self._opened.get(self.names[number], again=True), True
                mark = block.read(row, pixels) if block else 0
            found[index] = mark and (checked[index] or checksum(pixels) == mark)
        self._checked[positions[found]] = True
        return found

    def _decode(
        self,
        positions: Int[np.ndarray, " n"],
        images: UInt8[np.ndarray, "m size size 3"],
        places: Int[np.ndarray, " n"],
    ) -> None:
        """Decode images that are not in the cache, each once; cache those for which there is room."""
        if not self._kept[self._block[positions]].all() and time.monotonic() >= self._next_search:
            self._search(_IDLE_SECONDS)
        addresses = self._block[positions].astype(np.int64) * ROWS + self._row[positions]
        _, first, copies = np.unique(addresses, return_index=True, return_inverse=True)
        some = self._view.take(positions[first])
        with ThreadPoolExecutor(decoding_threads()) as threads:  # decoding begins while the store is still read
            futures = [(index, threads.submit(some.decode, index, data, self._size)) for index, data in some.images()]
            pixels = {index: future.result() for index, future in futures}
        for place, copy in zip(places, copies, strict=True):
            images[place] = pixels[int(copy)]
        self._write(positions[first], images[places[first]])

    def _write(self, positions: Int[np.ndarray, " n"], images: UInt8[np.ndarray, "n size size 3"]) -> None:
        """Write images, in the order of their blocks, to those blocks that have the space."""
        last, block = -1, None
        try:
            for number, row, pixels in zip(
                self._block[positions].tolist(), self._row[positions].tolist(), images, strict=True
            ):
                with cache_errors(self._folder):
                    if number != last and self._kept[number]:
                        last, block = number, Block.open(self._folder / self.names[number], self._size, writable=True)
                        self._kept[number] = block is not None  # otherwise another process has evicted it
                    if self._kept[number] and block is not None:
                        block.write(row, pixels)
        except DiskFullError as error:
            self._stop(error)

    def _search(self, idle_seconds: float) -> list[BlockRows]:
        """Look for room for all missing images; return those for which there is."""
        self._next_search = time.monotonic() + _TOUCH_SECONDS
        with cache_errors(self._folder):
            missing = self._missing()
        self._kept[:] = True
        if not missing:
            return []
        wanted = {self.names[number]: np.isin(np.arange(ROWS), rows) for number, rows, _ in missing}
        spared = {name for part in _live for name in part.names}
        reserved = reserve(self._folder, self._size, wanted, spared, idle_seconds)
        granted = [block for block in missing if self.names[block.number] in reserved]
        refused = [block for block in missing if self.names[block.number] not in reserved]
        if refused:
            self._kept[[block.number for block in refused]] = False
            if not self._small:
                _warn_uncached(sum(len(block.rows) for block in refused), self._size, self._folder)
        return granted

    def _missing(self) -> list[BlockRows]:
        """List the rows that are not decoded, and note the use of all blocks."""
        addresses = self._block.astype(np.int64) * ROWS + self._row
        addresses, positions = np.unique(addresses, return_index=True)
        starts = np.searchsorted(addresses, np.arange(len(self.names) + 1) * ROWS)
        self._touch(np.arange(len(self.names)))
        missing = []
        for number, name in enumerate(self.names):
            own = slice(starts[number], starts[number + 1])
            rows, block = addresses[own] % ROWS, Block.open(self._folder / name, self._size)
            absent = np.ones(len(rows), bool) if block is None else block.marks[rows] == 0
            if absent.any():
                missing.append(BlockRows(number, rows[absent], positions[own][absent]))
        return missing

    def _touch(self, numbers: Int[np.ndarray, " n"]) -> None:
        """Note the use of blocks, which are evicted in the order of last use; do so rarely for each of them."""
        now = time.monotonic()
        due = self._touched[numbers] < now - _TOUCH_SECONDS
        if not due.any():
            return
        for number in np.unique(numbers[due]).tolist():
            self._touched[number] = now
            try:
                os.utime(self._folder / self.names[number])
            except FileNotFoundError:
                self._opened.drop(self.names[number])
            except OSError:  # a cache that this user may only read
                pass

    def _stop(self, error: DiskFullError) -> None:
        """Give up caching: the disk was filled by others."""
        self._kept[:], self._next_search = False, float("inf")
        _warn_full(self._folder, str(error))


_live: weakref.WeakSet[ViewPixels] = weakref.WeakSet()  # of this process, whose blocks it does not evict


def _addresses(view: ImageView, size: int) -> tuple[list[str], Int[np.ndarray, " n"], UInt8[np.ndarray, " n"]]:
    """Return the names of a view's blocks, file by file, and each image's block (its number) and row in the block."""
    keys = view.index["key"].dictionary_encode().unify_dictionaries().combine_chunks()
    files, rows = keys.indices.to_numpy().astype(np.int64), view.column("row")
    span = int(rows.max()) // ROWS + 1
    blocks, block = np.unique(files * span + rows // ROWS, return_inverse=True)
    keys = keys.dictionary.to_pylist()
    names = [block_name(size, view.store.uri, keys[number // span], number % span) for number in blocks.tolist()]
    return names, block.astype(np.int32), (rows % ROWS).astype(np.uint8)


@functools.cache  # once for each view, not for each fit
def _warn_uncached(images: int, size: int, folder: Path) -> None:
    warn(
        f"{images} decoded images need {images * size * size * 3 / 1e6:.0f} MB, more than is free in {folder}: they "
        "are decoded each time they are shown, which is slower; free some space, or change COUNTERPOISE_CACHE or "
        "COUNTERPOISE_CACHE_LIMIT"
    )


@functools.cache
def _warn_full(folder: Path, error: str) -> None:
    warn(f"decoded images are no longer cached in {folder}: {error}")
