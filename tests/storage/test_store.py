"""Stores: what is created is there whole and never changes, on a disk and on an S3 server over HTTP."""

import io
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from counterpoise.errors import StoreError
from counterpoise.storage.local import LocalStore
from counterpoise.storage.s3 import S3Store
from counterpoise.storage.store import read
from counterpoise.storage.uri import open_store


@pytest.fixture(scope="module")
def bucket(s3_server):
    client = boto3.client("s3", endpoint_url=s3_server)
    client.create_bucket(Bucket="pictures")
    yield "pictures"
    client.close()


@pytest.fixture(params=["local", "s3", "s3-root"])
def store(request, tmp_path, monkeypatch):
    """An empty store of each kind."""
    if request.param == "local":
        return open_store(tmp_path / "store")
    server, name = request.getfixturevalue("s3_server"), request.getfixturevalue("bucket")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    if request.param == "s3":
        return open_store(f"s3://{name}/{tmp_path.name}/store")
    client = boto3.client("s3")
    client.create_bucket(Bucket=tmp_path.name.replace("_", "-")[:60].strip("-"))
    client.close()
    return open_store(f"s3://{tmp_path.name.replace('_', '-')[:60].strip('-')}")


def test_what_is_created_stays(store):
    store.check()
    assert not store.exists("a/b")
    assert store.create("a/b", b"one")
    assert not store.create("a/b", b"two")
    assert store.exists("a/b")
    assert read(store, "a/b") == b"one"
    store.replace("a/b", b"three")
    assert read(store, "a/b") == b"three"
    store.delete("a/b")
    store.delete("a/b")
    assert not store.exists("a/b")
    with pytest.raises(StoreError, match="nothing is stored at this key"):
        store.open("a/b")


def test_lists_by_prefix_and_hides_its_own_files(store):
    store.check()
    for key in ("pool/x/1", "pool/x/2", "pool/xy/3", "other"):
        store.create(key, b"")
    assert store.list("pool/x/") == ["pool/x/1", "pool/x/2"]
    assert store.list("pool/x") == ["pool/x/1", "pool/x/2", "pool/xy/3"]
    assert store.list("") == ["other", "pool/x/1", "pool/x/2", "pool/xy/3"]
    assert store.list("nothing/here/") == []


def test_takes_files(store, tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789" * 1000)
    assert store.create("file", tmp_path / "file")
    assert read(store, "file") == b"0123456789" * 1000


def test_reads_parts(store):
    data = np.random.default_rng(0).bytes(300_000)
    store.create("data", data)
    with store.open("data") as file:
        assert file.seekable()
        file.seek(-10, io.SEEK_END)
        assert file.read() == data[-10:]
        file.seek(200_000)
        assert file.read(100) == data[200_000:200_100]
        file.seek(20, io.SEEK_CUR)
        assert file.read(10) == data[200_120:200_130]
        assert file.tell() == 200_130
        file.seek(300_000)
        assert file.read(5) == b""
        file.seek(0)
        assert file.read() == data


def test_a_column_is_read_without_the_rest(bucket, s3_server, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    store = open_store(f"s3://{bucket}/{tmp_path.name}")
    buffer = io.BytesIO()
    images = [np.random.default_rng(i).bytes(1_000_000) for i in range(4)]
    pq.write_table(pa.table({"id": list("abcd"), "image": images, "label": [1, 2, 3, 4]}), buffer)
    store.create("t.parquet", buffer.getvalue())
    fetched = []
    original = S3Store.read_range
    monkeypatch.setattr(
        S3Store, "read_range", lambda self, key, a, b: fetched.append(b - a) or original(self, key, a, b)
    )
    with store.open("t.parquet") as file:
        assert pq.read_table(file, columns=["label"])["label"].to_pylist() == [1, 2, 3, 4]
    assert sum(fetched) < 400_000


def test_of_many_creators_one_wins(store):
    barrier = threading.Barrier(8)

    def attempt(number):
        barrier.wait()
        return store.create("contested", bytes([number]) * 100_000)

    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(attempt, range(8)))
    assert won.count(True) == 1
    assert read(store, "contested") == bytes([won.index(True)]) * 100_000


def test_a_conflict_is_asked_again(monkeypatch):
    """S3 answers 409 while another request for the key is under way. It may fail: only 412 says that one succeeded."""
    answers = [409, 409, 200]

    class Busy(BaseHTTPRequestHandler):
        def do_PUT(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            status = answers.pop(0)
            body = b"<Error><Code>ConditionalRequestConflict</Code></Error>" if status == 409 else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        assert open_store("s3://pictures").create("key", b"data")
        server.shutdown()
    assert answers == []


def test_is_used_from_other_processes(store, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)  # a worker on another machine may not have it
    copy = pickle.loads(pickle.dumps(store))
    assert copy.uri == store.uri
    assert copy.create("from/afar", b"x")
    assert store.exists("from/afar")


def test_a_killed_writer_leaves_no_object(tmp_path):
    code = (
        "import sys; from counterpoise.storage.uri import open_store\n"
        "store = open_store(sys.argv[1]); data = bytes(40_000_000); number = 0\n"
        "while True: store.create(f'k/{number}', data); number += 1; print(number, flush=True)"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "store")], stdout=subprocess.PIPE, env={**os.environ}
    )
    with writer:
        writer.stdout.readline()
        time.sleep(0.05)
        writer.kill()
        writer.stdout.read()
    store = LocalStore(tmp_path / "store")
    keys = store.list("k/")
    assert keys
    assert all((store.root / key).stat().st_size == 40_000_000 for key in keys)


def test_leftovers_are_swept_after_a_day(tmp_path):
    store = LocalStore(tmp_path / "store")
    store.check()
    old, new = store.root / ".tmp" / "old", store.root / ".tmp" / "new"
    old.write_bytes(b"")
    new.write_bytes(b"")
    os.utime(old, (0, 0))
    store.check()
    assert not old.exists()
    assert new.exists()


# -- places that cannot be used ----------------------------------------------------------------------------------------


def test_unknown_scheme():
    with pytest.raises(StoreError, match="unknown kind of store"):
        open_store("gs://bucket")


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be used as a store"):
        open_store(tmp_path / "file").check()
    with pytest.raises(StoreError, match="cannot be used as a store"):
        open_store(tmp_path / "file" / "below").check()


def test_a_folder_without_permission():
    with pytest.raises(StoreError, match="cannot be used as a store"):
        open_store("/proc/counterpoise").check()  # not writable even for root


def test_wrong_bucket(s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    with pytest.raises(StoreError, match="create the bucket"):
        open_store("s3://no-such-bucket/x").check()
    with pytest.raises(StoreError, match="create the bucket"):
        open_store("s3://no-such-bucket/x").create("key", b"")


def test_no_bucket_named():
    with pytest.raises(StoreError, match="bucket"):
        open_store("s3://")


def test_unreachable_endpoint(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(StoreError, match="AWS_ENDPOINT_URL"):
        open_store("s3://pictures/x").check()
    assert time.monotonic() - start < 60


def test_no_credentials(s3_server, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # it remembers the credentials of earlier tests
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID"):
        open_store("s3://pictures/x").check()


def test_permission_denied(bucket, strict_s3_server, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", strict_s3_server)
    with pytest.raises(StoreError, match=r"check the AWS credentials"):
        open_store("s3://pictures/x").check()
