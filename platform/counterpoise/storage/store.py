"""Store interface: bytes at keys, in a local folder or an S3 bucket.

Keys are relative paths with forward slashes, of any printable characters; no key is a folder of another one. An object
is there whole or not at all: a reader never sees half of one, even after a kill. An object that :meth:`Store.create`
has put never changes. This guarantee is all that the pool and the stages need to resume, to share results and to run
twice at once.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from counterpoise.errors import StoreError

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # XML, the language of S3's listings, has none of them
TEMPORARY = ".tmp"  # the store's own folder: not listed


@runtime_checkable
class Store(Protocol):
    """Object store at ``uri``. It can be pickled and used from any process and thread.

    Every method raises StoreError if the store does not answer or refuses, and if a key is not a relative path.
    """

    uri: str

    def check(self) -> None:
        """Try what all work stands on, and leave nothing behind: create a key twice, read, list and delete it.

        Raises:
            StoreError: The store is missing, cannot be written, or lets a second writer replace an object.
        """

    def create(self, key: str, data: bytes | Path) -> bool:
        """Put bytes, or a file's content, at ``key`` if nothing is there yet. Atomic. True if this call put it."""

    def replace(self, key: str, data: bytes | Path) -> None:
        """Put bytes at ``key``, whatever is there. Atomic; for checkpoints and estimates, not for results."""

    def swap(self, key: str, expected: bytes | None, data: bytes) -> bool:
        """Put bytes at ``key`` if its content is ``expected``; None expects that nothing is there. Atomic.

        For leases: of several callers that expect the same content, one succeeds.

        Returns:
            True if this call put the bytes; False if the content is another one.
        """

    def delete(self, key: str) -> None:
        """Remove ``key`` if it is there: a checkpoint that is no longer needed, or what is damaged."""

    def exists(self, key: str) -> bool:
        """Return True if something is stored at ``key``."""

    def size(self, key: str) -> int:
        """Return the number of bytes at ``key``. Raises StoreError if nothing is there."""

    def open(self, key: str) -> BinaryIO:
        """Return a seekable reader that fetches only what is read. Raises StoreError if nothing is there."""

    def read(self, key: str) -> bytes:
        """Return all bytes at ``key``. Raises StoreError if nothing is there."""

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop`` (exclusive), fewer where the object ends before ``stop``.

        Raises:
            StoreError: Nothing is stored at ``key``.
            ValueError: ``start`` is negative.
        """

    def list(self, prefix: str) -> list[str]:
        """Return all keys that start with ``prefix``, sorted."""


def read(store: Store, key: str) -> bytes:
    """Return all bytes at ``key``. Raises StoreError if nothing is there."""
    return store.read(key)


def check_key(store: Store, key: str) -> None:
    """Raise StoreError unless a key is a relative path that means the same in a folder and in a bucket."""
    if _CONTROL.search(key) or any(part in ("", ".", "..") for part in key.split("/")):
        raise StoreError(
            "this is not a key",
            where=store.uri,
            found=repr(key),
            allowed="names with single slashes between them, none of them '.' or '..', and no control characters",
        )


def check_range(start: int) -> None:
    """Raise ValueError if a range starts before the object."""
    if start < 0:
        raise ValueError(f"a range starts at 0 or later, not at {start}")
