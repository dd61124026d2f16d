"""Adapter of torchvision's datasets, by the name of their class."""

from __future__ import annotations

import contextlib
import gzip
import inspect
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
    walk,
)
from counterpoise.errors import DataError, did_you_mean, one_of

_IDX = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def torchvision_dataset(data: config.Torchvision) -> Source:
    """Open a torchvision dataset: its train and test parts, all its splits, or all its rows, as its class provides.

    For MNIST and its variants ``root`` may also be a plain folder with the four idx files, gzipped or not.
    """
    import torchvision

    kinds = {
        name: kind
        for name, kind in vars(torchvision.datasets).items()
        if inspect.isclass(kind) and issubclass(kind, torchvision.datasets.VisionDataset)
    }
    if data.dataset not in kinds:
        remedy = did_you_mean(data.dataset, kinds)
        allowed = one_of(sorted(kinds), 100)
        raise DataError(
            "torchvision has no such dataset",
            where="data.dataset",
            found=data.dataset,
            allowed=allowed,
            remedy=remedy,
        )
    kind = kinds[data.dataset]
    if data.download:
        _construct(kind, str(Path(data.root).expanduser()), data, download=True)
    root = existing_folder(data.root, "data.root")
    if issubclass(kind, torchvision.datasets.MNIST) and not (root / data.dataset).is_dir():
        files = _idx_files(root, data)
        return Source(fingerprint_files(files, root), lambda: _from_idx(kind, files, data))
    base = getattr(kind, "base_folder", None)
    below = root / base if isinstance(base, str) and (root / base).is_dir() else root
    return Source(fingerprint_files(walk(below), root), lambda: _rows(_construct(kind, str(root), data), data))


def _idx_files(root: Path, data: config.Torchvision) -> list[Path]:
    """Find the four idx files in the folder or in its ``raw``, each possibly gzipped."""
    for folder in (root, root / "raw"):
        files = [next((f for f in (folder / n, folder / f"{n}.gz") if f.is_file()), None) for n in _IDX]
        if all(files):
            return [file for file in files if file is not None]
    raise DataError(
        f"{data.dataset} is not in this folder",
        where=f"data.root: {root}",
        found=one_of(sorted(path.name for path in root.iterdir())) or "an empty folder",
        allowed=f"{_IDX[0]}, {_IDX[1]}, {_IDX[2]}, {_IDX[3]} (or with .gz), in it, in raw/ or in {data.dataset}/raw/",
        remedy="set data.root to the folder with these files, or data.download=true",
    )


def _from_idx(kind: type, files: Sequence[Path], data: config.Torchvision) -> Rows:
    """Load idx files through a temporary tree of the form that torchvision expects: ROOT/NAME/raw, unpacked."""
    with tempfile.TemporaryDirectory(prefix="counterpoise-") as folder:
        raw = Path(folder, kind.__name__, "raw")
        raw.mkdir(parents=True)
        for file in files:
            if file.suffix == ".gz":
                with _damaged(file), gzip.open(file) as packed, (raw / file.stem).open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked)
            else:
                (raw / file.name).symlink_to(file.absolute())
        return _rows(_construct(kind, folder, data), data)


@contextlib.contextmanager
def _damaged(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError) as error:
        raise DataError("the file cannot be unpacked", where=f"data.root: {file}", found=error) from error


def _construct(kind: type, root: str, data: config.Torchvision, download: bool = False) -> dict[str | None, Any]:
    """Return split name -> dataset. Only the constructors know the splits, so each name is tried."""
    parameters = inspect.signature(kind).parameters
    options: dict[str, Any] = {"download": True} if download and "download" in parameters else {}
    if "train" in parameters:
        tried: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
    elif "split" in parameters:
        tried = {name: {"split": name} for name in ("train", "trainval", "val", "valid", "validation", "test")}
    else:
        tried = {"": {}}
    parts: dict[str | None, Any] = {}
    for name, arguments in tried.items():
        if name == "trainval" and "train" in parts:
            continue  # it would repeat the training images
        try:
            parts[name or None] = kind(root, **arguments, **options)
        except ValueError as error:
            if "split" not in arguments or "split" not in str(error):
                raise _not_there(kind, root, error) from error
        except TypeError as error:
            remedy = "save it in another format (csv, parquet, imagefolder) and use that adapter"
            raise DataError(
                "the dataset's class needs more arguments than a root and a split",
                where="data.dataset",
                found=f"{data.dataset}: {error}",
                remedy=remedy,
            ) from error
        except (RuntimeError, OSError, AssertionError) as error:
            raise _not_there(kind, root, error) from error
    return parts


def _not_there(kind: type, root: str, error: Exception) -> DataError:
    remedy = "set data.root to the folder that torchvision calls `root`, or data.download=true"
    return DataError(
        f"torchvision finds no {kind.__name__} in this folder", where=f"data.root: {root}", found=error, remedy=remedy
    )


def _rows(parts: dict[str | None, Any], data: config.Torchvision) -> Rows:
    first = next(iter(parts.values()))
    order = getattr(first, "classes", None)
    # ImageNet's classes are tuples of synonyms; the first is the usual name
    names = [n[0] if isinstance(n, tuple) else str(n) for n in order] if isinstance(order, (list, tuple)) else None
    labels = [_class_name(code, names, data) for part in parts.values() for code in _codes(part)]
    return Rows(
        ids=[f"{name or 'row'}/{row}" for name, part in parts.items() for row in range(len(part))],
        labels=labels,
        groups=None,
        splits=None if None in parts else [name for name, part in parts.items() for _ in range(len(part))],
        images=lambda wanted: _pictures(list(parts.values()), wanted),
        classes=names,
    )


def _codes(part: Any) -> Sequence[Any]:
    """Return the labels, without reading images if the dataset has them under one of the usual names."""
    for name in ("targets", "labels", "_labels"):
        codes = getattr(part, name, None)
        if codes is not None and len(codes) == len(part):
            return codes.tolist() if hasattr(codes, "tolist") else list(codes)
    return [part[row][1] for row in range(len(part))]


def _class_name(code: Any, names: Sequence[str] | None, data: config.Torchvision) -> str | None:
    if hasattr(code, "tolist"):
        code = code.tolist()
    if isinstance(code, (int, str)):
        return names[code] if names is not None and isinstance(code, int) else name_of(code)
    raise DataError(
        "the targets of the dataset are not classes",
        where="data.dataset",
        found=f"{data.dataset} with a target of type {type(code).__name__}",
        allowed="datasets with one class for each image",
    )


def _pictures(parts: Sequence[Any], wanted: Bool[np.ndarray, " n"]) -> Iterator[tuple[int, Picture]]:
    first = 0
    for part in parts:
        for row in np.flatnonzero(wanted[first : first + len(part)]):
            try:
                yield first + int(row), part[int(row)][0]
            except OSError as error:
                yield first + int(row), error
        first += len(part)
