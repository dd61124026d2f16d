"""Places of values: each is where the index says, and the file is one that any Parquet reader opens."""

import hashlib
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from counterpoise.storage import row_files

SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("image", pa.binary()),
        ("number", pa.uint64()),
        ("vector", pa.binary()),
        ("share", pa.float32()),
    ]
)
BULKY = ("image", "vector")


def table_of(images, vectors=None):
    count = len(images)
    columns = {
        "name": [f"row {number % 3}" if number % 4 else None for number in range(count)],
        "image": images,
        "number": [2**63 + number for number in range(count)],
        "vector": vectors or [None] * count,
        "share": [number / 7 for number in range(count)],
    }
    return pa.table(columns, schema=SCHEMA)


def written(table, row_group_size):
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=row_group_size, **row_files.writer_options(SCHEMA, BULKY))
    return buffer.getvalue()


def check_places(data, table):
    """Every value of every bulky column is found in the bytes of the file."""
    metadata = pq.read_metadata(io.BytesIO(data))
    for column in BULKY:
        values = table[column].to_pylist()
        sizes = row_files.lengths(table[column])
        places = row_files.offsets(metadata, column, sizes)
        assert sizes.tolist() == [-1 if value is None else len(value) for value in values]
        found = [
            None if size < 0 else data[place : place + size]
            for place, size in zip(places.tolist(), sizes.tolist(), strict=True)
        ]
        assert found == values
        assert all(place == -1 for place, value in zip(places.tolist(), values, strict=True) if value is None)


@pytest.mark.parametrize(
    "values",
    [
        [b"one"],
        [None],
        [b""],
        [b"one", b"", b"three", b""],
        [None, b"two", None, None, b"five", None],
        [None, None, None],
        [b"same"] * 9,
        [b"x" * 100_000, None, b"y"],
    ],
    ids=["one", "one null", "one empty", "empty", "nulls", "all null", "same", "long"],
)
@pytest.mark.parametrize("row_group_size", [1, 2, 100])
def test_each_value_is_at_its_place(values, row_group_size):
    table = table_of(values, values[::-1])
    data = written(table, row_group_size)
    check_places(data, table)
    assert pq.read_table(io.BytesIO(data)).equals(table)


@pytest.mark.parametrize("seed", range(5))
def test_random_values_in_several_row_groups(seed):
    rng = np.random.default_rng(seed)
    images, vectors = (
        [None if rng.random() < 0.2 else rng.bytes(int(rng.integers(0, most))) for _ in range(50)]
        for most in (3000, 20)
    )
    table = table_of(images, vectors)
    data = written(table, int(rng.integers(1, 60)))
    check_places(data, table)
    assert pq.read_table(io.BytesIO(data)).equals(table)


def test_a_table_without_rows():
    data = written(table_of([]), 5)
    check_places(data, table_of([]))
    assert pq.read_table(io.BytesIO(data)).num_rows == 0


def test_values_in_chunks_and_batches_are_one_page(tmp_path):
    """The writer's own limits would begin a new page after a megabyte or a thousand rows, with a header between."""
    values = [bytes([number % 251]) * 900 for number in range(3000)]
    parts = [table_of(values[start : start + 700]) for start in range(0, 3000, 700)]
    table = pa.concat_tables(parts)
    assert table["image"].num_chunks > 1
    data = written(table, 2500)
    assert pq.read_metadata(io.BytesIO(data)).num_row_groups == 2
    check_places(data, table)


def test_a_file_in_row_groups_of_a_writer(tmp_path):
    parts = [table_of([b"a" * number for number in range(5)]), table_of([None, b"b"]), table_of([b"c" * 2000])]
    with pq.ParquetWriter(tmp_path / "file", SCHEMA, **row_files.writer_options(SCHEMA, BULKY)) as writer:
        for part in parts:
            writer.write_table(part, row_group_size=len(part))
    check_places((tmp_path / "file").read_bytes(), pa.concat_tables(parts))


def test_hashes_are_the_first_half_of_sha256():
    assert row_files.hashes([b"a", None, b""]) == [
        hashlib.sha256(b"a").digest()[:16],
        None,
        hashlib.sha256(b"").digest()[:16],
    ]
    assert row_files.value_hash(memoryview(b"a")) == row_files.value_hash(b"a")
