"""Views: ordered selections of rows from the image tables in a store, without their pixels.

The real dataset, a plan's share of the pool and any subset or concatenation of these are views. A view holds labels,
groups and the place of each image; images are streamed from the store on demand, so that a dataset never has to fit
in memory.
"""

from __future__ import annotations

import hashlib
import json
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
from jaxtyping import Bool, Float, Int, UInt8

from counterpoise.errors import DataError
from counterpoise.storage.codec import decode_image
from counterpoise.storage.schema import VIEW, LabelSpace, cell_counts
from counterpoise.storage.spans import read_values
from counterpoise.storage.store import Store

_WINDOW = 256  # images decoded at a time; bounds memory, feeds the threads


@dataclass(frozen=True)
class ImageView:
    """Ordered rows of image tables.

    Attributes:
        store: Store of the tables.
        names: Names of classes and groups.
        index: The columns of :data:`counterpoise.storage.schema.VIEW`, and others of the tables; none of their pixels.
            ``key`` and ``row`` say which row of which file it is, ``image_…`` where in the file the image's bytes are.
    """

    store: Store
    names: LabelSpace
    index: pa.Table

    @classmethod
    def empty(cls, store: Store, names: LabelSpace) -> ImageView:
        """Return a view without rows."""
        return cls(store, names, VIEW.empty_table())

    def __len__(self) -> int:
        return len(self.index)

    def column(self, name: str) -> np.ndarray:
        """Return one column of the index as an array."""
        column = self.index[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return column.to_numpy()

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
        return self._equal("source", "synthetic")

    @property
    def counts(self) -> Int[np.ndarray, "classes groups"]:
        """Images per cell."""
        return cell_counts(self.labels, self.groups, self.names)

    @cached_property
    def files(self) -> tuple[list[str], Int[np.ndarray, " n"]]:
        """The keys of the view's files, sorted, and for each row the position of its file among them."""
        column = self.index["key"].combine_chunks()
        codes = column.indices.to_numpy()
        used = np.unique(codes)
        names = np.array(column.dictionary.take(pa.array(used)).to_pylist(), dtype=object)
        order = np.argsort(names, kind="stable")
        compact = np.empty(len(column.dictionary), np.int64)
        compact[used[order]] = np.arange(len(order))
        return names[order].tolist(), compact[codes]

    @cached_property
    def digest(self) -> str:
        """Address of the view's rows, in order. Tables never change, so keys stand for content."""
        keys, files = self.files
        sha = hashlib.sha256(json.dumps([self.names.classes, self.names.groups, keys]).encode())
        for numbers in (files, *(self.column(name) for name in ("row", "label", "group"))):
            sha.update(np.ascontiguousarray(numbers, "<i8").tobytes())
        return sha.hexdigest()[:16]

    def distinct(self) -> ImageView:
        """Select each image once, in the order of the places, which depends on nothing but the set of images."""
        (ids,) = image_ids([self])
        return self.take(np.unique(ids, return_index=True)[1])

    def where(self, **equal: Any) -> ImageView:
        """Select the rows whose columns equal the given values: ``view.where(split="train", label=3)``."""
        mask = np.ones(len(self), dtype=bool)
        for name, value in equal.items():
            mask &= self._equal(name, value)
        return self.take(np.flatnonzero(mask))

    def take(self, positions: Int[np.ndarray, " m"]) -> ImageView:
        """Select the rows at these positions, in this order."""
        return ImageView(self.store, self.names, self.index.take(pa.array(positions, pa.int64())).combine_chunks())

    def __add__(self, other: ImageView) -> ImageView:
        """Concatenate two views. Columns that one side lacks are null there."""
        if self.names != other.names:
            raise ValueError(f"views of different classes or groups: {self.names} and {other.names}")
        index = pa.concat_tables([self.index, other.index], promote_options="default")
        return ImageView(self.store, self.names, index.unify_dictionaries().combine_chunks())

    def images(self) -> Iterator[tuple[int, bytes | None]]:
        """Yield (position, encoded image) of every row, file by file; None for a quarantined row, which has no image.

        Raises:
            DamagedError: The bytes are not those that were stored.
            StoreError: A file cannot be read.
        """
        return self._values("image")

    def embeddings(self) -> Float[np.ndarray, "n d"]:
        """Read CLIP's vectors of synthetic rows in float32, of length 1; NaN for an image that was not scored.

        Without any scored image, d is 0.

        Raises:
            DamagedError: The bytes are not those that were stored.
        """
        vectors = np.full((len(self), 0), np.nan, np.float32)
        for position, data in self._values("embedding") if "embedding_offset" in self.index.column_names else ():
            if data is not None:
                values = np.frombuffer(data, np.float16).astype(np.float32)
                if not vectors.size:
                    vectors = np.full((len(self), len(values)), np.nan, np.float32)
                vectors[position] = values
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)  # float16 has rounded them

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

    def decode(self, position: int, data: bytes | None, size: int | None = None) -> UInt8[np.ndarray, "height width 3"]:
        """Decode the encoded image of a row; see :func:`counterpoise.storage.codec.decode_image`.

        Raises:
            DataError: The image cannot be read.
        """
        try:
            return decode_image(data or b"", size)
        except OSError as error:
            row = self.index["id"][position].as_py()
            remedy = "its file was damaged after the import: import the dataset again, into a new store"
            raise DataError("an image cannot be read", where=f"row {row}", found=error, remedy=remedy) from error

    def _values(self, column: str) -> Iterator[tuple[int, bytes | None]]:
        keys, files = self.files
        place, size, sha = (self.index[f"{column}_{part}"] for part in ("offset", "length", "sha256"))
        return read_values(self.store, keys, files, place.to_numpy(), size.to_numpy(), sha)

    def _equal(self, name: str, value: Any) -> Bool[np.ndarray, " n"]:
        return np.asarray(pc.equal(self.index[name], value).fill_null(False))


def image_ids(views: Sequence[ImageView]) -> list[Int[np.ndarray, " _"]]:
    """Return for each view a number for each image: equal for the same image, also of another of these views.

    The numbers are in the order of file and row.
    """
    keys = sorted({key for view in views for key in view.files[0]})
    numbers = {key: number for number, key in enumerate(keys)}
    ids = []
    for view in views:
        own, files = view.files
        renumbered = np.array([numbers[key] for key in own], np.int64)
        ids.append((renumbered[files] << 32) + view.column("row") if len(view) else np.empty(0, np.int64))
    return ids


def decoding_threads() -> int:
    """Return the number of decoding threads: OMP_NUM_THREADS (Ray sets it for its workers), or all cores."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
