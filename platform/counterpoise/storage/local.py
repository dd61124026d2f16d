"""Local store: a folder."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from counterpoise.errors import StoreError
from counterpoise.storage.store import _TEMPORARY

_STALE_SECONDS = 24 * 3600


class LocalStore:
    """Store in a folder. Writes go to a temporary file that is flushed to disk, then linked to its name atomically."""

    def __init__(self, root: Path) -> None:
        self.root, self.uri = root, str(root)

    def check(self) -> None:
        """Raise StoreError unless the folder exists (or can be created) and can be written."""
        with self._errors(""):
            (self.root / _TEMPORARY).mkdir(parents=True, exist_ok=True)
            self._sweep()
            self.replace(f"{_TEMPORARY}/probe", b"")

    def create(self, key: str, data: bytes | Path) -> bool:
        """Put bytes, or a file's content, at ``key`` if nothing is there yet. True if this call put it."""
        with self._errors(key), self._written(key, data) as temporary:
            try:
                os.link(temporary, self.root / key)
            except FileExistsError:
                return False
            return True

    def replace(self, key: str, data: bytes | Path) -> None:
        """Put bytes, or a file's content, at ``key``, whatever is there."""
        with self._errors(key), self._written(key, data) as temporary:
            os.replace(temporary, self.root / key)

    def delete(self, key: str) -> None:
        """Remove ``key`` if it is there."""
        with self._errors(key):
            (self.root / key).unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        """Return True if something is stored at ``key``."""
        return (self.root / key).is_file()

    def open(self, key: str) -> BinaryIO:
        """Return a seekable reader. Raises StoreError if nothing is there."""
        with self._errors(key):
            return (self.root / key).open("rb")

    def list(self, prefix: str) -> list[str]:
        """Return all keys that start with ``prefix``, sorted."""
        folder = self.root / prefix.rpartition("/")[0]
        names = (path.relative_to(self.root).as_posix() for path in folder.rglob("*") if path.is_file())
        return sorted(name for name in names if name.startswith(prefix) and not name.startswith(_TEMPORARY))

    @contextlib.contextmanager
    def _written(self, key: str, data: bytes | Path) -> Iterator[Path]:
        (self.root / key).parent.mkdir(parents=True, exist_ok=True)
        temporary = self.root / _TEMPORARY / uuid.uuid4().hex
        temporary.parent.mkdir(exist_ok=True)
        try:
            with temporary.open("xb") as file:
                if isinstance(data, Path):
                    with data.open("rb") as source:
                        while block := source.read(1 << 22):
                            file.write(block)
                else:
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove temporary files that killed writers left behind more than a day ago."""
        for path in (self.root / _TEMPORARY).iterdir():
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        where = self.root / key if key else self.root
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError) and key:
                raise StoreError("nothing is stored at this key", where=where) from error
            remedy = "set `store:` to a folder that is writable and has free space"
            raise StoreError(
                "this folder cannot be used as a store", where=where, found=error, remedy=remedy
            ) from error
