"""Stored dataset: its images in Parquet files of bounded size, an index of its rows, and a record that vouches for all.

``tables/<address>/`` holds ``0000.parquet``, … (the images), ``rows.parquet`` (a row for each image, without it),
``quarantine.parquet`` (the rows that were not taken) and, written last, ``table.json`` with the names of classes and
groups and the hash of every file.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from counterpoise.errors import StoreError
from counterpoise.storage import row_files
from counterpoise.storage.records import damaged, read_file, read_record, sha256, to_record
from counterpoise.storage.schema import NAME, PLACE, VIEW, LabelSpace
from counterpoise.storage.store import Store
from counterpoise.storage.view import ImageView

_BLOCK = 4 << 20
PART_BYTES = 1 << 30  # of images in a file: object stores take 5 GiB in one request, and a row group fits into memory
_IMAGES = pa.schema([("id", pa.string()), ("image", pa.binary()), ("label", pa.int32()), ("group", pa.int32())])
_ROWS = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.int32()),
        ("group", pa.int32()),  # -1: unknown
        ("split", NAME),
        ("part", pa.int32()),
        ("row", pa.int32()),
        *PLACE,
    ]
)


@dataclass(frozen=True)
class TableFiles:
    """Keys of a stored dataset."""

    address: str

    @property
    def record(self) -> str:
        """Key of the record; the dataset is stored if it is there."""
        return f"tables/{self.address}/table.json"

    @property
    def rows(self) -> str:
        """Key of the index of rows."""
        return f"tables/{self.address}/rows.parquet"

    @property
    def quarantine(self) -> str:
        """Key of the rows that were not taken."""
        return f"tables/{self.address}/quarantine.parquet"

    def part(self, number: int) -> str:
        """Return the key of a file of images."""
        return f"tables/{self.address}/{number:04d}.parquet"


class TableWriter:
    """Writer of a dataset. At most one row group is in memory, and one file on the disk.

    Args:
        store: The store.
        files: The dataset's keys.
        folder: A temporary folder.
    """

    def __init__(self, store: Store, files: TableFiles, folder: Path) -> None:
        self.store, self.files, self.folder = store, files, folder
        self._rows: list[pa.Table] = []
        self._parts: list[dict[str, object]] = []
        self._open: pq.ParquetWriter | None = None
        self._written: list[pa.Table] = []  # rows of the open part

    def write(self, images: Sequence[bytes], rows: pa.Table) -> None:
        """Write a row group.

        Args:
            images: Encoded images.
            rows: Columns ``id``, ``label``, ``group`` and ``split`` of the images.
        """
        if self._open is None:
            path, options = self.folder / "part.parquet", row_files.writer_options(_IMAGES, ["image"])
            self._open = pq.ParquetWriter(path, _IMAGES, **options)
        column = pa.array(images, pa.binary())
        table = rows.append_column("image", column)
        self._open.write_table(table.select(_IMAGES.names).cast(_IMAGES), row_group_size=len(table))
        sizes = row_files.lengths(pa.chunked_array([column]))
        place = {"image_length": pa.array(sizes, pa.int32()), "image_sha256": row_files.hashes(images)}
        for name, values in place.items():
            rows = rows.append_column(name, pa.array(values, _ROWS.field(name).type))
        self._written.append(rows)
        if sum(pc.sum(one["image_length"]).as_py() for one in self._written) > PART_BYTES:
            self._close_part()

    def finish(self, names: LabelSpace, quarantine: pa.Table) -> None:
        """Write the rest, and the record last.

        Args:
            names: Names of classes and groups.
            quarantine: The rows that were not taken.
        """
        self._close_part()
        columns = [_parquet(pa.concat_tables(self._rows)), _parquet(quarantine)]
        for key, data in zip((self.files.rows, self.files.quarantine), columns, strict=True):
            self.store.replace(key, data)
        record = {
            "address": self.files.address,
            "classes": list(names.classes),
            "groups": list(names.groups),
            "parts": self._parts,
            "rows": sha256(columns[0]),
            "quarantine": sha256(columns[1]),
        }
        self.store.create(self.files.record, to_record(record))

    def _close_part(self) -> None:
        if self._open is None:
            return
        self._open.close()
        path, number = self.folder / "part.parquet", len(self._parts)
        rows = pa.concat_tables(self._written).combine_chunks()
        offsets = row_files.offsets(pq.read_metadata(path), "image", rows["image_length"].to_numpy().astype(np.int64))
        rows = rows.append_column("image_offset", pa.array(offsets))
        rows = rows.append_column("part", pa.array(np.full(len(rows), number), pa.int32()))
        rows = rows.append_column("row", pa.array(np.arange(len(rows)), pa.int32()))
        self._rows.append(rows.select(_ROWS.names).cast(_ROWS))
        self._parts.append({"sha256": _hash_of(path), "bytes": path.stat().st_size, "rows": len(rows)})
        self.store.replace(self.files.part(number), path)
        path.unlink()
        self._open, self._written = None, []


def read_view(store: Store, files: TableFiles) -> ImageView:
    """Return all rows of a stored dataset.

    Raises:
        DamagedError: Its record or its index is not what was stored.
    """
    record = _record(store, files)
    rows = pq.read_table(io.BytesIO(read_file(store, files.rows, record["rows"]))).cast(_ROWS)
    keys = pa.array([files.part(number) for number in range(len(record["parts"]))], pa.string())
    columns = {name: rows[name] for name in _ROWS.names if name != "part"}
    columns["key"] = pa.DictionaryArray.from_arrays(rows["part"].combine_chunks(), keys)
    columns["source"] = pa.DictionaryArray.from_arrays(np.zeros(len(rows), np.int32), ["real"])
    index = pa.table({name: columns[name] for name in VIEW.names}).combine_chunks()
    return ImageView(store, LabelSpace(tuple(record["classes"]), tuple(record["groups"])), index)


def read_quarantine(store: Store, files: TableFiles) -> pa.Table:
    """Return the rows that were not taken.

    Raises:
        DamagedError: They are not what was stored.
    """
    expected = _record(store, files)["quarantine"]
    return pq.read_table(io.BytesIO(read_file(store, files.quarantine, expected)))


def check_table(store: Store, files: TableFiles) -> list[tuple[str, str]]:
    """Return the damaged files of a stored dataset: the key, and what is wrong."""
    try:
        record = _record(store, files)
    except StoreError as error:
        return [(files.record, str(error.found or error.message))]
    expected = {files.rows: record["rows"], files.quarantine: record["quarantine"]}
    expected |= {files.part(number): part["sha256"] for number, part in enumerate(record["parts"])}
    wrong = []
    for key, hashed in expected.items():
        try:
            if _hash_in(store, key) != hashed:
                wrong.append((key, "the content does not match its SHA-256"))
        except StoreError as error:
            wrong.append((key, error.message))
    return wrong


def _record(store: Store, files: TableFiles) -> dict[str, Any]:
    record = read_record(store, files.record)
    if record["address"] != files.address:
        raise damaged(f"{store.uri}/{files.record}", f"the record of another dataset, {record['address']}")
    return record


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_in(store: Store, key: str) -> str:
    sha = hashlib.sha256()
    with store.open(key) as file:
        while block := file.read(_BLOCK):
            sha.update(block)
    return sha.hexdigest()
