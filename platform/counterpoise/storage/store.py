"""Store interface: bytes at keys, in a local folder or an S3 bucket.

Keys are relative paths with forward slashes. An object never changes once :meth:`Store.create` has put it at its
key, and it is there whole or not at all: a reader never sees half an object, even after a kill. This guarantee is
all that the pool and the stages need to resume, to share results and to run twice at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

_TEMPORARY = ".tmp"


@runtime_checkable
class Store(Protocol):
    """Object store at ``uri``. It can be pickled and used from any process."""

    uri: str

    def check(self) -> None:
        """Raise StoreError unless the store exists (or can be created) and can be written."""

    def create(self, key: str, data: bytes | Path) -> bool:
        """Put bytes, or a file's content, at ``key`` if nothing is there yet. Atomic. True if this call put it."""

    def replace(self, key: str, data: bytes | Path) -> None:
        """Put bytes at ``key``, whatever is there. Atomic; for checkpoints and estimates, not for results."""

    def delete(self, key: str) -> None:
        """Remove ``key`` if it is there: a checkpoint that is no longer needed, or what is damaged."""

    def exists(self, key: str) -> bool:
        """Return True if something is stored at ``key``."""

    def open(self, key: str) -> BinaryIO:
        """Return a seekable reader that fetches only the bytes read. Raises StoreError if nothing is there."""

    def list(self, prefix: str) -> list[str]:
        """Return all keys that start with ``prefix``, sorted."""


def read(store: Store, key: str) -> bytes:
    """Return all bytes at ``key``. Raises StoreError if nothing is there."""
    with store.open(key) as file:
        return file.read()
