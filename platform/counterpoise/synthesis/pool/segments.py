"""Segments and notes: the files of a pool's index; see :mod:`counterpoise.synthesis.pool.index`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from counterpoise.core.progress import warn
from counterpoise.storage.records import DamagedError, damaged
from counterpoise.storage.store import Store
from counterpoise.synthesis.pool.address import Shard, folder
from counterpoise.synthesis.pool.shard_file import HEAD, INDEX

SHARDS = 1000  # rows of a full segment
_HASH = 32  # bytes of SHA-256 before a note's row


def keys(listed: Iterable[str]) -> list[str]:
    """Return the keys of segments among the keys of a pool."""
    return sorted(key for key in listed if key.split("/")[2:3] == ["index"])


def write(store: Store, digest: str, rows: pa.Table) -> list[str]:
    """Write index rows as segments, and return their keys."""
    written = []
    for start in range(0, len(rows), SHARDS):
        table = rows.slice(start, SHARDS).combine_chunks()
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", write_statistics=False)
        data = buffer.getvalue()
        key = f"{folder(digest)}index/{hashlib.sha256(data).hexdigest()}.parquet"
        store.create(key, data)
        written.append(key)
    return written


def read(store: Store, key: str) -> bytes:
    """Return the bytes of a segment.

    Raises:
        DamagedError: Its content does not match its name.
        StoreError: It is not there, or the store cannot be read.
    """
    data = store.read(key)
    if hashlib.sha256(data).hexdigest() != key.rpartition("/")[2].removesuffix(".parquet"):
        raise damaged(f"{store.uri}/{key}", "the content does not match the SHA-256 in its name")
    return data


def columns(data: bytes, names: Sequence[str]) -> pa.Table:
    """Return columns of a segment."""
    schema = pa.schema([INDEX.field(name) for name in names])
    return pq.read_table(io.BytesIO(data), columns=list(names)).cast(schema)


def note_key(digest: str, shard: Shard) -> str:
    """Return the key of a shard's note, which holds its index row until a segment does."""
    return f"{folder(digest)}notes/{shard.label}-{shard.group}-{shard.number}.arrow"


def write_note(store: Store, digest: str, shard: Shard, row: pa.Table, *, replace: bool = False) -> bool:
    """Write a shard's index row: the hash of the rest, then the row as an Arrow stream. True if this call wrote it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, row.schema) as writer:
        writer.write_table(row)
    data = sink.getvalue().to_pybytes()
    note, key = hashlib.sha256(data).digest() + data, note_key(digest, shard)
    if replace:
        store.replace(key, note)
        return True
    return store.create(key, note)


def read_note(store: Store, digest: str, shard: Shard) -> pa.Table | None:
    """Return the index row of a note; None if it is damaged, which removes it.

    Raises:
        StoreError: It is not there, or the store cannot be read.
    """
    data = store.read(key := note_key(digest, shard))
    try:
        return from_note(data, shard, f"{store.uri}/{key}")
    except DamagedError as error:
        warn(f"{error.where} is damaged ({error.found}): it is made again from the shard")
        store.delete(key)
        return None


def from_note(data: bytes, shard: Shard, where: str) -> pa.Table:
    """Return the index row in a note's bytes.

    Raises:
        DamagedError: They are not the note of this shard.
    """
    try:
        if hashlib.sha256(data[_HASH:]).digest() != data[:_HASH]:
            raise ValueError("the content does not match its hash")
        with pa.ipc.open_stream(data[_HASH:]) as reader:
            row = reader.read_all().cast(INDEX)
        if [row[name].to_pylist() for name in HEAD] != [[shard.label], [shard.group], [shard.number]]:
            raise ValueError("the note of another shard")
        return row
    except (pa.ArrowException, ValueError) as error:
        raise damaged(where, error) from error


def delete_notes(store: Store, digest: str, shards: Iterable[Shard]) -> None:
    """Remove the notes of shards that a segment holds."""
    for shard in shards:
        store.delete(note_key(digest, shard))
