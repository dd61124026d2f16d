"""Views: ordered selections of rows from the image tables in a store, without their pixels.

The real dataset, a plan's share of the pool and any subset or concatenation of these are views. A view holds labels,
groups and the place of each image; images are streamed from the store on demand, so that a dataset never has to fit
in memory.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int, UInt8

from counterpoise.errors import DataError
from counterpoise.storage.codec import decode_image
from counterpoise.storage.schema import BULKY, REAL, LabelSpace, cell_counts
from counterpoise.storage.store import Store

_WINDOW = 256  # images decoded at a time; bounds memory, feeds the threads


@dataclass(frozen=True)
class RowGroup:
    """Rows of a view in one row group of a Parquet file.

    Attributes:
        key: Key of the file in the view's store.
        number: Index of the row group in the file.
        metadata: Metadata of the file, so that it need not be read again.
        positions: Positions of the rows in the view.
        rows: Indices of the rows in the row group, ascending.
    """

    key: str
    number: int
    metadata: pq.FileMetaData
    positions: Int[np.ndarray, " m"]
    rows: Int[np.ndarray, " m"]


@dataclass(frozen=True)
class ImageView:
    """Ordered rows of image tables.

    Attributes:
        store: Store of the tables.
        names: Names of classes and groups.
        index: Every column of the rows but the bulky ones (images and embeddings), and ``key`` and ``row``: the
            Parquet file in the store and the row in it.
    """

    store: Store
    names: LabelSpace
    index: pa.Table

    @classmethod
    def open(cls, store: Store, keys: Sequence[str]) -> ImageView:
        """Open all rows of the Parquet files at ``keys``, in that order. At least one key is needed for the names."""
        parts = []
        for key in keys:
            with store.open(key) as file:
                table = pq.ParquetFile(file)
                columns = [name for name in table.schema_arrow.names if name not in BULKY]
                part = table.read(columns=columns)
            part = part.append_column("key", pa.array([key] * len(part), pa.string()))
            parts.append(part.append_column("row", pa.array(np.arange(len(part)))))
        names = LabelSpace.from_metadata(parts[0].schema.metadata)
        return cls(store, names, pa.concat_tables(parts))

    @classmethod
    def empty(cls, store: Store, names: LabelSpace) -> ImageView:
        """Return a view without rows."""
        schema = pa.schema(
            [*(field for field in REAL if field.name != "image"), ("key", pa.string()), ("row", pa.int64())]
        )
        return cls(store, names, schema.empty_table())

    def __len__(self) -> int:
        return len(self.index)

    def column(self, name: str) -> np.ndarray:
        """Return one column of the index as an array."""
        return self.index[name].to_numpy()

    @cached_property
    def labels(self) -> Int[np.ndarray, " n"]:
        """Class codes."""
        return self.column("label")

    @cached_property
    def groups(self) -> Int[np.ndarray, " n"]:
        """Group codes; -1 is unknown."""
        return self.column("group")

    @property
    def synthetic(self) -> Bool[np.ndarray, " n"]:
        """Mask of the rows that are synthetic images."""
        return np.asarray(pc.equal(self.index["source"], "synthetic"))

    @property
    def counts(self) -> Int[np.ndarray, "classes groups"]:
        """Images per cell."""
        return cell_counts(self.labels, self.groups, self.names)

    @cached_property
    def digest(self) -> str:
        """Address of the view's rows, in order. Tables never change, so keys stand for content."""
        sha = hashlib.sha256(repr((self.names.classes, self.names.groups)).encode())
        for name in ("key", "row", "label", "group"):
            sha.update("\n".join(map(str, self.index[name].to_pylist())).encode() + b"\0")
        return sha.hexdigest()[:16]

    @property
    def places(self) -> list[tuple[str, int]]:
        """Key and row of each image, which identify it within the store."""
        return list(zip(self.index["key"].to_pylist(), self.index["row"].to_pylist(), strict=True))

    def distinct(self) -> ImageView:
        """Select each image once, in the order of the places, which depends on nothing but the set of images."""
        first = {place: position for position, place in reversed(list(enumerate(self.places)))}
        return self.take(np.array([first[place] for place in sorted(first)], np.int64))

    def where(self, **equal: Any) -> ImageView:
        """Select the rows whose columns equal the given values: ``view.where(split="train", label=3)``."""
        mask = np.ones(len(self), dtype=bool)
        for name, value in equal.items():
            mask &= np.asarray(pc.equal(self.index[name], value))
        return self.take(np.flatnonzero(mask))

    def take(self, positions: Int[np.ndarray, " m"]) -> ImageView:
        """Select the rows at these positions, in this order."""
        return ImageView(self.store, self.names, self.index.take(pa.array(positions, pa.int64())))

    def __add__(self, other: ImageView) -> ImageView:
        """Concatenate two views. Columns that one side lacks are null there."""
        if self.names != other.names:
            raise ValueError(f"views of different classes or groups: {self.names} and {other.names}")
        return ImageView(self.store, self.names, pa.concat_tables([self.index, other.index], promote_options="default"))

    def images(self) -> Iterator[tuple[int, bytes]]:
        """Yield (position, encoded image) of every row, file by file; row groups without such a row are not read."""
        for positions, rows, column in self._read("image"):
            for position, row in zip(positions, rows, strict=True):
                yield int(position), column[int(row)].as_py()

    def embeddings(self) -> Float[np.ndarray, "n d"]:
        """Read CLIP's vectors of synthetic rows in float32, of length 1; NaN for an image that was not scored.

        Without any scored image, d is 0.
        """
        vectors = np.full((len(self), 0), np.nan, np.float32)
        for positions, rows, column in self._read("clip_embedding"):
            part = column.take(pa.array(rows)).combine_chunks()
            scored = positions[part.is_valid().to_numpy(zero_copy_only=False)]
            if len(scored):
                values = part.drop_null().flatten().to_numpy().astype(np.float32).reshape(len(scored), -1)
                if not vectors.size:
                    vectors = np.full((len(self), values.shape[1]), np.nan, np.float32)
                vectors[scored] = values / np.linalg.norm(values, axis=1, keepdims=True)  # float16 has rounded them
        return vectors

    def row_groups(self) -> Iterator[RowGroup]:
        """Yield the row groups of the view's rows, file by file, for reads in any order with :meth:`encoded`."""
        for key, positions, rows in self._files():
            with self.store.open(key) as file:
                metadata = pq.read_metadata(file)
            yield from _row_groups(key, metadata, positions, rows)

    def encoded(self, group: RowGroup) -> pa.Array:
        """Read the encoded images of the view's rows in a row group, in the order of ``group.positions``."""
        with self.store.open(group.key) as file:
            table = pq.ParquetFile(file, metadata=group.metadata).read_row_group(group.number, columns=["image"])
        return table["image"].take(pa.array(group.rows)).combine_chunks()

    def _read(self, column: str) -> Iterator[tuple[Int[np.ndarray, " m"], Int[np.ndarray, " m"], pa.ChunkedArray]]:
        """Yield per row group: positions in this view, rows in the group, the group's values of a bulky column."""
        for key, positions, rows in self._files():
            with self.store.open(key) as opened:
                file = pq.ParquetFile(opened)
                for group in _row_groups(key, file.metadata, positions, rows):
                    values = file.read_row_group(group.number, columns=[column])[column]
                    yield group.positions, group.rows, values

    def _files(self) -> Iterator[tuple[str, Int[np.ndarray, " m"], Int[np.ndarray, " m"]]]:
        """Yield each file's key, and positions in this view and rows in the file, in the rows' order."""
        keys, rows = self.index["key"].to_numpy(zero_copy_only=False), self.column("row")
        for key in dict.fromkeys(keys):
            positions = np.flatnonzero(keys == key)
            positions = positions[np.argsort(rows[positions], kind="stable")]
            yield key, positions, rows[positions]

    def decoded(self, size: int | None = None) -> Iterator[tuple[int, UInt8[np.ndarray, "height width 3"]]]:
        """Yield (position, pixels) of every row in the order of :meth:`images`.

        See :func:`counterpoise.storage.codec.decode_image`.

        Raises:
            DataError: An image cannot be read.
        """
        images = self.images()
        with ThreadPoolExecutor(decoding_threads()) as threads:  # Pillow decodes and resizes outside of Python's lock
            while window := list(islice(images, _WINDOW)):
                pixels = threads.map(lambda item: self.decode(item[0], item[1], size), window)
                yield from zip((position for position, _ in window), pixels, strict=True)

    def decode(self, position: int, data: bytes, size: int | None = None) -> UInt8[np.ndarray, "height width 3"]:
        """Decode the encoded image of a row; see :func:`counterpoise.storage.codec.decode_image`.

        Raises:
            DataError: The image cannot be read.
        """
        try:
            return decode_image(data, size)
        except OSError as error:
            row = self.index["id"][position].as_py()
            remedy = "its file was damaged after the import: import the dataset again, into a new store"
            raise DataError("an image cannot be read", where=f"row {row}", found=error, remedy=remedy) from error


def decoding_threads() -> int:
    """Return the number of decoding threads: OMP_NUM_THREADS (Ray sets it for its workers), or all cores."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def _row_groups(
    key: str, metadata: pq.FileMetaData, positions: Int[np.ndarray, " n"], rows: Int[np.ndarray, " n"]
) -> Iterator[RowGroup]:
    first = 0
    for index in range(metadata.num_row_groups):
        size = metadata.row_group(index).num_rows
        part = slice(*np.searchsorted(rows, [first, first + size]))
        if part.start < part.stop:
            yield RowGroup(key, index, metadata, positions[part], rows[part] - first)
        first += size
