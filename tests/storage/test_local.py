"""Local stores: kills, leftovers, and folders that cannot be used."""

import errno
import os
import subprocess
import sys
import time

import pytest

from counterpoise.errors import StoreError
from counterpoise.storage.local import LocalStore
from counterpoise.storage.uri import open_store


def kill_a_writer(folder, statement, setup=""):
    """Start a process that repeats a statement on a store, and kill it in the middle of its work."""
    code = (
        f"import os, sys; from counterpoise.storage.uri import open_store\n{setup}\n"
        "store = open_store(sys.argv[1]); data = bytes(20_000_000); number = 0\n"
        f"while True: {statement}; number += 1; print(number, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE) as writer:
        writer.stdout.readline()
        time.sleep(0.05)
        writer.kill()
        writer.stdout.read()


@pytest.mark.parametrize("links", [True, False])
def test_a_killed_writer_leaves_no_object(tmp_path, links):
    refuse = "" if links else "def link(*_): raise PermissionError(1, 'no')\nos.link = link"
    kill_a_writer(tmp_path / "store", "store.create(f'k/{number}', data)", refuse)
    store = LocalStore(tmp_path / "store")
    keys = store.list("k/")
    assert keys
    assert all(store.size(key) == 20_000_000 for key in keys)


def test_a_killed_holder_leaves_no_lock(tmp_path):
    kill_a_writer(tmp_path / "store", "store.replace('k', data)")
    store = LocalStore(tmp_path / "store")
    start = time.monotonic()
    assert store.swap("k", bytes(20_000_000), b"new")
    assert time.monotonic() - start < 5


def test_leftovers_are_swept_after_a_day(tmp_path):
    store = LocalStore(tmp_path / "store")
    store.check()
    old, new, lock = (store.root / ".tmp" / name for name in ("old", "new", "lock"))
    for path in (old, new, lock):
        path.write_bytes(b"")
    for path in (old, lock):
        os.utime(path, (0, 0))
    store.check()
    assert not old.exists()
    assert new.exists()
    assert lock.exists(), "another process may hold it"


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EACCES])
def test_a_folder_without_hard_links(tmp_path, monkeypatch, code):
    def link(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.link", link)
    store = open_store(tmp_path)
    store.check()
    assert store.create("k", b"one")
    assert not store.create("k", b"two")
    assert store.read("k") == b"one"


def test_a_failure_that_is_not_about_links_is_told(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.link", link)
    with pytest.raises(StoreError, match="free space on this disk"):
        open_store(tmp_path).create("k", b"one")
    assert open_store(tmp_path).list("") == []


def test_a_lock_that_is_never_free(tmp_path, monkeypatch):
    from filelock import FileLock

    store = open_store(tmp_path)
    store.check()
    monkeypatch.setattr("counterpoise.storage.local._LOCK_SECONDS", 0.2)
    with FileLock(tmp_path / ".tmp/lock"), pytest.raises(StoreError, match="held this store's lock"):
        store.replace("k", b"")


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be used as a store"):
        open_store(tmp_path / "file").check()
    with pytest.raises(StoreError, match="cannot be used as a store"):
        open_store(tmp_path / "file" / "below").check()


def test_a_folder_without_permission():
    with pytest.raises(StoreError, match="cannot be used as a store"):
        open_store("/proc/counterpoise").check()  # not writable even for root


def test_a_key_that_is_too_long(tmp_path):
    with pytest.raises(StoreError, match="shorter path"):
        open_store(tmp_path).create("x" * 300, b"")
