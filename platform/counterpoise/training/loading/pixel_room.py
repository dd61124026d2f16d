"""Room in the cache of decoded images: its folder, its limit, and the eviction of blocks that were not used for long.

Space is reserved with the file system before images are decoded, under one lock. Whatever processes have promised one
another is therefore visible in the sizes of the files, and nothing else has to be kept in step after a kill.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from filelock import FileLock
from jaxtyping import Bool

from counterpoise.errors import ConfigError
from counterpoise.training.loading.pixel_block import Block, DiskFullError, allocation, cache_errors

_FREE_SHARE, _FREE_BYTES = 0.1, 1 << 30  # the lesser of these two stays free on the disk
_LOCK = ".lock"


class _File(NamedTuple):
    name: str  # path in the folder of decoded images
    bytes: int  # on the disk
    used: float  # time of the last use


def cache_folder() -> Path:
    """Return the cache folder: COUNTERPOISE_CACHE, or ``~/.cache/counterpoise``.

    It may be deleted at any time. Its decoded images take at most COUNTERPOISE_CACHE_LIMIT bytes, if that is set, and
    never the last tenth of the disk (of large disks the last GiB). Those used longest ago make room for others.
    """
    return Path(os.environ.get("COUNTERPOISE_CACHE") or Path.home() / ".cache" / "counterpoise")


def cache_limit() -> int | None:
    """Return COUNTERPOISE_CACHE_LIMIT in bytes, or None if it is not set. Raises ConfigError if it is no number."""
    limit = os.environ.get("COUNTERPOISE_CACHE_LIMIT")
    if not limit:
        return None
    if not limit.isdecimal():
        raise ConfigError(
            "the cache limit is not a number",
            where="COUNTERPOISE_CACHE_LIMIT",
            found=limit,
            allowed="a number of bytes, such as 20000000000",
        )
    return int(limit)


def reserve(
    folder: Path,
    size: int,
    wanted: Mapping[str, Bool[np.ndarray, " rows"]],
    spared: Collection[str],
    idle_seconds: float = 0.0,
) -> set[str]:
    """Reserve space for rows of blocks; evict other blocks for it, those used longest ago first.

    Args:
        folder: Folder of decoded images.
        size: Height and width of the images in pixels.
        wanted: Blocks with a mask of the rows that they are to hold, in the order of preference.
        spared: Blocks that must not be evicted.
        idle_seconds: Least time since the last use of a block that may be evicted.

    Returns:
        The blocks that have the space; if not all can, the first ones.

    Raises:
        StoreError: The folder cannot be written.
    """
    limit = cache_limit()
    granted: set[str] = set()
    with contextlib.suppress(DiskFullError), cache_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / _LOCK):
            _remove_former(folder)
            needs = {name: _need(folder / name, size, rows) for name, rows in wanted.items()}
            room = _make_room(folder, limit, sum(needs.values()), spared, idle_seconds)
            for name, rows in wanted.items():
                if needs[name] <= room:
                    room -= _reserve(folder / name, size, rows)
                    granted.add(name)
    return granted


def _need(path: Path, size: int, rows: Bool[np.ndarray, " rows"]) -> int:
    """Return the bytes that a block lacks: nothing for rows that another process has already reserved."""
    block = Block.open(path, size)
    if block is None:
        return allocation(rows, size)
    return max(allocation(rows | (block.marks > 0), size) - block.allocated, 0)


def _reserve(path: Path, size: int, rows: Bool[np.ndarray, " rows"]) -> int:
    """Reserve rows of a block; return the bytes by which it has grown."""
    block = Block.create(path, size)
    before = block.allocated
    block.reserve(rows)
    return block.allocated - before


def _make_room(folder: Path, limit: int | None, need: int, spared: Collection[str], idle_seconds: float) -> int:
    """Evict what is necessary for ``need`` bytes; return the bytes by which the cache may grow, perhaps fewer."""
    disk = shutil.disk_usage(folder)
    room = disk.free - int(min(disk.total * _FREE_SHARE, _FREE_BYTES))
    if limit is None and need <= room:
        return room  # without a look at all files
    files = _files(folder)
    if limit is not None:
        room = min(room, limit - sum(file.bytes for file in files))
    newest = time.time() - idle_seconds
    for file in sorted(files, key=lambda file: file.used):
        if need <= room:
            break
        if file.name not in spared and file.used <= newest:
            with contextlib.suppress(FileNotFoundError):
                (folder / file.name).unlink()
            room += file.bytes
    return room


def _files(folder: Path) -> list[_File]:
    """List the blocks of all sizes."""
    found = []
    for path in folder.glob("*/*/*.px"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            name = path.relative_to(folder).as_posix()
            found.append(_File(name, status.st_blocks * 512, status.st_mtime))
    return found


def _remove_former(folder: Path) -> None:
    """Remove the arrays of whole views that earlier versions kept, with their locks."""
    for path in [*folder.glob("*.npy"), *folder.glob(".*.npy"), *folder.glob("*.npy.lock")]:
        path.unlink(missing_ok=True)
