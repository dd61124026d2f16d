"""What goes out comes in again, through our own adapters and through other readers: same counts, same pixels."""

import csv
import gc
import hashlib
import io
import json
import tarfile
from collections import Counter

import boto3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from pydantic import TypeAdapter

from counterpoise import config as configuration
from counterpoise.core.files import new_folder
from counterpoise.data.dataset import load as load_dataset
from counterpoise.errors import ConfigError, CounterpoiseError, PlanError
from counterpoise.export import formats
from counterpoise.export.content import Content, content, files_needed, together
from counterpoise.export.write import export
from counterpoise.storage.codec import decode_image
from counterpoise.storage.uri import open_store
from counterpoise.storage.view import ImageView

COLUMNS = {"label": "label", "group": "group", "split": "split", "id": "id"}
ADAPTER = TypeAdapter(configuration.Data)


def read_back(section, tmp_path):
    """All rows that our adapter finds; they are training rows, so it draws the other splits from them."""
    section = {"splits": {"train": 0.6, "validation": 0.2, "test": 0.2}, **section}
    loaded = load_dataset(ADAPTER.validate_python(section), open_store(tmp_path / "read_back"))
    assert loaded.quarantined == 0
    return loaded.view


def sections(folder, form, groups):
    columns = COLUMNS if groups else {key: value for key, value in COLUMNS.items() if key != "group"}
    layout = "{split}/{label}/{group}" if groups else "{split}/{label}"
    return {
        "imagefolder": [
            {"adapter": "imagefolder", "root": str(folder), "layout": layout},
            {
                "adapter": "csv",
                "root": str(folder),
                "table": "metadata.csv",
                "columns": {"image": "file_name", **columns},
            },
        ],
        "parquet": [{"adapter": "parquet", "path": str(folder / "data"), "columns": columns}],
        "huggingface": [{"adapter": "huggingface", "path": str(folder), "columns": columns}],
    }[form]


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("form", ["imagefolder", "parquet", "huggingface"])
@pytest.mark.parametrize("groups", [True, False])
@pytest.mark.parametrize("with_real", [True, False])
def test_our_adapters_read_what_was_written(job, tmp_path, images_of, form, groups, with_real):
    one, folder = job(groups=groups), tmp_path / "out"
    done = export(one, form, folder, with_real=with_real, per_file=5)
    expected = images_of(content(one, (), with_real).view)
    made = 6 + 5 + 3 if groups else 6 + 3
    assert done["images"] == made + (len(one.dataset.train) if with_real else 0) == sum(map(len, expected.values()))
    assert (done["format"], done["out"], done["files"]) == (form, str(folder), len(tree(folder)))
    assert done["bytes"] == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    for section in sections(folder, form, groups):
        view = read_back({**section, "max_quarantined": 0}, tmp_path)
        assert images_of(view) == expected
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("out", "read_back")] == []


def test_files_of_a_folder_are_the_pools_own_bytes(job, tmp_path):
    one, folder = job(), tmp_path / "out"
    export(one, "imagefolder", folder)
    view = content(one, (), False).view
    stored = {view.index["id"][position].as_py(): data for position, data in view.images()}
    with (folder / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(stored) == 14
    for row in rows:
        assert (folder / row["file_name"]).read_bytes() == stored[row["id"]]
        assert row["file_name"] == f"train/{row['label']}/{row['group']}/{row['id']}.webp"
        assert row["prompt"] == f"a {row['group']} {row['label']}"
    assert {row["plans"] for row in rows if (row["label"], row["group"]) == ("ring", "red")} == {"few,many", "many"}


def test_tar_files(job, tmp_path, images_of):
    one, folder = job(), tmp_path / "out"
    done = export(one, "webdataset", folder, per_file=4)
    names = [f"train-{number:05d}-of-00004.tar" for number in range(4)]
    assert sorted(path.name for path in (folder / "data").iterdir()) == names
    assert done["files"] == 5
    found, sizes = {}, []
    for name in names:
        with tarfile.open(folder / "data" / name) as tar:
            members = tar.getmembers()
            assert all((member.mtime, member.uid, member.gid) == (0, 0, 0) for member in members)
            sizes.append(len(members) // 3)
            for image, row, code in zip(members[::3], members[1::3], members[2::3], strict=True):
                assert [m.name.partition(".")[2] for m in (image, row, code)] == ["webp", "json", "cls"]
                assert len({m.name.partition(".")[0] for m in (image, row, code)}) == 1
                row = json.load(tar.extractfile(row))
                assert one.dataset.names.classes[int(tar.extractfile(code).read())] == row["label"]
                pixels = decode_image(tar.extractfile(image).read()).tobytes()
                found.setdefault((row["label"], row["group"]), []).append(pixels)
    assert sizes == [4, 4, 4, 2]
    assert {cell: sorted(images) for cell, images in found.items()} == images_of(content(one, (), False).view)


def test_parquet_is_what_hugging_face_reads(job, tmp_path):
    import datasets

    export(job(), "parquet", tmp_path / "out", per_file=5)
    files = sorted(map(str, (tmp_path / "out" / "data").iterdir()))
    assert [pq.ParquetFile(file).metadata.num_rows for file in files] == [5, 5, 4]
    loaded = datasets.Dataset.from_parquet(files, cache_dir=str(tmp_path / "cache"))
    assert isinstance(loaded.features["image"], datasets.Image)
    assert loaded.features["seed"] == datasets.Value("uint64")
    assert loaded[0]["image"].size == (16, 16)
    assert loaded[0]["label"] == "circle"


def test_labels_are_class_labels(job, tmp_path):
    import datasets

    export(job(), "huggingface", tmp_path / "out", with_real=True, per_file=10)
    loaded = datasets.load_from_disk(str(tmp_path / "out"))
    assert loaded.features["label"] == datasets.ClassLabel(names=["circle", "ring"])
    assert loaded.features["group"] == datasets.ClassLabel(names=["red", "blue"])
    assert set(loaded["source"]) == {"real", "synthetic"}
    assert len(list((tmp_path / "out").glob("*.arrow"))) == 3


@pytest.mark.parametrize("form", ["imagefolder", "parquet", "webdataset", "huggingface"])
def test_the_same_view_is_the_same_bytes(job, tmp_path, form):
    for name in ("one", "two"):
        export(job(), form, tmp_path / name, with_real=True)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def test_from_a_store_on_s3(config, job, tmp_path, s3_server, monkeypatch, images_of):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    client = boto3.client("s3")
    client.create_bucket(Bucket="exports")
    client.close()
    monkeypatch.chdir(tmp_path)
    export(job(store="s3://exports/one"), "parquet", tmp_path / "s3")
    export(job(), "parquet", tmp_path / "local")
    assert tree(tmp_path / "s3") == tree(tmp_path / "local")  # also the card: it does not say where the store is


# -- which images ------------------------------------------------------------------------------------------------------


def test_one_plan(job, tmp_path):
    assert export(job(), "webdataset", tmp_path / "few", ["few"])["images"] == 3
    assert export(job(), "webdataset", tmp_path / "many", ["many"])["images"] == 14


def test_every_image_once(job):
    one = job()
    views = content(one, (), False).plans
    both = together(views)
    places = list(zip(both.index["key"].to_pylist(), both.index["row"].to_pylist(), strict=True))
    assert len(set(places)) == len(places) == 14
    taken = dict(zip(places, both.index["plans"].to_pylist(), strict=True))
    for name, view in views.items():
        own = set(zip(view.index["key"].to_pylist(), view.index["row"].to_pylist(), strict=True))
        assert own == {place for place, plans in taken.items() if name in plans.split(",")}
    assert together({"many": views["many"], "few": views["few"]}).digest == both.digest
    order = list(zip(both.labels, both.groups, both.column("index"), strict=True))
    assert order == sorted(order)


def test_rows_of_unknown_group(job, tmp_path):
    """They lie beside the folders of the groups; the table, Parquet and datasets know them for what they are."""
    one = job()
    view = content(one, (), True).view
    groups = view.index["group"].to_numpy().copy()
    groups[-2:] = -1
    index = view.index.set_column(view.index.schema.get_field_index("group"), "group", [groups])
    some = Content(one.suite.shared, one.pools["two"], {}, ImageView(view.store, view.names, index))
    expected = Counter(view.names.groups[g] if g >= 0 else None for g in groups)
    assert expected[None] == 2
    for form in ("imagefolder", "parquet", "huggingface"):
        folder = tmp_path / form
        folder.mkdir()
        formats.FORMATS[form](folder, some, some.rows(), 100)
        section = sections(folder, form, True)[-1]
        read = read_back(section, tmp_path)
        assert Counter(read.names.groups[g] if g >= 0 else None for g in read.groups) == expected


def test_names_that_no_folder_can_have():
    names = ["T-shirt/top", "T-shirt_top", "../up", ".hidden", "a" * 300, "what?", "dot.", "ankle boot", "été"]
    safe = [formats.safe_name(name) for name in names]
    assert len(set(safe)) == len(names)
    assert [name for name in names if name in safe] == ["T-shirt_top", "ankle boot", "été"]
    for name in safe:
        assert not set(name) & set('/\\:*?"<>|')
        assert not name.startswith(".")
        assert len(name) < 150


@pytest.mark.parametrize(("kind", "ending"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")])
def test_endings_are_those_of_the_bytes(kind, ending):
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(buffer, kind)
    assert formats.suffix(buffer.getvalue()) == ending


@pytest.mark.parametrize(("count", "per_file", "files"), [(0, 5, 1), (5, 5, 1), (6, 5, 2), (11, 5, 3)])
def test_files_needed(count, per_file, files):
    assert files_needed(count, per_file) == files


# -- the card ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", list(formats.FORMATS))
def test_the_card(job, tmp_path, form):
    one = job()
    export(one, form, tmp_path / "out", with_real=True)
    text = (tmp_path / "out" / "README.md").read_text()
    _, matter, body = text.split("---\n", 2)
    matter = yaml.safe_load(matter)
    assert (matter["license"], matter["size_categories"]) == ("unknown", ["n<1K"])
    assert "**unknown**" in body
    assert one.pools["two"].digest in body
    assert "- a red ring (6)" in body
    assert "| ring | 6 | 5 |" in body
    assert "| ring | 3 | 3 |" in body  # the real ones
    assert "An image in several plans is exported once" in body
    config = yaml.safe_load(body.rpartition("```yaml\n")[2].partition("```")[0])
    assert config["plans"]["many"]["counts"]["ring"] == {"red": 6, "blue": 5}
    assert str(one.store.uri) not in text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # `datasets` leaves metadata.csv open
@pytest.mark.parametrize("form", ["imagefolder", "parquet", "huggingface"])
def test_the_card_says_how_to_load_it(job, tmp_path, form, images_of):
    """Its own lines, with the folder in place of DIR."""
    one = job()
    export(one, form, tmp_path / "out", with_real=True)
    body = (tmp_path / "out" / "README.md").read_text()
    snippet = body.partition("```yaml\n")[2].partition("```")[0]
    for line in snippet.split("# or\n"):
        section = yaml.safe_load(line.replace("DIR", str(tmp_path / "out")))["data"]
        assert images_of(read_back(section, tmp_path)) == images_of(content(one, (), True).view)
    python = body.partition("```python\n")[2].partition("```")[0].replace("DIR", str(tmp_path / "out"))
    found = {}
    exec(python.replace('split="train"', f'split="train", cache_dir={str(tmp_path / "cache")!r}'), found)
    assert len(found["images"]) == len(content(one, (), True))
    assert {image["source"] for image in found["images"]} == {"real", "synthetic"}
    del found
    gc.collect()


# -- whole or not at all -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", list(formats.FORMATS))
def test_what_fails_in_the_middle_leaves_nothing(job, tmp_path, form, monkeypatch):
    class Stop(Exception):
        pass

    rows = Content.rows

    def breaking(self):
        for number, row in enumerate(rows(self)):
            if number == 7:
                raise Stop
            yield row

    monkeypatch.setattr(Content, "rows", breaking)
    with pytest.raises(Stop):
        export(job(), form, tmp_path / "deep" / "er" / "out", per_file=3)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_came_to_be_in_the_meantime_is_left_alone(tmp_path):
    def race():
        with new_folder(tmp_path / "out", what="the export") as folder:
            (folder / "ours").write_text("")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "theirs").write_text("")

    with pytest.raises(ConfigError, match="cannot be written"):
        race()
    assert tree(tmp_path).keys() == {"out/theirs"}


def test_an_empty_folder_is_taken(job, tmp_path):
    (tmp_path / "out").mkdir()
    export(job(), "parquet", tmp_path / "out")
    assert (tmp_path / "out" / "README.md").is_file()
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~_umask()


def _umask():
    import os

    mask = os.umask(0)
    os.umask(mask)
    return mask


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_a_folder_with_something_in_it(job, tmp_path):
    (tmp_path / "kept").write_text("mine")
    for out in (tmp_path, tmp_path / "kept"):
        with pytest.raises(ConfigError, match="--out"):
            export(job(), "parquet", out)
    assert tree(tmp_path).keys() == {"kept"}


def test_unknown_plans(job, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'many'"):
        export(job(), "parquet", tmp_path / "out", ["mny"])


def test_whose_plans(config, tmp_path):
    from counterpoise.config.compose import load
    from counterpoise.workflow.run import Run

    variants = "{method: a, extends: usb}, {method: b, extends: asb}"
    demo = ["demo", [f"store={tmp_path / 'store'}", "tracking.enabled=false"]]
    for methods, hint in ((variants, "--method a"), ("erm", "no plan to export")):
        path, overrides = demo
        with Run(load(path, [*overrides, f"methods=[{methods}]"])) as job, pytest.raises(ConfigError, match=hint):
            content(job, (), False)
    assert not (tmp_path / "store" / "pool").exists()


def test_plans_that_want_nothing(tiny_models, tmp_path):
    from counterpoise.workflow.run import Run
    from tiny import make_experiment

    data = {"adapter": "testbed", "classes": ["circle", "ring"], "groups": ["red", "blue"]}
    data["per_cell"] = {"train": 1, "validation": 1, "test": 1}
    experiment = make_experiment(tiny_models, tmp_path / "store", data=data, tracking={"enabled": False})
    with Run([experiment]) as job, pytest.raises(PlanError, match="no image to export"):  # USB of a balanced dataset
        export(job, "parquet", tmp_path / "out")


def test_without_the_library(job, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match="counterpoise\\[huggingface\\]"):
        export(job(), "huggingface", tmp_path / "out")


def test_a_store_that_fails_is_said_as_it_is(job, tmp_path):
    """Also through `datasets`, which wraps what a generator of rows raises."""
    one = job()
    some = content(one, (), False)
    nowhere = pa.DictionaryArray.from_arrays(np.zeros(len(some), np.int32), ["pool/nowhere.parquet"])
    index = some.view.index.set_column(some.view.index.schema.get_field_index("key"), "key", nowhere)
    lost = Content(some.experiment, some.pool, some.plans, ImageView(some.view.store, some.view.names, index))
    for form, write_form in formats.FORMATS.items():
        (tmp_path / form).mkdir()
        with pytest.raises(CounterpoiseError, match="nothing is stored at this key"):
            write_form(tmp_path / form, lost, lost.rows(), 10)
