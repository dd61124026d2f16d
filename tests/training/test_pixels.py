"""Views decoded once into memory-mapped arrays."""

import io
import os
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
from toy_bias import NAMES, make_view

import counterpoise.view
from counterpoise.errors import DataError, StoreError
from counterpoise.table import REAL, decode_image, make_table
from counterpoise.training.pixels import Pixels, cache_folder
from counterpoise.view import View


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
    found = Pixels([shuffled], size)
    assert len(found) == 30
    np.testing.assert_array_equal(found[np.arange(30)], expected)
    np.testing.assert_array_equal(found[np.array([7, 7, 0])], expected[[7, 7, 0]])


def test_several_views_are_one_array_and_share_what_was_decoded(store, view):
    other = make_view(store, "other", [[2, 2], [2, 2]], seed=5)
    Pixels([view], 16)
    before = sorted(cache_folder().rglob("*.npy"))
    both = Pixels([other, View.empty(store, NAMES), view], 16)
    expected = np.concatenate([decoded(other, 16), decoded(view, 16)])
    order = np.random.default_rng(0).permutation(len(both))
    np.testing.assert_array_equal(both[order], expected[order])
    assert len(before) == 1
    assert set(before) < set(cache_folder().rglob("*.npy"))
    assert len(list(cache_folder().rglob("*.npy"))) == 2


def test_what_is_in_the_cache_is_not_decoded_again(view, monkeypatch):
    Pixels([view], 16)

    def fail(*_):
        raise AssertionError("decoded twice")

    monkeypatch.setattr(counterpoise.view, "decode_image", fail)
    Pixels([view], 16)
    with pytest.raises(AssertionError, match="decoded twice"):
        Pixels([view], 8)


def test_fits_that_start_together_decode_once(view, monkeypatch):
    counted, decode = [], decode_image
    monkeypatch.setattr(counterpoise.view, "decode_image", lambda *a: counted.append(1) or decode(*a))
    threads = [threading.Thread(target=Pixels, args=([view], 16)) for _ in range(4)]
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
        Pixels([View.open(store, ["broken.parquet"])], 16)
    assert [path.suffix for path in (cache_folder() / "pixels").iterdir()] in ([], [".lock"])


def test_a_cache_folder_that_cannot_be_written_is_a_store_error(view, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("COUNTERPOISE_CACHE", os.fspath(tmp_path / "file"))
    with pytest.raises(StoreError, match="COUNTERPOISE_CACHE"):
        Pixels([view], 16)
