"""Every adapter on small real files: names, codes, splits, and the images themselves."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from counterpoise.storage.codec import decode_image

# -- csv ---------------------------------------------------------------------------------------------------------------


def test_csv(imported, table, images_by_id):
    loaded = imported(adapter="csv", root=str(table), columns={"group": "group", "split": "split"})
    assert (loaded.view.names.classes, loaded.view.names.groups) == (("cat", "dog"), ("blue", "red"))
    row = loaded.view.index.slice(5, 1).to_pylist()[0]
    assert (row["id"], row["label"], row["group"], row["split"]) == ("images/5.png", 0, 1, "train")
    assert images_by_id(loaded)["images/5.png"] == (table / "images/5.png").read_bytes()
    assert loaded.view.where(split="validation").counts.tolist() == [[2, 2], [2, 2]]
    assert loaded.quarantined == 0


def test_csv_with_integer_labels_tabs_and_a_column_of_ids(imported, table):
    lines = ["image\tage\tname", *(f"images/{n}.png\t{(9, 10, 2)[n % 3]}\tperson {n}" for n in range(40))]
    (table / "people.tsv").write_text("\ufeff" + "\n".join(lines), encoding="utf-8")
    loaded = imported(
        adapter="csv", root=str(table), table="people.tsv", columns={"label": "age", "id": "name"}, splits={}
    )
    assert loaded.view.names.classes == ("2", "9", "10")
    assert loaded.view.index["id"][0].as_py() == "person 0"
    assert set(loaded.view.groups) == {-1}


# -- parquet -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["bytes", "large", "struct"])
def test_parquet(make, imported, tmp_path, form, images_by_id):
    images = [make.encode(make.picture(n), "JPEG") for n in range(30)]
    column = {
        "bytes": pa.array(images, pa.binary()),
        "large": pa.array(images, pa.large_binary()),
        "struct": pa.array([{"bytes": image, "path": None} for image in images]),
    }[form]
    labels = pa.array([float(n % 2) for n in range(29)] + [None])  # what pandas makes of integers with a hole
    table = pa.table({"picture": column, "y": labels})
    pq.write_table(table, tmp_path / "all.parquet", row_group_size=7)
    columns = {"image": "picture", "label": "y"}
    loaded = imported(
        adapter="parquet", path=str(tmp_path / "all.parquet"), columns=columns, splits={}, max_quarantined=0.1
    )
    assert loaded.view.names.classes == ("0", "1")
    assert loaded.reasons == {"no label": 1}
    assert images_by_id(loaded) == {f"all.parquet/{n}": images[n] for n in range(29)}


def test_parquet_with_a_path_per_split(make, imported, tmp_path):
    for name, size in (("train-0", 8), ("train-1", 8), ("held", 6)):
        images = [make.encode(make.picture(n)) for n in range(size)]
        pq.write_table(pa.table({"image": images, "label": ["a", "b"] * (size // 2)}), tmp_path / f"{name}.parquet")
    paths = {"train": str(tmp_path / "train-*.parquet"), "test": str(tmp_path / "held.parquet")}
    loaded = imported(adapter="parquet", path=paths)
    sizes = [len(loaded.view.where(split=split)) for split in ("train", "validation", "test")]
    assert sizes[2] == 6
    assert sizes[0] + sizes[1] == 16
    assert sizes[1] in (1, 2)  # a tenth of the training rows


def test_parquet_reads_images_beside_it(make, imported, tmp_path, images_by_id):
    for number in range(12):
        (tmp_path / f"{number}.png").write_bytes(make.encode(make.picture(number)))
    records = [{"bytes": None, "path": f"{n}.png"} for n in range(12)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array(records, kind), "label": ["a", "b"] * 6}), tmp_path / "all.parquet")
    loaded = imported(adapter="parquet", path=str(tmp_path), splits={})
    assert images_by_id(loaded)["all.parquet/7"] == (tmp_path / "7.png").read_bytes()


# -- imagefolder -------------------------------------------------------------------------------------------------------


def test_imagefolder(make, imported, tmp_path):
    make.tree(
        tmp_path / "x",
        "{split}/{label}/{group}",
        split=["train", "val", "test"],
        label=["cat", "dog"],
        group=["a", "b"],
    )
    (tmp_path / "x/train/cat/notes.txt").write_text("not an image")
    (tmp_path / "x/train/.cache").mkdir()
    loaded = imported(adapter="imagefolder", root=str(tmp_path / "x"), layout="{split}/{label}/{group}")
    assert loaded.view.counts.tolist() == [[30, 30], [30, 30]]
    assert loaded.view.index["id"][0].as_py() == "test/cat/a/00.png"


def test_imagefolder_with_two_names_in_one_folder(make, imported, tmp_path):
    make.tree(tmp_path / "x", "{label}_{group}", label=["0", "1"], group=["0", "1"])
    loaded = imported(adapter="imagefolder", root=str(tmp_path / "x"), layout="{label}_{group}", splits={})
    assert loaded.view.counts.tolist() == [[10, 10], [10, 10]]


def test_imagefolder_quarantines_what_lies_elsewhere(make, imported, tmp_path):
    make.tree(tmp_path / "x", "{label}", label=["cat", "dog"])
    (tmp_path / "x/stray.png").write_bytes(make.encode(make.picture(0)))
    loaded = imported(adapter="imagefolder", root=str(tmp_path / "x"), splits={}, max_quarantined=0.1)
    assert loaded.reasons == {"its folder does not fit the layout": 1}


# -- torchvision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["", "raw", "FashionMNIST/raw"])
def test_torchvision_fashion_mnist(make, imported, tmp_path, place, images_by_id):
    make.idx_files(tmp_path / "root" / place, packed=place != "FashionMNIST/raw")
    before = sorted(path.name for path in (tmp_path / "root").rglob("*"))
    loaded = imported(adapter="torchvision", dataset="FashionMNIST", root=str(tmp_path / "root"), rows="1::2")
    assert sorted(path.name for path in (tmp_path / "root").rglob("*")) == before
    assert loaded.view.names.classes[:3] == ("T-shirt/top", "Trouser", "Pullover")  # the dataset's own order
    taken = {int(name.split("/")[1]) for name in images_by_id(loaded) if name.startswith("train/")}
    assert taken == set(range(1, 60, 2))  # of the training rows the odd ones; of these a tenth is for validation
    assert len(loaded.view.where(split="validation")) == 3
    assert len(loaded.view.where(split="test")) == 20
    assert (decode_image(images_by_id(loaded)["train/37"]) == 37).all()


def test_torchvision_without_splits(make, imported, tmp_path):
    make.tree(tmp_path / "x", "{label}", label=["cat", "dog"], count=20)
    loaded = imported(adapter="torchvision", dataset="ImageFolder", root=str(tmp_path / "x"), splits={})
    sizes = [len(loaded.view.where(split=split)) for split in ("train", "validation", "test")]
    assert sizes == [32, 4, 4]


def test_torchvision_with_splits_by_name(make, imported, tmp_path):
    make.tree(tmp_path / "imagenette2", "{split}/{label}", split=["train", "val"], label=["n01440764", "n02102040"])
    for path in list(tmp_path.rglob("*.png")):
        path.rename(path.with_suffix(".JPEG"))
    loaded = imported(
        adapter="torchvision",
        dataset="Imagenette",
        root=str(tmp_path),
        splits={"train": 0.7, "validation": 0.1, "test": 0.2},
    )
    assert [len(loaded.view.where(split=split)) for split in ("train", "validation", "test")] == [16, 20, 4]
    assert loaded.view.names.classes == ("tench", "English springer")


# -- huggingface -------------------------------------------------------------------------------------------------------


def test_hugging_face_on_disk(make, imported, tmp_path, images_by_id):
    import datasets

    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=["zebra", "ape"]), group=datasets.Value("string")
    )
    parts = {}
    for name, size in (("train", 20), ("validation", 8), ("test", 8), ("unsupervised", 4)):
        labels = [n % 2 for n in range(size)]
        groups = [("day", "night", None)[n % 3] for n in range(size)]
        columns = {"image": [make.picture(n) for n in range(size)], "label": labels, "group": groups}
        parts[name] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    loaded = imported(adapter="huggingface", path=str(tmp_path / "saved"), columns={"group": "group"})
    assert loaded.view.names.classes == ("zebra", "ape")  # the dataset's own order
    assert loaded.view.names.groups == ("day", "night")
    assert len(loaded.view) == 36  # the unlabelled split is not taken
    assert loaded.view.groups[:4].tolist() == [0, 1, -1, 0]
    assert (decode_image(images_by_id(loaded)["train/3"]) == np.asarray(make.picture(3))).all()


def test_hugging_face_without_splits(make, imported, tmp_path):
    import datasets

    columns = {"image": [make.picture(n) for n in range(20)], "label": ["b", "a"] * 10}
    part = datasets.Dataset.from_dict(
        columns, features=datasets.Features(image=datasets.Image(), label=datasets.Value("string"))
    )
    part.save_to_disk(tmp_path / "saved")
    loaded = imported(adapter="huggingface", path=str(tmp_path / "saved"), splits={})
    assert loaded.view.names.classes == ("a", "b")
    assert len(loaded.view) == 20


# -- testbed -----------------------------------------------------------------------------------------------------------


def drawn_images(imported, images_by_id, **changes):
    data = {"adapter": "testbed", "per_cell": {"train": 3, "validation": 2, "test": 2}, **changes}
    return images_by_id(imported(**data))


def test_testbed(imported):
    loaded = imported(
        adapter="testbed",
        classes=["star", "heart"],
        groups=["blue", "red"],
        per_cell={"train": 4, "validation": 2, "test": 3},
    )
    assert (loaded.view.names.classes, loaded.view.names.groups) == (("star", "heart"), ("blue", "red"))
    assert loaded.view.where(split="train").counts.tolist() == [[4, 4], [4, 4]]
    assert len(loaded.view.where(split="test")) == 12


def test_testbed_splits_share_no_image_and_a_larger_one_contains_the_smaller(imported, images_by_id):
    small = drawn_images(imported, images_by_id, classes=["star"])
    assert len(set(small.values())) == len(small)
    large = drawn_images(
        imported, images_by_id, classes=["ring", "star"], per_cell={"train": 5, "validation": 2, "test": 2}
    )
    assert all(large[name] == image for name, image in small.items())
    other = drawn_images(imported, images_by_id, classes=["star"], seed=1)
    assert not set(other.values()) & set(small.values())


def test_testbed_by_another_factor(imported):
    loaded = imported(
        adapter="testbed", label="background", group=None, per_cell={"train": 3, "validation": 1, "test": 1}
    )
    assert loaded.view.names.classes == ("grass", "sand", "water", "brick")
    assert loaded.view.names.groups == ()


# -- the real thing ----------------------------------------------------------------------------------------------------


def test_photographs_of_clothing(imported, real_images):
    path = real_images / "clothing_kids"
    if not path.is_dir():
        pytest.skip(f"no {path}")
    columns = {"label": "label_name", "group": "group_name", "split": "split", "id": "image_id"}
    loaded = imported(adapter="parquet", path=str(path), classes=["Pants", "Skirt"], columns=columns)
    held = loaded.view.where(split="test").counts
    train = loaded.view.where(split="train").counts + loaded.view.where(split="validation").counts
    table = pq.read_table(path / "train.parquet", columns=["label_name", "group_name"]).to_pylist()
    expected = [
        [sum(row == {"label_name": label, "group_name": group} for row in table) for group in ("adult", "kids")]
        for label in ("Pants", "Skirt")
    ]
    assert train.tolist() == expected
    assert held.sum() > 0
    assert decode_image(next(loaded.view.images())[1]).shape[2] == 3
