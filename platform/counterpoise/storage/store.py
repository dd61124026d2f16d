"""Where bytes live: a local folder or an S3 bucket behind one small interface.

Keys are relative paths with forward slashes. What a key holds never changes once :meth:`Store.create` has put it
there, and it is there whole or not at all: a reader never sees half an object, also after a kill. That is the only
promise the pool and the stages need to resume, to share and to run twice at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

_TEMPORARY = ".tmp"


@runtime_checkable
class Store(Protocol):
    """A place for bytes. ``uri`` names it; it can be pickled and used from any process."""

    uri: str

    def check(self) -> None:
        """Raises StoreError unless the place exists (or can be made) and can be written."""

    def create(self, key: str, data: bytes | Path) -> bool:
        """Puts bytes, or a file's content, at ``key`` if nothing is there yet. Atomic. True if this call put it."""

    def replace(self, key: str, data: bytes | Path) -> None:
        """Puts bytes at ``key``, whatever is there. Atomic; for progress markers and reports, never for results."""

    def delete(self, key: str) -> None:
        """Removes ``key`` if it is there; for checkpoints that a finished stage has outlived."""

    def exists(self, key: str) -> bool: ...

    def open(self, key: str) -> BinaryIO:
        """A seekable reader; reads only what is asked for. Raises StoreError if nothing is there."""

    def list(self, prefix: str) -> list[str]:
        """All keys that start with ``prefix``, sorted."""


def read(store: Store, key: str) -> bytes:
    """All bytes at ``key``. Raises StoreError if nothing is there."""
    with store.open(key) as file:
        return file.read()
