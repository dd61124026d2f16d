"""Blocks of decoded images: one file for up to 256 consecutive rows of a stored file, at one size.

A block is a sparse file of fixed length: the pixels of rows 0 to 255, then a mark for each row, uint32, which is 0
until the row is decoded and then the CRC-32 of its pixels. Only rows that some view needs are decoded and take space.

A row's mark is written after its pixels, so other processes on the machine never see a mark without pixels, and a
killed process leaves no half-written row that counts as decoded. The kernel may however write pages to the disk in any
order, so after a power failure a mark can be there without its pixels. That is why the mark is a checksum, which each
reader compares when it first reads a row. It also guards caches on network file systems, whose clients keep pages of
their own.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8, UInt32

from counterpoise.core.progress import warn
from counterpoise.errors import StoreError

ROWS = 256  # of a block
_DECODING = 1  # counted up when images are decoded or resized to other pixels than before
_POLL_SECONDS = 0.02
_PAGE = 4096  # bytes in which file systems allocate


class DiskFullError(Exception):
    """A disk or quota without space for more decoded images."""


class Block:
    """An open block. It is closed when nobody holds the object any more, or by leaving a ``with`` statement.

    Args:
        descriptor: Descriptor of the file.
        size: Height and width of the images in pixels.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor, self._bytes = descriptor, _row_bytes(size)
        self.marks = self.read_marks()
        self._marks = self.marks.data  # single elements of it are found faster

    def __enter__(self) -> Block:
        return self

    def __exit__(self, *error: object) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.__exit__()

    @classmethod
    def open(cls, path: Path, size: int, writable: bool = False) -> Block | None:
        """Open the block at ``path``; return None if there is none, or a file that is not one."""
        try:
            descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        except FileNotFoundError:
            return None
        if os.fstat(descriptor).st_size != _block_bytes(size):
            os.close(descriptor)
            return None
        return cls(descriptor, size)

    @classmethod
    def create(cls, path: Path, size: int) -> Block:
        """Open the block at ``path`` for writing; make it if it is not there. Only for the holder of the cache's lock.

        A file of another length is no block and is replaced.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        length = os.fstat(descriptor).st_size
        if length not in (0, _block_bytes(size)):
            os.close(descriptor)
            expected = _block_bytes(size)
            warn(f"{path} is damaged: it has {length} bytes instead of {expected}; its images are decoded again")
            path.unlink(missing_ok=True)
            return cls.create(path, size)
        if not length:  # new, or left by a process that was killed here
            os.ftruncate(descriptor, _block_bytes(size))
        return cls(descriptor, size)

    @property
    def allocated(self) -> int:
        """Bytes that the file takes on the disk."""
        return os.fstat(self.descriptor).st_blocks * 512

    def read_marks(self) -> UInt32[np.ndarray, " rows"]:
        """Read the marks of all rows."""
        return np.frombuffer(os.pread(self.descriptor, ROWS * 4, ROWS * self._bytes).ljust(ROWS * 4, b"\0"), "=u4")

    def read(self, row: int, pixels: memoryview) -> int:
        """Read a row's pixels into ``pixels``; return its mark, or 0 if it was not decoded at opening."""
        mark: int = self._marks[row]
        try:
            if mark and os.preadv(self.descriptor, (pixels,), row * self._bytes) != self._bytes:
                return 0  # cut off by someone else
        except OSError as error:
            if error.errno != errno.ESTALE:  # on a network file system: evicted by another machine
                raise
            return 0
        return mark

    def announce(self, row: int) -> None:
        """Tell the kernel that a row will be read soon, so that the disk reads several rows at a time."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, row * self._bytes, self._bytes, os.POSIX_FADV_WILLNEED)

    def write(self, row: int, pixels: UInt8[np.ndarray, "size size 3"]) -> None:
        """Write a row's pixels, then its mark."""
        values = np.ascontiguousarray(pixels)
        _write(self.descriptor, values.data.cast("B"), row * self._bytes)
        mark = np.array(checksum(values.data), "=u4").tobytes()
        _write(self.descriptor, memoryview(mark), ROWS * self._bytes + 4 * row)

    def reserve(self, rows: Bool[np.ndarray, " rows"]) -> None:
        """Reserve space on the disk for rows and for the marks, as far as the file system can."""
        if not hasattr(os, "posix_fallocate"):
            return
        edges = np.flatnonzero(np.diff(np.concatenate([[False], rows, [False]]).astype(np.int8)))
        runs = [(first * self._bytes, (end - first) * self._bytes) for first, end in edges.reshape(-1, 2).tolist()]
        try:
            for start, length in [*runs, (ROWS * self._bytes, ROWS * 4)]:
                os.posix_fallocate(self.descriptor, start, length)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise

    def claim(self, wait_seconds: float) -> bool:
        """Become the process that decodes this block, until the block is closed; return False if another one is.

        Args:
            wait_seconds: Longest time to wait for the other process.
        """
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return False
                time.sleep(_POLL_SECONDS)
            except OSError:  # a file system without locks: processes may decode the same rows, to the same pixels
                return True


class OpenBlocks:
    """Blocks of a folder that are open for reading. Those used last stay open.

    Pixels are read into the caller's memory. Mapping the files instead would be limited to some 65,000 of them in a
    process, and a file that someone else cuts off would kill it.

    Args:
        folder: Folder of the blocks.
        size: Height and width of the images in pixels.
        limit: Number of blocks that stay open.
    """

    def __init__(self, folder: Path, size: int, limit: int = 128) -> None:
        self._folder, self._size, self._limit = folder, size, limit
        self._open: OrderedDict[str, Block] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, again: bool = False) -> Block | None:
        """Return a block; None if it is not there.

        Args:
            name: Path in the folder.
            again: Open it again, to see rows that have been decoded since, also in a new file at the same path.
        """
        with self._lock:
            block = None if again else self._open.get(name)
            if block is not None:
                self._open.move_to_end(name)
                return block
        block = Block.open(self._folder / name, self._size)
        with self._lock:
            self._open.pop(name, None)
            if block is not None:
                self._open[name] = block
            if len(self._open) > self._limit:
                self._open.popitem(last=False)
        return block

    def drop(self, name: str) -> None:
        """Close a block. The space of one that was evicted is free only then."""
        with self._lock:
            self._open.pop(name, None)


def block_name(size: int, uri: str, key: str, number: int) -> str:
    """Return a block's path in the folder of decoded images.

    Args:
        size: Height and width of the images in pixels.
        uri: URI of the store.
        key: Key of the file in the store. Files never change.
        number: Number of the block in the file: its first row divided by 256.
    """
    digest = hashlib.sha256("\0".join((uri, key, str(number), str(_DECODING))).encode()).hexdigest()[:32]
    return f"{size}/{digest[:2]}/{digest}.px"


def checksum(pixels: memoryview) -> int:
    """Return the mark of a row with these pixels: their CRC-32, or 1 where that is 0."""
    return zlib.crc32(pixels) or 1


def allocation(rows: Bool[np.ndarray, " rows"], size: int) -> int:
    """Return the number of bytes that a block takes on the disk when these rows are decoded."""
    places = np.flatnonzero(rows)
    first, last = places * _row_bytes(size) // _PAGE, ((places + 1) * _row_bytes(size) - 1) // _PAGE
    shared = int((first[1:] == last[:-1]).sum())
    return (int((last - first + 1).sum()) - shared + 1) * _PAGE


@contextlib.contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Turn errors of the cache's files into those that callers know.

    Raises:
        DiskFullError: The disk or the quota is full.
        StoreError: Anything else.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(str(error)) from error
        remedy = "set COUNTERPOISE_CACHE to a writable folder with free space"
        raise StoreError(
            "decoded images cannot be cached in this folder", where=folder, found=error, remedy=remedy
        ) from error


def _row_bytes(size: int) -> int:
    return size * size * 3


def _block_bytes(size: int) -> int:
    return ROWS * (_row_bytes(size) + 4)


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    while data:  # a disk that fills up takes a part of the data before it is an error
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written
