"""Requests to an S3 bucket, with time limits and bounded retries that are told on standard error.

botocore's own retries are switched off: they are silent, and they end where a body begins.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from counterpoise.core.progress import warn
from counterpoise.storage.s3_errors import InvalidEndpointError, describe, error_types, is_transient, store_error

T = TypeVar("T")

_QUIET_SECONDS = 2.5  # a longer wait is told
_PROGRESS_BYTES = 8 << 20  # a request that got so far counts as a success: the tries begin anew
_told_at = float("-inf")
_creating = threading.Lock()
_clients: dict[Hashable, Any] = {}


def _renew_lock() -> None:
    global _creating
    _creating = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)  # a thread that held it does not live on in the child


@dataclass(frozen=True)
class Limits:
    """Time limits of an operation on one object.

    No try begins later than ``total_seconds`` after the last sign of life of the server, and none waits longer than
    ``read_seconds`` for a part of its answer: an operation that gets nowhere ends within the sum of both, a minute.
    MiB that the network takes of a large upload are signs of life, too.

    Args:
        connect_seconds: Time for a connection, and for the network to take a part of a request.
        read_seconds: Time without an answer, or for the next 16 KiB of one.
        tries: Number of tries.
        total_seconds: Time in which tries begin.
        pause: Pause after the first try; each next one is twice as long, of which a random half is left out.
        longest_pause: Longest pause.
    """

    connect_seconds: float = 4.0
    read_seconds: float = 15.0
    tries: int = 6
    total_seconds: float = 45.0
    pause: float = 0.25
    longest_pause: float = 5.0


class Attempt:
    """Tries of one operation: counts them, and tells on standard error about tries that fail and long waits.

    Attributes:
        tries: Number of tries since the last progress, from 1.
        is_retry: True from the second try on: the first may have reached the server although no answer came back.
    """

    def __init__(self, where: str, limits: Limits) -> None:
        self.where, self.limits, self.tries, self.is_retry = where, limits, 0, False
        self.all_tries, self.start, self._trouble = 0, time.monotonic(), ""
        self._alive_at, self._bytes, self._timer = self.start, 0, _timer(_QUIET_SECONDS, self._waiting)

    def __enter__(self) -> Attempt:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        timer, self._timer = self._timer, None
        timer.cancel()

    def alive(self, count: int = 0) -> None:
        """Record a sign of life: ``count`` bytes that need not be transferred again."""
        self._alive_at = time.monotonic()
        self._bytes += count

    def discard(self) -> None:
        """Record that what was transferred is of no use."""
        self._bytes = 0

    def begin(self) -> None:
        """Record that a try begins."""
        if self._bytes >= _PROGRESS_BYTES:
            self.tries = self._bytes = 0
        self.tries, self.all_tries = self.tries + 1, self.all_tries + 1
        self.is_retry = self.all_tries > 1

    def pause(self, error: BaseException) -> bool:
        """Wait before the next try. False if there is none: the error stays or the limits are reached."""
        limits = self.limits
        seconds = min(limits.pause * 2 ** (self.tries - 1), limits.longest_pause) * random.uniform(0.5, 1)
        late = time.monotonic() + seconds > self._alive_at + limits.total_seconds
        if not is_transient(error) or late or (self.tries >= limits.tries and self._bytes < _PROGRESS_BYTES):
            return False
        self._trouble = describe(error)
        _tell(f"{self.where}: {self._trouble}; trying again after try {self.tries} of {limits.tries}")
        time.sleep(seconds)
        return True

    def _waiting(self) -> None:
        if self._timer is None:
            return
        now = time.monotonic()
        silent = now - max(self._alive_at, _told_at)
        if silent >= _QUIET_SECONDS:
            history = f"; try {self.tries} of {self.limits.tries}, before: {self._trouble}" if self._trouble else ""
            _tell(f"{self.where}: waiting for the server for {now - self._alive_at:.0f} s{history}")
            silent = 0.0
        timer = _timer(_QUIET_SECONDS - silent, self._waiting)
        if self._timer is not None:
            self._timer = timer
            timer.start()


@dataclass(frozen=True)
class Bucket:
    """Bucket of a server, reached with time limits and retries.

    Args:
        name: Name of the bucket.
        endpoint: Address of the server; None for AWS.
        limits: Time limits of each operation.
    """

    name: str
    endpoint: str | None
    limits: Limits

    def uri(self, path: str) -> str:
        """Return the address of an object."""
        return f"s3://{self.name}/{path}".rstrip("/")

    def call(self, path: str, action: Callable[[Any, Attempt], T]) -> T:
        """Call ``action`` with a client until it succeeds. The action makes requests and reads their bodies.

        Args:
            path: Path in the bucket, for messages; may be empty.
            action: Gets the client and the attempt. It may run again from the start.

        Raises:
            StoreError: The server refuses, or the limits are reached.
        """
        where = self.uri(path)
        try:
            client = _client(self.endpoint, self.limits)
        except error_types() as error:
            raise store_error(error, where, 1, 0.0) from error
        with Attempt(where, self.limits) as attempt:
            while True:
                attempt.begin()
                try:
                    return action(client, attempt)
                except error_types() as error:
                    if not attempt.pause(error):
                        seconds = time.monotonic() - attempt.start
                        raise store_error(error, where, attempt.all_tries, seconds) from error

    def paths(self, prefix: str) -> list[str]:
        """Return the paths of all objects under a prefix, of all pages of the listing."""
        paths: list[str] = []
        request = {"Bucket": self.name, "Prefix": prefix}
        while True:
            page = self.call(prefix, partial(_list_page, request))
            paths += [entry["Key"] for entry in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                return paths
            request["ContinuationToken"] = page["NextContinuationToken"]


def _list_page(request: dict[str, Any], client: Any, _: Attempt) -> dict[str, Any]:
    return client.list_objects_v2(**request)


def _client(endpoint: str | None, limits: Limits) -> Any:
    """Return a client of this process: a forked child must not share its parent's connections.

    Making one takes tenths of a second, so that all stores with the same settings share theirs, also those that come
    with each task from another process.
    """
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))
    key = (os.getpid(), endpoint, limits, settings)
    with _creating:
        if key not in _clients:
            _clients[key] = _make_client(endpoint, limits)
        return _clients[key]


def _make_client(endpoint: str | None, limits: Limits) -> Any:
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=limits.connect_seconds,
        read_timeout=limits.read_seconds,
        max_pool_connections=32,
    )
    try:
        return boto3.session.Session().client("s3", endpoint_url=endpoint, config=config)
    except ValueError as error:  # botocore's answer to an endpoint that is no address
        raise InvalidEndpointError(str(error)) from error


def _timer(seconds: float, action: Callable[[], None]) -> Any:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    return timer


def _tell(message: str) -> None:
    """Warn, unless this process did so just now: many threads meet the same trouble at once."""
    global _told_at
    now = time.monotonic()
    if now - _told_at >= _QUIET_SECONDS - 0.1:
        _told_at = now
        with contextlib.suppress(OSError, ValueError):  # stderr is closed
            warn(message)
