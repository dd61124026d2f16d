"""The import: which bytes are kept, what is quarantined, when it is done again, tints and imbalance on top."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from counterpoise.data import table as table_files
from counterpoise.data.dataset import encoded
from counterpoise.data.tint import TINTS
from counterpoise.errors import StoreError
from counterpoise.storage.codec import decode_image


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK", "P", "LA"])
def test_files_that_are_kept_byte_for_byte(make, kind, mode):
    possible = {"JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "L", "RGBA", "P", "LA"), "WEBP": ("RGB", "RGBA")}
    if mode not in possible[kind]:
        return
    data = make.encode(make.picture(1, mode), kind)
    assert encoded(data) == data
    assert decode_image(encoded(data)).shape == (6, 8, 3)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "TIFF", "PPM"])
def test_other_formats_become_png_with_the_same_pixels(make, kind):
    image = make.picture(2, "P" if kind == "GIF" else "RGB")
    result = encoded(make.encode(image, kind))
    assert result[:8] == b"\x89PNG\r\n\x1a\n"
    assert (decode_image(result) == np.asarray(image.convert("RGB"))).all()


def test_sixteen_bit_grey_is_scaled_not_cut(make):
    values = np.array([[0, 257, 65535], [30000, 128, 40000]], dtype=np.uint16)
    result = decode_image(encoded(make.encode(Image.fromarray(values))))
    assert result[..., 0].tolist() == (values // 257).tolist()


def test_a_photograph_marked_as_rotated_is_turned(make):
    image = make.picture(3)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    result = decode_image(encoded(make.encode(image, "PNG", exif=exif)))
    assert (result == np.rot90(np.asarray(image), -1)).all()


@pytest.mark.parametrize("data", [b"", b"no image", b"\x89PNG\r\n\x1a\n" + b"x" * 40])
def test_what_is_no_image_is_an_os_error(data):
    with pytest.raises(OSError, match=r"."):
        encoded(data)


def test_half_a_file_is_an_os_error(make):
    data = make.encode(make.picture(4, size=(64, 64)), "JPEG")
    with pytest.raises(OSError, match="truncated"):
        encoded(data[: len(data) // 2])


def test_bad_rows_are_set_aside_with_their_reasons(make, imported, table, store):
    (table / "images/3.png").write_bytes(b"broken")
    (table / "images/8.png").unlink()
    text = (table / "labels.csv").read_text().replace("images/10.png,dog", "images/10.png,")
    (table / "labels.csv").write_text(text.replace("images/11.png,cat,blue,train", "images/11.png,cat,blue,sometimes"))
    loaded = imported(adapter="csv", root=str(table), columns={"split": "split"}, max_quarantined=0.2)
    assert loaded.quarantined == 4
    assert loaded.reasons == {"unreadable image": 2, "no label": 1, "unknown split 'sometimes'": 1}
    assert len(loaded.view) == 36
    with store.open(loaded.key.replace("table.json", "quarantine.parquet")) as file:
        aside = {row["id"]: row for row in pq.read_table(file).to_pylist()}
    assert aside["images/3.png"]["reason"] == "unreadable image"
    assert "cannot identify" in aside["images/3.png"]["detail"]
    assert aside["images/8.png"]["label"] == "dog"


def test_a_dataset_is_imported_once_until_it_changes(make, imported, table, store):
    data = {"adapter": "csv", "root": str(table), "splits": {}}
    first = imported(**data)
    assert imported(**data).key == first.key
    assert imported(**data, imbalance={"kind": "counts", "counts": {"cat": 5}}).key == first.key
    assert len(store.list("tables/")) == 4
    assert imported(**data, seed=1).key != first.key
    (table / "images/3.png").write_bytes(make.encode(make.picture(99)))
    assert imported(**data).key != first.key


def test_a_dataset_that_moves_stays_the_same(imported, table):
    first = imported(adapter="csv", root=str(table), splits={})
    table.rename(table.parent / "elsewhere")
    assert imported(adapter="csv", root=str(table.parent / "elsewhere"), splits={}).key == first.key


def test_row_groups_hold_1024_rows_and_files_a_bounded_number_of_bytes(imported, store, monkeypatch):
    monkeypatch.setattr(table_files, "PART_BYTES", 100_000)
    loaded = imported(
        adapter="testbed", classes=["star"], group=None, per_cell={"train": 1030, "validation": 1, "test": 1}
    )
    keys, files = loaded.view.files
    assert len(keys) == 2
    sizes = []
    for key in keys:
        with store.open(key) as file:
            table = pq.ParquetFile(file)
            sizes += [table.metadata.row_group(number).num_rows for number in range(table.num_row_groups)]
    assert sizes == [1024, 8] == np.bincount(files).tolist()
    assert len(set(loaded.view.index["id"].to_pylist())) == 1032
    assert len(list(loaded.view.decoded())) == 1032


@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped", "replaced", "deleted"])
@pytest.mark.parametrize("name", ["table.json", "rows.parquet", "quarantine.parquet"])
def test_a_damaged_table_is_an_error_that_names_the_file(imported, table, store, name, damage):
    first = imported(**(data := {"adapter": "csv", "root": str(table), "splits": {}}))
    other = imported(**data, seed=1)
    path = Path(store.uri, first.key).with_name(name)
    whole = path.read_bytes()
    damaged = {
        "truncated": whole[: len(whole) // 2],
        "emptied": b"",
        "flipped": whole[:40] + bytes([whole[40] ^ 1]) + whole[41:],
        "replaced": Path(store.uri, other.key).with_name(name).read_bytes(),
        "deleted": None,
    }[damage]
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)
    if damaged == whole:
        pytest.skip("the two tables have the same one")
    if (name, damage) == ("table.json", "deleted"):
        assert imported(**data).view.digest == first.view.digest  # imported again
        assert path.read_bytes() == whole
    else:
        with pytest.raises(StoreError, match=name):
            imported(**data)


def test_tints_are_groups_spread_evenly_over_each_class_of_each_split(make, imported, tmp_path, images_by_id):
    make.idx_files(tmp_path / "root", train=400, test=100)
    data = {"adapter": "torchvision", "dataset": "FashionMNIST", "root": str(tmp_path / "root")}
    loaded = imported(**data, tint={"colors": ["red", "grey"]})
    assert loaded.view.names.groups == ("red", "grey")
    for split in ("train", "validation", "test"):
        counts = loaded.view.where(split=split).counts
        assert abs(counts[:, 0] - counts[:, 1]).max() <= 1
    images, view = images_by_id(loaded), loaded.view
    position = view.index["id"].to_pylist().index("train/200")
    color = TINTS[view.names.groups[view.groups[position]]]
    assert decode_image(images["train/200"])[0, 0].tolist() == [round(200 * part / 255) for part in color]


def test_imbalance_thins_training_and_validation_and_never_test(imported):
    data = {"adapter": "testbed", "classes": ["star", "ring"], "groups": ["red", "blue"]}
    data["per_cell"] = {"train": 98, "validation": 30, "test": 7}
    loaded = imported(**data, imbalance={"kind": "biased", "rate": 0.98})
    counts = {split: loaded.view.where(split=split).counts.tolist() for split in ("train", "validation", "test")}
    assert counts == {"train": [[98, 2], [2, 98]], "validation": [[30, 10], [10, 30]], "test": [[7, 7], [7, 7]]}
