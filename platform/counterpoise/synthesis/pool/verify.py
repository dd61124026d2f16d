"""Verification of a pool: every shard is read, decoded and compared with its address; some are sampled again.

A shard's rows follow from its address, except for pixels and scores. Those were hashed when they were committed. Only
sampling them again shows that the hashed pixels are those of the address.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int

from counterpoise.core.progress import Progress
from counterpoise.core.rng import stream
from counterpoise.errors import CounterpoiseError, one_of
from counterpoise.storage.codec import decode_image
from counterpoise.storage.schema import SYNTHETIC
from counterpoise.storage.store import read
from counterpoise.synthesis.pool import shard as making
from counterpoise.synthesis.pool.address import Shard, folder
from counterpoise.synthesis.pool.address import seed as image_seed
from counterpoise.synthesis.pool.in_process import sampler_here
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.pool.sampling_spec import SamplingSpec
from counterpoise.synthesis.pool.shard import SampledShard, ShardSpec, content_hash

_ADDRESSED = ("id", "label", "group", "split", "source", "index", "prompt", "seed")  # columns an address decides
_THREADS = 4


@dataclass(frozen=True)
class PoolCheck:
    """Result of checking a pool.

    Attributes:
        shards: Number of shards read.
        bad: Keys of bad shards in the store, each with its defects.
        unhashed: Shards without a hash, committed before hashes existed. Their pixels were decoded but not compared.
        regenerated: Images sampled again.
        equal: Number of these with the same bytes as in the pool.
        largest_difference: Largest pixel difference, 0 to 255, of the others from the pool's; None if all are equal.
    """

    shards: int
    bad: list[tuple[str, str]]
    unhashed: int
    regenerated: int
    equal: int
    largest_difference: int | None


def verify(pool: Pool, regenerate: int, seed: int) -> PoolCheck:
    """Read the whole pool, then sample ``regenerate`` of its images (at most all) again; write nothing.

    A shard is sampled whole, as it was for the pool, so that the images are those of as few shards as suffice; ``seed``
    selects the shards.

    Raises:
        ConfigError, ModelError: Images are to be sampled again, and the generator cannot be loaded on this machine.
        StoreError: The store cannot be read.
    """
    keys = pool.store.list(folder(pool.digest))
    shards = {key: _shard_at(pool, key) for key in keys if key.endswith(".parquet")}
    bad = [(key, "not the key of a shard") for key, shard in shards.items() if shard is None]
    present = {key: shard for key, shard in shards.items() if shard is not None}
    if present:
        bad = [*_description(pool), *bad]
    recipe, sound, unhashed = SamplingSpec.of(pool).recipe, [], 0
    with Progress("verifying", len(present), "shards") as progress, ThreadPoolExecutor(_THREADS) as threads:
        checks = threads.map(lambda item: _check(read(pool.store, item[0]), recipe, item[1]), present.items())
        for (key, shard), check in zip(present.items(), checks, strict=True):
            unhashed += not check.hashed
            if check.wrong:
                bad.append((key, "; ".join(check.wrong)))
            else:
                sound.append((shard, check.usable))
            progress.advance(note=f"{len(bad)} bad" if bad else "")
    differences = list(_differences(pool, _shards_to_sample(sound, regenerate, seed)))
    unequal = [difference for difference in differences if difference is not None]
    equal = len(differences) - len(unequal)
    return PoolCheck(len(present), bad, unhashed, len(differences), equal, max(unequal, default=None))


def summary(checks: Sequence[PoolCheck]) -> dict[str, Any]:
    """Return the checks of several pools as one JSON-able value; ``ok``: nothing is bad, all pixels are equal."""
    bad = [{"key": key, "wrong": wrong} for check in checks for key, wrong in check.bad]
    total = {
        name: sum(getattr(check, name) for check in checks) for name in ("shards", "unhashed", "regenerated", "equal")
    }
    differences = [check.largest_difference for check in checks if check.largest_difference is not None]
    return {
        "ok": not bad and total["equal"] == total["regenerated"],
        "bad": bad,
        **total,
        "largest_difference": max(differences, default=None),
    }


def _shard_at(pool: Pool, key: str) -> Shard | None:
    shard = Shard.from_key(key)
    classes, groups = pool.names.shape
    inside = shard is not None and shard.label < classes and shard.group < groups and shard.key(pool.digest) == key
    return shard if inside else None


def _description(pool: Pool) -> list[tuple[str, str]]:
    try:
        pool.check_description()
    except CounterpoiseError as error:
        return [(pool.description_key, error.message)]
    return []


# -- one shard ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ShardCheck:
    wrong: list[str]
    hashed: bool
    usable: list[int]  # rows with an image


def _check(data: bytes, recipe: ShardSpec, shard: Shard) -> _ShardCheck:
    try:
        table = pq.read_table(io.BytesIO(data))
        stored = (table.schema.metadata or {}).get(b"sha256")
        actual = content_hash(table).encode()
    except (pa.ArrowException, OSError, ValueError) as error:
        return _ShardCheck([f"not a readable Parquet file: {str(error).splitlines()[0]}"], True, [])
    wrong = [] if stored in (None, actual) else ["the content does not match the hash of its commit"]
    wrong += _wrong_rows(table, recipe, shard)
    usable = [] if wrong else [row for row, image in enumerate(table["image"]) if image.is_valid]
    return _ShardCheck(wrong, stored is not None, usable)


def _wrong_rows(table: pa.Table, recipe: ShardSpec, shard: Shard) -> Iterator[str]:
    missing = [field.name for field in SYNTHETIC if field not in list(table.schema)]
    if missing:
        yield f"columns are missing or of another type: {', '.join(missing)}"
        return
    if not recipe.names.to_metadata().items() <= (table.schema.metadata or {}).items():
        yield "the names of classes and groups are not the dataset's"
    if len(table) != recipe.shard_size:
        yield f"{len(table)} rows instead of {recipe.shard_size}"
        return
    attempts = table["attempt"].to_pylist()
    if not all(attempt is not None and 0 <= attempt < recipe.max_attempts for attempt in attempts):
        yield f"attempts outside 0 to {recipe.max_attempts - 1}"
        return
    expected = _expected(attempts, recipe, shard)
    wrong = {name: table[name].to_pylist() for name in _ADDRESSED if not table[name].equals(expected[name])}
    if wrong:
        name, column = next(iter(wrong.items()))
        pairs = enumerate(zip(column, expected[name].to_pylist(), strict=True))
        row, found, right = next((row, found, right) for row, (found, right) in pairs if found != right)
        yield f"{', '.join(wrong)}: not those of the address; in row {row} {name} {found} instead of {right}"
    yield from _wrong_images(table)


def _expected(attempts: Sequence[int], recipe: ShardSpec, shard: Shard) -> pa.Table:
    """Return the shard that follows from its address, without pixels."""
    n = recipe.shard_size
    indices = [shard.number * n + position for position in range(n)]
    seeds = [
        image_seed(recipe.digest, shard.label, shard.group, index, attempt)
        for index, attempt in zip(indices, attempts, strict=True)
    ]
    draft = SampledShard(
        [np.empty(0, np.uint8)] * n, seeds, list(attempts), ["not looked at"] * n, [None] * n, [None] * n
    )
    return making.to_table(draft, recipe, shard)


def _wrong_images(table: pa.Table) -> Iterator[str]:
    images, defects = table["image"].to_pylist(), table["defect"].to_pylist()
    unclear = [row for row in range(len(table)) if (images[row] is None) != (defects[row] is not None)]
    if unclear:
        yield f"both an image and a defect, or neither, in rows {one_of(unclear, 6)}"
    sizes: set[tuple[int, ...]] = set()
    for row, image in enumerate(images):
        try:
            sizes |= {decode_image(image).shape} if image is not None else set()
        except OSError as error:
            yield f"the image in row {row} cannot be decoded: {error}"
    if len(sizes) > 1:
        yield f"images of {len(sizes)} sizes"


# -- sampled again -----------------------------------------------------------------------------------------------------


def _shards_to_sample(sound: Sequence[tuple[Shard, list[int]]], count: int, seed: int) -> list[tuple[Shard, list[int]]]:
    """Return shards in an order drawn by the seed, each with its rows to compare, ``count`` rows in all."""
    selected: list[tuple[Shard, list[int]]] = []
    for index in stream(seed).permutation(len(sound)):
        shard, usable = sound[index]
        if count > 0 and usable:
            selected.append((shard, usable[:count]))
            count -= len(selected[-1][1])
    return selected


def _differences(pool: Pool, selected: Sequence[tuple[Shard, list[int]]]) -> Iterator[int | None]:
    """Yield for each image None if its bytes are equal, else the largest difference of its pixels."""
    if not selected:
        return
    total = sum(len(rows) for _, rows in selected)
    with Progress("sampling", total, "images") as progress, sampler_here(SamplingSpec.of(pool)) as sample:
        for shard, rows in selected:
            images = sample(shard)["image"]
            positions: Int[np.ndarray, " n"] = np.array(rows, dtype=np.int64)
            pooled = dict(pool.view([shard], [positions]).images())
            for position, row in enumerate(rows):
                image = images[row].as_py()
                yield None if image == pooled[position] else _distance(image, pooled[position])
            progress.advance(len(rows))


def _distance(image: bytes | None, pooled: bytes) -> int:
    """Return the largest difference of two images' pixels; 255 if one is missing or of another size."""
    if image is None:
        return 255
    first, second = (decode_image(data).astype(np.int16) for data in (image, pooled))
    return int(np.abs(first - second).max()) if first.shape == second.shape else 255
