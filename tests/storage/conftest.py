"""Stores of each kind, and an S3 server behind a proxy that breaks answers."""

import uuid

import boto3
import pytest

from counterpoise.storage.s3 import S3Store
from counterpoise.storage.s3_requests import Limits
from counterpoise.storage.uri import open_store
from faulty_proxy import FaultyProxy

BUCKET = "pictures"
# as the real limits, a tenth as long
SHORT = Limits(connect_seconds=2.0, read_seconds=1.0, tries=4, total_seconds=6.0, pause=0.05, longest_pause=0.2)


def make_bucket(server, name):
    client = boto3.client("s3", endpoint_url=server)
    client.create_bucket(Bucket=name)
    client.close()
    return name


@pytest.fixture(scope="session")
def bucket(s3_server):
    return make_bucket(s3_server, BUCKET)


@pytest.fixture(params=["local", "local without links", "s3", "s3 without prefix"])
def store(request, tmp_path, monkeypatch):
    """An empty store of each kind."""
    if request.param.startswith("local"):
        if request.param == "local without links":
            monkeypatch.setattr("os.link", refuse_link)
        return open_store(tmp_path / "store")
    server, name = request.getfixturevalue("s3_server"), request.getfixturevalue("bucket")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    if request.param == "s3":
        return open_store(f"s3://{name}/{uuid.uuid4().hex}/a store #1")
    return open_store(f"s3://{make_bucket(server, uuid.uuid4().hex)}")


def refuse_link(source, target):
    raise PermissionError(1, "Operation not permitted", str(source), None, str(target))


@pytest.fixture
def proxy(s3_server, bucket):
    with FaultyProxy(s3_server) as proxy:
        yield proxy


@pytest.fixture
def behind(proxy, monkeypatch):
    """An S3 store behind the proxy, with short limits."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
    return S3Store(BUCKET, uuid.uuid4().hex, SHORT)
