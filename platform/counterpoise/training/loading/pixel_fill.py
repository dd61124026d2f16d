"""Filling of blocks: images are decoded in the order of their files, by threads and by processes sharing the work."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from counterpoise.core.progress import Progress
from counterpoise.storage.view import ImageView, decoding_threads
from counterpoise.training.loading.pixel_block import Block, cache_errors

_MOST_TASKS = 16  # blocks at a time, whose encoded images may all be in memory
_QUIET_SECONDS = 10.0
_PATIENCE_SECONDS = 600.0  # with a process that decodes a block


class BlockRows(NamedTuple):
    """Rows of a view in one block.

    Attributes:
        number: Number of the block among those of the view.
        rows: Rows in the block, ascending, without duplicates.
        positions: A position in the view for each row.
    """

    number: int
    rows: Int[np.ndarray, " n"]
    positions: Int[np.ndarray, " n"]


def fill(view: ImageView, size: int, folder: Path, names: Sequence[str], blocks: Sequence[BlockRows]) -> None:
    """Decode rows into their blocks, which exist.

    Each block is decoded by one process at a time. Processes that start together and need the same images share the
    work: each takes blocks that no other has taken, and in the end waits for those of the others. Blocks that are
    evicted meanwhile, or that a process which hangs has taken, are left out.

    Args:
        view: The images.
        size: Height and width in pixels.
        folder: Folder of decoded images.
        names: Paths of the view's blocks in the folder.
        blocks: The rows to decode.

    Raises:
        DataError: An image cannot be read.
        DiskFullError: The disk is full.
        StoreError: The store cannot be read, or the folder cannot be written.
    """
    filling = _Filling(view, size, folder, names)
    with _Report(sum(len(block.rows) for block in blocks)) as report:
        taken = filling.run(blocks, report, wait_seconds=0.0)
        filling.run(taken, report, _PATIENCE_SECONDS)


class _Filling:
    """The work of :func:`fill`. A thread reads the images of a block, decodes and writes them.

    There is one thread more than may decode at a time: it reads from the store meanwhile.
    """

    def __init__(self, view: ImageView, size: int, folder: Path, names: Sequence[str]) -> None:
        self._view, self._size, self._folder, self._names = view, size, folder, names
        self._tasks = min(decoding_threads(), _MOST_TASKS)
        self._decoding = threading.Semaphore(self._tasks)

    def run(self, blocks: Sequence[BlockRows], report: _Report, wait_seconds: float) -> list[BlockRows]:
        """Decode blocks; return those that other processes are still decoding."""
        taken = []
        with ThreadPoolExecutor(self._tasks + 1) as threads:
            futures = {threads.submit(self._block, block, wait_seconds): block for block in blocks}
            try:
                for future in as_completed(futures):
                    if future.result():
                        report.advance(len(futures[future].rows))
                    else:
                        taken.append(futures[future])
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        return sorted(taken, key=lambda block: block.number)

    def _block(self, block: BlockRows, wait_seconds: float) -> bool:
        with cache_errors(self._folder):
            opened = Block.open(self._folder / self._names[block.number], self._size, writable=True)
        if opened is None:
            return True
        with opened:  # closed at once also after an error, because other processes wait for it
            return self._fill(opened, block, wait_seconds)

    def _fill(self, opened: Block, block: BlockRows, wait_seconds: float) -> bool:
        with cache_errors(self._folder):
            if not opened.claim(wait_seconds):
                return False
            missing = opened.read_marks()[block.rows] == 0  # less than before, if another process has been here
        rows, some = block.rows[missing], self._view.take(block.positions[missing])
        if len(some):
            for position, data in some.images():
                with self._decoding:
                    pixels = some.decode(position, data, self._size)
                with cache_errors(self._folder):
                    opened.write(int(rows[position]), pixels)
        return True


class _Report(contextlib.AbstractContextManager):
    """Progress that is shown only of work that takes longer than some seconds."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._start = total, 0, time.monotonic()
        self._stack = contextlib.ExitStack()
        self._progress: Progress | None = None

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def advance(self, count: int) -> None:
        """Record that ``count`` more images are decoded."""
        self._done += count
        seconds = time.monotonic() - self._start
        if self._progress is not None:
            self._progress.advance(count)
        elif seconds > _QUIET_SECONDS and self._done < self._total:
            self._progress = self._stack.enter_context(Progress("decoding", self._total, "images"))
            self._progress.restart_clock(seconds)
            self._progress.advance(self._done)
