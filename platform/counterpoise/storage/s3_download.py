"""Downloads from S3: whole objects, ranges, and a reader for Parquet files."""

from __future__ import annotations

import contextlib
import io
import re
import time
from collections.abc import Callable
from typing import Any

from counterpoise.storage.s3_errors import PRECONDITION_FAILED, RANGE_NOT_SATISFIABLE, status_of
from counterpoise.storage.s3_requests import Attempt, Bucket

_BLOCK = 1 << 20
_SLOW_BYTES = 1 << 14  # fewer in the time of one wait are no answer
_TAIL = 1 << 18  # a Parquet file's footer, and often all of a small file


class Download:
    """Bytes of an object, from one GET; a retry asks only for those that are missing.

    Args:
        bucket: The bucket.
        path: The object's path in it.
        span: Value of the Range header; None for the whole object.
        etag: Version that is wanted; None for the present one.

    Attributes:
        begin: Position of the first byte of ``data`` in the object.
        data: The bytes; none if the range begins behind the object's end.
        total: Size of the whole object; 0 if the range begins behind its end.
        etag: The version that was read.
    """

    def __init__(self, bucket: Bucket, path: str, span: str | None = None, etag: str | None = None) -> None:
        self._request = {"Bucket": bucket.name, "Key": path}
        self._request |= ({"Range": span} if span else {}) | ({"IfMatch": etag} if etag else {})
        self._restart()
        bucket.call(path, self._fetch)
        self.data = self._buffer.getvalue()

    def _restart(self) -> None:
        self._buffer = io.BytesIO()
        self._end: int | None = None
        self.begin, self.total, self.etag = 0, 0, ""

    def _fetch(self, client: Any, attempt: Attempt) -> None:
        from botocore.exceptions import ClientError

        resumed = bool(self._buffer.tell() and self.etag and self._end)
        request = self._request
        if resumed:
            missing = f"bytes={self.begin + self._buffer.tell()}-{(self._end or 0) - 1}"
            request = {**request, "Range": missing, "IfMatch": self.etag}
        try:
            reply = client.get_object(**request)
        except ClientError as error:
            if resumed and status_of(error) == PRECONDITION_FAILED and "IfMatch" not in self._request:
                self._restart()  # the object was replaced between two tries
                self._fetch(client, attempt)
            elif resumed or status_of(error) != RANGE_NOT_SATISFIABLE:  # what that says: no byte is in the range
                raise
            return
        self._read(reply, resumed, attempt)

    def _read(self, reply: dict[str, Any], resumed: bool, attempt: Attempt) -> None:
        from botocore.exceptions import FlexibleChecksumError, IncompleteReadError, ReadTimeoutError

        span = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", reply.get("ContentRange", ""))
        length = reply.get("ContentLength")
        if not (resumed and span):  # a server that ignores ranges sends the whole object again
            self._restart()
            self.etag, self.begin = reply.get("ETag", ""), int(span[1]) if span else 0
            self._end = None if length is None else self.begin + length
        try:
            with contextlib.closing(_as_it_arrives(reply["Body"])) as body:
                fresh, since = 0, time.monotonic()
                while block := body.read(_BLOCK):
                    self._buffer.write(block)
                    fresh, now = fresh + len(block), time.monotonic()
                    if fresh >= _SLOW_BYTES:
                        attempt.alive(fresh if self.etag and self._end else 0)
                        fresh, since = 0, now
                    elif now - since > attempt.limits.read_seconds:  # as good as silent
                        raise ReadTimeoutError(endpoint_url=self._request["Key"])
        except FlexibleChecksumError:
            self._restart()
            attempt.discard()
            raise
        expected = None if self._end is None else self._end - self.begin
        if expected is not None and self._buffer.tell() != expected:
            raise IncompleteReadError(actual_bytes=self._buffer.tell(), expected_bytes=expected)
        self.total = int(span[3]) if span else self.begin + self._buffer.tell()


def _as_it_arrives(body: Any) -> Any:
    """Let a body's reads return what has arrived: botocore's wait for a full block, however slowly it comes."""
    stream = body._raw_stream  # botocore has no public way, and its own reads compare the checksum
    if hasattr(stream, "read1"):
        body._raw_stream = _Arriving(stream)
    return body


class _Arriving:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def read(self, size: int) -> bytes:
        return self._stream.read1(size)

    def close(self) -> None:
        self._stream.close()


def download_range(bucket: Bucket, path: str, start: int, stop: int, etag: str | None = None) -> bytes:
    """Return bytes ``start`` to ``stop`` (exclusive), fewer where the object ends before; of the version ``etag``."""
    part = Download(bucket, path, f"bytes={start}-{stop - 1}", etag)
    return part.data[max(start - part.begin, 0) : stop - part.begin]


def open_reader(bucket: Bucket, path: str) -> S3Reader:
    """Return a reader of the present version. Its one request brings the size and the last 256 KiB."""
    tail = Download(bucket, path, f"bytes=-{_TAIL}")
    etag = tail.etag or None

    def fetch(start: int, stop: int) -> bytes:
        return download_range(bucket, path, start, stop, etag)

    return S3Reader(bucket.uri(path), fetch, tail.total, tail.data)


class S3Reader(io.BufferedIOBase):
    """Seekable reader over ranged GETs: reading a Parquet file's label column does not fetch its images.

    A request brings what is read, and at least 1 MiB, of which the rest is kept for the next reads.

    Args:
        name: URI of the object.
        fetch: Returns the bytes of a range.
        size: Size of the object.
        tail: Last bytes of the object.
    """

    mode = "rb"

    def __init__(self, name: str, fetch: Callable[[int, int], bytes], size: int, tail: bytes) -> None:
        self.name = name
        self._fetch, self._size, self._tail = fetch, size, tail
        self._window_start, self._window = 0, b""
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move to a position from the start, the present position or the end."""
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if position < 0:
            raise ValueError(f"a position is 0 or later, not {position}")
        self._position = position
        return position

    def tell(self) -> int:
        """Return the present position."""
        return self._position

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next ``size`` bytes, fewer at the end; all that are left if it is negative or None."""
        if self.closed:
            raise ValueError("this reader is closed")
        stop = self._size if size is None or size < 0 else min(self._position + size, self._size)
        if stop <= self._position:
            return b""
        data = self._bytes(self._position, stop)
        self._position += len(data)
        return data

    def read1(self, size: int = -1, /) -> bytes:
        """Return the same as :meth:`read`."""
        return self.read(size)

    def _bytes(self, start: int, stop: int) -> bytes:
        tail_start = self._size - len(self._tail)
        if start >= tail_start:
            return self._tail[start - tail_start : stop - tail_start]
        if stop > tail_start:
            return self._bytes(start, tail_start) + self._tail[: stop - tail_start]
        offset = start - self._window_start
        if 0 <= offset < len(self._window):
            known = self._window[offset : offset + stop - start]
            return known if len(known) == stop - start else known + self._bytes(start + len(known), stop)
        if stop - start >= _BLOCK:
            return self._fetch(start, stop)
        self._window_start, self._window = start, self._fetch(start, min(start + _BLOCK, tail_start))
        return self._window[: stop - start]
