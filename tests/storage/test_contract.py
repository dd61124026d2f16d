"""Contract of all stores: what is created is there whole and never changes, in a folder and on an S3 server."""

import io
import multiprocessing
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import boto3
import numpy as np
import pytest
from moto.s3.models import s3_backends

from counterpoise.errors import StoreError
from counterpoise.storage.store import Store, read
from counterpoise.storage.uri import open_store

MISSING = "nothing is stored at this key"
ODD_KEYS = [
    "a b", " a", "a#1", "a?v=2", "%41", "a%2Fb", "a+b", "a&b=c", "ä/ß", "日本/x", "'q\"", "a\\b", "[r]", "{k}", "~x",
    "a:b", "..a/b..", ".hidden", "x" * 200, "<a>", "$HOME", "*", "e\u0301",
]  # fmt: skip


def test_is_a_store(store):
    assert isinstance(store, Store)


def test_what_is_created_stays(store):
    store.check()
    assert not store.exists("a/b")
    assert store.create("a/b", b"one")
    assert not store.create("a/b", b"two")
    assert store.exists("a/b")
    assert store.read("a/b") == read(store, "a/b") == b"one"
    assert store.size("a/b") == 3
    store.replace("a/b", b"three")
    assert store.read("a/b") == b"three"
    store.delete("a/b")
    store.delete("a/b")
    assert not store.exists("a/b")
    assert store.create("a/b", b"four")


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.read("a/b"),
        lambda store: store.read_range("a/b", 0, 1),
        lambda store: store.read_range("a/b", 0, 0),
        lambda store: store.size("a/b"),
        lambda store: store.open("a/b"),
    ],
    ids=["read", "range", "empty range", "size", "open"],
)
def test_missing_keys(store, use):
    store.create("a/b/c", b"a folder of another key is no object")
    with pytest.raises(StoreError, match=MISSING) as error:
        use(store)
    assert str(error.value.where) == f"{store.uri}/a/b"
    assert not store.exists("a/b")


@pytest.mark.parametrize("key", ["", "/a", "a/", "a//b", "../a", "a/../b", "a/./b", "a\0b", "a\nb"])
def test_what_is_no_key(store, key):
    for use in (store.read, store.exists, store.delete, lambda key: store.create(key, b"")):
        with pytest.raises(StoreError, match="this is not a key"):
            use(key)


def test_odd_keys(store):
    for index, key in enumerate(ODD_KEYS):
        assert store.create(key, str(index).encode()), key
    assert store.list("") == sorted(ODD_KEYS)
    for index, key in enumerate(ODD_KEYS):
        assert store.read(key) == str(index).encode(), key
        assert key in store.list(key)
        with store.open(key) as file:
            assert file.read() == str(index).encode()


def test_lists_by_prefix_and_hides_its_own_files(store):
    store.check()
    for key in ("pool/x/1", "pool/x/2", "pool/xy/3", "other", ".tmpx"):
        store.create(key, b"")
    assert store.list("pool/x/") == ["pool/x/1", "pool/x/2"]
    assert store.list("pool/x") == ["pool/x/1", "pool/x/2", "pool/xy/3"]
    assert store.list("") == [".tmpx", "other", "pool/x/1", "pool/x/2", "pool/xy/3"]
    assert store.list("nothing/here/") == []
    assert store.list("other/") == []


@pytest.mark.parametrize("store", ["local", "s3"], indirect=True)
def test_lists_more_than_one_page(store):
    keys = [f"many/{number:04}" for number in range(2101)]
    store.create(keys[0], b"")
    for key in keys[1:]:  # put there directly, which is quicker
        if store.uri.startswith("s3://"):
            s3_backends["123456789012"]["aws"].put_object(store.bucket, f"{store.prefix}/{key}", b"")
        else:
            (store.root / key).write_bytes(b"")
    assert store.list("many/") == keys


def test_takes_files(store, tmp_path):
    (tmp_path / "file").write_bytes(b"0123456789" * 1000)
    assert store.create("file", tmp_path / "file")
    assert store.read("file") == b"0123456789" * 1000
    (tmp_path / "file").write_bytes(b"new")
    store.replace("file", tmp_path / "file")
    assert store.read("file") == b"new"
    with pytest.raises(FileNotFoundError):  # the caller's mistake, which says nothing about the store
        store.create("other", tmp_path / "missing")


@pytest.mark.parametrize("size", [0, 1, 300_000, 3_000_000])
def test_ranges_and_readers(store, size):
    data = np.random.default_rng(0).bytes(size)
    store.create("data", data)
    assert store.read("data") == data
    assert store.size("data") == size
    spans = [(0, size), (0, 0), (5, 5), (7, 3), (0, 1), (size - 1, size), (size, size + 9), (size + 7, size + 9)]
    for start, stop in [*spans, (size // 3, size // 2), (size // 2, 10 * size + 1)]:
        if start >= 0:
            assert store.read_range("data", start, stop) == data[start:stop], (start, stop)
    with pytest.raises(ValueError, match="-1"):
        store.read_range("data", -1, 3)


def test_a_reader_is_a_file(store):
    data = np.random.default_rng(0).bytes(3_000_000)
    store.create("data", data)
    rng = np.random.default_rng(1)
    with store.open("data") as file:
        assert file.seekable()
        file.seek(-10, io.SEEK_END)
        assert file.read() == data[-10:]
        file.seek(200_000)
        assert file.read(100) == data[200_000:200_100]
        file.seek(20, io.SEEK_CUR)
        assert file.read(10) == data[200_120:200_130]
        assert file.tell() == 200_130
        file.seek(3_000_007)
        assert file.read(5) == b""
        for start, length in zip(rng.integers(0, 3_000_000, 50), rng.integers(0, 1_500_000, 50), strict=True):
            file.seek(int(start))
            assert file.read(int(length)) == data[start : start + length]
        file.seek(0)
        assert file.read() == data
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


# -- several writers ---------------------------------------------------------------------------------------------------


def race(action, count=8):
    """The results of several threads that start at once."""
    barrier = threading.Barrier(count)

    def start(number):
        barrier.wait()
        return action(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(start, range(count)))


def test_of_many_creators_one_wins(store):
    for turn in range(5):
        key = f"contested/{turn}"
        won = race(lambda number, key=key: store.create(key, bytes([number]) * 100_000))
        assert won.count(True) == 1
        assert store.read(key) == bytes([won.index(True)]) * 100_000


def test_swaps_what_is_expected(store):
    assert not store.swap("lease", b"", b"mine"), "nothing is there, which is not the same as nothing in it"
    assert not store.exists("lease")
    assert store.swap("lease", None, b"mine")
    assert not store.swap("lease", None, b"theirs")
    assert not store.swap("lease", b"other", b"theirs")
    assert store.read("lease") == b"mine"
    assert store.swap("lease", b"mine", b"renewed")
    assert store.read("lease") == b"renewed"
    store.delete("lease")
    assert not store.swap("lease", b"renewed", b"again")
    assert not store.exists("lease")


def test_of_many_swaps_one_wins(store):
    content = None
    for _ in range(3):
        won = race(
            lambda number, content=content: store.swap("lease", content, b"%d after %s" % (number, content or b""))
        )
        assert won.count(True) == 1
        content = b"%d after %s" % (won.index(True), content or b"")
        assert store.read("lease") == content


def test_no_swap_is_lost(store):
    """Four threads count up together: each number is somebody's, and only one's."""
    store.create("counter", b"0")

    def count(_):
        for _ in range(5):
            while True:
                present = store.read("counter")
                if store.swap("counter", present, b"%d" % (int(present) + 1)):
                    break

    race(count, 4)
    assert store.read("counter") == b"20"


def test_readers_never_see_half_an_object(store):
    contents = {bytes([number]) * 400_000 for number in range(4)}
    store.create("report", min(contents))
    over = threading.Event()
    seen = set()

    def look():
        while not over.is_set():
            seen.add(store.read("report"))
            with store.open("report") as file:
                file.seek(300_000)
                seen.add(file.read(1) * 400_000)

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for content in [*contents] * 5:
        store.replace("report", content)
    over.set()
    for reader in readers:
        reader.join()
    assert seen <= contents


def test_is_used_from_other_processes(store, monkeypatch):
    store.check()  # its client exists
    copy = pickle.loads(pickle.dumps(store))
    assert copy.uri == store.uri
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)  # a worker on another machine may not have it
    for kind in ("fork", "spawn"):
        with multiprocessing.get_context(kind).Pool(1) as processes:
            assert processes.apply(create_from_afar, (copy, f"from/{kind}"))
    assert store.list("from/") == ["from/fork", "from/spawn"]


def create_from_afar(store, key):
    return store.create(key, b"x")


# -- the check before work ---------------------------------------------------------------------------------------------


def test_the_check_leaves_nothing_behind(store, s3_server):
    store.check()
    store.check()
    assert store.list("") == []
    if store.uri.startswith("s3://"):
        client = boto3.client("s3", endpoint_url=s3_server)
        assert client.list_objects_v2(Bucket=store.bucket, Prefix=store.prefix)["KeyCount"] == 0
        client.close()
    else:
        assert [path for path in store.root.rglob("*") if path.is_file() and path.name != "lock"] == []


@pytest.mark.parametrize("broken", ["create", "_keys", "delete"])
def test_the_check_finds_a_store_that_breaks_its_word(store, broken, monkeypatch):
    answers = {"create": lambda key, data: store.replace(key, data) or True, "_keys": lambda prefix: []}
    monkeypatch.setattr(store, broken, answers.get(broken, lambda key: None))
    with pytest.raises(StoreError, match=r"this store (does not (keep|list)|keeps)"):
        store.check()


def test_reopens_at_its_address(store):
    store.create("key", b"x")
    assert open_store(store.uri).read("key") == b"x"
