"""S3 settings that are wrong, and servers that lack what a store needs: named before any work, with a remedy."""

import socket
import time
import uuid
from dataclasses import replace

import pytest

from counterpoise.errors import StoreError
from counterpoise.storage.s3 import S3Store
from counterpoise.storage.uri import open_store
from faulty_proxy import Rule


def test_a_server_without_conditional_puts(behind, proxy):
    proxy.rules.append(Rule("ignore", "PUT", times=99))
    with pytest.raises(StoreError, match="does not keep what was created first") as error:
        behind.check()
    assert "If-None-Match" in error.value.remedy
    proxy.rules.clear()
    assert behind._keys("") == []


def test_a_server_that_says_so(behind, proxy):
    proxy.rules.append(Rule("answer", "PUT", status=501, code="NotImplemented", times=99))
    with pytest.raises(StoreError, match="NotImplemented") as error:
        behind.check()
    assert "conditional puts" in error.value.remedy
    assert proxy.count("PUT") == 1


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_policy_that_forbids_one_operation(behind, proxy, method):
    proxy.rules.append(Rule("answer", method, status=403, code="AccessDenied", times=99))
    with pytest.raises(StoreError, match="it must allow Get, Put, Delete and List"):
        behind.check()


def test_wrong_bucket(s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    for use in (lambda store: store.check(), lambda store: store.create("key", b""), lambda store: store.list("")):
        with pytest.raises(StoreError, match="create the bucket"):
            use(open_store("s3://no-such-bucket/x"))


def test_unreachable_endpoint(behind, monkeypatch, capfd):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:hunter2@127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(StoreError, match="AWS_ENDPOINT_URL") as error:
        S3Store("pictures", "x", behind.limits).check()
    assert time.monotonic() - start < 10
    assert "hunter2" not in str(error.value) + capfd.readouterr().err


@pytest.mark.parametrize(
    "use", [lambda store: store.read("k"), lambda store: store.create("k", b"x"), lambda store: store.list("")]
)
def test_an_endpoint_that_never_answers(behind, monkeypatch, use):
    with socket.socket() as listener:  # accepts by its backlog
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        limits, start = replace(behind.limits, total_seconds=2.5, tries=99), time.monotonic()
        with pytest.raises(StoreError, match="no answer in time"):
            use(S3Store("pictures", "x", limits))
        assert time.monotonic() - start < limits.total_seconds + limits.read_seconds + 2


def test_an_endpoint_that_is_no_address(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    with pytest.raises(StoreError, match="http://host:9000"):
        open_store("s3://pictures/x").check()


def test_an_endpoint_that_is_not_s3(behind, proxy):
    proxy.rules.append(Rule("answer", "GET", status=200, body="<html><p>Welcome", times=99))
    with pytest.raises(StoreError, match="the address of an S3 server"):
        behind.list("")


def test_no_credentials(s3_server, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID"):
        open_store("s3://pictures/x").check()


def test_permission_denied(bucket, strict_s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", strict_s3_server)
    with pytest.raises(StoreError, match=r"check the AWS credentials"):
        open_store(f"s3://pictures/{uuid.uuid4().hex}").check()
