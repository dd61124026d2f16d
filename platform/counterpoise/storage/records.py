"""Stored artifacts that carry their own SHA-256: damage is an error that names the file, never a number.

Three kinds cover everything that a store holds:

- a *record* is JSON whose last key, ``sha256``, is the hash of the rest: results, stage records, descriptions. One
  that :func:`create_record` wrote also names its key, so that it counts at no other;
- a *file* is bytes whose hash stands in a record or in an index: weights, statistics, tables, shards;
- a *disposable* may be lost: checkpoints and caches. A damaged one is discarded with a line that says so, and made
  again.

Hashes are compared when a file is read. Objects never change, so one check for each process and file is enough for
readers that come back to the same file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from counterpoise.core.progress import warn
from counterpoise.errors import StoreError
from counterpoise.storage.store import Store, read

T = TypeVar("T")
REMEDY = "run `counterpoise verify --repair` with the same experiment: it removes what is damaged, to be made again"


class DamagedError(StoreError):
    """A stored artifact whose content is not what was stored."""


def sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def create_record(store: Store, key: str, value: Mapping[str, Any]) -> bool:
    """Store a record that names its key, unless something is stored there. True if this call stored it."""
    return store.create(key, to_record({**value, "stored_at": key}))


def put_file(store: Store, key: str, data: bytes, record_key: str) -> str:
    """Store a file before the record that will hold its SHA-256, and return this hash.

    A file without a record was left by a process that was killed in between. It may hold other bytes and is replaced.
    """
    if not store.create(key, data) and not store.exists(record_key):
        store.replace(key, data)
    return sha256(data)


def to_record(value: Mapping[str, Any]) -> bytes:
    """Return the bytes of a record: the value as JSON, and its hash as the last key."""
    body = dict(value)
    return (json.dumps({**body, "sha256": _hash(body)}, indent=1, ensure_ascii=False) + "\n").encode()


def read_record(store: Store, key: str) -> dict[str, Any]:
    """Return the value of a record, without its hash and its key.

    Raises:
        DamagedError: It is not what was stored.
        StoreError: Nothing is stored at this key, or the store cannot be read.
    """
    value = from_record(read(store, key), f"{store.uri}/{key}")
    if (own := value.pop("stored_at", key)) != key:
        raise damaged(f"{store.uri}/{key}", f"the record of another artifact, {own}")
    return value


def from_record(data: bytes, where: str) -> dict[str, Any]:
    """Return the value of a record's bytes; see :func:`read_record`."""
    try:
        value = json.loads(data)
        value.pop("sha256")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(where, f"not a record: {error or type(error).__name__}") from error
    if data != to_record(value):  # byte for byte, so that no change of the file counts as none
        raise damaged(where, "the content does not match its SHA-256")
    return value


def read_file(store: Store, key: str, expected: str) -> bytes:
    """Return the bytes at ``key``, whose SHA-256 must be ``expected``.

    Raises:
        DamagedError: It is another one, or nothing is stored at this key.
        StoreError: The store cannot be read.
    """
    try:
        data = read(store, key)
    except StoreError as error:
        if store.exists(key):
            raise
        raise damaged(f"{store.uri}/{key}", "nothing, although the file's record is there") from error
    if sha256(data) != expected:
        raise damaged(f"{store.uri}/{key}", f"the content does not match the SHA-256 of its record, {expected[:16]}…")
    return data


def read_disposable(store: Store, key: str, parse: Callable[[bytes], T], what: str) -> T | None:
    """Return a parsed disposable; None if there is none, or if it was damaged and has been removed.

    Args:
        store: The store.
        key: The disposable's key.
        parse: Returns the value of the bytes; any exception means damage.
        what: Noun phrase for the line on standard error, such as "the checkpoint".
    """
    if not store.exists(key):
        return None
    data = read(store, key)
    try:
        return parse(data)
    except Exception as error:  # each format's reader raises its own
        store.delete(key)
        warn(f"{what} at {store.uri}/{key} is damaged and was discarded: {error or type(error).__name__}")
        return None


def damaged(where: str, found: object, remedy: str = REMEDY) -> DamagedError:
    """Return the error of a damaged artifact."""
    return DamagedError("a stored file is damaged", where=where, found=found, remedy=remedy)


def _hash(value: Mapping[str, Any]) -> str:
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode())
