"""Local store: a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from counterpoise.errors import StoreError
from counterpoise.storage.store import TEMPORARY, check_key, check_range
from counterpoise.storage.trial import try_out

_STALE_SECONDS = 24 * 3600
_LOCK_NAME = "lock"
_LOCK_SECONDS = 60  # a lock is held for the time of one comparison and one renaming
_BLOCK = 1 << 22
# Answers of file systems without hard links: FAT, many FUSE and network mounts, containers' shared folders.
_NO_LINKS = {errno.EPERM, errno.EACCES, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.EINVAL}
_REMEDIES = {
    errno.ENOSPC: "free space on this disk, or set `store:` to a folder on another one",
    errno.EDQUOT: "free space within your quota, or set `store:` to a folder on another disk",
    errno.ENAMETOOLONG: "set `store:` to a folder with a shorter path",
}


class LocalStore:
    """Store in a folder. Writes go to a temporary file that is flushed to disk, then get their name atomically.

    A hard link gives an object its name: it fails if the name is taken. Where the file system refuses links, the file
    is renamed while the store's lock is held and after a look whether the name is free. An exclusive open of the final
    name would not do: readers would see half an object. The lock is one of the operating system, which frees it when
    its holder is killed; on a mount that does not carry locks to other machines, write from one machine at a time.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.uri = root, str(root)

    def check(self) -> None:
        """Try what all work stands on: the folder can be created and written, and keeps what was created first."""
        with self._errors():
            (self.root / TEMPORARY).mkdir(parents=True, exist_ok=True)
            self._sweep()
        try_out(self, self._keys, "set `store:` to a folder on another file system")

    def create(self, key: str, data: bytes | Path) -> bool:
        """Put bytes, or a file's content, at ``key`` if nothing is there yet. True if this call put it."""
        with self._written(key, data) as temporary:
            try:
                os.link(temporary, self.root / key)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                with self._locked():
                    return self._rename(temporary, key)
            return True

    def replace(self, key: str, data: bytes | Path) -> None:
        """Put bytes, or a file's content, at ``key``, whatever is there."""
        with self._written(key, data) as temporary, self._locked():
            os.replace(temporary, self.root / key)

    def swap(self, key: str, expected: bytes | None, data: bytes) -> bool:
        """Put bytes at ``key`` if its content is ``expected``; None expects that nothing is there.

        Replacing and deleting take the same lock, so that what was compared is what is replaced.
        """
        if expected is None:
            return self.create(key, data)
        with self._written(key, data) as temporary, self._locked():
            try:
                if (self.root / key).read_bytes() != expected:
                    return False
            except (FileNotFoundError, IsADirectoryError):
                return False
            os.replace(temporary, self.root / key)
            return True

    def delete(self, key: str) -> None:
        """Remove ``key`` if it is there."""
        with self._errors(key):
            if (self.root / key).is_file():
                with self._locked():
                    (self.root / key).unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        """Return True if something is stored at ``key``."""
        with self._errors(key):
            return (self.root / key).is_file()

    def size(self, key: str) -> int:
        """Return the number of bytes at ``key``. Raises StoreError if nothing is there."""
        with self.open(key) as file:
            return os.fstat(file.fileno()).st_size

    def open(self, key: str) -> BinaryIO:
        """Return a seekable reader. Raises StoreError if nothing is there."""
        with self._errors(key):
            return (self.root / key).open("rb")

    def read(self, key: str) -> bytes:
        """Return all bytes at ``key``. Raises StoreError if nothing is there."""
        with self.open(key) as file, self._errors(key):
            return file.read()

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop`` (exclusive), fewer where the object ends before ``stop``."""
        check_range(start)
        with self.open(key) as file, self._errors(key):
            file.seek(start)
            return file.read(max(stop - start, 0))

    def list(self, prefix: str) -> list[str]:
        """Return all keys that start with ``prefix``, sorted."""
        with self._errors():
            return [key for key in self._keys(prefix) if not key.startswith(f"{TEMPORARY}/")]

    def _keys(self, prefix: str) -> Sequence[str]:
        top = os.fspath(self.root / prefix.rpartition("/")[0])
        keys = list[str]()
        for folder, _, names in os.walk(top, onerror=_raise_unless_gone):
            place = os.path.relpath(folder, self.root).replace(os.sep, "/")
            keys += [name if place == "." else f"{place}/{name}" for name in names]
        return sorted(key for key in keys if key.startswith(prefix))

    def _rename(self, temporary: Path, key: str) -> bool:
        if (self.root / key).exists():
            return False
        os.replace(temporary, self.root / key)
        return True

    @contextlib.contextmanager
    def _written(self, key: str, data: bytes | Path) -> Iterator[Path]:
        """Write the data to a temporary file, which is removed after the block unless it was renamed."""
        with contextlib.ExitStack() as stack:
            # opened first: a missing source is a mistake of the caller, not of the store
            source = stack.enter_context(data.open("rb")) if isinstance(data, Path) else None
            stack.enter_context(self._errors(key, writing=True))
            (self.root / key).parent.mkdir(parents=True, exist_ok=True)
            temporary = self.root / TEMPORARY / uuid.uuid4().hex
            temporary.parent.mkdir(exist_ok=True)
            stack.callback(temporary.unlink, missing_ok=True)
            with temporary.open("xb") as file:
                if isinstance(data, bytes):
                    file.write(data)
                while source is not None and (block := source.read(_BLOCK)):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            yield temporary

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        path = self.root / TEMPORARY / _LOCK_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(path, timeout=_LOCK_SECONDS):
                yield
        except Timeout as error:
            raise StoreError(
                f"another process has held this store's lock for {_LOCK_SECONDS} s",
                where=path,
                remedy="end the process that hangs; if none is left, remove the file",
            ) from error

    def _sweep(self) -> None:
        """Remove temporary files that killed writers left behind more than a day ago."""
        for path in (self.root / TEMPORARY).iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.name != _LOCK_NAME and time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()

    @contextlib.contextmanager
    def _errors(self, key: str | None = None, writing: bool = False) -> Iterator[None]:
        if key is not None:
            check_key(self, key)
        where = self.root / key if key else self.root
        try:
            yield
        except OSError as error:
            missing = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
            if isinstance(error, missing) and key and not writing:
                raise StoreError("nothing is stored at this key", where=where) from error
            remedy = _REMEDIES.get(error.errno or 0, "set `store:` to a folder that is writable and has free space")
            raise StoreError(
                "this folder cannot be used as a store", where=where, found=error, remedy=remedy
            ) from error


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
        raise error
