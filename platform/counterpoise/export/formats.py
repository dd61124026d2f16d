"""Formats of an export. Each is one function that writes the content to files in a folder.

All of them stream, and write the same bytes for the same content. None decodes an image: the bytes are the pool's.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import json
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from counterpoise.errors import ConfigError
from counterpoise.export.content import Content, files_needed

Row = tuple[dict[str, Any], bytes]
_SUFFIXES = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"RIFF": "webp"}
_UNSAFE = re.compile(r'[\x00-\x1f<>:"/\\|?*]|^\.|[. ]$')  # not a file name on some file system
_LONGEST = 120  # characters of a file's name
_ROW_GROUP = 100  # images; the unit that viewers of Parquet datasets read
_SPLIT = "train"  # split of all exported images: synthetic ones and real training images


def image_folder(folder: Path, content: Content, rows: Iterator[Row], per_file: int) -> None:
    """Write ``split/label/group/id.png`` and ``metadata.csv``, whose ``file_name`` is relative to the folder."""
    del per_file  # every image is a file
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["file_name", *content.schema.names], lineterminator="\n")
        writer.writeheader()
        for row, image in rows:
            parts = [part for part in (row["split"], row["label"], row["group"]) if part is not None]
            path = "/".join([*map(safe_name, parts), f"{safe_name(row['id'])}.{suffix(image)}"])
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with (folder / path).open("xb") as picture:
                picture.write(image)
            writer.writerow({"file_name": path, **row})


def parquet(folder: Path, content: Content, rows: Iterator[Row], per_file: int) -> None:
    """Write ``data/train-*.parquet`` with an image column in Hugging Face's form: records of bytes and path."""
    image = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    schema = pa.schema([image, *content.schema])
    features = {field.name: {"dtype": _dtype(field.type), "_type": "Value"} for field in content.schema}
    info = {"info": {"features": {"image": {"_type": "Image"}, **features}}}
    schema = schema.with_metadata({"huggingface": json.dumps(info)})
    for path, part in _parts(folder, content, rows, per_file, "parquet"):
        with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=_repetitive(content)) as writer:
            while batch := list(itertools.islice(part, _ROW_GROUP)):
                records = [{"image": {"bytes": data, "path": _file_name(row, data)}, **row} for row, data in batch]
                writer.write_table(pa.Table.from_pylist(records, schema=schema))


def webdataset(folder: Path, content: Content, rows: Iterator[Row], per_file: int) -> None:
    """Write ``data/train-*.tar`` with three files per image: the image, ``.json`` (its row), ``.cls`` (its class)."""
    codes = {name: code for code, name in enumerate(content.view.names.classes)}
    numbers = itertools.count()
    for path, part in _parts(folder, content, rows, per_file, "tar"):
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row, image in part:
                key = f"{next(numbers):09d}"
                _add(tar, f"{key}.{suffix(image)}", image)
                _add(tar, f"{key}.json", json.dumps(row, ensure_ascii=False, allow_nan=False).encode())
                _add(tar, f"{key}.cls", str(codes[row["label"]]).encode())


def hugging_face(folder: Path, content: Content, rows: Iterator[Row], per_file: int) -> None:
    """Write a folder for ``datasets.load_from_disk``; labels and groups are ClassLabel features."""
    import datasets

    names = content.view.names
    features = {field.name: datasets.Value(_dtype(field.type)) for field in content.schema}
    features["label"] = datasets.ClassLabel(names=list(names.classes))
    if names.groups:
        features["group"] = datasets.ClassLabel(names=list(names.groups))

    def examples() -> Iterator[dict[str, Any]]:
        return ({"image": {"bytes": image, "path": _file_name(row, image)}, **row} for row, image in rows)

    datasets.disable_progress_bars()  # Progress shows one
    cache = folder / ".cache"
    try:
        dataset = datasets.Dataset.from_generator(
            examples,
            features=datasets.Features({"image": datasets.Image(), **features}),
            cache_dir=str(cache),
            fingerprint=content.view.digest,
        )
    except datasets.exceptions.DatasetGenerationError as error:
        raise (error.__cause__ or error) from None  # errors of reading a row are raised unchanged
    dataset.save_to_disk(str(folder), num_shards=files_needed(len(content), per_file))
    del dataset  # it has the cache's files open
    shutil.rmtree(cache)


FORMATS: dict[str, Callable[[Path, Content, Iterator[Row], int], None]] = {
    "imagefolder": image_folder,
    "parquet": parquet,
    "webdataset": webdataset,
    "huggingface": hugging_face,
}


def check(form: str) -> None:
    """Raise ConfigError if a format needs a library that is not installed."""
    if form == "huggingface":
        try:
            import datasets  # noqa: F401
        except ImportError as error:
            remedy = "pip install 'counterpoise[huggingface]', or choose --format parquet, which needs no library"
            raise ConfigError("the library `datasets` is not installed", where="--format", remedy=remedy) from error


def suffix(image: bytes) -> str:
    """Return the file suffix of an encoded image: png, jpg or webp, the formats in a table."""
    return next((name for start, name in _SUFFIXES.items() if image.startswith(start)), "bin")


def safe_name(name: str) -> str:
    """Return the name if every file system accepts it, else a changed one with a hash that keeps it unique."""
    safe = _UNSAFE.sub("_", name)[:_LONGEST]
    return name if safe == name else f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _file_name(row: dict[str, Any], image: bytes) -> str:
    return f"{safe_name(row['id'])}.{suffix(image)}"


def _parts(
    folder: Path, content: Content, rows: Iterator[Row], per_file: int, ending: str
) -> Iterator[tuple[Path, Iterator[Row]]]:
    """Yield (file to write, its rows)."""
    (folder / "data").mkdir()
    files = files_needed(len(content), per_file)
    for index in range(files):
        path = folder / "data" / f"{_SPLIT}-{index:05d}-of-{files:05d}.{ending}"
        yield path, itertools.islice(rows, per_file)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)  # no time, no owner: the same content is the same file
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))


def _repetitive(content: Content) -> list[str]:
    return [name for name in ("label", "group", "split", "source", "plans", "prompt") if name in content.schema.names]


def _dtype(kind: pa.DataType) -> str:
    """Return the name of an Arrow type in Hugging Face's features."""
    return {"float": "float32", "double": "float64", "halffloat": "float16"}.get(str(kind), str(kind))
