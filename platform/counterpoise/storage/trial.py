"""Trial of a store before any work: the operations that all results stand on."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Sequence

from counterpoise.errors import StoreError
from counterpoise.storage.store import TEMPORARY, Store

_FIRST, _SECOND = b"first", b"second"


def try_out(store: Store, keys: Callable[[str], Sequence[str]], remedy: str) -> None:
    """Create a fresh key twice, read it, list it and delete it.

    Args:
        store: The store.
        keys: Lists keys by prefix, with those in the store's own folder.
        remedy: The action that helps if a second writer could replace an object.

    Raises:
        StoreError: One of these operations is refused, or does something else than it says.
    """
    key = f"{TEMPORARY}/check-{uuid.uuid4().hex}"
    try:
        created = store.create(key, _FIRST), store.create(key, _SECOND)
        content = store.read(key)
        if created != (True, False) or content != _FIRST:
            raise StoreError(
                "this store does not keep what was created first: two runs at once would damage each other's results",
                where=store.uri,
                found=f"creating one key twice answered {created[0]} and {created[1]}, and left {content!r}",
                allowed=f"True and False, and {_FIRST!r}",
                remedy=remedy,
            )
        listed = keys(f"{TEMPORARY}/check-")
        if key not in listed:
            found = f"{len(listed)} other keys"
            raise StoreError("this store does not list what was created", where=f"{store.uri}/{key}", found=found)
    except BaseException:
        with contextlib.suppress(StoreError):  # the first error says more than one of cleaning up
            store.delete(key)
        raise
    store.delete(key)
    if store.exists(key):
        raise StoreError("this store keeps what was deleted", where=f"{store.uri}/{key}")
