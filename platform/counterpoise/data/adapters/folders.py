"""Adapters of image files in folders, labelled by a CSV file or by the names of the folders."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from counterpoise import config
from counterpoise.data.adapters.source import (
    Picture,
    Rows,
    Source,
    existing_folder,
    fingerprint_files,
    name_of,
    need_column,
    read_picture,
    walk,
)
from counterpoise.errors import DataError, one_of

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"))


def csv_folder(data: config.CsvFolder) -> Source:
    """Open a folder with a CSV file (TSV by its suffix) whose image column holds paths relative to ``root``."""
    root = existing_folder(data.root, "data.root")
    header, records = _read_csv(root / data.table)
    columns = data.columns
    for role, column in columns.model_dump().items():
        if column is not None:
            need_column(column, role, header, root / data.table)
    if not records:
        raise DataError("the table has a header but no rows", where=f"data.table: {root / data.table}")
    files = [root / record[columns.image] if record[columns.image] else None for record in records]

    def cells(column: str | None) -> list[str | None] | None:
        return None if column is None else [name_of(record[column]) for record in records]

    rows = Rows(
        ids=[name or "" for name in cells(columns.id or columns.image) or ()],
        labels=cells(columns.label) or (),
        groups=cells(columns.group),
        splits=cells(columns.split),
        images=lambda wanted: _pictures(files, wanted),
        defects={row: "no image path" for row, file in enumerate(files) if file is None},
    )
    listed = [root / data.table, *(file for file in files if file is not None)]
    return Source(fingerprint_files(listed, root), lambda: rows)


def _read_csv(table: Path) -> tuple[list[str], list[dict[str, str]]]:
    where = f"data.table: {table}"
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t" if table.suffix == ".tsv" else ",")
            records = list(reader)
            return list(reader.fieldnames or ()), records
    except FileNotFoundError as error:
        tables = one_of(sorted(path.name for path in table.parent.glob("*.[ct]sv")))
        found = tables or "no CSV file in this folder"
        raise DataError("the table does not exist", where=where, found=found, remedy="set data.table") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        allowed = "a CSV file in UTF-8 with a header"
        raise DataError("the table cannot be read", where=where, found=error, allowed=allowed) from error


def image_folder(data: config.ImageFolder) -> Source:
    """Open a tree of folders; ``layout`` gives the meaning of the folders between ``root`` and an image."""
    root = existing_folder(data.root, "data.root")
    files = [file for file in walk(root) if file.suffix.lower() in SUFFIXES]
    if not files:
        kinds = one_of(sorted(SUFFIXES))
        raise DataError("no image in this folder", where=f"data.root: {root}", allowed=kinds)
    return Source(fingerprint_files(files, root), lambda: _by_layout(files, root, data.layout))


def _by_layout(files: Sequence[Path], root: Path, layout: str) -> Rows:
    parts = re.split(r"\{(\w+)\}", layout.strip("/"))  # alternately text and a placeholder's name
    pattern = "".join(f"(?P<{part}>[^/]+)" if index % 2 else re.escape(part) for index, part in enumerate(parts))
    paths = [file.relative_to(root).as_posix() for file in files]
    matches = [re.fullmatch(pattern, path.rpartition("/")[0]) for path in paths]
    if not any(matches):
        raise DataError(
            "no image matches the layout",
            where=f"data.layout: {layout}",
            found=f"{paths[0]} below {root}",
            remedy="write the folders between data.root and the images with {label}, {group} and {split}, "
            "for example {split}/{label}",
        )

    def names(key: str) -> list[str | None] | None:
        return [match and name_of(match[key]) for match in matches] if key in parts[1::2] else None

    return Rows(
        ids=paths,
        labels=names("label") or (),
        groups=names("group"),
        splits=names("split"),
        images=lambda wanted: _pictures(files, wanted),
        defects={row: "its folder does not fit the layout" for row, match in enumerate(matches) if match is None},
    )


def _pictures(files: Sequence[Path | None], wanted: Bool[np.ndarray, " n"]) -> Iterator[tuple[int, Picture]]:
    for row in map(int, np.flatnonzero(wanted)):
        file = files[row]
        yield row, OSError("no image path") if file is None else read_picture(file)
