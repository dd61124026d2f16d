"""S3 store: a prefix of a bucket, through boto3."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, cast

from counterpoise.errors import StoreError
from counterpoise.storage.s3_download import Download, download_range, open_reader
from counterpoise.storage.s3_errors import is_missing
from counterpoise.storage.s3_requests import Bucket, Limits
from counterpoise.storage.s3_upload import IF_ABSENT, is_absent, upload
from counterpoise.storage.store import TEMPORARY, check_key, check_range
from counterpoise.storage.trial import try_out

_SERVERS = (
    "use AWS, or a server that honours conditional puts (If-None-Match): MinIO, Ceph and Cloudflare R2 do in their "
    "present versions"
)


class S3Store:
    """Store under a prefix of an S3 bucket. ``AWS_ENDPOINT_URL`` and the usual AWS variables are respected.

    Creation is a conditional put (``If-None-Match: *``), so that of two writers exactly one succeeds. If the answer to
    a put is lost, the put is tried again, and the object's token decides whose it is: the call returns True if it put
    the object, in whichever try. A failed request is tried again for up to a minute (:class:`Limits`), and each wait
    of some seconds is told on standard error.

    Large objects go up in parts. A killed process leaves its parts behind, unseen: let a lifecycle rule of the bucket
    remove incomplete uploads (``AbortIncompleteMultipartUpload``).
    """

    def __init__(self, bucket: str, prefix: str, limits: Limits | None = None) -> None:
        self.bucket, self.prefix = bucket, prefix
        self.uri = f"s3://{bucket}/{prefix}".rstrip("/")
        # kept for other processes: a worker on another node need not have the variable
        self.endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        self.limits = limits or Limits()
        self._requests = Bucket(bucket, self.endpoint, self.limits)

    def check(self) -> None:
        """Try what all work stands on: the bucket can be written and listed, and keeps what was created first."""
        try_out(self, self._keys, _SERVERS)

    def create(self, key: str, data: bytes | Path) -> bool:
        """Put bytes, or a file's content, at ``key`` if nothing is there yet. True if this call put it."""
        return upload(self._requests, self._path(key), data, IF_ABSENT)

    def replace(self, key: str, data: bytes | Path) -> None:
        """Put bytes, or a file's content, at ``key``, whatever is there."""
        upload(self._requests, self._path(key), data, {})

    def swap(self, key: str, expected: bytes | None, data: bytes) -> bool:
        """Put bytes at ``key`` if its content is ``expected``; None expects that nothing is there.

        Returns:
            True if this call put the bytes and they are still there; False if the content is another one.
        """
        if expected is None:
            return self.create(key, data)
        try:
            present = Download(self._requests, self._path(key))
        except StoreError as error:
            if error.__cause__ is not None and is_missing(error.__cause__):
                return False
            raise
        return present.data == expected and upload(self._requests, self._path(key), data, {"IfMatch": present.etag})

    def delete(self, key: str) -> None:
        """Remove ``key`` if it is there."""
        path = self._path(key)
        self._requests.call(path, lambda client, _: client.delete_object(Bucket=self.bucket, Key=path))

    def exists(self, key: str) -> bool:
        """Return True if something is stored at ``key``."""
        return not is_absent(self._requests, self._path(key))

    def size(self, key: str) -> int:
        """Return the number of bytes at ``key``. Raises StoreError if nothing is there."""
        path = self._path(key)
        reply = self._requests.call(path, lambda client, _: client.head_object(Bucket=self.bucket, Key=path))
        return reply["ContentLength"]

    def open(self, key: str) -> BinaryIO:
        """Return a seekable reader of the present version. Raises StoreError if nothing is there."""
        return cast(BinaryIO, open_reader(self._requests, self._path(key)))

    def read(self, key: str) -> bytes:
        """Return all bytes at ``key``. Raises StoreError if nothing is there."""
        return Download(self._requests, self._path(key)).data

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop`` (exclusive), fewer where the object ends before ``stop``."""
        check_range(start)
        if stop <= start:
            self.size(key)  # there is no request for no bytes; a missing key is an error all the same
            return b""
        return download_range(self._requests, self._path(key), start, stop)

    def list(self, prefix: str) -> list[str]:
        """Return all keys that start with ``prefix``, sorted."""
        return [key for key in self._keys(prefix) if not key.startswith(f"{TEMPORARY}/")]

    def _keys(self, prefix: str) -> Sequence[str]:
        paths = self._requests.paths(f"{self.prefix}/{prefix}" if self.prefix else prefix)
        return sorted(path[len(self.prefix) + 1 :] if self.prefix else path for path in paths)

    def _path(self, key: str) -> str:
        check_key(self, key)
        return f"{self.prefix}/{key}" if self.prefix else key
