"""Reads of many values: neighbours in one request, distant ones apart, and every value compared with its hash."""

import numpy as np
import pyarrow as pa
import pytest

from counterpoise.errors import StoreError
from counterpoise.storage import spans
from counterpoise.storage.records import DamagedError
from counterpoise.storage.row_files import hashes
from counterpoise.storage.spans import read_values
from recording_store import RecordingStore

GAP = 64 << 10  # bytes between two values that are read with them


@pytest.fixture
def put(tmp_path):
    """Stores values at given distances in files; returns the store and what :func:`read_values` takes."""
    store = RecordingStore(tmp_path / "store")

    def put(*files):
        """``files``: for each file its (bytes before the value, value or None) in order."""
        keys, columns = [], ([], [], [], [])
        for number, values in enumerate(files):
            content = bytearray()
            for before, value in values:
                content += bytes(before)
                place = (-1, -1) if value is None else (len(content), len(value))
                for column, entry in zip(columns, (number, *place, value), strict=True):
                    column.append(entry)
                content += value or b""
            keys.append(f"file-{number}")
            store.create(keys[-1], bytes(content))
        file, start, size, value = columns
        places = [np.array(column, np.int64) for column in (file, start, size)]
        return store, keys, places, value

    return put


def read_back(store, keys, places, values, rows=None):
    """The values by position, after a check of the order; ``rows``: positions in the columns that are read."""
    rows = np.arange(len(values)) if rows is None else np.array(rows, np.int64)
    files, starts, sizes = (column[rows] for column in places)
    expected = [values[row] for row in rows]
    found = list(read_values(store, keys, files, starts, sizes, pa.chunked_array([hashes(expected)], pa.binary(16))))
    assert sorted(position for position, _ in found) == list(range(len(rows)))
    assert dict(found) == dict(enumerate(expected))
    present = [position for position, value in found if value is not None]
    assert [position for position, _ in found][: len(rows) - len(present)] == [
        position for position, value in enumerate(expected) if value is None
    ]
    order = [(files[position], starts[position]) for position in present]
    assert order == sorted(order)
    return found


def test_neighbours_are_read_together_and_distant_values_apart(put):
    store, *rest = put([(10, b"a" * 50), (0, b"b"), (GAP, b"c" * 7), (GAP + 1, b"d"), (3, b"e" * 9)])
    read_back(store, *rest)
    near = 10 + 50 + 1 + GAP + 7
    far = near + GAP + 1
    assert sorted(store.ranges) == [("file-0", 10, near), ("file-0", far, far + 1 + 3 + 9)]


def test_files_are_read_apart(put):
    store, *rest = put([(0, b"a")], [(0, b"b")], [(5, b"c"), (0, b"d")])
    read_back(store, *rest)
    assert sorted(store.ranges) == [("file-0", 0, 1), ("file-1", 0, 1), ("file-2", 5, 7)]


def test_a_long_run_is_several_requests(put, monkeypatch):
    monkeypatch.setattr(spans, "_MOST", 100)
    store, *rest = put([(0, bytes([number]) * 30) for number in range(10)])
    read_back(store, *rest)
    assert sorted(store.ranges) == [("file-0", start, min(start + 90, 300)) for start in (0, 90, 180, 270)]


def test_a_value_larger_than_a_request_is_one_request(put, monkeypatch):
    monkeypatch.setattr(spans, "_MOST", 100)
    store, *rest = put([(0, b"a" * 20), (0, b"b" * 500), (0, b"c" * 20), (0, b"d" * 20)])
    read_back(store, *rest)
    assert sorted(store.ranges) == [("file-0", 0, 20), ("file-0", 20, 520), ("file-0", 520, 560)]


def test_any_order_and_duplicates(put):
    store, *rest = put([(9, bytes([number]) * (number + 1)) for number in range(6)], [(0, b"x"), (0, b"y")])
    read_back(store, *rest, rows=[7, 2, 2, 0, 6, 5, 2, 7])
    assert len(store.ranges) == 2
    read_back(store, *rest, rows=[4, 4])
    assert len(store.ranges) == 3


def test_nulls_come_first_and_cost_nothing(put):
    store, *rest = put([(0, None), (0, b"a"), (0, None), (0, b"b")], [(0, None)])
    read_back(store, *rest)
    assert store.ranges == [("file-0", 0, 2)]
    read_back(store, *rest, rows=[4, 0])
    assert len(store.ranges) == 1


def test_empty_values(put):
    store, *rest = put([(4, b""), (0, b"a"), (0, b"")])
    read_back(store, *rest)
    read_back(store, *rest, rows=[0])


def test_nothing(put):
    store, *rest = put([(0, b"a")])
    assert read_back(store, *rest, rows=[]) == []
    assert store.ranges == []


@pytest.mark.parametrize("seed", range(5))
def test_random_values_in_random_order(put, monkeypatch, seed):
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(spans, "_MOST", 2000)
    monkeypatch.setattr(spans, "_GAP", 100)

    def value():
        return None if rng.random() < 0.1 else rng.bytes(int(rng.integers(0, 700)))

    files = [[(int(rng.integers(0, 200)), value()) for _ in range(30)] for _ in range(4)]
    store, *rest = put(*files)
    read_back(store, *rest, rows=rng.integers(0, 120, size=80))
    assert len(store.ranges) < 80
    assert all(stop - start <= 2000 for _, start, stop in store.ranges)


@pytest.mark.parametrize("change", ["flip", "cut", "gone"])
def test_a_value_that_is_not_what_was_stored(put, change):
    store, keys, places, values = put([(0, b"first"), (0, b"second")], [(0, b"third")])
    if change == "gone":
        store.delete("file-0")
    else:
        store.replace("file-0", b"firstsecomd" if change == "flip" else b"firstsecon")
    kind = StoreError if change == "gone" else DamagedError
    with pytest.raises(kind) as caught:
        list(read_values(store, keys, *places, pa.chunked_array([hashes(values)], pa.binary(16))))
    assert str(caught.value.where) == f"{store.uri}/file-0"
    if change != "gone":
        assert "bytes 5 to 11 have another SHA-256" in str(caught.value)


def test_a_value_of_a_neighbour_is_not_taken(put):
    """Right bytes of the wrong row: the hash is that of the row."""
    store, keys, places, values = put([(0, b"aaaa"), (0, b"bbbb")])
    with pytest.raises(DamagedError):
        list(read_values(store, keys, *places, pa.chunked_array([hashes(values[::-1])], pa.binary(16))))


def test_one_who_stops_early_leaves_no_reads_behind(put, monkeypatch):
    monkeypatch.setattr(spans, "_MOST", 10)
    store, keys, places, values = put([(0, bytes([number]) * 10) for number in range(40)])
    values = read_values(store, keys, *places, pa.chunked_array([hashes(values)], pa.binary(16)))
    assert next(values) == (0, b"\0" * 10)
    values.close()
    assert len(store.ranges) < 15
