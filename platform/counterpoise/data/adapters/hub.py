"""Adapter of Hugging Face datasets: a folder that ``save_to_disk`` wrote, or a name that ``load_dataset`` knows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from counterpoise import config
from counterpoise.data.adapters.parquet import holds_images, picture_of
from counterpoise.data.adapters.source import Picture, Rows, Source, name_of, need_column, split_name
from counterpoise.errors import DataError

_BATCH = 64


def hugging_face(data: config.HuggingFace) -> Source:
    """Open a dataset with one row per example; ClassLabel features give the names of classes and groups."""
    datasets = _library()
    folder = Path(data.path).expanduser()
    loaded = _from_disk(datasets, folder) if _is_path(data.path) else _by_name(datasets, data)
    parts = _known(loaded) if isinstance(loaded, dict) else {None: loaded}
    fingerprint = [[name, part._fingerprint, len(part)] for name, part in parts.items()]
    return Source([data.name, fingerprint], lambda: _rows(datasets, parts, data))


def _known(parts: dict[str, Any]) -> dict[Any, Any]:
    """Keep the parts named train, validation or test; others ("unsupervised") only if nothing else exists."""
    if len(parts) == 1 and not split_name(next(iter(parts))):
        return {None: next(iter(parts.values()))}
    return {name: part for name, part in parts.items() if split_name(name)} or parts


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        remedy = "pip install 'counterpoise[huggingface]'"
        raise DataError(
            "the library `datasets` is not installed", where="data.adapter: huggingface", remedy=remedy
        ) from error
    return datasets


def _is_path(path: str) -> bool:
    return path.startswith(("/", "./", "../", "~")) or Path(path).exists()


def _from_disk(datasets: Any, folder: Path) -> Any:
    where = f"data.path: {folder}"
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        found = "a folder without dataset_dict.json or state.json" if folder.is_dir() else "no such folder"
        remedy = "use the folder that save_to_disk wrote, or data.adapter=imagefolder, parquet or csv"
        raise DataError("no saved dataset in this folder", where=where, found=found, remedy=remedy)
    try:
        return datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises whatever its readers raise
        raise DataError("the saved dataset cannot be read", where=where, found=_first_line(error)) from error


def _by_name(datasets: Any, data: config.HuggingFace) -> Any:
    try:
        return datasets.load_dataset(data.path, data.name, revision=data.revision)
    except Exception as error:  # ConnectionError, DatasetNotFoundError, ValueError of a wrong config name, and more
        raise DataError(
            "the Hugging Face dataset cannot be loaded",
            where=f"data.path: {data.path}" + (f", data.name: {data.name}" if data.name else ""),
            found=_first_line(error),
            remedy="check the name, the network and HF_TOKEN; a local folder starts with / or ./",
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def _rows(datasets: Any, parts: dict[str | None, Any], data: config.HuggingFace) -> Rows:
    columns = data.columns
    given = {role: column for role, column in columns.model_dump().items() if column is not None}
    for name, part in parts.items():
        for role, column in given.items():
            need_column(column, role, part.column_names, f"data.path: {data.path}, {name or 'its only split'}")
    first = next(iter(parts.values()))
    _check_image(first.features[columns.image], columns.image, data.path)

    def cells(column: str | None) -> list[str | None] | None:
        if column is None:
            return None
        return [name for part in parts.values() for name in _names(part, column)]

    ids = cells(columns.id)
    splits = [name for name, part in parts.items() for _ in range(len(part))]
    encoded = [_encoded(datasets, part, columns.image) for part in parts.values()]
    return Rows(
        ids=[f"{name or 'row'}/{row}" for name, part in parts.items() for row in range(len(part))]
        if ids is None
        else [name or "" for name in ids],
        labels=cells(columns.label) or (),
        groups=cells(columns.group),
        splits=cells(columns.split) if None in parts else splits,
        images=lambda wanted: _pictures(encoded, columns.image, Path(data.path).expanduser(), wanted),
        classes=_order(first, columns.label),
        group_order=_order(first, columns.group),
    )


def _check_image(feature: Any, column: str, path: str) -> None:
    kind = getattr(feature, "pa_type", None) or (feature() if callable(feature) else None)
    if kind is None or not holds_images(kind):
        allowed = "a feature of type Image, or encoded images as binary"
        raise DataError(
            f"column {column!r} does not hold images",
            where=f"data.columns.image, data.path: {path}",
            found=feature,
            allowed=allowed,
        )


def _order(part: Any, column: str | None) -> Sequence[str] | None:
    return None if column is None else getattr(part.features[column], "names", None)


def _names(part: Any, column: str) -> list[str | None]:
    """Return a column's values as names. ClassLabel stores integers, and -1 for an example without a label."""
    values = part.select_columns([column]).with_format("arrow")[:][column].to_pylist()
    names = _order(part, column)
    if names is None:
        return [name_of(value) for value in values]
    return [None if value is None or value < 0 else names[value] for value in values]


def _encoded(datasets: Any, part: Any, column: str) -> Any:
    """Select the image column alone, as stored instead of decoded."""
    part = part.select_columns([column])
    if isinstance(part.features[column], datasets.Image):
        part = part.cast_column(column, datasets.Image(decode=False))
    return part.with_format("arrow")


def _pictures(
    parts: Sequence[Any], column: str, folder: Path, wanted: Bool[np.ndarray, " n"]
) -> Iterator[tuple[int, Picture]]:
    first = 0
    for part in parts:
        for start in range(0, len(part), _BATCH):
            mask = wanted[first + start : first + min(start + _BATCH, len(part))]
            if mask.any():
                values = part[start : start + len(mask)][column]
                yield from (
                    (first + start + int(row), picture_of(values[int(row)].as_py(), folder))
                    for row in np.flatnonzero(mask)
                )
        first += len(part)
