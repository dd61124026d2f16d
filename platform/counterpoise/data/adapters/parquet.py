"""Adapter of Parquet files with encoded images: bytes, or the {bytes, path} records of Hugging Face datasets."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool

from counterpoise import config
from counterpoise.data.adapters.source import (
    Picture,
    Rows,
    Source,
    fingerprint_files,
    name_of,
    need_column,
    read_picture,
)
from counterpoise.errors import DataError

_BATCH = 64  # images read at once


def parquet_table(data: config.ParquetTable) -> Source:
    """Open a Parquet file, a folder of them, a pattern such as ``train-*.parquet``, or one of these per split."""
    if isinstance(data.path, dict) and data.columns.split is not None:
        raise DataError(
            "splits come either from the paths or from a column",
            where="data.columns.split",
            found=f"{data.columns.split}, and data.path with {', '.join(data.path)}",
            remedy="leave out one of the two",
        )
    paths = data.path if isinstance(data.path, dict) else {None: data.path}
    files = [(file, split) for split, path in paths.items() for file in _files(path, split)]
    root = Path(os.path.commonpath([file.absolute().parent for file, _ in files]))
    fingerprint = [
        [split, *entry]
        for (_, split), entry in zip(files, fingerprint_files([f.absolute() for f, _ in files], root), strict=True)
    ]
    return Source(fingerprint, lambda: _read(files, root, data.columns))


def _files(path: str, split: str | None) -> list[Path]:
    place = Path(path).expanduser()
    pattern = str(place / "*.parquet") if place.is_dir() else str(place)
    files = [place] if place.is_file() else [Path(name) for name in sorted(glob.glob(pattern))]
    if not files:
        key = "data.path" if split is None else f"data.path.{split}"
        found = "a folder without .parquet files" if place.is_dir() else "nothing there"
        allowed = "a Parquet file, a folder of them, or a pattern such as DIR/train-*.parquet"
        raise DataError("no Parquet file found", where=f"{key}: {path}", found=found, allowed=allowed)
    return files


def _read(files: Sequence[tuple[Path, str | None]], root: Path, columns: config.Columns) -> Rows:
    tables = [_index(file, columns) for file, _ in files]
    sizes = [len(table) for table in tables]
    if not sum(sizes):
        raise DataError("the table has no rows", where=f"data.path: {files[0][0]}")

    def cells(column: str | None) -> list[str | None] | None:
        return None if column is None else [name_of(v) for table in tables for v in table[column].to_pylist()]

    names = [os.path.relpath(file.absolute(), root) for file, _ in files]
    splits = [split for (_, split), size in zip(files, sizes, strict=True) for _ in range(size)]
    numbered = [f"{name}/{row}" for name, size in zip(names, sizes, strict=True) for row in range(size)]
    given = cells(columns.id)
    return Rows(
        ids=numbered if given is None else [name or "" for name in given],
        labels=cells(columns.label) or (),
        groups=cells(columns.group),
        splits=cells(columns.split) if files[0][1] is None else splits,
        images=lambda wanted: _pictures([file for file, _ in files], sizes, columns.image, wanted),
    )


def _index(file: Path, columns: config.Columns) -> pa.Table:
    """Read the file's columns except the image. Checks that all columns exist and that one can hold images."""
    try:
        with pq.ParquetFile(file) as table:
            schema = table.schema_arrow
            for role, column in columns.model_dump().items():
                if column is not None:
                    need_column(column, role, schema.names, file)
            kind = schema.field(columns.image).type
            if not holds_images(kind):
                raise DataError(
                    f"column {columns.image!r} does not hold images",
                    where=f"data.columns.image, {file}",
                    found=kind,
                    allowed="encoded images as binary, or as a struct of bytes and path",
                )
            names = (columns.label, columns.group, columns.split, columns.id)
            return table.read(columns=sorted({column for column in names if column is not None}))
    except (pa.ArrowException, OSError) as error:
        raise DataError("not a readable Parquet file", where=f"data.path: {file}", found=error) from error


def holds_images(kind: pa.DataType) -> bool:
    """Return True if a column of this type can hold encoded images."""
    if pa.types.is_struct(kind):
        return "bytes" in {field.name for field in kind}
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def picture_of(value: Any, folder: Path) -> Picture:
    """Return the picture of a value: bytes, or {bytes, path} with a path relative to ``folder`` if bytes are None."""
    if isinstance(value, dict):
        path = value.get("path")
        value = value["bytes"]
        if value is None and path:
            return read_picture(folder / path)
    return OSError("there is no image in this row") if value is None else value


def _pictures(
    files: Sequence[Path], sizes: Sequence[int], column: str, wanted: Bool[np.ndarray, " n"]
) -> Iterator[tuple[int, Picture]]:
    first = 0
    for file, size in zip(files, sizes, strict=True):
        for row, value in _cells(file, column, wanted[first : first + size]):
            yield first + row, picture_of(value, file.parent)
        first += size


def _cells(file: Path, column: str, wanted: Bool[np.ndarray, " n"]) -> Iterator[tuple[int, Any]]:
    """Yield (row, value) of the wanted rows of one file; row groups without a wanted row are not read."""
    try:
        with pq.ParquetFile(file, pre_buffer=False) as table:
            row = 0
            for group in range(table.num_row_groups):
                size = table.metadata.row_group(group).num_rows
                if not wanted[row : row + size].any():
                    row += size
                    continue
                for batch in table.iter_batches(_BATCH, row_groups=[group], columns=[column]):
                    for value in batch.column(0):
                        if wanted[row]:
                            yield row, value.as_py()
                        row += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError("the Parquet file is damaged", where=f"data.path: {file}", found=error) from error
