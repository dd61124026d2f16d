"""S3 store: a prefix of a bucket, through boto3."""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from counterpoise.errors import StoreError
from counterpoise.storage.store import _TEMPORARY

_CONFLICT_PAUSES = (0.1, 0.4, 1.6)  # S3 answers 409 while another request for the key is under way: retry


class S3Store:
    """Store under a prefix of an S3 bucket. ``AWS_ENDPOINT_URL`` and the usual AWS variables are respected.

    Creation is a conditional put (``If-None-Match: *``), so that of two writers exactly one succeeds.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        self.bucket, self.prefix = bucket, prefix
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        # kept for other processes: a worker on another node need not have the variable
        self.endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        self._cached_client: Any = None

    def __getstate__(self) -> dict[str, Any]:  # boto3 clients cannot be pickled
        return {**self.__dict__, "_cached_client": None}

    @property
    def _client(self) -> Any:
        if self._cached_client is None:
            import boto3
            from botocore.config import Config

            retries = {"max_attempts": 5, "mode": "standard"}
            self._cached_client = boto3.client(
                "s3", endpoint_url=self.endpoint, config=Config(retries=retries, connect_timeout=10)
            )
        return self._cached_client

    def check(self) -> None:
        """Raise StoreError unless the bucket exists and can be written."""
        probe = f"{_TEMPORARY}/probe"
        with self._errors(""):
            self._client.head_bucket(Bucket=self.bucket)
            self._client.put_object(Bucket=self.bucket, Key=self._path(probe), Body=b"")

    def create(self, key: str, data: bytes | Path) -> bool:
        """Put bytes, or a file's content, at ``key`` if nothing is there yet. True if this call put it."""
        from botocore.exceptions import ClientError

        with self._errors(key):
            for pause in (*_CONFLICT_PAUSES, None):
                try:
                    with _readable(data) as body:
                        self._client.put_object(Bucket=self.bucket, Key=self._path(key), Body=body, IfNoneMatch="*")
                    return True
                except ClientError as error:
                    if _status(error) == 412:
                        return False
                    if _status(error) != 409 or pause is None:
                        raise
                    time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    def replace(self, key: str, data: bytes | Path) -> None:
        """Put bytes, or a file's content, at ``key``, whatever is there."""
        with self._errors(key), _readable(data) as body:
            self._client.put_object(Bucket=self.bucket, Key=self._path(key), Body=body)

    def delete(self, key: str) -> None:
        """Remove ``key`` if it is there."""
        with self._errors(key):
            self._client.delete_object(Bucket=self.bucket, Key=self._path(key))

    def exists(self, key: str) -> bool:
        """Return True if something is stored at ``key``."""
        try:
            self._size(key)
        except StoreError as error:
            if isinstance(error.__cause__, Exception) and _status(error.__cause__) == 404:
                return False
            raise
        return True

    def open(self, key: str) -> BinaryIO:
        """Return a seekable reader. Raises StoreError if nothing is there."""
        return io.BufferedReader(_S3Reader(self, key, self._size(key)), 1 << 16)

    def list(self, prefix: str) -> list[str]:
        """Return all keys that start with ``prefix``, sorted."""
        with self._errors(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self._path(prefix)
            )
            paths = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        keys = (path[len(self.prefix) + 1 :] if self.prefix else path for path in paths)
        return sorted(key for key in keys if not key.startswith(_TEMPORARY))

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop`` (exclusive) of the object at ``key``."""
        with self._errors(key):
            reply = self._client.get_object(Bucket=self.bucket, Key=self._path(key), Range=f"bytes={start}-{stop - 1}")
            return reply["Body"].read()

    def _size(self, key: str) -> int:
        with self._errors(key):
            return self._client.head_object(Bucket=self.bucket, Key=self._path(key))["ContentLength"]

    def _path(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    @contextlib.contextmanager
    def _errors(self, key: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        where = f"{self.uri}/{key}" if key else self.uri
        try:
            yield
        except (BotoCoreError, ClientError) as error:
            status = _status(error)
            if status == 404 and key and _code(error) != "NoSuchBucket":
                raise StoreError("nothing is stored at this key", where=where) from error
            remedy = {
                404: "create the bucket, or set `store:` to another one",
                403: "check the AWS credentials and the bucket's policy (it must allow Get, Put, Delete and List)",
            }.get(
                status or 0, "check AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            )
            raise StoreError(
                "this bucket cannot be used as a store", where=where, found=error, remedy=remedy
            ) from error


class _S3Reader(io.RawIOBase):
    """Seekable reader over ranged GETs: reading a Parquet file's label column does not fetch its images."""

    mode = "rb"

    def __init__(self, store: S3Store, key: str, size: int) -> None:
        self._store, self._key, self._size, self._position = store, key, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        stop = min(self._position + len(buffer), self._size)
        if stop <= self._position:
            return 0
        data = self._store.read_range(self._key, self._position, stop)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def _readable(data: bytes | Path) -> contextlib.AbstractContextManager[BinaryIO]:
    return data.open("rb") if isinstance(data, Path) else io.BytesIO(data)


def _code(error: BaseException) -> str | None:
    return getattr(error, "response", {}).get("Error", {}).get("Code")


def _status(error: BaseException) -> int | None:
    return getattr(error, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode")
