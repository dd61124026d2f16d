"""Cache of decoded images: a view at a size is a memory-mapped array in a local cache folder.

Every epoch of every method reads the same images. Decoding and resizing them once turns an epoch into reading memory:
hot pages stay in the operating system's page cache, cold ones take no memory. Images that do not fit on the disk are
decoded each time they are shown.
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
_FREE_SHARE, _FREE_BYTES = 0.1, 1 << 30  # the lesser of these two stays free on the disk


class PixelCache:
    """The decoded images of several views, concatenated, as one array (n, size, size, 3).

    Each view is decoded separately, so that "real" is decoded once for all mixtures that it is part of.

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
        """Return copies of the images at these positions, in this order."""
        if len(self._parts) == 1:
            return self._parts[0][positions]
        images = np.empty((len(positions), *self._parts[0].shape[1:]), np.uint8)
        part_of = np.searchsorted(self._starts, positions, side="right") - 1
        for index, part in enumerate(self._parts):
            inside = part_of == index
            if inside.any():
                images[inside] = part[positions[inside] - self._starts[index]]
        return images


def cache_folder() -> Path:
    """Return the folder of decoded images: COUNTERPOISE_CACHE, or ``~/.cache/counterpoise``.

    It may be deleted at any time. Its files take at most COUNTERPOISE_CACHE_LIMIT bytes, if that is set, and never the
    last tenth of the disk (of large disks the last GiB). Images that do not fit are decoded each time they are shown.
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
        remedy = "set COUNTERPOISE_CACHE to a writable folder with free space"
        raise StoreError(
            "decoded images cannot be cached in this folder", where=path.parent, found=error, remedy=remedy
        ) from error
    _warn_uncached(len(view), _size(view, size), path.parent)
    return PixelStream(view, size)


def _decode(view: ImageView, size: int, path: Path) -> bool:
    """Decode the view into the file, which appears when complete; return False if the disk is too full."""
    temporary = path.with_name(f".{path.name}")
    temporary.unlink(missing_ok=True)  # left by a killed process, as this one holds the lock
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
    """Return the number of bytes by which the cache may still grow."""
    disk, limit = shutil.disk_usage(folder), os.environ.get("COUNTERPOISE_CACHE_LIMIT")
    room = disk.free - int(min(disk.total * _FREE_SHARE, _FREE_BYTES))
    if not limit:
        return room
    if not limit.isdecimal():
        raise ConfigError(
            "the cache limit is not a number",
            where="COUNTERPOISE_CACHE_LIMIT",
            found=limit,
            allowed="a number of bytes, such as 20000000000",
        )
    used = 0
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another process has just renamed it
            used += file.stat().st_size
    return min(room, int(limit) - used)


def _reserved(path: Path) -> bool:
    """Reserve the file's space on the disk; return False if there is too little.

    A disk that is full when mapped memory is written would kill the process.
    """
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
    """Remove partial files that killed processes left: a process that decodes a view holds its lock."""
    for partial in folder.glob(".*.npy"):
        with contextlib.suppress(Timeout), FileLock(folder / f"{partial.name[1:]}.lock", timeout=0):
            partial.unlink(missing_ok=True)


@functools.cache  # once for each view, not for each fit
def _warn_uncached(images: int, size: int, folder: Path) -> None:
    warn(
        f"{images} decoded images need {size / 1e6:.0f} MB, more than is free in {folder}: they are decoded each time "
        "they are shown, which is slower; free some space, or change COUNTERPOISE_CACHE or COUNTERPOISE_CACHE_LIMIT"
    )
