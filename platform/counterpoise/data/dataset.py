"""Import of a real dataset into the store: done once, read as a view.

With any adapter, the rows end in the files of :mod:`counterpoise.data.table`. Their address is the digest of the
configuration and of a fingerprint of the source, so a dataset is imported again if and only if it changes.
"""

from __future__ import annotations

import io
import itertools
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from counterpoise import config
from counterpoise.config.identity import identity
from counterpoise.core.digest import digest
from counterpoise.core.progress import Progress
from counterpoise.data import imbalance
from counterpoise.data.adapters import Picture, Rows, open_source
from counterpoise.data.choose import SelectedRows, choose
from counterpoise.data.table import TableFiles, TableWriter, read_quarantine, read_view
from counterpoise.data.tint import TINTS, tint
from counterpoise.errors import DataError, did_you_mean, one_of
from counterpoise.execution import graph
from counterpoise.storage.codec import decode_image, encode_image
from counterpoise.storage.store import Store
from counterpoise.storage.view import ImageView

_FORMAT = 2  # to be raised when the same source would be imported differently
_ROWS, _BYTES = 1024, 128 << 20  # limits of a row group
_BATCH = 64  # images processed at once
_KEPT = ("JPEG", "PNG", "WEBP")  # formats whose files are stored as they are
_GREY = 16  # largest difference of the channels of a grey image, to tolerate JPEG
_ORIENTATION = 0x0112

QUARANTINE = pa.schema([(name, pa.string()) for name in ("id", "label", "group", "split", "reason", "detail")])
Defect = tuple[int, str, str]  # source row, reason, detail


@dataclass(frozen=True)
class Loaded:
    """Imported dataset.

    Attributes:
        view: All splits; training and validation rows thinned by ``data.imbalance``.
        quarantined: Number of unusable rows.
        reasons: Reason -> number of rows quarantined for it.
        key: Key of the table's record in the store.
    """

    view: ImageView
    quarantined: int
    reasons: dict[str, int]
    key: str


def load(data: config.Data, store: Store) -> Loaded:
    """Load the dataset, and import it into the store if it is not there yet.

    Raises:
        DataError: The dataset is not what the configuration says, or too many of its rows are unusable. A failed
            import stores nothing.
    """
    _check_tint(data)
    files = table_files(data)
    graph.run_all([_Import(data, store, files)])
    view, defects = read_view(store, files), read_quarantine(store, files)
    reasons = defects["reason"].to_pylist()
    _check_share(data, len(view) + len(defects), defects["id"].to_pylist(), reasons)
    if data.imbalance is not None:
        kept = imbalance.keep(data.imbalance, view.labels, view.groups, view.column("split"), view.names, data.seed)
        view = view.take(kept)
    return Loaded(view, len(defects), dict(Counter(reasons).most_common()), files.record)


def table_files(data: config.Data) -> TableFiles:
    """Return the keys of a dataset in the store.

    Raises:
        DataError: The dataset is not what the configuration says.
    """
    source = open_source(data).fingerprint
    return TableFiles(digest({"format": _FORMAT, "data": identity(data, "source"), "source": source}))


def _check_tint(data: config.Data) -> None:
    for index, color in enumerate(data.tint.colors if data.tint else ()):
        if color not in TINTS:
            where = f"data.tint.colors.{index}"
            remedy = did_you_mean(color, TINTS)
            raise DataError("unknown tint", where=where, found=color, allowed=one_of(TINTS, 40), remedy=remedy)


def _check_share(data: config.Data, total: int, ids: list[str], reasons: list[str]) -> None:
    """Raise DataError if the rows with these ids, quarantined for these reasons, are too many of ``total``."""
    if len(ids) > data.max_quarantined * total:
        counted = ", ".join(f"{count} × {reason}" for reason, count in Counter(reasons).most_common(5))
        raise DataError(
            "too many rows of the dataset are unusable",
            where=f"rows {one_of(ids, 3)}",
            found=f"{len(ids)} of {total} ({len(ids) / total:.1%}): {counted}",
            allowed=f"data.max_quarantined: {data.max_quarantined:.1%}",
            remedy="repair these rows, or raise data.max_quarantined",
        )


# -- import ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Import:
    """The import of a dataset: a node of :mod:`counterpoise.execution.graph`.

    On a cluster it runs where there is room for it, so a folder of images must be there on every node.
    """

    data: config.Data
    store: Store
    files: TableFiles
    parents: tuple[Any, ...] = ()
    num_workers = 1
    resources = config.ActorResources(num_cpus=1.0)

    @property
    def digest(self) -> str:
        return self.files.record

    def note(self) -> str:
        return "import of the dataset"

    def done(self) -> bool:
        return self.store.exists(self.files.record)

    def run(self) -> None:
        _import(open_source(self.data).rows(), self.data, self.store, self.files)


def _import(rows: Rows, data: config.Data, store: Store, files: TableFiles) -> None:
    selected = choose(rows, data)
    defects: list[Defect] = [(row, why, "") for row, why in selected.defects.items()]
    with tempfile.TemporaryDirectory(prefix="counterpoise-") as folder:
        writer = TableWriter(store, files, Path(folder))
        with Progress("importing", total=len(selected.rows), unit="images") as progress:
            for batch in _row_groups(_good(rows, selected, data, defects, progress)):
                writer.write([image for _, image in batch], _table([row for row, _ in batch], rows, selected))
        if len(defects) == len(selected.rows) + len(selected.defects):
            raise DataError("no image of this dataset can be read", where="data", found=defects[-1][2])
        writer.finish(selected.names, _quarantine(rows, defects))


def _good(
    rows: Rows, selected: SelectedRows, data: config.Data, defects: list[Defect], progress: Progress
) -> Iterator[tuple[int, bytes]]:
    """Yield (position among the selected rows, encoded image) of readable images; add the others to ``defects``."""
    total = len(selected.rows) + len(selected.defects)
    _check_defects(rows, data, total, defects)
    for position, image in _images(rows, selected, data):
        if isinstance(image, OSError):
            defects.append((int(selected.rows[position]), "unreadable image", str(image)))
            _check_defects(rows, data, total, defects)  # at once, so that a hopeless import fails early
        else:
            yield position, image
        progress.advance()


def _check_defects(rows: Rows, data: config.Data, total: int, defects: list[Defect]) -> None:
    if len(defects) > data.max_quarantined * total:
        _check_share(data, total, [rows.ids[row] for row, _, _ in defects], [reason for _, reason, _ in defects])


def _row_groups(images: Iterator[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    batch: list[tuple[int, bytes]] = []
    size = 0
    for position, image in images:
        batch.append((position, image))
        size += len(image)
        if len(batch) == _ROWS or size > _BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _table(batch: list[int], rows: Rows, selected: SelectedRows) -> pa.Table:
    positions = np.array(batch, dtype=np.int64)
    return pa.table(
        {
            "id": pa.array([rows.ids[row] for row in selected.rows[positions]], pa.string()),
            "label": pa.array(selected.labels[positions], pa.int32()),
            "group": pa.array(selected.groups[positions], pa.int32()),
            "split": pa.array(selected.splits[positions].tolist(), pa.string()),
        }
    )


def _quarantine(rows: Rows, defects: list[Defect]) -> pa.Table:
    indices = [row for row, _, _ in defects]
    columns = {
        "id": [rows.ids[row] for row in indices],
        "label": [rows.labels[row] for row in indices],
        "group": [rows.groups[row] if rows.groups else None for row in indices],
        "split": [rows.splits[row] if rows.splits else None for row in indices],
        "reason": [reason for _, reason, _ in defects],
        "detail": [detail for _, _, detail in defects],
    }
    return pa.table(columns, schema=QUARANTINE)


# -- images ------------------------------------------------------------------------------------------------------------


def _images(rows: Rows, selected: SelectedRows, data: config.Data) -> Iterator[tuple[int, bytes | OSError]]:
    """Yield (position among the selected rows, encoded image or the error of reading it), in order."""
    wanted = np.zeros(len(rows.ids), dtype=bool)
    wanted[selected.rows] = True
    colors = [TINTS[name] for name in data.tint.colors] if data.tint else None

    def finish(item: tuple[int, tuple[int, Picture]]) -> tuple[int, bytes | OSError]:
        position, (row, picture) = item
        try:
            if colors is None:
                return position, encoded(picture)
            return position, _tinted(picture, colors[selected.groups[position]], rows.ids[row])
        except OSError as error:
            return position, error

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:  # Pillow works outside of the interpreter's lock
        numbered = enumerate(rows.images(wanted))
        while batch := list(itertools.islice(numbered, _BATCH)):
            yield from threads.map(finish, batch)


def encoded(picture: Picture) -> bytes:
    """Encode a picture as an image file that :func:`counterpoise.storage.codec.decode_image` reads.

    JPEG, PNG and WebP files are kept byte for byte. Other formats, pixels, images with an EXIF rotation and 16-bit
    grey become PNG.

    Raises:
        OSError: The picture is not a readable image.
    """
    if isinstance(picture, OSError):
        raise picture
    if isinstance(picture, Image.Image):
        return _png(picture)
    try:
        decode_image(picture)
        with Image.open(io.BytesIO(picture)) as image:
            upright = image.getexif().get(_ORIENTATION, 1) in (0, 1)
            if image.format in _KEPT and upright and not image.mode.startswith(("I", "F")):
                return picture
            return _png(ImageOps.exif_transpose(image))
    except Exception as error:  # damaged files make Pillow's readers raise almost anything
        raise OSError(str(error) or type(error).__name__) from error


def _png(image: Image.Image) -> bytes:
    if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits; Pillow would clip them at 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.mode == "F":
        raise OSError("images of floating-point pixels have no known range")
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        image = image.convert("RGBA" if "transparency" in image.info or image.mode in ("PA", "La", "RGBa") else "RGB")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=3)
    return buffer.getvalue()


def _tinted(picture: Picture, color: tuple[int, int, int], name: str) -> bytes:
    if isinstance(picture, Image.Image) and picture.mode == "L":
        grey = np.asarray(picture)
    else:
        pixels = decode_image(encoded(picture))
        if np.ptp(pixels, axis=2).max() > _GREY:
            remedy = "leave out data.tint"
            raise DataError("only grey images can be tinted", where=f"data.tint, row {name}", remedy=remedy)
        grey = np.asarray(Image.fromarray(pixels).convert("L"))
    return encode_image(tint(grey[None], np.array([color], dtype=np.uint8))[0])
