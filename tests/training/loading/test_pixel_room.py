"""The limit of the cache of decoded images: what is evicted for others, and what is decoded each time."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import counterpoise.storage.view
from counterpoise.errors import ConfigError, DataError
from counterpoise.storage.codec import decode_image
from counterpoise.training.loading import pixel_view
from counterpoise.training.loading.pixel_block import Block, allocation
from counterpoise.training.loading.pixel_cache import PixelCache
from counterpoise.training.loading.pixel_room import cache_folder, reserve
from toy_bias import make_view

SIZE = 32  # pixels; a row is 3,072 bytes
ROOM = 37 * 3072 + 4096  # bytes of 37 rows and their marks, and less than a page of rounding
ROOM += -ROOM % 4096


@pytest.fixture
def view(store):
    return make_view(store, "some", [[20, 5], [3, 9]])


@pytest.fixture
def others(store):
    """Three views of the same length as ``view``."""
    return [make_view(store, f"other{seed}", [[20, 5], [3, 9]], seed=seed) for seed in range(1, 4)]


@pytest.fixture
def calls(monkeypatch):
    """An entry for each image that is decoded."""
    counted, decode = [], decode_image
    monkeypatch.setattr(counterpoise.storage.view, "decode_image", lambda *a: counted.append(1) or decode(*a))
    return counted


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch):
    """Warnings are new, and no view is small enough to be held in memory."""
    monkeypatch.setattr(pixel_view, "_MEMORY_BYTES", 0)
    pixel_view._warn_uncached.cache_clear()
    pixel_view._warn_full.cache_clear()


def decoded(view):
    images = dict(view.images())
    return np.stack([decode_image(images[position], SIZE) for position in range(len(view))])


def blocks():
    """Paths of all blocks."""
    return sorted((cache_folder() / "pixels").rglob("*.px"))


def used():
    return sum(path.stat().st_blocks for path in blocks()) * 512


def full_disk(monkeypatch, free, total=1 << 40):
    usage = shutil.disk_usage("/")._replace(total=total, free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def limit(monkeypatch, size):
    monkeypatch.setenv("COUNTERPOISE_CACHE_LIMIT", str(size))


def check(cache, *views):
    """All images are right, in any order."""
    expected = np.concatenate([decoded(view) for view in views])
    order = np.random.default_rng(1).integers(0, len(cache), 3 * len(cache))
    np.testing.assert_array_equal(cache[order], expected[order])


def count(calls, view):
    """The number of images that are decoded when a cache of the view is opened and read."""
    calls.clear()
    cache = PixelCache([view], SIZE)
    cache[np.arange(len(view))]
    return len(calls)


def age(seconds):
    """Make all blocks look unused for some time, without changing their order."""
    for path in blocks():
        used = path.stat().st_mtime - seconds
        os.utime(path, (used, used))


# -- no room -----------------------------------------------------------------------------------------------------------


def test_without_room_images_are_decoded_each_time_and_are_the_same(view, others, monkeypatch, calls, capsys):
    full_disk(monkeypatch, free=(1 << 30) + 1000)
    cache = PixelCache([view, others[0]], SIZE)
    assert blocks() == []
    assert calls == []
    assert cache[np.arange(0)].shape == (0, SIZE, SIZE, 3)
    check(cache, view, others[0])
    calls.clear()
    cache[np.array([3, 3, 50, 3])]
    assert len(calls) == 2  # each once
    assert blocks() == []
    (said,) = capsys.readouterr().err.splitlines()  # of both views, which are alike
    assert said.split()[1] == "37"
    assert "COUNTERPOISE_CACHE_LIMIT" in said
    PixelCache([view, others[0]], SIZE)
    assert not capsys.readouterr().err  # said once


@pytest.mark.parametrize(
    ("free", "total", "fits"),
    [
        ((1 << 30) + ROOM, 1 << 40, True),  # a GiB stays free,
        ((1 << 30) + ROOM - 1, 1 << 40, False),
        (1000 + ROOM, 10_000, True),  # or a tenth of a small disk
        (1000 + ROOM - 1, 10_000, False),
    ],
)
def test_what_stays_free(view, monkeypatch, free, total, fits):
    full_disk(monkeypatch, free, total)
    check(PixelCache([view], SIZE), view)
    assert bool(blocks()) == fits


def test_the_limit_is_of_all_that_the_cache_holds(view, others, monkeypatch, calls):
    limit(monkeypatch, ROOM - 1)
    check(PixelCache([view], SIZE), view)
    assert blocks() == []
    limit(monkeypatch, 2 * ROOM)
    both = PixelCache([view, others[0]], SIZE)
    assert used() == 2 * ROOM
    third = PixelCache([others[1]], SIZE)  # what this process uses is not evicted
    assert used() == 2 * ROOM
    calls.clear()
    check(both, view, others[0])
    assert calls == []
    check(third, others[1])
    assert len(calls) > 0


def test_what_is_there_is_used_whatever_the_limit(view, monkeypatch, calls):
    assert count(calls, view) == 37
    limit(monkeypatch, 0)
    assert count(calls, view) == 0


def test_a_limit_that_is_no_number_is_an_error(view, monkeypatch):
    limit(monkeypatch, "20 GB")
    with pytest.raises(ConfigError, match="bytes"):
        PixelCache([view], SIZE)


def test_of_a_view_that_does_not_fit_some_blocks_are_kept(store, monkeypatch, calls):
    large = make_view(store, "large", [[200, 100], [100, 200]])  # blocks of 256, 256 and 88 rows
    limit(monkeypatch, 350 * 3072 + 8 * 4096)
    cache = PixelCache([large], SIZE)
    assert len(calls) == 256 + 88
    calls.clear()
    check(cache, large)
    assert 0 < len(calls) <= 256
    assert used() <= 350 * 3072 + 8 * 4096


# -- eviction ----------------------------------------------------------------------------------------------------------


def test_what_was_used_longest_ago_makes_room(view, others, monkeypatch, calls):
    limit(monkeypatch, 3 * ROOM)
    for some in (view, *others[:2]):
        assert count(calls, some) == 37
        age(5)
    assert count(calls, view) == 0  # used again
    age(5)
    assert count(calls, others[2]) == 37
    assert used() == 3 * ROOM
    assert count(calls, view) == 0
    assert count(calls, others[1]) == 0
    assert count(calls, others[0]) == 37  # it had to make room


def test_reading_counts_as_use(view, others, monkeypatch, calls):
    limit(monkeypatch, 2 * ROOM)
    monkeypatch.setattr(pixel_view, "_TOUCH_SECONDS", 0.0)
    early = PixelCache([view], SIZE)
    PixelCache([others[0]], SIZE)
    age(5)
    early[np.arange(5)]
    del early
    PixelCache([others[1]], SIZE)
    assert count(calls, view) == 0


def test_sizes_share_the_limit(view, monkeypatch):
    limit(monkeypatch, ROOM)
    PixelCache([view], SIZE)
    PixelCache([view], SIZE // 2)
    assert [path.parent.parent.name for path in blocks()] == [str(SIZE // 2)]


def test_a_reader_keeps_what_is_evicted_or_decodes_it(view, calls):
    cache = PixelCache([view], SIZE)
    cache[np.arange(3)]
    for path in blocks():
        path.unlink()  # as another process does
    check(cache, view)
    assert len(calls) == 37  # when the cache was filled
    cache._parts[0]._opened = pixel_view.OpenBlocks(cache_folder() / "pixels", SIZE)  # all have been closed
    np.testing.assert_array_equal(cache[np.arange(37)], decoded(view))
    assert len(calls) == 2 * 37


def test_a_block_that_was_evicted_is_closed_so_that_its_space_is_free(view, monkeypatch):
    monkeypatch.setattr(pixel_view, "_TOUCH_SECONDS", 0.0)
    cache = PixelCache([view], SIZE)
    cache[np.arange(3)]
    (path,) = blocks()
    opened = cache._parts[0]._opened
    assert len(opened._open) == 1
    path.unlink()
    np.testing.assert_array_equal(cache[np.arange(37)], decoded(view))
    assert len(opened._open) == 0


def test_evicted_images_come_back_when_there_is_room(view, monkeypatch, calls):
    monkeypatch.setattr(pixel_view, "_TOUCH_SECONDS", 0.0)
    limit(monkeypatch, ROOM)
    cache = PixelCache([view], SIZE)
    (path,) = blocks()
    path.unlink()
    taker = reserve(cache_folder() / "pixels", SIZE, {f"{SIZE}/aa/other.px": np.arange(256) < 37}, [])
    assert len(taker) == 1
    cache[np.arange(37)]  # notices that the block is gone,
    cache[np.arange(37)]  # and finds no room: the other block is in use
    assert path not in blocks()
    age(7200)
    cache[np.arange(37)]  # the other block is idle
    assert blocks() == [path]
    calls.clear()
    cache[np.arange(37)]
    assert calls == []


def test_readers_during_eviction(view, others, monkeypatch):
    """Threads open and read caches that do not fit together; pixels are right and the limit holds."""
    limit(monkeypatch, 2 * ROOM)
    wrong, sizes, end = [], [], time.monotonic() + 3

    def work(some):
        expected = decoded(some)
        while time.monotonic() < end:
            cache = PixelCache([some], SIZE)
            for seed in range(3):
                order = np.random.default_rng(seed).integers(0, 37, 20)
                if not np.array_equal(cache[order], expected[order]):
                    wrong.append(some)
            sizes.append(used_now())

    def used_now():
        total = 0
        for path in blocks():
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:
                return 0  # evicted while it is counted
        return total

    threads = [threading.Thread(target=work, args=(some,)) for some in (view, *others)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(sizes) > 8
    assert used() <= 2 * ROOM


_CROWD = """
import pickle, sys
import numpy as np
from counterpoise.training.loading.pixel_cache import PixelCache
views, sums = pickle.load(sys.stdin.buffer), []
for view in views * 5:
    pixels = PixelCache([view], 32)[np.arange(len(view))]
    sums.append(pixels.astype(np.int64).sum().item())
print(sums)
"""


def test_processes_that_evict_each_other(view, others, monkeypatch):
    limit(monkeypatch, 2 * ROOM)
    views = [view, *others]
    processes = [
        subprocess.Popen([sys.executable, "-c", _CROWD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    for number, process in enumerate(processes):
        pickle.dump(views[number:] + views[:number], process.stdin)
        process.stdin.close()
    sums = [int(decoded(some).astype(np.int64).sum()) for some in views]
    for number, process in enumerate(processes):
        assert json.loads(process.stdout.read()) == (sums[number:] + sums[:number]) * 5
        assert process.wait() == 0
        process.stdout.close()
    assert used() <= 2 * ROOM


def test_fits_of_the_same_view_reserve_its_space_once(view, monkeypatch, calls):
    """The space that one has reserved but not yet filled is not wanted again by the next."""
    limit(monkeypatch, ROOM)
    decode = counterpoise.storage.view.decode_image
    second = []

    def slow(*given):
        if not second:
            second.append(None)
            wanted = {blocks()[0].relative_to(cache_folder() / "pixels").as_posix(): np.arange(256) < 37}
            second.append(reserve(cache_folder() / "pixels", SIZE, wanted, list(wanted)) == set(wanted))
        return decode(*given)

    monkeypatch.setattr(counterpoise.storage.view, "decode_image", slow)
    PixelCache([view], SIZE)
    assert second == [None, True]


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["pwrite", "posix_fallocate"])
def test_a_disk_that_fills_up_meanwhile_ends_caching(view, monkeypatch, capsys, calls, code, call):
    real, seen = getattr(os, call), []

    def full(*given):
        seen.append(1)
        if len(seen) > (20 if call == "pwrite" else 0):
            raise OSError(code, "the disk is full")
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        cache = PixelCache([view], SIZE)
        check(cache, view)
        tried = len(seen)
        check(cache, view)
        assert len(seen) == tried  # nothing more is tried
        assert len(capsys.readouterr().err.splitlines()) == 1
    PixelCache([view], SIZE)  # the next one tries again
    calls.clear()
    check(PixelCache([view], SIZE), view)
    assert calls == []


def test_decoding_each_time_names_the_row_that_is_unreadable(view, monkeypatch):
    decode = counterpoise.storage.view.decode_image
    bad = dict(view.images())[7]

    def broken(data, size):
        if data == bad:
            raise OSError("truncated")
        return decode(data, size)

    monkeypatch.setattr(counterpoise.storage.view, "decode_image", broken)
    limit(monkeypatch, 0)
    cache = PixelCache([view], SIZE)
    assert len(cache[np.array([6, 8])]) == 2
    with pytest.raises(DataError, match="some/7"):
        cache[np.array([6, 7])]


@pytest.mark.parametrize("size", [1, 5, 16, 37, 64])
def test_the_space_of_rows_is_as_computed(tmp_path, size):
    random = np.random.default_rng(size)
    for number, share in enumerate((0.02, 0.3, 1.0)):
        rows = random.random(256) < share
        block = Block.create(tmp_path / str(number), size)
        block.reserve(rows)
        needed = allocation(rows, size)
        assert needed - 4096 <= block.allocated <= needed + 4096  # the marks may share a page; an extent's list may not
        for row in np.flatnonzero(rows).tolist():
            block.write(row, random.integers(0, 256, (size, size, 3), np.uint8))
        assert block.allocated <= needed + 4096
