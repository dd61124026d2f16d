"""Shard files and their index: what is stored of a shard's images.

A shard's file has its images, their vectors, and what cannot be computed from its address. Its *index row* has
everything but images and vectors: the values of all its rows as lists, the place and hash of each image and vector, the
file's own hash, and the cost of sampling. Selection reads index rows alone.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from counterpoise.storage import row_files
from counterpoise.storage.records import damaged
from counterpoise.synthesis.pool.address import Shard

BULKY = ("image", "embedding")
VALUES = [
    ("seed", pa.uint64()),
    ("attempt", pa.int32()),  # 0 for the first sample, n after n rejected ones
    ("defect", pa.string()),  # null, or why every attempt was rejected: the row is quarantined
    ("condition_id", pa.string()),  # id of the real image used as condition; null without one
    ("criterion", pa.float32()),  # feedback criterion of the finished image; null without guidance
    ("clip_similarity", pa.float32()),  # cosine with its own prompt (Hessel et al. 2021, unscaled)
    ("clip_margin", pa.float32()),  # cosine with the cell's plain prompt minus the largest with a rival cell's
    ("clip_label", pa.int32()),  # zero-shot: class and group of the cell whose prompt has the largest cosine
    ("clip_group", pa.int32()),
]
SHARD = pa.schema(
    [
        ("image", pa.binary()),  # an encoded image file; null if quarantined
        ("embedding", pa.binary()),  # CLIP's unit vector in float16; null if not scored
        *VALUES,
    ]
)
PLACES = [
    (f"{column}_{name}", kind)
    for column in BULKY
    for name, kind in (
        ("offset", pa.int64()),
        ("length", pa.int32()),
        ("sha256", pa.binary(row_files.HASH_BYTES)),
    )
]
COSTS = ("sample", "encode", "score")
HEAD = ["label", "group", "number"]  # the shard's address; group is 0 without groups
INDEX = pa.schema(
    [
        *((name, pa.int32()) for name in HEAD),
        ("bytes", pa.int64()),  # of the file
        ("sha256", pa.binary(32)),  # of the file
        ("device", pa.string()),  # that sampled it; null if unknown, because the index was rebuilt
        *((step, pa.float32()) for step in COSTS),  # seconds; null if unknown
        *((name, pa.list_(kind)) for name, kind in [*VALUES, *PLACES]),
    ]
)


def to_file(table: pa.Table, digest: str, shard: Shard) -> bytes:
    """Return the bytes of a shard's file, the same for equal tables and the same version of pyarrow.

    Its metadata names its address and the hash of its content.

    Args:
        table: Rows with the columns of :data:`SHARD`.
        digest: The pool's address.
        shard: The shard's address in it.
    """
    about = {"pool": digest, "shard": [shard.label, shard.group, shard.number], "sha256": content_hash(table)}
    table, buffer = table.cast(SHARD), io.BytesIO()
    with pq.ParquetWriter(buffer, SHARD, **row_files.writer_options(SHARD, BULKY)) as writer:
        writer.write_table(table, row_group_size=max(len(table), 1))
        writer.add_key_value_metadata({"counterpoise": json.dumps(about)})  # the schema's own metadata is not stored
    return buffer.getvalue()


def from_file(data: bytes, digest: str, shard: Shard, where: str) -> pa.Table:
    """Return the rows of a shard's file.

    Args:
        data: The file's bytes.
        digest: The pool's address.
        shard: The shard's address in it.
        where: The file, for errors.

    Raises:
        DamagedError: The bytes are not those of this shard's file.
    """
    try:
        table = pq.read_table(io.BytesIO(data))
        about = json.loads(table.schema.metadata[b"counterpoise"])
        table = table.replace_schema_metadata(None).cast(SHARD)
        sound, address = about["sha256"] == content_hash(table), [about["pool"], *about["shard"]]
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        found = f"not the file of a shard: {next(iter(str(error).splitlines()), type(error).__name__)}"
        raise damaged(where, found) from error
    if not sound:
        raise damaged(where, "the content does not match the hash of its commit")
    if address != [digest, shard.label, shard.group, shard.number]:
        raise damaged(where, f"the file of another shard: {about['pool']} {about['shard']}")
    return table


def index_row(
    data: bytes, table: pa.Table, shard: Shard, device: str | None = None, seconds: Mapping[str, float] | None = None
) -> pa.Table:
    """Return a shard's index row, a table of one row with the schema :data:`INDEX`.

    Args:
        data: The shard's file.
        table: Its rows.
        shard: Its address.
        device: The device that sampled it, if known.
        seconds: Cost of its steps, if known.
    """
    metadata = pq.read_metadata(io.BytesIO(data))
    lists: dict[str, object] = {name: table[name].to_pylist() for name, _ in VALUES}
    for column in BULKY:
        sizes = row_files.lengths(table[column])
        lists[f"{column}_offset"] = row_files.offsets(metadata, column, sizes).tolist()
        lists[f"{column}_length"] = sizes.tolist()
        lists[f"{column}_sha256"] = row_files.hashes(table[column].to_pylist())
    row = {
        "label": shard.label,
        "group": shard.group,
        "number": shard.number,
        "bytes": len(data),
        "sha256": hashlib.sha256(data).digest(),
        "device": device,
        **{step: (seconds or {}).get(step) for step in COSTS},
        **lists,
    }
    return pa.table({name: [value] for name, value in row.items()}, schema=INDEX)


def content_hash(table: pa.Table) -> str:
    """Return SHA-256, in hex, of all values of the columns of :data:`SHARD`."""
    sha = hashlib.sha256()
    for name in SHARD.names:
        values = table[name].to_pylist()
        sha.update(repr((name, row_files.hashes(values) if name in BULKY else values)).encode())
    return sha.hexdigest()
