"""Parquet files whose images and vectors can be read one by one, because each value's place in the file is known.

Such a column is written plain: without compression and dictionary, in one page for each row group. Its values, each
after its length in four bytes, then end where the column's chunk ends (Parquet's encoding PLAIN of BYTE_ARRAY). An
image therefore costs one ranged read of its own size, and the file is still one that any Parquet reader opens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int

HASH_BYTES = 16  # of a value's SHA-256, which detect damage; whole files have all 32
_PAGE_BYTES = 1 << 30  # more than a row group: its values are one page
_LENGTH_BYTES = 4  # before each value


def writer_options(schema: pa.Schema, bulky: Sequence[str]) -> dict[str, Any]:
    """Return options of ``pq.ParquetWriter`` and ``pq.write_table`` for values with known places.

    Args:
        schema: Schema of the file, without nested columns.
        bulky: Columns of ``pa.binary()`` whose values get places.
    """
    return {
        "compression": {name: "none" if name in bulky else "zstd" for name in schema.names},
        "use_dictionary": [name for name in schema.names if pa.types.is_string(schema.field(name).type)],
        "write_statistics": False,
        "store_schema": False,  # the readers know it, and it is a large part of a small file
        "data_page_size": _PAGE_BYTES,
        "write_batch_size": _PAGE_BYTES,
    }


def lengths(column: pa.ChunkedArray) -> Int[np.ndarray, " n"]:
    """Return the bytes of each value of a binary column; -1 for null."""
    return pc.binary_length(column).fill_null(-1).to_numpy().astype(np.int64)


def offsets(metadata: pq.FileMetaData, name: str, sizes: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """Return the offset in the file of each value of a column; -1 for null.

    Args:
        metadata: Metadata of a file that was written with :func:`writer_options`.
        name: The column.
        sizes: Its values' :func:`lengths`.
    """
    column, first = metadata.schema.names.index(name), 0
    result = np.full(len(sizes), -1, np.int64)
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        rows = first + np.flatnonzero(sizes[first : first + group.num_rows] >= 0)
        chunk = group.column(column)
        taken = sizes[rows] + _LENGTH_BYTES
        end = chunk.data_page_offset + chunk.total_compressed_size
        result[rows] = end - np.cumsum(taken[::-1])[::-1] + _LENGTH_BYTES
        first += group.num_rows
    return result


def hashes(values: Sequence[bytes | None]) -> list[bytes | None]:
    """Return the first 16 bytes of each value's SHA-256."""
    return [None if value is None else value_hash(value) for value in values]


def value_hash(value: bytes | memoryview) -> bytes:
    """Return the first 16 bytes of a value's SHA-256."""
    return hashlib.sha256(value).digest()[:HASH_BYTES]
