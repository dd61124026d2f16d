"""Interface of adapters: the dataset's rows by name, and its images as a stream.

Names are held in memory. Images are not: only the requested ones are streamed from their source, in the order of the
rows.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from counterpoise.errors import DataError, did_you_mean, one_of

Picture = bytes | Image.Image | OSError  # an encoded file, or pixels, or the error of reading it

_SPLITS = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Rows:
    """Rows of a dataset before selection. All sequences have one entry per row.

    Attributes:
        ids: Unique names of the rows.
        labels: Class names; None where the label is missing.
        groups: Group names, None where unknown; None in place of the list if the dataset has no groups.
        splits: Names as the dataset spells them; None in place of the list if the dataset has no splits.
        images: Function that streams (row, picture) of the rows where the mask is true, in order.
        classes: Order of the classes in the dataset, if it has one.
        group_order: Order of the groups in the dataset, if it has one.
        defects: Row -> reason why the row is unusable.
    """

    ids: Sequence[str]
    labels: Sequence[str | None]
    groups: Sequence[str | None] | None
    splits: Sequence[str | None] | None
    images: Callable[[Bool[np.ndarray, " n"]], Iterator[tuple[int, Picture]]]
    classes: Sequence[str] | None = None
    group_order: Sequence[str] | None = None
    defects: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Dataset at its original place.

    Attributes:
        fingerprint: JSON-serializable value that changes when the data change. No image is read for it.
        rows: Function that reads the rows. Raises DataError if the dataset is not what the configuration says.
    """

    fingerprint: object
    rows: Callable[[], Rows]


def split_name(name: str) -> str | None:
    """Return train, validation or test for the usual spellings of these, else None."""
    return _SPLITS.get(name.strip().lower())


def name_of(value: Any) -> str | None:
    """Return a label as a name: integers (and integral floats) as digits, None for missing ones."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return None if text in ("", "nan", "NaN") else text


def existing_folder(path: str, key: str) -> Path:
    """Return the folder that ``key`` of the configuration names. Raises DataError if it does not exist."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    nearest = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    found = "a file" if folder.is_file() else f"nothing; the path exists up to {nearest}"
    raise DataError("the folder does not exist", where=f"{key}: {path}", found=found, remedy=f"set {key}=DIR")


def need_column(column: str, role: str, available: Iterable[str], where: object) -> None:
    """Raise DataError unless the table has the column that ``data.columns.<role>`` names."""
    names = list(available)
    if column not in names:
        raise DataError(
            f"the table has no column {column!r}",
            where=f"data.columns.{role}, {where}",
            found=column,
            allowed=one_of(names, 40),
            remedy=did_you_mean(column, names) or f"set data.columns.{role} to one of them",
        )


def fingerprint_files(files: Iterable[Path], root: Path) -> list[list[str | int]]:
    """Return [path relative to ``root``, size in bytes, time of change in ns] per file; size -1 if it is missing."""
    prints: list[list[str | int]] = []
    for file in files:
        try:
            status = file.stat()
            prints.append([os.path.relpath(file, root), status.st_size, status.st_mtime_ns])
        except OSError:
            prints.append([os.path.relpath(file, root), -1, 0])
    return prints


def walk(root: Path) -> Iterator[Path]:
    """Yield every file below ``root`` in a fixed order; hidden ones are left out, links are followed once."""
    visited: set[str] = set()
    for folder, names, files in os.walk(root, onerror=_raise, followlinks=True):
        names[:] = sorted(n for n in names if not n.startswith(".") and _first_time(os.path.join(folder, n), visited))
        yield from (Path(folder, name) for name in sorted(files) if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise error  # os.walk would skip an unreadable folder as if it were empty


def _first_time(folder: str, visited: set[str]) -> bool:
    real = os.path.realpath(folder)
    return not (real in visited or visited.add(real))  # type: ignore[func-returns-value]


def read_picture(file: Path) -> Picture:
    """Return the bytes of an image file, or the error of reading it."""
    try:
        return file.read_bytes()
    except OSError as error:
        return error
