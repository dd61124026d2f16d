"""Stores by address.

Addresses are taken literally: ``#``, ``?``, ``%`` and spaces are characters of a folder or a prefix like any other.
Only the path of a ``file://`` address is percent-decoded, as such addresses are written by other programs.

Google Cloud Storage and Azure Blob Storage are not supported. A store needs a conditional put, and both have one
(``if-generation-match: 0``, ``If-None-Match: *``). obstore offers it for all services alike, as
``put(…, mode="create")`` and, for swaps, ``mode={"e_tag": …}``; in fsspec, ``pipe_file(…, mode="create")`` is up to
each file system, and where one has nothing better it looks first and writes then. A store on obstore would be small,
but its guarantees would have to be tested against servers of both kinds. Until then, an S3-compatible gateway with
conditional puts can stand before them: set ``AWS_ENDPOINT_URL``. The trial before all work
(:mod:`counterpoise.storage.trial`) refuses gateways that ignore the condition.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from counterpoise.core.addresses import without_passwords
from counterpoise.errors import StoreError
from counterpoise.storage.local import LocalStore
from counterpoise.storage.s3 import S3Store
from counterpoise.storage.store import Store

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(//?)(.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9._-]{1,255}")
_KINDS = "a folder, or s3://bucket/prefix"


def open_store(uri: str | os.PathLike[str]) -> Store:
    """Open the store at a folder path, ``file://`` URI or ``s3://bucket/prefix``. Raises StoreError for others."""
    text = os.fspath(uri)
    if not text or "\0" in text:
        raise StoreError("this is no address of a store", where="store", found=repr(text), allowed=_KINDS)
    match = None if isinstance(uri, Path) else _SCHEME.fullmatch(text)
    scheme, slashes, rest = match.groups() if match else ("", "", text)
    scheme = scheme.lower()
    if scheme == "s3":
        return _s3_store(rest if slashes == "//" else "", text)
    if scheme == "file":
        return LocalStore(Path(_file_path(rest, text) if slashes == "//" else unquote(f"/{rest}")))
    if slashes == "//":
        remedy = "put an S3-compatible gateway with conditional puts before it: AWS_ENDPOINT_URL and s3://bucket/prefix"
        found = without_passwords(text)
        raise StoreError("unknown kind of store", where="store", found=found, allowed=_KINDS, remedy=remedy)
    return LocalStore(_folder(text))


def _s3_store(rest: str, text: str) -> S3Store:
    bucket, _, prefix = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        message = "this bucket's name has characters that none has" if bucket else "there is no bucket in the address"
        raise StoreError(message, where="store", found=without_passwords(text), allowed="s3://bucket/prefix")
    return S3Store(bucket, prefix.strip("/"))


def _file_path(rest: str, text: str) -> str:
    host, _, path = rest.partition("/")
    if host.lower() not in ("", "localhost"):
        folder = unquote(without_passwords(text).partition("//")[2])
        raise StoreError(
            "a file address cannot name another machine",
            where="store",
            found=without_passwords(text),
            allowed="file:///folder, with three slashes",
            remedy=f"if you mean this machine's folder /{folder}, write it so",
        )
    return unquote(f"/{path}")


def _folder(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:  # "~name" of an unknown user
        remedy = "write the folder's full path"
        raise StoreError("this folder is not known", where="store", found=text, remedy=remedy) from error
