"""Errors of S3 requests: which are worth another try, and the remedy for each of the others.

botocore's errors come in two kinds: ``ClientError`` with the server's answer, and ``BotoCoreError`` without one
(connections that fail, settings that are missing). Answers to HEAD have no body, hence no code but the HTTP status.
"""

from __future__ import annotations

import http.client

from counterpoise.core.addresses import without_passwords
from counterpoise.errors import StoreError

CONFLICT, PRECONDITION_FAILED, RANGE_NOT_SATISFIABLE = 409, 412, 416
_NOT_IMPLEMENTED = 501

_KEYS = (
    "check the AWS credentials: this server does not accept AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
    "AWS_SESSION_TOKEN"
)
_REGION = "set AWS_DEFAULT_REGION to the bucket's region"
_BUSY = "the server is overloaded: run again later, or with fewer workers; what is stored is kept"
_FAILED = (
    "look into the server's log, check that AWS_ENDPOINT_URL is the address of an S3 server, or run again later: what "
    "is stored is kept"
)
_FULL = "free space on the server, or raise the bucket's quota"
_CHECKSUM = (
    "the bytes changed on their way: check the network and any proxy. An older server that does not know these "
    "checksums works with AWS_REQUEST_CHECKSUM_CALCULATION=when_required and "
    "AWS_RESPONSE_CHECKSUM_VALIDATION=when_required"
)
_FEATURE = (
    "use a server with conditional puts (If-None-Match); if it has them and lacks newer checksums, set "
    "AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
)
_ENDPOINT = "check AWS_ENDPOINT_URL, the network and that the server runs"
_CUT = "check the network, any proxy and the server, then run again: what is stored is kept"
_SETTINGS = "check AWS_ENDPOINT_URL, AWS_DEFAULT_REGION, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_POLICY = "check the AWS credentials and the bucket's policy (it must allow Get, Put, Delete and List)"

_BY_CODE = {
    "NoSuchBucket": "create the bucket, or set `store:` to another one",
    "InvalidBucketName": "set `store:` to s3://bucket/prefix with the name of a bucket",
    "AccessDenied": _POLICY,
    "AllAccessDisabled": _POLICY,
    "InvalidAccessKeyId": _KEYS,
    "SignatureDoesNotMatch": _KEYS,
    "ExpiredToken": _KEYS,
    "InvalidToken": _KEYS,
    "RequestTimeTooSkewed": "set this machine's clock: it differs too much from the server's",
    "SlowDown": _BUSY,
    "ServiceUnavailable": _BUSY,
    "NotImplemented": _FEATURE,
    "BadDigest": _CHECKSUM,
    "InvalidDigest": _CHECKSUM,
    "XAmzContentChecksumMismatch": _CHECKSUM,
    "XAmzContentSHA256Mismatch": _CHECKSUM,
    "PreconditionFailed": "another process replaced this object meanwhile: run again",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "KeyTooLongError": "set `store:` to a shorter prefix",
    "QuotaExceeded": _FULL,
    "XMinioStorageFull": _FULL,
}
_BY_STATUS = {
    301: _REGION,
    403: _POLICY,
    404: "create the bucket, or set `store:` to another one",
    PRECONDITION_FAILED: _BY_CODE["PreconditionFailed"],
    429: _BUSY,
    _NOT_IMPLEMENTED: _FEATURE,
    503: _BUSY,
    507: _FULL,
}
_BY_KIND = {  # names of botocore's and urllib3's exceptions
    "EndpointConnectionError": _ENDPOINT,
    "ConnectTimeoutError": _ENDPOINT,
    "ProxyConnectionError": f"{_ENDPOINT}; HTTP_PROXY, HTTPS_PROXY and NO_PROXY apply",
    "SSLError": "check that AWS_ENDPOINT_URL has the right scheme, http or https, and the server's certificate "
    "(AWS_CA_BUNDLE)",
    "InvalidEndpointError": "set AWS_ENDPOINT_URL to an address such as http://host:9000",
    "FlexibleChecksumError": _CHECKSUM,
    "NoRegionError": _REGION,
    "ProfileNotFound": "set AWS_PROFILE to one of the profiles in ~/.aws/config",
    "ReadTimeoutError": _CUT,
    "ConnectionClosedError": _CUT,
    "ResponseStreamingError": _CUT,
    "IncompleteReadError": _CUT,
    "ResponseParserError": "check that AWS_ENDPOINT_URL is the address of an S3 server",
}
_PHRASES = {
    "EndpointConnectionError": "no connection",
    "ConnectTimeoutError": "no connection in time",
    "ReadTimeoutError": "no answer in time",
    "ConnectionClosedError": "the connection was closed without an answer",
    "ResponseStreamingError": "the connection was cut in the middle of the answer",
    "IncompleteReadError": "the connection was cut in the middle of the answer",
    "ResponseParserError": "the answer is not one of S3",
}
_BRIEF_TROUBLE = {"SSLError", "HTTPClientError", "FlexibleChecksumError", "ProxyConnectionError", *_PHRASES}
_TRANSIENT_CODES = {"RequestTimeout", "BadDigest", "Throttling", "ThrottlingException", "RequestLimitExceeded"}


class InvalidEndpointError(ValueError):
    """An endpoint that is no address."""


def error_types() -> tuple[type[BaseException], ...]:
    """Return all exceptions that a request to S3 may end in."""
    import urllib3
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    kinds = (BotoCoreError, ClientError, ResponseParserError, InvalidEndpointError)
    return (*kinds, urllib3.exceptions.HTTPError, http.client.HTTPException, ConnectionError, TimeoutError)


def code_of(error: BaseException) -> str:
    """Return the server's error code; empty if there is none, as in answers to HEAD."""
    code = str(_answer(error).get("Error", {}).get("Code", ""))
    return "" if code.isdigit() else code


def status_of(error: BaseException) -> int:
    """Return the HTTP status of the server's answer; 0 if there was no answer."""
    return _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode") or 0


def is_missing(error: BaseException) -> bool:
    """Return True if the server says that nothing is stored at the key."""
    return status_of(error) == 404 and code_of(error) in ("", "NoSuchKey", "NotFound")


def is_transient(error: BaseException) -> bool:
    """Return True if the same request may succeed in a moment: the connection failed, or the server is busy."""
    status = status_of(error)
    if status == 0:
        return not _is_setting(error)
    busy = status in (408, 429, CONFLICT) or (status >= 500 and status not in (_NOT_IMPLEMENTED, 507))
    return busy or code_of(error) in _TRANSIENT_CODES


def describe(error: BaseException) -> str:
    """Return what happened, in one line without passwords."""
    kind = type(error).__name__
    if status_of(error):
        answer = _answer(error).get("Error", {})
        name = code_of(error) or http.client.responses.get(status_of(error), "an error")
        message = str(answer.get("Message") or "")
        text = f"the server answered {status_of(error)} {name}" + (f": {message}" if message not in ("", name) else "")
    elif kind == "EndpointConnectionError":
        text = str(error)
    else:
        text = _PHRASES.get(kind) or str(error) or kind
    return without_passwords(" ".join(text.split()))


def store_error(error: BaseException, where: str, tries: int, seconds: float) -> StoreError:
    """Return the error for the user, with the remedy that follows the server's code.

    Args:
        error: One of :func:`error_types`.
        where: URI of the object or bucket.
        tries: Number of requests made.
        seconds: Time that they took.
    """
    if is_missing(error):
        return StoreError("nothing is stored at this key", where=where)
    found = describe(error) + (f" ({tries} tries in {seconds:.0f} s)" if tries > 1 else "")
    remedy = _BY_CODE.get(code_of(error)) or _BY_STATUS.get(status_of(error))
    if remedy is None and status_of(error) == 0:
        remedy = _BY_KIND.get(type(error).__name__, _SETTINGS if _is_setting(error) else _CUT)
    if remedy is None:
        remedy = _FAILED if status_of(error) >= 500 else _SETTINGS
    return StoreError("S3 cannot do this request", where=where, found=found, remedy=remedy)


def _answer(error: BaseException) -> dict:
    # botocore's HTTP errors have `response = None`
    answer = getattr(error, "response", None)
    return answer if isinstance(answer, dict) else {}


def _is_setting(error: BaseException) -> bool:
    """Return True for errors without an answer that come from this process's settings: no credentials, no region."""
    from botocore.exceptions import BotoCoreError

    kinds = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, (BotoCoreError, InvalidEndpointError)) and not kinds & _BRIEF_TROUBLE
