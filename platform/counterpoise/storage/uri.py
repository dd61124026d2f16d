"""Stores by URI."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from counterpoise.errors import StoreError
from counterpoise.storage.local import LocalStore
from counterpoise.storage.s3 import S3Store
from counterpoise.storage.store import Store


def open_store(uri: str | os.PathLike[str]) -> Store:
    """Open the store at a folder path, ``file://`` URI or ``s3://bucket/prefix``. Raises StoreError for others."""
    parts = urlsplit(str(uri))
    if parts.scheme == "s3":
        if not parts.netloc:
            raise StoreError(
                "there is no bucket in the address", where="store", found=uri, allowed="s3://bucket/prefix"
            )
        return S3Store(parts.netloc, parts.path.strip("/"))
    if parts.scheme in ("", "file"):
        return LocalStore(Path(parts.path if parts.scheme else str(uri)).expanduser().absolute())
    raise StoreError("unknown kind of store", where="store", found=uri, allowed="a folder, or s3://bucket/prefix")
