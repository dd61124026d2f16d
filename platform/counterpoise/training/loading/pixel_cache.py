"""Pixels, decoded once: a view at a size is a memory-mapped array in a local cache folder.

Every epoch of every method reads the same images. Decoding and resizing them once turns an epoch into reading memory;
what is hot stays in the operating system's page cache, what is cold costs no memory. Where the disk has no room for
them, they are decoded each time they are shown.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Int, UInt8

from counterpoise.core.progress import warn
from counterpoise.errors import ConfigError, StoreError
from counterpoise.storage.view import ImageView
from counterpoise.training.loading.pixel_stream import PixelStream

_HEADER = 128  # bytes of a .npy file before its values
_FREE_SHARE, _FREE_BYTES = 0.1, 1 << 30  # of the disk, the lesser of these stays free


class PixelCache:
    """The decoded images of several views, one after the other, as if they were one array (n, size, size, 3).

    Each view is decoded on its own, so that "real" is decoded once however many mixtures it is part of.

    Args:
        views: At least one.
        size: Height and width in pixels.

    Raises:
        ConfigError: COUNTERPOISE_CACHE_LIMIT is not a number.
        DataError: An image cannot be read.
        StoreError: The cache folder cannot be written.
    """

    def __init__(self, views: Sequence[ImageView], size: int) -> None:
        self._parts = [_part(view, size) for view in views]
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
            if here.any():
                images[here] = part[positions[here] - self._starts[number]]
        return images


def cache_folder() -> Path:
    """Where decoded images are kept: COUNTERPOISE_CACHE, or ``~/.cache/counterpoise``. May be deleted at any time.

    Its files take at most COUNTERPOISE_CACHE_LIMIT bytes, if that is set, and never the last tenth of the disk (of
    large disks the last GiB). Images that find no room are decoded each time they are shown.
    """
    return Path(os.environ.get("COUNTERPOISE_CACHE") or Path.home() / ".cache" / "counterpoise")


def _part(view: ImageView, size: int) -> np.ndarray | PixelStream:
    if not len(view):
        return np.empty((0, size, size, 3), np.uint8)
    path = cache_folder() / "pixels" / f"{view.digest}-{size}.npy"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # fits that start together decode once
            if path.exists() or _decode(view, size, path):
                return np.load(path, mmap_mode="r")
    except OSError as error:
        remedy = "set COUNTERPOISE_CACHE to a folder that you may write to, with space left"
        raise StoreError(
            "decoded images cannot be cached here", where=path.parent, found=error, remedy=remedy
        ) from error
    _say_so(len(view), _size(view, size), path.parent)
    return PixelStream(view, size)


def _decode(view: ImageView, size: int, path: Path) -> bool:
    """Decodes the view into the file, if there is room for it. The file appears when it is whole."""
    temporary = path.with_name(f".{path.name}")
    temporary.unlink(missing_ok=True)  # what a killed process left: the lock is ours
    _sweep(path.parent)
    if _size(view, size) > _room(path.parent):
        return False
    try:
        array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=(len(view), size, size, 3))
        if not _reserved(temporary):
            return False
        for position, image in view.decoded(size):
            array[position] = image
        array.flush()
        os.replace(temporary, path)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _size(view: ImageView, size: int) -> int:
    return len(view) * size * size * 3 + _HEADER


def _room(folder: Path) -> int:
    """How many bytes the cache may still grow by."""
    disk, limit = shutil.disk_usage(folder), os.environ.get("COUNTERPOISE_CACHE_LIMIT")
    room = disk.free - int(min(disk.total * _FREE_SHARE, _FREE_BYTES))
    if not limit:
        return room
    if not limit.isdecimal():
        raise ConfigError(
            "the limit of the cache is not a number",
            where="COUNTERPOISE_CACHE_LIMIT",
            found=limit,
            allowed="bytes, such as 20000000000",
        )
    used = 0
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process has just renamed it
            used += file.stat().st_size
    return min(room, int(limit) - used)


def _reserved(path: Path) -> bool:
    """Takes the file's space on the disk: a disk that is full when mapped memory is written kills the process."""
    if not hasattr(os, "posix_fallocate"):
        return True
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return False
    return True


def _sweep(folder: Path) -> None:
    """Removes what killed processes have left of other views: whoever decodes one holds its lock."""
    for left in folder.glob(".*.npy"):
        with contextlib.suppress(Timeout), FileLock(folder / f"{left.name[1:]}.lock", timeout=0):
            left.unlink(missing_ok=True)


@functools.cache  # once for each view, however many fits see it
def _say_so(images: int, size: int, folder: Path) -> None:
    warn(
        f"{images} images take {size / 1e6:.0f} MB decoded, more than there is room for in {folder}: they are decoded "
        "each time they are shown, which takes longer; free space there, or change COUNTERPOISE_CACHE or "
        "COUNTERPOISE_CACHE_LIMIT"
    )
