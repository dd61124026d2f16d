"""Ways to get a dataset wrong. Each is a DataError of a few helpful lines, and leaves nothing in the store."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from counterpoise.errors import DataError

SMALL = {"train": 20, "validation": 3, "test": 3}
TESTBED = {"adapter": "testbed", "classes": ["star", "ring"], "groups": ["red", "blue"], "per_cell": SMALL}
BIASED = {"kind": "biased", "rate": 0.9}


def csv(root, **data):
    return {"adapter": "csv", "root": str(root), "splits": {}, **data}


def edit(root, old: str, new: str, count: int = -1):
    table = root / "labels.csv"
    table.write_text(table.read_text().replace(old, new, count))


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return {"adapter": "parquet", "path": str(path), "splits": {}}


def a_missing_column(root):
    return csv(root, columns={"label": "lable"})


def a_missing_group_column(root):
    return csv(root, columns={"group": "colour"})


def a_missing_table(root):
    return csv(root, table="annotations.csv")


def a_root_that_does_not_exist(root):
    return csv(root / "moved" / "away")


def a_root_that_cannot_be_looked_at(root):
    return csv("x" * 300)


def a_folder_without_permission(root):
    (root / "images").chmod(0)
    return {"adapter": "imagefolder", "root": str(root)}


def a_root_that_is_a_file(root):
    return csv(root / "labels.csv")


def a_header_without_rows(root):
    (root / "labels.csv").write_text("image,label\n")
    return csv(root)


def a_table_that_is_not_text(root):
    (root / "labels.csv").write_bytes(b"\xff\xfe\x00image")
    return csv(root)


def too_many_unreadable_images(root):
    for number in range(4):
        (root / f"images/{number}.png").write_bytes(b"gone")
    return csv(root, max_quarantined=0.05)


def too_many_missing_labels(root):
    edit(root, ",cat,", ",,", 3)
    return csv(root)


def only_unreadable_images(root):
    for path in (root / "images").iterdir():
        path.write_bytes(b"")
    return csv(root, max_quarantined=1)


def no_label_at_all(root):
    edit(root, ",cat,", ",,")
    edit(root, ",dog,", ",,")
    return csv(root, max_quarantined=1)


def repeated_ids(root):
    edit(root, "images/7.png", "images/6.png")
    return csv(root)


def an_unknown_class(root):
    return csv(root, classes=["dog", "cta"])


def a_group_without_images(root):
    return csv(root, columns={"group": "group"}, groups=["red", "green"])


def groups_of_a_dataset_without_groups(root):
    return csv(root, groups=["red"])


def no_test_split(root):
    edit(root, ",test", ",train")
    return csv(root, columns={"split": "split"}, splits=None)


def no_training_split(root):
    edit(root, ",train", ",test")
    return csv(root, columns={"split": "split"}, splits=None)


def splits_that_are_all_there(root):
    return csv(root, columns={"split": "split"})


def an_empty_split(root):
    return csv(root, rows="0:4")


def a_slice_without_rows(root):
    return csv(root, rows="100:")


def no_images_in_the_folder(root):
    (root / "empty").mkdir()
    return {"adapter": "imagefolder", "root": str(root / "empty")}


def a_layout_that_does_not_match(root):
    return {"adapter": "imagefolder", "root": str(root), "layout": "{split}/{label}"}


def no_parquet_file(root):
    return {"adapter": "parquet", "path": str(root)}


def a_file_that_is_not_parquet(root):
    (root / "x.parquet").write_text("image,label")
    return {"adapter": "parquet", "path": str(root / "x.parquet")}


def a_column_that_holds_no_images(root):
    return parquet(root / "x.parquet", image=["a.png", "b.png"], label=["a", "b"])


def two_sources_of_splits(root):
    data = parquet(root / "x.parquet", image=[b"", b""], label=["a", "b"])
    return {**data, "path": {"train": data["path"]}, "columns": {"split": "split"}}


def an_unknown_torchvision_dataset(root):
    return {"adapter": "torchvision", "dataset": "FashionMnist", "root": str(root)}


def torchvision_files_that_are_not_there(root):
    return {"adapter": "torchvision", "dataset": "FashionMNIST", "root": str(root)}


def another_torchvision_dataset_that_is_not_there(root):
    return {"adapter": "torchvision", "dataset": "CIFAR10", "root": str(root)}


def a_torchvision_file_that_is_damaged(root):
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (root / f"{part}-{kind}-ubyte.gz").write_bytes(b"\x1f\x8b broken")
    return {"adapter": "torchvision", "dataset": "MNIST", "root": str(root)}


def a_hugging_face_folder_that_is_none(root):
    return {"adapter": "huggingface", "path": str(root)}


def a_hugging_face_path_that_does_not_exist(root):
    return {"adapter": "huggingface", "path": "./no/such/folder"}


def a_hugging_face_name_that_cannot_be_loaded(root):
    return {"adapter": "huggingface", "path": "nobody/nothing"}


def an_unknown_tint(root):
    return csv(root, tint={"colors": ["red", "gren"]})


def a_tint_on_coloured_images(root):
    return csv(root, tint={"colors": ["red", "green"]})


def a_tint_on_a_dataset_with_groups(root):
    return csv(root, columns={"group": "group"}, tint={"colors": ["red", "green"]})


def the_same_factor_twice(root):
    return {**TESTBED, "group": "shape", "groups": None}


def a_bias_without_groups(root):
    return {**TESTBED, "group": None, "groups": None, "imbalance": BIASED}


def a_majority_group_that_is_unknown(root):
    return {**TESTBED, "imbalance": {**BIASED, "majority": {"star": "rod", "ring": "blue"}}}


def an_impossible_bias(root):
    edit(root, ",dog,blue", ",dog,red", 9)  # one of dog's images stays blue
    return csv(root, columns={"group": "group"}, imbalance={"kind": "biased", "rate": 0.5, "majority": MAJORITY})


MAJORITY = {"dog": "red", "cat": "blue"}


def a_majority_that_is_too_small(root):
    return {**TESTBED, "imbalance": {**BIASED, "per_class": 21}}


def a_tail_that_is_too_long(root):
    return {**TESTBED, "imbalance": {"kind": "long_tailed", "factor": 1000}}


def a_tail_that_starts_too_high(root):
    return {**TESTBED, "imbalance": {"kind": "long_tailed", "factor": 2, "largest": 1000}}


def counts_of_an_unknown_class(root):
    return {**TESTBED, "imbalance": {"kind": "counts", "counts": {"stern": 3}}}


def counts_of_an_unknown_group(root):
    return {**TESTBED, "imbalance": {"kind": "counts", "counts": {"star": {"bleu": 3}}}}


def counts_beyond_what_there_is(root):
    return {**TESTBED, "imbalance": {"kind": "counts", "counts": {"star": {"blue": 21}}}}


# what is wrong -> what the message must say: the place, what was found, what is allowed or what to do
WRONG = {
    a_missing_column: ["data.columns.label", "lable", "image, label, group, split", "did you mean 'label'?"],
    a_missing_group_column: ["data.columns.group", "colour", "image, label, group, split"],
    a_missing_table: ["data.table", "annotations.csv", "labels.csv"],
    a_root_that_does_not_exist: ["data.root", "moved/away", "exists up to", "set data.root=DIR"],
    a_root_that_cannot_be_looked_at: ["cannot be read", "File name too long", "permissions"],
    a_folder_without_permission: ["cannot be read", "images", "Permission denied"],
    a_root_that_is_a_file: ["data.root", "a file"],
    a_header_without_rows: ["labels.csv", "no rows"],
    a_table_that_is_not_text: ["labels.csv", "UTF-8"],
    too_many_unreadable_images: ["of 40", "unreadable image", "5.0%", "images/0.png", "raise data.max_quarantined"],
    too_many_missing_labels: ["3 of 40 (7.5%): 3 × no label", "1.0%"],
    only_unreadable_images: ["no image of this dataset can be read", "cannot identify"],
    no_label_at_all: ["the dataset has no usable row", "40 × no label"],
    repeated_ids: ["data.columns.id", "'images/6.png'", "unique ids"],
    an_unknown_class: ["data.classes", "cta", "cat, dog", "did you mean 'cat'?"],
    a_group_without_images: ["data.groups", "green", "blue, red"],
    groups_of_a_dataset_without_groups: ["data.groups", "data.columns.group"],
    no_test_split: ["no test split", "train, validation", "set data.splits"],
    no_training_split: ["no training split", "test, validation"],
    splits_that_are_all_there: ["data.splits", "all three splits", "leave out data.splits"],
    an_empty_split: ["split is empty", "data.splits", "use more rows"],
    a_slice_without_rows: ["data.rows", "100: of 40 training rows"],
    no_images_in_the_folder: ["data.root", "empty", ".jpeg"],
    a_layout_that_does_not_match: ["data.layout", "{split}/{label}", "images/0.png"],
    no_parquet_file: ["data.path", "a folder without .parquet files", "train-*.parquet"],
    a_file_that_is_not_parquet: ["x.parquet", "not a readable Parquet file"],
    a_column_that_holds_no_images: ["data.columns.image", "string", "binary"],
    two_sources_of_splits: ["data.columns.split", "data.path"],
    an_unknown_torchvision_dataset: ["data.dataset", "FashionMnist", "did you mean 'FashionMNIST'?"],
    torchvision_files_that_are_not_there: ["data.root", "train-images-idx3-ubyte", "labels.csv", "download=true"],
    another_torchvision_dataset_that_is_not_there: ["finds no CIFAR10", "data.root", "download=true"],
    a_torchvision_file_that_is_damaged: ["train-images-idx3-ubyte.gz", "cannot be unpacked"],
    a_hugging_face_folder_that_is_none: ["data.path", "dataset_dict.json", "save_to_disk"],
    a_hugging_face_path_that_does_not_exist: ["data.path", "no such folder"],
    a_hugging_face_name_that_cannot_be_loaded: ["nobody/nothing", "cannot be loaded", "HF_TOKEN"],
    an_unknown_tint: ["data.tint.colors.1", "gren", "did you mean 'green'?"],
    a_tint_on_coloured_images: ["data.tint", "only grey images", "images/0.png"],
    a_tint_on_a_dataset_with_groups: ["data.tint", "from a tint or from the dataset"],
    the_same_factor_twice: ["data.group", "color, background"],
    a_bias_without_groups: ["data.imbalance", "at least two groups"],
    a_majority_group_that_is_unknown: ["data.imbalance.majority.star", "rod", "did you mean 'red'?"],
    an_impossible_bias: ["data.imbalance.rate", "already more biased", "1 training images of dog × blue"],
    a_majority_that_is_too_small: ["data.imbalance.per_class", "20 images", "at least 21"],
    a_tail_that_is_too_long: ["data.imbalance.factor", "1000", "at most 40"],
    a_tail_that_starts_too_high: ["data.imbalance.largest", "40 images", "at least 1000"],
    counts_of_an_unknown_class: ["data.imbalance.counts", "stern", "star, ring"],
    counts_of_an_unknown_group: ["data.imbalance.counts.star", "bleu", "did you mean 'blue'?"],
    counts_beyond_what_there_is: ["data.imbalance.counts.star.blue", "21", "at most 20"],
}


@pytest.mark.parametrize("mistake", WRONG, ids=lambda mistake: mistake.__name__)
def test_a_mistake_is_explained_and_leaves_nothing_behind(mistake, imported, table, store):
    if mistake is a_folder_without_permission and os.geteuid() == 0:
        pytest.skip("root may read everything")
    data = mistake(table)
    with pytest.raises(DataError) as caught:
        imported(**data)
    said = str(caught.value)
    assert all(part in said for part in WRONG[mistake]), said
    assert len(said.splitlines()) <= 6
    left = store.list("")
    if "imbalance" in data:  # the dataset itself is right, and stays for the next try
        assert len(left) in (0, 4)
    else:
        assert left == []
    assert os.listdir(table.parent / "store" / ".tmp") in ([], ["lock"])


def test_a_share_that_is_allowed_is_checked_again_when_it_gets_stricter(imported, table, store):
    (table / "images/3.png").write_bytes(b"gone")
    assert imported(**csv(table, max_quarantined=0.1)).quarantined == 1
    with pytest.raises(DataError, match=r"1 of 40 \(2.5%\)"):
        imported(**csv(table, max_quarantined=0.01))
