"""Addresses of stores, taken literally."""

from pathlib import Path

import pytest

from counterpoise.errors import StoreError
from counterpoise.storage.uri import open_store


@pytest.mark.parametrize(
    ("uri", "prefix"),
    [
        ("s3://bucket/exp#1", "exp#1"),
        ("s3://bucket/exp?v=2", "exp?v=2"),
        ("s3://bucket/a%41 b", "a%41 b"),
        ("s3://bucket/a/b/", "a/b"),
        ("s3://bucket/a@b:c;d", "a@b:c;d"),
        ("s3://bucket", ""),
        ("S3://bucket/x", "x"),
    ],
)
def test_buckets(uri, prefix):
    store = open_store(uri)
    assert (store.bucket, store.prefix) == ("bucket", prefix)
    assert open_store(store.uri).uri == store.uri == f"s3://bucket/{prefix}".rstrip("/")


@pytest.mark.parametrize(
    "name", ["my store #1", "a?b", "%41", "100%", "a:b", "s3", "file:", "a://b", "ä", "x;y", "[1]"]
)
def test_folders(tmp_path, monkeypatch, name):
    store = open_store(f"{tmp_path}/{name}")
    store.create("k", b"x")
    assert (tmp_path / name / "k").read_bytes() == b"x"
    assert store.uri == str(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    if "://" not in name and not name.endswith(":"):
        assert open_store(name).read("k") == b"x"
    assert open_store(Path(name)).read("k") == b"x"


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("file:///tmp/a%20b", "/tmp/a b"),
        ("file://localhost/tmp/x", "/tmp/x"),
        ("FILE:///tmp/x", "/tmp/x"),
        ("file:///tmp/a#b?c", "/tmp/a#b?c"),
        ("file:///tmp/%2541", "/tmp/%41"),
        ("file:/tmp/x", "/tmp/x"),
        ("~/x", "~/x"),
    ],
)
def test_files(uri, folder):
    assert open_store(uri).uri == str(Path(folder).expanduser())


@pytest.mark.parametrize("uri", ["file://tmp/x", "file://host/x"])
def test_files_of_another_machine(uri):
    with pytest.raises(StoreError, match="cannot name another machine") as error:
        open_store(uri)
    assert f"folder /{uri.removeprefix('file://')}," in error.value.remedy


@pytest.mark.parametrize("uri", ["gs://bucket/x", "az://container", "https://host/bucket", "hdfs://x/y"])
def test_other_kinds(uri):
    with pytest.raises(StoreError, match="unknown kind of store") as error:
        open_store(uri)
    assert "AWS_ENDPOINT_URL" in error.value.remedy


@pytest.mark.parametrize("uri", ["s3://", "s3:///x", "s3:/bucket/x"])
def test_no_bucket_named(uri):
    with pytest.raises(StoreError, match="there is no bucket in the address"):
        open_store(uri)


@pytest.mark.parametrize("uri", ["s3://a#b/x", "s3://a b/x", "s3://a?b"])
def test_what_is_no_bucket(uri):
    with pytest.raises(StoreError, match="characters that none has"):
        open_store(uri)


@pytest.mark.parametrize("uri", ["", "a\0b"])
def test_what_is_no_address(uri):
    with pytest.raises(StoreError, match="no address of a store"):
        open_store(uri)


def test_an_unknown_home():
    with pytest.raises(StoreError, match="full path"):
        open_store("~no-such-user/x")


@pytest.mark.parametrize("uri", ["s3://me:hunter2@bucket/x", "gs://me:hunter2@bucket/x", "file://me:hunter2@host/x"])
def test_passwords_are_not_printed(uri):
    with pytest.raises(StoreError) as error:
        open_store(uri)
    assert "hunter2" not in str(error.value)
