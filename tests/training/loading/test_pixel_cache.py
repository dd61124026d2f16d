"""Views decoded once into memory-mapped arrays, or each time where there is no room for these."""

import errno
import io
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

import counterpoise.storage.view
from counterpoise.errors import ConfigError, DataError, StoreError
from counterpoise.storage.codec import decode_image
from counterpoise.storage.schema import REAL, make_table
from counterpoise.storage.view import ImageView
from counterpoise.training.loading.pixel_cache import PixelCache, cache_folder
from counterpoise.training.loading.pixel_stream import PixelStream
from toy_bias import NAMES, make_view


@pytest.fixture
def view(store):
    return make_view(store, "some", [[20, 5], [3, 9]])


def decoded(view, size):
    images = dict(view.images())
    return np.stack([decode_image(images[position], size) for position in range(len(view))])


@pytest.mark.parametrize("size", [16, 9])
def test_pixels_are_the_decoded_images_in_the_views_order(view, size):
    shuffled = view.take(np.random.default_rng(0).permutation(len(view))[:30])
    expected = decoded(shuffled, size)
    found = PixelCache([shuffled], size)
    assert len(found) == 30
    np.testing.assert_array_equal(found[np.arange(30)], expected)
    np.testing.assert_array_equal(found[np.array([7, 7, 0])], expected[[7, 7, 0]])


def test_several_views_are_one_array_and_share_what_was_decoded(store, view):
    other = make_view(store, "other", [[2, 2], [2, 2]], seed=5)
    PixelCache([view], 16)
    before = sorted(cache_folder().rglob("*.npy"))
    both = PixelCache([other, ImageView.empty(store, NAMES), view], 16)
    expected = np.concatenate([decoded(other, 16), decoded(view, 16)])
    order = np.random.default_rng(0).permutation(len(both))
    np.testing.assert_array_equal(both[order], expected[order])
    assert len(before) == 1
    assert set(before) < set(cache_folder().rglob("*.npy"))
    assert len(list(cache_folder().rglob("*.npy"))) == 2


def test_what_is_in_the_cache_is_not_decoded_again(view, monkeypatch):
    PixelCache([view], 16)

    def fail(*_):
        raise AssertionError("decoded twice")

    monkeypatch.setattr(counterpoise.storage.view, "decode_image", fail)
    PixelCache([view], 16)
    with pytest.raises(AssertionError, match="decoded twice"):
        PixelCache([view], 8)


def test_fits_that_start_together_decode_once(view, monkeypatch):
    counted, decode = [], decode_image
    monkeypatch.setattr(counterpoise.storage.view, "decode_image", lambda *a: counted.append(1) or decode(*a))
    threads = [threading.Thread(target=PixelCache, args=([view], 16)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(counted) == len(view)


def test_an_unreadable_image_names_its_row_and_leaves_nothing_behind(store):
    columns = {"id": ["good", "bad/7"], "image": [b"", b"not an image"], "label": [0, 0], "group": [0, 0]}
    columns |= {"split": ["train"] * 2, "source": ["real"] * 2}
    columns["image"][0] = next(make_view(store, "one", [[1, 0], [0, 0]]).images())[1]
    buffer = io.BytesIO()
    pq.write_table(make_table(columns, REAL, NAMES), buffer)
    store.create("broken.parquet", buffer.getvalue())
    with pytest.raises(DataError, match="bad/7"):
        PixelCache([ImageView.open(store, ["broken.parquet"])], 16)
    assert [path.suffix for path in (cache_folder() / "pixels").iterdir()] in ([], [".lock"])


def test_a_cache_folder_that_cannot_be_written_is_a_store_error(view, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COUNTERPOISE_CACHE", os.fspath(tmp_path / "file"))
    with pytest.raises(StoreError, match="COUNTERPOISE_CACHE"):
        PixelCache([view], 16)


# -- no room -----------------------------------------------------------------------------------------------------------


SIZE = 128 + 37 * 16 * 16 * 3  # of the view's file, header and all


def arrays():
    """What the cache holds, temporary files too."""
    return sorted(path.name for path in cache_folder().rglob("*.npy"))


def full_disk(monkeypatch, free, total=1 << 40):
    usage = shutil.disk_usage("/")._replace(total=total, free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def test_without_room_images_are_streamed_and_are_the_same(store, view, monkeypatch, capsys):
    shuffled = view.take(np.random.default_rng(0).permutation(len(view))[:30])
    other = make_view(store, "other", [[70, 20], [20, 70]], seed=5)  # three row groups
    cached = PixelCache([shuffled, other], 12)
    order = np.random.default_rng(1).integers(0, len(cached), 300)
    expected = cached[order]
    for path in (cache_folder() / "pixels").glob("*.npy"):
        path.unlink()
    full_disk(monkeypatch, free=(1 << 30) + 10_000)
    streamed = PixelCache([shuffled, other], 12)
    assert arrays() == []
    assert len(streamed) == len(cached) == 210
    np.testing.assert_array_equal(streamed[order], expected)
    np.testing.assert_array_equal(streamed[order[:0]], expected[:0])
    said = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in said] == ["30", "180"]
    assert all("COUNTERPOISE_CACHE_LIMIT" in line for line in said)
    PixelCache([shuffled, other], 12)
    assert not capsys.readouterr().err  # said once


@pytest.mark.parametrize(
    ("free", "total", "fits"),
    [
        ((1 << 30) + SIZE, 1 << 40, True),  # a GiB stays free,
        ((1 << 30) + SIZE - 1, 1 << 40, False),
        (1000 + SIZE, 10_000, True),  # or a tenth of a small disk
        (1000 + SIZE - 1, 10_000, False),
    ],
)
def test_what_stays_free(view, monkeypatch, free, total, fits):
    full_disk(monkeypatch, free, total)
    PixelCache([view], 16)
    assert bool(arrays()) == fits


def test_a_limit_is_of_all_that_the_cache_holds(store, view, monkeypatch):
    small = make_view(store, "small", [[1, 1], [1, 1]], seed=9)
    monkeypatch.setenv("COUNTERPOISE_CACHE_LIMIT", str(SIZE + 4 * 768 + 127))
    PixelCache([view], 16)
    assert len(arrays()) == 1
    PixelCache([small], 16)
    assert len(arrays()) == 1
    monkeypatch.setenv("COUNTERPOISE_CACHE_LIMIT", str(SIZE + 4 * 768 + 128))
    PixelCache([small], 16)
    assert len(arrays()) == 2
    monkeypatch.setenv("COUNTERPOISE_CACHE_LIMIT", "0")
    assert isinstance(PixelCache([view], 16)._parts[0], np.memmap)  # what is there is used
    monkeypatch.setenv("COUNTERPOISE_CACHE_LIMIT", "20 GB")
    with pytest.raises(ConfigError, match="bytes"):
        PixelCache([view], 8)


def test_a_disk_that_fills_up_meanwhile_is_as_one_without_room(view, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    np.testing.assert_array_equal(PixelCache([view], 16)[np.arange(37)], decoded(view, 16))
    assert arrays() == []


def test_streaming_holds_the_row_groups_used_last(store, monkeypatch):
    view = make_view(store, "many", [[100, 20], [20, 100]])  # 64, 64, 64 and 48 rows
    sizes = [group.nbytes for group in map(view.encoded, view.row_groups())]
    read, encoded = [], ImageView.encoded
    monkeypatch.setattr(ImageView, "encoded", lambda self, group: read.append(group.number) or encoded(self, group))
    streamed = PixelStream(view, 8, held_bytes=max(sizes) * 2 + 1)
    for number in (0, 1, 0, 2, 0, 1, 0):  # 2 drives out 1, then 1 drives out 2
        streamed[np.array([64 * number, 64 * number + 5])]
    assert read == [0, 1, 2, 1]
    tiny = PixelStream(view, 8, held_bytes=1)
    np.testing.assert_array_equal(tiny[np.arange(240)], decoded(view, 8))


def test_streaming_with_threads_gives_the_same(view, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    positions = np.random.default_rng(0).integers(0, 37, 200)
    np.testing.assert_array_equal(PixelStream(view, 16)[positions], decoded(view, 16)[positions])


def test_streaming_an_unreadable_image_names_its_row(view, monkeypatch):
    decode = counterpoise.storage.view.decode_image
    bad = dict(view.images())[7]

    def broken(data, size):
        if data == bad:
            raise OSError("truncated")
        return decode(data, size)

    monkeypatch.setattr(counterpoise.storage.view, "decode_image", broken)
    streamed = PixelStream(view, 16)
    assert len(streamed[np.array([6, 8])]) == 2
    with pytest.raises(DataError, match="some/7"):
        streamed[np.array([6, 7])]


_KILLED = """
import os, pickle, signal, sys
import counterpoise.storage.view
from counterpoise.training.loading.pixel_cache import PixelCache
decode, seen = counterpoise.storage.view.decode_image, []
def killing(*given):
    seen.append(1)
    if len(seen) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(*given)
counterpoise.storage.view.decode_image = killing
PixelCache([pickle.load(sys.stdin.buffer)], 16)
"""


def test_a_killed_process_leaves_nothing_that_is_taken_for_whole(store, view, monkeypatch):
    killed = subprocess.run([sys.executable, "-c", _KILLED], input=pickle.dumps(view), check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = arrays()
    assert left.startswith(".")
    other = make_view(store, "other", [[2, 2], [2, 2]], seed=5)
    PixelCache([other], 16)  # sweeps
    assert [name.startswith(".") for name in arrays()] == [False]
    np.testing.assert_array_equal(PixelCache([view], 16)[np.arange(37)], decoded(view, 16))


def test_what_another_process_is_decoding_is_not_swept(store, view):
    folder = cache_folder() / "pixels"
    folder.mkdir(parents=True)
    (folder / ".other-16.npy").write_bytes(b"begun")
    with FileLock(folder / "other-16.npy.lock"):
        PixelCache([view], 16)
        assert (folder / ".other-16.npy").exists()
