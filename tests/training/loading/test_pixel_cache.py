"""Decoded images in a cache that all views and processes share."""

import errno
import os
import pickle
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import counterpoise.storage.view
from counterpoise.errors import DataError, StoreError
from counterpoise.storage.codec import decode_image
from counterpoise.storage.uri import open_store
from counterpoise.storage.view import ImageView
from counterpoise.training.loading import pixel_view
from counterpoise.training.loading.pixel_block import ROWS, Block
from counterpoise.training.loading.pixel_cache import PixelCache
from counterpoise.training.loading.pixel_room import cache_folder
from toy_bias import NAMES, make_view


@pytest.fixture
def view(store):
    return make_view(store, "some", [[20, 5], [3, 9]])


@pytest.fixture
def large(store):
    """Rows in three blocks, the last of 88."""
    return make_view(store, "large", [[200, 100], [100, 200]])


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch):
    """Warnings are new, and no view is small enough to be held in memory."""
    monkeypatch.setattr(pixel_view, "_MEMORY_BYTES", 0)
    pixel_view._warn_uncached.cache_clear()


@pytest.fixture
def calls(monkeypatch):
    """An entry for each image that is decoded."""
    counted, decode = [], decode_image
    monkeypatch.setattr(counterpoise.storage.view, "decode_image", lambda *a: counted.append(1) or decode(*a))
    return counted


def decoded(view, size):
    images = dict(view.images())
    return np.stack([decode_image(images[position], size) for position in range(len(view))])


def blocks():
    """Paths of all blocks."""
    return sorted((cache_folder() / "pixels").rglob("*.px"))


def everything(cache):
    return cache[np.arange(len(cache))]


# -- pixels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 9])
def test_pixels_are_the_decoded_images_in_the_views_order(large, size):
    shuffled = large.take(np.random.default_rng(0).permutation(len(large))[:300])
    expected = decoded(shuffled, size)
    found = PixelCache([shuffled], size)
    assert len(found) == 300
    assert found.shape == (300, size, size, 3)
    order = np.random.default_rng(1).integers(0, 300, 500)
    np.testing.assert_array_equal(found[order], expected[order])
    np.testing.assert_array_equal(found[np.array([7, 7, 0])], expected[[7, 7, 0]])
    assert found[order[:0]].shape == (0, size, size, 3)


def test_threads_give_the_same(large, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    positions = np.random.default_rng(0).integers(0, 600, 2000)  # large enough to be read by threads
    expected = decoded(large, 32)
    np.testing.assert_array_equal(PixelCache([large], 32)[positions], expected[positions])


def test_several_views_are_one_array(store, view, large):
    both = PixelCache([large, ImageView.empty(store, NAMES), view], 16)
    expected = np.concatenate([decoded(large, 16), decoded(view, 16)])
    order = np.random.default_rng(0).permutation(len(both))
    np.testing.assert_array_equal(both[order], expected[order])


def test_a_view_of_several_files_whose_keys_are_encoded_in_any_way(view, large):
    joined = (large + view).take(np.random.default_rng(0).permutation(600 + 37))
    keys = joined.index["key"].dictionary_encode()
    encoded = ImageView(
        joined.store, NAMES, joined.index.set_column(joined.index.column_names.index("key"), "key", keys)
    )
    expected = decoded(joined, 16)
    np.testing.assert_array_equal(everything(PixelCache([joined], 16)), expected)
    np.testing.assert_array_equal(everything(PixelCache([encoded], 16)), expected)
    assert len(blocks()) == 4


def test_an_empty_view_has_no_files(store):
    empty = PixelCache([ImageView.empty(store, NAMES)], 16)
    assert len(empty) == 0
    assert empty[np.arange(0)].shape == (0, 16, 16, 3)
    assert blocks() == []


def test_a_view_with_the_same_image_twice(view, calls):
    twice = view + view.take(np.arange(5))
    found = everything(PixelCache([twice], 16))
    assert len(calls) == len(view)
    np.testing.assert_array_equal(found, decoded(twice, 16))


def test_small_views_are_held_in_memory_from_the_second_time_on(view, calls, capsys, monkeypatch):
    monkeypatch.setattr(pixel_view, "_MEMORY_BYTES", 37 * 16 * 16 * 3)
    monkeypatch.setenv("COUNTERPOISE_CACHE_LIMIT", "0")
    cache, expected, order = PixelCache([view], 16), decoded(view, 16), np.random.default_rng(0).integers(0, 37, 200)
    for _ in range(4):
        np.testing.assert_array_equal(everything(cache), expected)
    np.testing.assert_array_equal(cache[order], expected[order])
    assert len(calls) == 2 * 37
    assert not capsys.readouterr().err
    monkeypatch.setattr(pixel_view, "_MEMORY_BYTES", 37 * 16 * 16 * 3 - 1)
    cache = PixelCache([view], 16)
    for _ in range(4):
        everything(cache)
    assert len(calls) == (2 + 4) * 37
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_small_views_among_several(view, large, monkeypatch):
    monkeypatch.setattr(pixel_view, "_MEMORY_BYTES", 37 * 16 * 16 * 3)
    both, expected = PixelCache([large, view, view], 16), decoded(large + view + view, 16)
    for seed in range(4):
        order = np.random.default_rng(seed).integers(0, len(both), 900)
        np.testing.assert_array_equal(both[order], expected[order])
    assert [part._memory is None for part in both._parts] == [True, False, False]


# -- sharing -----------------------------------------------------------------------------------------------------------


def test_views_of_the_same_images_decode_them_once(large, calls):
    PixelCache([large], 16)
    assert len(calls) == len(large)
    shuffled = large.take(np.random.default_rng(0).permutation(len(large)))
    found = everything(PixelCache([shuffled, large.take(np.arange(50))], 16))
    assert len(calls) == len(large)
    np.testing.assert_array_equal(found[-50:], decoded(large.take(np.arange(50)), 16))


def test_a_subset_decodes_and_stores_only_its_rows(store, large, calls):
    some = np.random.default_rng(0).permutation(len(large))[:30]
    PixelCache([large.take(some)], 64)
    assert len(calls) == 30
    row = 64 * 64 * 3
    assert sum(path.stat().st_blocks for path in blocks()) * 512 <= 30 * (row + 4096) + 4 * 4096
    PixelCache([large], 64)
    assert len(calls) == len(large)


def test_sizes_are_apart(view, calls):
    PixelCache([view], 16)
    np.testing.assert_array_equal(everything(PixelCache([view], 8)), decoded(view, 8))
    assert len(calls) == 2 * len(view)


def test_stores_are_apart(view, tmp_path, calls):
    other = make_view(open_store(tmp_path / "another"), "some", [[20, 5], [3, 9]], seed=1)
    PixelCache([view], 16)
    np.testing.assert_array_equal(everything(PixelCache([other], 16)), decoded(other, 16))
    assert len(calls) == 2 * len(view)


def test_fits_that_start_together_decode_once(large, calls):
    threads = [threading.Thread(target=PixelCache, args=([large], 16)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == len(large)


def test_a_cache_sees_what_another_has_decoded_since(view, calls, monkeypatch):
    PixelCache([view.take(np.arange(10))], 16)
    monkeypatch.setenv("COUNTERPOISE_CACHE_LIMIT", "0")
    early = PixelCache([view], 16)
    early[np.arange(5)]  # the block is open, with ten rows
    monkeypatch.delenv("COUNTERPOISE_CACHE_LIMIT")
    PixelCache([view], 16)
    calls.clear()
    np.testing.assert_array_equal(everything(early), decoded(view, 16))
    assert calls == []


_READER = """
import os, pickle, sys
import numpy as np
import counterpoise.storage.view
from counterpoise.training.loading.pixel_cache import PixelCache
decode, calls = counterpoise.storage.view.decode_image, []
counterpoise.storage.view.decode_image = lambda *given: calls.append(1) or decode(*given)
view = pickle.load(sys.stdin.buffer)
np.save(sys.argv[1], PixelCache([view], 16)[np.arange(len(view))])
print(len(calls))
"""


def test_processes_that_start_together_share_the_work(store, tmp_path):
    view = make_view(store, "huge", [[1000, 1000], [1000, 1000]])
    processes = []
    for number in range(2):
        command = [sys.executable, "-c", _READER, os.fspath(tmp_path / f"{number}.npy")]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
    for process in processes:
        pickle.dump(view, process.stdin)
    for process in processes:
        process.stdin.close()
    counts = [int(process.stdout.read()) for process in processes]
    for process in processes:
        assert process.wait() == 0
        process.stdout.close()
    expected = decoded(view, 16)
    for number in range(2):
        np.testing.assert_array_equal(np.load(tmp_path / f"{number}.npy"), expected)
    assert sum(counts) == len(view)


# -- faults ------------------------------------------------------------------------------------------------------------


_KILLED = """
import os, pickle, signal, sys
import counterpoise.storage.view
from counterpoise.training.loading import pixel_block
from counterpoise.training.loading.pixel_cache import PixelCache
write, seen = pixel_block._write, []
def killing(descriptor, data, offset):
    seen.append(1)
    if len(seen) == 39:  # pixels of the 20th row: half of them are written
        write(descriptor, data[:300], offset)
        os.kill(os.getpid(), signal.SIGKILL)
    write(descriptor, data, offset)
pixel_block._write = killing
PixelCache([pickle.load(sys.stdin.buffer)], 16)
"""


def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(view, calls):
    killed = subprocess.run([sys.executable, "-c", _KILLED], input=pickle.dumps(view), check=False)
    assert killed.returncode == -signal.SIGKILL
    np.testing.assert_array_equal(everything(PixelCache([view], 16)), decoded(view, 16))
    assert len(calls) == len(view) - 19


def test_pixels_that_a_power_failure_lost_are_decoded_again(view, calls):
    PixelCache([view], 16)
    (path,) = blocks()
    with path.open("r+b") as file:
        file.seek(11 * 768)
        file.write(bytes(2 * 768))
    calls.clear()
    cache = PixelCache([view], 16)
    np.testing.assert_array_equal(everything(cache), decoded(view, 16))
    assert len(calls) == 2
    everything(PixelCache([view], 16))
    assert len(calls) == 2  # they have been written again


@pytest.mark.parametrize("length", [100, 40 * 768, 1 << 20])
def test_a_block_of_another_length_is_made_again(view, calls, capsys, length):
    PixelCache([view], 16)
    (path,) = blocks()
    os.truncate(path, length)
    calls.clear()
    capsys.readouterr()
    np.testing.assert_array_equal(everything(PixelCache([view], 16)), decoded(view, 16))
    assert len(calls) == len(view)
    (said,) = capsys.readouterr().err.splitlines()
    assert str(path) in said
    PixelCache([view], 16)
    assert not capsys.readouterr().err


def test_a_block_that_is_cut_off_while_it_is_open_is_decoded(view):
    cache, expected = PixelCache([view], 16), decoded(view, 16)
    np.testing.assert_array_equal(everything(cache), expected)
    (path,) = blocks()
    os.truncate(path, 20 * 768)
    np.testing.assert_array_equal(everything(cache), expected)


def test_an_unreadable_image_names_its_row_and_ends_the_claim(view, monkeypatch):
    decode, bad = decode_image, dict(view.images())[7]

    def broken(data, size):
        if data == bad:
            raise OSError("truncated")
        return decode(data, size)

    monkeypatch.setattr(counterpoise.storage.view, "decode_image", broken)
    with pytest.raises(DataError, match="some/7"):
        PixelCache([view], 16)
    with pytest.raises(DataError, match="some/7"):  # at once: nobody waits for the first attempt
        PixelCache([view], 16)
    others = view.take(np.delete(np.arange(37), 7))
    np.testing.assert_array_equal(everything(PixelCache([others], 16)), decoded(others, 16))


def test_a_block_that_another_machine_has_evicted_is_decoded(view, monkeypatch):
    def stale(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    cache, expected = PixelCache([view], 16), decoded(view, 16)
    monkeypatch.setattr(os, "preadv", stale)
    np.testing.assert_array_equal(everything(cache), expected)


def test_a_cache_folder_that_cannot_be_written_is_a_store_error(view, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COUNTERPOISE_CACHE", os.fspath(tmp_path / "file"))
    with pytest.raises(StoreError, match="COUNTERPOISE_CACHE"):
        PixelCache([view], 16)


def test_an_error_of_the_disk_is_a_store_error(view, monkeypatch):
    def broken(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", broken)
        with pytest.raises(StoreError, match="Input/output"):
            PixelCache([view], 16)
    cache = PixelCache([view], 16)
    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(StoreError, match="Input/output"):
        everything(cache)


def test_arrays_of_whole_views_that_earlier_versions_kept_are_removed(view):
    folder = cache_folder() / "pixels"
    folder.mkdir(parents=True)
    former = [folder / name for name in ("0123-16.npy", ".0123-16.npy", "0123-16.npy.lock")]
    for path in former:
        path.write_bytes(b"pixels")
    PixelCache([view], 16)
    assert not any(path.exists() for path in former)


def test_a_block_reads_what_it_has(tmp_path):
    block = Block.create(tmp_path / "a" / "block", 5)
    images = np.random.default_rng(0).integers(0, 256, (3, 5, 5, 3), np.uint8)
    for row, pixels in zip((0, 7, ROWS - 1), images, strict=True):
        block.write(row, pixels)
    opened, values = Block.open(tmp_path / "a" / "block", 5), np.empty(75, np.uint8)
    assert np.flatnonzero(opened.marks).tolist() == [0, 7, 255]
    for row, pixels in zip((0, 7, ROWS - 1), images, strict=True):
        assert opened.read(row, values.data) == opened.marks[row]
        np.testing.assert_array_equal(values, pixels.reshape(-1))
    assert opened.read(8, values.data) == 0
    assert Block.open(tmp_path / "none", 5) is None
    assert Block.open(tmp_path / "a" / "block", 6) is None
