"""Uploads to S3: atomic, conditional where asked, in parts where an object is large.

Each upload marks its object with a random token. If an answer is lost and the next try is told that the key is taken,
the token says by whom: so every upload knows whether it was the one that put the object.
"""

from __future__ import annotations

import contextlib
import io
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from counterpoise.errors import StoreError
from counterpoise.storage.s3_errors import CONFLICT, PRECONDITION_FAILED, code_of, is_missing, status_of
from counterpoise.storage.s3_requests import Attempt, Bucket

IF_ABSENT: Mapping[str, str] = {"IfNoneMatch": "*"}
MULTIPART_BYTES = 256 << 20  # larger objects go up in parts; a single put ends at 5 GB
PART_BYTES = 64 << 20
_MAX_PARTS = 10_000
_ALIVE_BYTES = 1 << 20
_ROUNDS = 3  # after a conflict of two completions S3 wants all parts anew
_TOKEN = "counterpoise-writer"


def upload(bucket: Bucket, path: str, data: bytes | Path, condition: Mapping[str, str]) -> bool:
    """Put an object.

    Args:
        bucket: The bucket.
        path: The object's path in it.
        data: Bytes, or a file with them.
        condition: ``IfNoneMatch`` or ``IfMatch`` as in boto3; empty to replace whatever is there.

    Returns:
        True if this call put it; False if the condition does not hold.
    """
    with _opened(data) as source:
        size = source.seek(0, io.SEEK_END)
        if size > MULTIPART_BYTES:
            return _upload_in_parts(bucket, path, source, size, condition)
        token = uuid.uuid4().hex

        def put(client: Any, attempt: Attempt) -> bool:
            source.seek(0)
            request = {"Bucket": bucket.name, "Key": path, "Metadata": {_TOKEN: token}, **condition}
            return _decide(
                client,
                attempt,
                bucket.name,
                path,
                token,
                lambda: client.put_object(Body=_Body(source, attempt), **request),
            )

        return bucket.call(path, put)


def _decide(client: Any, attempt: Attempt, bucket: str, path: str, token: str, request: Callable[[], object]) -> bool:
    """Make a conditional request. Return False if the condition does not hold, and not because of an earlier try."""
    from botocore.exceptions import ClientError

    try:
        request()
    except ClientError as error:
        refused = status_of(error) == PRECONDITION_FAILED or is_missing(error)
        gone = attempt.is_retry and code_of(error) == "NoSuchUpload"  # an earlier try completed it
        if not refused and not gone:
            raise
        ours = attempt.is_retry and _token_of(client, bucket, path) == token
        if gone and not ours:
            raise
        return ours
    return True


def _token_of(client: Any, bucket: str, path: str) -> str | None:
    from botocore.exceptions import ClientError

    try:
        return client.head_object(Bucket=bucket, Key=path).get("Metadata", {}).get(_TOKEN)
    except ClientError as error:
        if is_missing(error):
            return None
        raise


def _upload_in_parts(
    bucket: Bucket, path: str, source: io.BufferedIOBase, size: int, condition: Mapping[str, str]
) -> bool:
    if condition == IF_ABSENT and not is_absent(bucket, path):
        return False  # told before the parts go up
    for _ in range(_ROUNDS):
        put = _upload_parts_once(bucket, path, source, size, condition)
        if put is not None:
            return put
    raise StoreError(
        "other requests for this object were under way each time", where=bucket.uri(path), remedy="run again"
    )


def _upload_parts_once(
    bucket: Bucket, path: str, source: io.BufferedIOBase, size: int, condition: Mapping[str, str]
) -> bool | None:
    """Upload all parts and complete them on condition; None after a conflict. Incomplete uploads are aborted."""
    token = uuid.uuid4().hex
    target = {"Bucket": bucket.name, "Key": path}
    started = bucket.call(path, lambda client, _: client.create_multipart_upload(Metadata={_TOKEN: token}, **target))
    target["UploadId"] = started["UploadId"]
    put: bool | None = None
    try:
        parts = _upload_parts(bucket, path, source, size, target)

        def complete(client: Any, attempt: Attempt) -> bool | None:
            from botocore.exceptions import ClientError

            request = {**target, "MultipartUpload": {"Parts": parts}, **condition}
            try:
                return _decide(
                    client, attempt, bucket.name, path, token, lambda: client.complete_multipart_upload(**request)
                )
            except ClientError as error:
                if status_of(error) == CONFLICT:
                    return None
                raise

        put = bucket.call(path, complete)
    finally:
        if not put:
            with contextlib.suppress(StoreError):  # the error that led here says more
                bucket.call(path, lambda client, _: client.abort_multipart_upload(**target))
    return put


def _upload_parts(
    bucket: Bucket, path: str, source: io.BufferedIOBase, size: int, target: Mapping[str, str]
) -> list[dict[str, Any]]:
    part_bytes = max(PART_BYTES, -(-size // _MAX_PARTS))
    parts: list[dict[str, Any]] = []
    source.seek(0)
    for number in range(1, -(-size // part_bytes) + 1):
        part = io.BytesIO(source.read(part_bytes))

        def send(client: Any, attempt: Attempt, part: io.BytesIO = part, number: int = number) -> dict[str, Any]:
            part.seek(0)
            return client.upload_part(Body=_Body(part, attempt), PartNumber=number, **target)

        reply = bucket.call(path, send)
        checksums = {key: value for key, value in reply.items() if key.startswith("Checksum") and key != "ChecksumType"}
        parts.append({"PartNumber": number, "ETag": reply["ETag"], **checksums})
    return parts


def is_absent(bucket: Bucket, path: str) -> bool:
    """Return True if nothing is stored at a path."""
    from botocore.exceptions import ClientError

    def look(client: Any, _: Attempt) -> bool:
        try:
            client.head_object(Bucket=bucket.name, Key=path)
        except ClientError as error:
            if is_missing(error):
                return True
            raise
        return False

    return bucket.call(path, look)


class _Body(io.RawIOBase):
    """Request body that reports each MiB that is taken from it: a long upload is no silence."""

    def __init__(self, source: io.BufferedIOBase, attempt: Attempt) -> None:
        self._source, self._attempt, self._taken = source, attempt, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._source.seek(offset, whence)

    def tell(self) -> int:
        return self._source.tell()

    def read(self, size: int | None = -1, /) -> bytes:
        block = self._source.read(-1 if size is None else size)
        self._taken += len(block)
        if self._taken >= _ALIVE_BYTES:
            self._taken = 0
            self._attempt.alive()
        return block


@contextlib.contextmanager
def _opened(data: bytes | Path) -> Iterator[io.BufferedIOBase]:
    with data.open("rb") if isinstance(data, Path) else io.BytesIO(data) as source:
        yield source
