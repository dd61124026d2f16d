"""Reads of many values from files of a store: near ones in one request, several requests at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Int

from counterpoise.storage.records import damaged
from counterpoise.storage.row_files import value_hash
from counterpoise.storage.store import Store

_GAP = 64 << 10  # bytes between two values that are read rather than saved by another request
_MOST = 8 << 20  # bytes of a request, unless one value is larger
_AHEAD = 4  # requests under way


@dataclass(frozen=True)
class Span:
    """Values of a file that one request reads.

    Attributes:
        key: Key of the file.
        start: First byte.
        stop: Byte after the last.
        positions: Positions of the values in the view, by offset.
    """

    key: str
    start: int
    stop: int
    positions: Int[np.ndarray, " m"]


def read_values(
    store: Store,
    keys: Sequence[str],
    files: Int[np.ndarray, " n"],
    offsets: Int[np.ndarray, " n"],
    lengths: Int[np.ndarray, " n"],
    hashes: pa.ChunkedArray,
) -> Iterator[tuple[int, bytes | None]]:
    """Yield (position, value) of every row, file by file, in the order of the offsets; None for nulls, first.

    Args:
        store: The store of the files.
        keys: Keys of the files.
        files: For each row its file among the keys.
        offsets: First byte of each value.
        lengths: Bytes of each value; negative for null.
        hashes: Hash of each value; see :func:`counterpoise.storage.row_files.value_hash`.

    Raises:
        DamagedError: A value does not match its hash.
        StoreError: A file cannot be read.
    """
    for position in np.flatnonzero(lengths < 0):
        yield int(position), None
    with ThreadPoolExecutor(_AHEAD) as threads:
        for span, data in _prefetched(threads, store, spans(keys, files, offsets, lengths)):
            view = memoryview(data)
            for position in span.positions.tolist():
                begin = int(offsets[position]) - span.start
                value = bytes(view[begin : begin + int(lengths[position])])
                if value_hash(value) != hashes[position].as_py():
                    found = f"bytes {offsets[position]} to {offsets[position] + lengths[position]} have another SHA-256"
                    raise damaged(f"{store.uri}/{span.key}", found)
                yield position, value


def spans(
    keys: Sequence[str],
    files: Int[np.ndarray, " n"],
    offsets: Int[np.ndarray, " n"],
    lengths: Int[np.ndarray, " n"],
) -> Iterator[Span]:
    """Yield the requests that read all values: file by file, neighbours together."""
    order = np.lexsort((offsets, files))
    order = order[lengths[order] >= 0]
    if not len(order):
        return
    file, start, stop = files[order], offsets[order], offsets[order] + lengths[order]
    apart = (file[1:] != file[:-1]) | (start[1:] - stop[:-1] > _GAP)
    for run in np.split(np.arange(len(order)), np.flatnonzero(apart) + 1):
        first = run[0]
        while first <= run[-1]:  # a long run is several requests
            last = max(int(np.searchsorted(stop[first : run[-1] + 1], start[first] + _MOST, side="right")), 1)
            rows = np.arange(first, first + last)
            yield Span(keys[file[first]], int(start[first]), int(stop[rows].max()), order[rows])
            first += last


def _prefetched(threads: ThreadPoolExecutor, store: Store, planned: Iterator[Span]) -> Iterator[tuple[Span, bytes]]:
    waiting: deque[tuple[Span, Future[bytes]]] = deque()
    try:
        for span in planned:
            waiting.append((span, threads.submit(store.read_range, span.key, span.start, span.stop)))
            if len(waiting) > _AHEAD:
                yield waiting[0][0], waiting.popleft()[1].result()
        while waiting:
            yield waiting[0][0], waiting.popleft()[1].result()
    finally:
        for _, future in waiting:
            future.cancel()
