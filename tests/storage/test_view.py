"""The image table and views on it."""

import io
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from counterpoise.core.digest import digest
from counterpoise.storage.codec import decode_image, encode_image
from counterpoise.storage.schema import REAL, SYNTHETIC, LabelSpace, cell_counts, make_table
from counterpoise.storage.uri import open_store
from counterpoise.storage.view import ImageView

NAMES = LabelSpace(("cat", "dog"), ("day", "night", "dusk"))


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "store")


def put(store, key, labels, groups, first=0, row_group_size=3):
    count = len(labels)
    pixels = [np.full((4, 4, 3), first + number, np.uint8) for number in range(count)]
    columns = {
        "id": [f"{key}-{number}" for number in range(count)],
        "image": [encode_image(p) for p in pixels],
        "label": labels,
        "group": groups,
        "split": ["train" if number % 2 else "test" for number in range(count)],
        "source": ["real"] * count,
    }
    buffer = io.BytesIO()
    pq.write_table(make_table(columns, REAL, NAMES), buffer, row_group_size=row_group_size)
    assert store.create(key, buffer.getvalue())


@pytest.fixture
def view(store):
    put(store, "a.parquet", [0, 0, 1, 1, 0], [0, 1, 2, -1, 0])
    put(store, "b.parquet", [1, 1], [0, 0], first=100)
    return ImageView.open(store, ["a.parquet", "b.parquet"])


def test_distinct_images_are_in_the_order_of_their_places(view):
    shuffled = view.take(np.array([6, 1, 0, 1, 6, 4]))
    assert shuffled.distinct().places == [("a.parquet", 0), ("a.parquet", 1), ("a.parquet", 4), ("b.parquet", 1)]
    assert shuffled.distinct().labels.tolist() == [0, 0, 0, 1]
    assert ImageView.empty(view.store, NAMES).distinct().places == []


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
    assert view.digest == ImageView.open(view.store, ["a.parquet", "b.parquet"]).digest
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


def test_png_round_trip_is_exact_and_reproducible():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert encode_image(pixels) == encode_image(pixels)
    np.testing.assert_array_equal(decode_image(encode_image(pixels)), pixels)


@pytest.mark.parametrize("cut", [0, 8, 40, 60])
def test_a_broken_image_is_an_os_error(cut):
    whole = encode_image(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    with pytest.raises(OSError, match=r".+"):
        decode_image(whole[:cut])


def test_embeddings_are_read_on_their_own(store):
    """They are no part of the index; a view has them in its order, of length 1, and NaN where there is none."""
    vectors = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float16)
    columns = {
        "label": [0] * 5,
        "clip_embedding": [None if row == 2 else vector for row, vector in enumerate(vectors)],
    } | {name: [None] * 5 for name in SYNTHETIC.names if name not in ("label", "clip_embedding")}
    buffer = io.BytesIO()
    pq.write_table(make_table(columns, SYNTHETIC, NAMES), buffer, row_group_size=2)
    store.create("s.parquet", buffer.getvalue())
    view = ImageView.open(store, ["s.parquet"])
    assert not {"image", "clip_embedding"} & set(view.index.column_names)
    found = view.take(np.array([4, 2, 0, 1, 4])).embeddings()
    expected = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    np.testing.assert_allclose(found, np.where([[0], [1], [0], [0], [0]], np.nan, expected[[4, 2, 0, 1, 4]]), atol=1e-6)
    assert view.take(np.array([2])).embeddings().shape == (1, 0)
    assert view.take(np.array([], int)).embeddings().shape == (0, 0)
