"""The image table and views on it."""

import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from counterpoise.core.digest import digest
from counterpoise.storage import row_files
from counterpoise.storage.codec import decode_image, encode_image
from counterpoise.storage.records import DamagedError
from counterpoise.storage.schema import LabelSpace, cell_counts
from counterpoise.storage.uri import open_store
from counterpoise.storage.view import ImageView, image_ids
from image_table import store_images

NAMES = LabelSpace(("cat", "dog"), ("day", "night", "dusk"))


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store")


def put(store, key, labels, groups, first=0, group_size=3):
    count = len(labels)
    images = [encode_image(np.full((4, 4, 3), first + number, np.uint8)) for number in range(count)]
    splits = ["train" if number % 2 else "test" for number in range(count)]
    return store_images(store, key, images, labels, groups, NAMES, splits=splits, group_size=group_size)


@pytest.fixture
def view(store):
    return put(store, "a", [0, 0, 1, 1, 0], [0, 1, 2, -1, 0]) + put(store, "b", [1, 1], [0, 0], first=100)


def test_distinct_images_are_in_the_order_of_their_places(view):
    shuffled = view.take(np.array([6, 1, 0, 1, 6, 4]))
    assert shuffled.distinct().column("key").tolist() == [f"tables/{name}/0000.parquet" for name in "aaab"]
    assert shuffled.distinct().column("row").tolist() == [0, 1, 4, 1]
    assert shuffled.distinct().labels.tolist() == [0, 0, 0, 1]
    assert len(ImageView.empty(view.store, NAMES).distinct()) == 0


def test_an_image_has_the_same_number_in_every_view(view):
    one, two = view.take(np.array([6, 1, 1])), view.take(np.array([1, 4, 6]))
    first, second, none = image_ids([one, two, ImageView.empty(view.store, NAMES)])
    assert first[1] == first[2] == second[0] < second[1] < second[2] == first[0]
    assert len(none) == 0


def test_counts_and_names(view):
    assert view.names == NAMES
    assert view.counts.tolist() == [[2, 1, 0], [2, 0, 1]]  # the row of unknown group is in no cell
    assert NAMES.cell(1, 2) == "dog × dusk"
    assert cell_counts(np.array([0, 1, 1]), np.array([-1, -1, -1]), LabelSpace(("a", "b"))).tolist() == [[1], [2]]


def test_images_stream_in_any_order_and_match_their_rows(view):
    positions = np.array([6, 4, 0, 2, 5, 4])
    chosen = view.take(positions)
    values = {position: int(decode_image(data)[0, 0, 0]) for position, data in chosen.images()}
    assert values == {0: 101, 1: 4, 2: 0, 3: 2, 4: 100, 5: 4}


def test_where_and_concatenation(view):
    train, test = view.where(split="train"), view.where(split="test")
    assert len(train) + len(test) == len(view)
    both = train + test
    assert sorted(both.column("id")) == sorted(view.column("id"))
    assert len(view.where(label=1, group=0)) == 2
    assert len(ImageView.empty(view.store, NAMES) + view) == len(view)


def test_a_digest_is_of_content_and_order(view):
    assert view.digest == view.take(np.arange(len(view))).digest
    assert view.digest != view.take(np.arange(len(view))[::-1]).digest
    assert view.digest != view.take(np.arange(len(view) - 1)).digest


def test_a_view_can_travel(view):
    assert pickle.loads(pickle.dumps(view)).digest == view.digest


def test_digest_of_values_ignores_the_order_of_keys():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})


def encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=form)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("mode", "form"), [("RGB", "PNG"), ("L", "PNG"), ("P", "GIF"), ("CMYK", "JPEG"), ("1", "PNG"), ("RGBA", "WEBP")]
)
def test_every_kind_of_image_becomes_rgb(mode, form):
    pixels = decode_image(encoded(Image.new(mode, (6, 5)), form), size=4)
    assert (pixels.shape, pixels.dtype) == ((4, 4, 3), np.uint8)


def test_transparency_is_laid_on_white():
    assert decode_image(encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 0)), "PNG")).tolist() == [[[255] * 3] * 2] * 2


@pytest.mark.parametrize("codec", ["png", "webp"])
def test_a_lossless_round_trip_is_exact_and_reproducible(codec):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    assert encode_image(pixels, codec) == encode_image(pixels, codec)
    np.testing.assert_array_equal(decode_image(encode_image(pixels, codec)), pixels)


def test_jpeg_is_near_and_nearer_at_a_higher_quality():
    ramp = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    errors = [
        np.abs(decode_image(encode_image(ramp, f"jpeg:{quality}")).astype(int) - ramp).mean() for quality in (40, 95)
    ]
    assert 0 < errors[1] < errors[0] < 10


@pytest.mark.parametrize("cut", [0, 8, 40, 60])
def test_a_broken_image_is_an_os_error(cut):
    whole = encode_image(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    with pytest.raises(OSError, match=r".+"):
        decode_image(whole[:cut])


def test_embeddings_are_read_on_their_own(store):
    """They are no part of the index; a view has them in its order, of length 1, and NaN where there is none."""
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float16)
    stored = [None if row == 2 else vector.tobytes() for row, vector in enumerate(vectors)]
    table = pa.table({"embedding": pa.array(stored, pa.binary())})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=2, **row_files.writer_options(table.schema, ["embedding"]))
    store.create("s.parquet", buffer.getvalue())
    sizes = row_files.lengths(table["embedding"])
    places = {
        "key": pa.array(["s.parquet"] * 5).dictionary_encode(),
        "row": range(5),
        "embedding_offset": row_files.offsets(pq.read_metadata(buffer), "embedding", sizes),
        "embedding_length": sizes,
        "embedding_sha256": row_files.hashes(stored),
    }
    view = ImageView(store, NAMES, pa.table(places))
    found = view.take(np.array([4, 2, 0, 1, 4])).embeddings()
    expected = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(found, np.where([[0], [1], [0], [0], [0]], np.nan, expected[[4, 2, 0, 1, 4]]), atol=1e-6)
    assert view.take(np.array([2])).embeddings().shape == (1, 0)
    assert view.take(np.array([], int)).embeddings().shape == (0, 0)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "another"])
def test_an_image_that_is_not_what_was_stored_is_never_shown(view, damage):
    path = Path(view.store.uri, view.column("key")[0])
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[view.column("image_offset")[2] + 5] ^= 1
    elif damage == "truncated":
        del data[view.column("image_offset")[2] + 5 :]
    else:
        data = Path(view.store.uri, view.column("key")[6]).read_bytes()
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=r"tables/a/0000\.parquet"):
        list(view.images())
