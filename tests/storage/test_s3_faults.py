"""Faults between a client and an S3 server: reads come out right, creations happen once, or a clear error is quick."""

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from counterpoise.errors import StoreError
from counterpoise.storage import s3_requests, s3_upload
from counterpoise.storage.s3 import S3Store
from faulty_proxy import Rule

DATA = np.random.default_rng(0).bytes(3_000_000)


@pytest.fixture
def stored(behind, proxy, monkeypatch):
    """A store with 3 MB at "data"; what was asked and told to put them there is forgotten."""
    assert behind.create("data", DATA)
    proxy.requests.clear()
    monkeypatch.setattr(s3_requests, "_told_at", float("-inf"))
    return behind


# -- requests ----------------------------------------------------------------------------------------------------------


def test_a_read_is_one_get(stored, proxy):
    assert stored.read("data") == DATA
    assert [(request.method, request.sent) for request in proxy.requests] == [("GET", len(DATA))]


def test_a_range_is_one_get(stored, proxy):
    assert stored.read_range("data", 1000, 2000) == DATA[1000:2000]
    assert [(request.method, request.sent) for request in proxy.requests] == [("GET", 1000)]


def test_a_reader_of_a_small_object_is_one_get(behind, proxy):
    behind.create("small", DATA[:200_000])
    proxy.requests.clear()
    with behind.open("small") as file:
        assert file.read() == DATA[:200_000]
    assert [request.method for request in proxy.requests] == ["GET"]


def test_a_reader_asks_for_large_blocks(stored, proxy):
    with stored.open("data") as file:
        parts = [file.read(8192) for _ in range(len(DATA) // 8192 + 1)]
    assert b"".join(parts) == DATA
    assert proxy.count("GET") == len(proxy.requests) == 4  # the end, and three blocks of at most 1 MiB
    assert sum(request.sent for request in proxy.requests) == len(DATA)


def test_a_reader_reads_the_whole_in_two_gets(stored, proxy):
    with stored.open("data") as file:
        assert file.read() == DATA
    assert [request.method for request in proxy.requests] == ["GET", "GET"]


def test_a_column_is_read_without_the_rest(behind, proxy):
    buffer = io.BytesIO()
    images = [DATA[start : start + 700_000] for start in range(0, 2_800_000, 700_000)]
    pq.write_table(pa.table({"id": list("abcd"), "image": images, "label": [1, 2, 3, 4]}), buffer)
    behind.create("t.parquet", buffer.getvalue())
    proxy.requests.clear()
    with behind.open("t.parquet") as file:
        assert pq.read_table(file, columns=["label"])["label"].to_pylist() == [1, 2, 3, 4]
    assert proxy.count("GET") == len(proxy.requests) <= 2
    assert sum(request.sent for request in proxy.requests) < 400_000


def test_a_creation_is_one_put(behind, proxy):
    behind.create("new", DATA)
    assert [request.method for request in proxy.requests] == ["PUT"]


# -- reads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        Rule("cut", after=0),
        Rule("cut", after=1_500_000),
        Rule("cut", after=900_000, times=3),
        Rule("stall", after=0),
        Rule("stall", after=1_500_000),
        Rule("drip", after=1_500_000),
        Rule("refuse"),
        Rule("lose"),
        Rule("answer", status=500, code="InternalError"),
        Rule("answer", status=503, code="SlowDown", times=3),
        Rule("answer", status=429, code="TooManyRequests"),
        Rule("flip", after=1_500_000),
    ],
    ids=lambda rule: f"{rule.fault} {rule.after or rule.code} x{rule.times}",
)
def test_a_read_survives(stored, proxy, rule, capfd):
    proxy.rules.append(rule)
    assert stored.read("data") == DATA
    assert rule.times == 0
    assert capfd.readouterr().err.startswith(f"warning: {stored.uri}/data: ")


def test_only_what_is_missing_is_asked_for_again(stored, proxy):
    proxy.rules.append(Rule("cut", after=2_000_000))
    assert stored.read("data") == DATA
    ranges = [request.headers.get("Range") for request in proxy.requests]
    assert ranges == [None, f"bytes=2000000-{len(DATA) - 1}"]


def test_an_object_that_is_replaced_between_two_tries(stored, proxy):
    """The halves of two versions are no object: the second try notices and begins anew."""
    proxy.rules.append(Rule("cut", after=2_000_000, times=1))
    other = bytes(3_000_000)
    original = s3_requests.Attempt.pause

    def replace_meanwhile(self, error):
        stored.replace("data", other)
        return original(self, error)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s3_requests.Attempt, "pause", replace_meanwhile)
        assert stored.read("data") == other


def test_a_reader_of_an_object_that_is_replaced(stored):
    with stored.open("data") as file:
        stored.replace("data", bytes(3_000_000))
        with pytest.raises(StoreError, match="another process replaced this object"):
            file.read()


@pytest.mark.parametrize(
    ("rule", "found", "remedy"),
    [
        (Rule("cut", after=9), "cut in the middle", "check the network"),
        (Rule("stall", after=9), "no answer in time", "check the network"),
        (Rule("drip", after=9), "no answer in time", "check the network"),
        (Rule("refuse"), "closed without an answer", "check the network"),
        (Rule("answer", status=503, code="SlowDown"), "503 SlowDown", "overloaded"),
        (Rule("answer", status=500, code="InternalError"), "500 InternalError", "run again later"),
        (Rule("answer", status=403, code="AccessDenied"), "403 AccessDenied", "the bucket's policy"),
        (Rule("answer", status=403, code="InvalidAccessKeyId"), "InvalidAccessKeyId", "AWS_ACCESS_KEY_ID"),
        (Rule("answer", status=403, code="SignatureDoesNotMatch"), "Signature", "AWS_SECRET_ACCESS_KEY"),
        (Rule("answer", status=403, code="RequestTimeTooSkewed"), "Skewed", "clock"),
        (Rule("answer", status=404, code="NoSuchBucket"), "NoSuchBucket", "create the bucket"),
        (Rule("answer", status=501, code="NotImplemented"), "501 NotImplemented", "conditional puts"),
        (Rule("answer", status=400, code="BadDigest"), "BadDigest", "AWS_REQUEST_CHECKSUM_CALCULATION"),
        (Rule("answer", status=412, code="PreconditionFailed"), "412", "another process"),
        (Rule("answer", status=418, code="Teapot"), "418 Teapot", "AWS_ENDPOINT_URL"),
        (Rule("flip", after=9), "checksum", "AWS_RESPONSE_CHECKSUM_VALIDATION"),
    ],
    ids=lambda value: f"{value.fault} {value.code}" if isinstance(value, Rule) else "",
)
def test_a_read_ends_in_a_clear_error(stored, proxy, rule, found, remedy):
    proxy.rules.append(replace(rule, times=1000))
    start = time.monotonic()
    with pytest.raises(StoreError) as error:
        stored.read("data")
    limits = stored.limits
    assert time.monotonic() - start < limits.total_seconds + limits.read_seconds + 2
    assert str(error.value.where) == f"{stored.uri}/data"
    assert found in str(error.value.found)
    assert remedy in str(error.value.remedy)
    assert len(proxy.requests) <= limits.tries


def test_a_refusal_is_not_asked_again(stored, proxy):
    proxy.rules.append(Rule("answer", status=403, code="AccessDenied", times=9))
    with pytest.raises(StoreError):
        stored.read("data")
    assert len(proxy.requests) == 1


def test_progress_earns_new_tries(behind, proxy, monkeypatch):
    """A large object over a line that breaks each few MB arrives, in more tries than one place would get."""
    monkeypatch.setattr(s3_requests, "_PROGRESS_BYTES", 200_000)
    behind.create("data", DATA)
    proxy.rules.append(Rule("cut", after=300_000, times=9))
    assert behind.read("data") == DATA
    assert proxy.count("GET") == 10 > behind.limits.tries


def test_long_waits_are_told(stored, proxy, monkeypatch, capfd):
    store = S3Store(stored.bucket, stored.prefix, replace(stored.limits, read_seconds=2.0, total_seconds=10.0))
    monkeypatch.setattr(s3_requests, "_QUIET_SECONDS", 0.5)
    proxy.rules.append(Rule("stall", times=2))
    assert store.read("data") == DATA
    lines = [line for line in capfd.readouterr().err.splitlines() if "waiting for the server" in line]
    assert len(lines) >= 4
    assert lines[-1].endswith("; try 2 of 4, before: no answer in time")


def test_many_threads_complain_once(stored, proxy, monkeypatch, capfd):
    monkeypatch.setattr(s3_requests, "_QUIET_SECONDS", 60.0)
    proxy.rules.append(Rule("answer", times=8))
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(stored.read, ["data"] * 8)) == [DATA] * 8
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_other_requests_survive(stored, proxy):
    faults = [Rule("answer"), Rule("refuse"), Rule("lose")]
    for method in ("HEAD", "DELETE", "GET"):
        proxy.rules += [replace(rule, method=method) for rule in faults]
    assert stored.size("data") == len(DATA)
    stored.delete("data")
    assert stored.list("") == []
    assert not any(rule.times for rule in proxy.rules)


# -- writes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["lose", "refuse", "answer"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_creation_happens_once(behind, proxy, fault, times):
    proxy.rules.append(Rule(fault, "PUT", times=times))
    assert behind.create("key", b"mine"), "this call put it, in whichever try"
    assert not behind.create("key", b"theirs")
    assert behind.read("key") == b"mine"


@pytest.mark.parametrize("content", [b"theirs", b"mine"])
def test_a_creation_after_another_writer(behind, proxy, content):
    """Even the same bytes are another's if another put them."""
    behind.create("key", content)
    proxy.rules.append(Rule("answer", "PUT"))
    assert not behind.create("key", b"mine")
    assert behind.read("key") == content


def test_of_many_creators_one_wins_although_answers_are_lost(behind, proxy):
    proxy.rules.append(Rule("lose", "PUT", times=6))
    barrier = threading.Barrier(6)

    def create(number):
        barrier.wait()
        return behind.create("contested", bytes([number]) * 50_000)

    with ThreadPoolExecutor(6) as threads:
        won = list(threads.map(create, range(6)))
    assert won.count(True) == 1
    assert behind.read("contested") == bytes([won.index(True)]) * 50_000


@pytest.mark.parametrize("fault", ["lose", "refuse", "answer"])
def test_a_swap_happens_once(behind, proxy, fault):
    behind.create("lease", b"1")
    proxy.rules.append(Rule(fault, "PUT", times=2))
    assert behind.swap("lease", b"1", b"2")
    assert not behind.swap("lease", b"1", b"3")
    assert behind.read("lease") == b"2"


def test_a_conflict_is_asked_again(behind, proxy):
    """S3 answers 409 while another request for the key is under way. It may fail: only 412 says that one succeeded."""
    proxy.rules.append(Rule("answer", "PUT", status=409, code="ConditionalRequestConflict", times=2))
    assert behind.create("key", b"data")
    assert proxy.count("PUT") == 3


def test_a_creation_that_nobody_answers(behind, proxy):
    proxy.rules.append(Rule("refuse", "PUT", times=99))
    with pytest.raises(StoreError, match="closed without an answer") as error:
        behind.create("key", b"mine")
    assert f"({behind.limits.tries} tries" in error.value.found
    assert not behind.exists("key")


# -- large objects -----------------------------------------------------------------------------------------------------


@pytest.fixture
def in_parts(monkeypatch):
    """Objects over 6 MB go up in parts of 5 MiB, the smallest that S3 takes."""
    monkeypatch.setattr(s3_upload, "MULTIPART_BYTES", 6_000_000)
    monkeypatch.setattr(s3_upload, "PART_BYTES", 5 << 20)


LARGE = np.random.default_rng(1).bytes(12_000_000)


def unfinished(store, server):
    client = boto3.client("s3", endpoint_url=server)
    uploads = client.list_multipart_uploads(Bucket=store.bucket, Prefix=store.prefix).get("Uploads", [])
    client.close()
    return uploads


@pytest.mark.parametrize("kind", ["bytes", "file"])
def test_large_objects_go_up_in_parts(behind, proxy, in_parts, tmp_path, kind, s3_server):
    (tmp_path / "large").write_bytes(LARGE)
    assert behind.create("large", LARGE if kind == "bytes" else tmp_path / "large")
    assert proxy.count("PUT", "partNumber") == 3
    assert behind.read("large") == LARGE
    assert not behind.create("large", LARGE[::-1])
    assert behind.read("large") == LARGE
    behind.replace("large", LARGE[::-1])
    assert behind.read("large") == LARGE[::-1]
    assert not unfinished(behind, s3_server)


@pytest.mark.parametrize("fault", ["lose", "refuse", "answer"])
def test_a_large_creation_happens_once(behind, proxy, in_parts, fault, s3_server):
    for method, path in (("POST", "uploadId"), ("PUT", "partNumber=2")):
        proxy.rules.append(Rule(fault, method, path))
    assert behind.create("large", LARGE)
    assert not behind.create("large", LARGE[::-1])
    assert behind.read("large") == LARGE
    assert not any(rule.times for rule in proxy.rules)
    assert not unfinished(behind, s3_server)


def test_of_two_large_creators_one_wins(behind, in_parts, s3_server):
    """The completion is conditional: both have sent all their parts by then."""
    contents, barrier = [LARGE, LARGE[::-1]], threading.Barrier(2)

    def create(content):
        barrier.wait()
        return behind.create("large", content)

    with ThreadPoolExecutor(2) as threads:
        won = list(threads.map(create, contents))
    assert won.count(True) == 1
    assert behind.read("large") == contents[won.index(True)]
    assert not unfinished(behind, s3_server)


def test_a_conflict_of_completions_sends_all_parts_anew(behind, proxy, in_parts, s3_server):
    proxy.rules.append(Rule("answer", "POST", "uploadId", status=409, code="ConditionalRequestConflict"))
    assert behind.create("large", LARGE)
    assert proxy.count("PUT", "partNumber") == 6
    assert not unfinished(behind, s3_server)


def test_no_parts_are_left_after_a_failure(behind, proxy, in_parts, s3_server):
    proxy.rules.append(Rule("answer", "PUT", "partNumber=2", status=403, code="AccessDenied"))
    with pytest.raises(StoreError, match="AccessDenied"):
        behind.create("large", LARGE)
    assert not behind.exists("large")
    assert not unfinished(behind, s3_server)
