"""A folder as a store."""

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
    """A folder. Writes go to a temporary file that is flushed to disk, then linked to its name in one step."""

    def __init__(self, root: Path) -> None:
        self.root, self.uri = root, str(root)

    def check(self) -> None:
        with self._errors(""):
            (self.root / _TEMPORARY).mkdir(parents=True, exist_ok=True)
            self._sweep()
            self.replace(f"{_TEMPORARY}/probe", b"")

    def create(self, key: str, data: bytes | Path) -> bool:
        with self._errors(key), self._written(key, data) as temporary:
            try:
                os.link(temporary, self.root / key)
            except FileExistsError:
                return False
            return True

    def replace(self, key: str, data: bytes | Path) -> None:
        with self._errors(key), self._written(key, data) as temporary:
            os.replace(temporary, self.root / key)

    def delete(self, key: str) -> None:
        with self._errors(key):
            (self.root / key).unlink(missing_ok=True)

    def exists(self, key: str) -> bool:
        return (self.root / key).is_file()

    def open(self, key: str) -> BinaryIO:
        with self._errors(key):
            return (self.root / key).open("rb")

    def list(self, prefix: str) -> list[str]:
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
        """Removes what killed writers left behind more than a day ago."""
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
                raise StoreError("nothing is stored here", where=where) from error
            remedy = "name a folder that you may write to, with space left, as `store:`"
            raise StoreError(
                "this folder cannot be used as a store", where=where, found=error, remedy=remedy
            ) from error
