"""Is a pool what its address says? Every shard is read, decoded and compared; some are sampled anew.

A shard's rows follow from its address, but for pixels and scores. Those were hashed when they were committed. That the
hashed pixels are the ones that the address stands for is shown by sampling them again.
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
from counterpoise.errors import CounterpoiseError, one_of
from counterpoise.storage.codec import decode_image
from counterpoise.storage.schema import SYNTHETIC
from counterpoise.storage.store import read
from counterpoise.synthesis.pool import shard as making
from counterpoise.synthesis.pool.actors import sampler_here
from counterpoise.synthesis.pool.address import Shard, folder
from counterpoise.synthesis.pool.address import seed as image_seed
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.pool.sampling_spec import SamplingSpec
from counterpoise.synthesis.pool.shard import SampledShard, ShardSpec, content_hash

_ADDRESSED = ("id", "label", "group", "split", "source", "index", "prompt", "seed")  # columns an address decides
_THREADS = 4


@dataclass(frozen=True)
class PoolCheck:
    """What came of it.

    Attributes:
        shards: Shards looked at.
        bad: Keys in the store, and what is wrong with each.
        unhashed: Shards without a hash: committed before there were any. Their pixels were decoded and not compared.
        regenerated: Images sampled anew.
        equal: How many of them have the bytes that are in the pool.
        largest_difference: Between the other ones' pixels and the pool's, 0 to 255; None if there are no others.
    """

    shards: int
    bad: list[tuple[str, str]]
    unhashed: int
    regenerated: int
    equal: int
    largest_difference: int | None


def verify(pool: Pool, regenerate: int, seed: int) -> PoolCheck:
    """Reads the whole pool, then samples ``regenerate`` of its images (or all, if it has fewer) anew; writes nothing.

    A shard is sampled whole, as it was for the pool. So the images are those of as few shards as hold that many;
    ``seed`` chooses the shards.

    Raises:
        ConfigError, ModelError: There are images to be sampled anew, and the generator cannot be loaded here.
        StoreError: The store cannot be read.
    """
    keys = pool.store.list(folder(pool.digest))
    shards = {key: _shard_at(pool, key) for key in keys if key.endswith(".parquet")}
    bad = [(key, "this is no shard's key") for key, shard in shards.items() if shard is None]
    there = {key: shard for key, shard in shards.items() if shard is not None}
    if there:
        bad = [*_description(pool), *bad]
    recipe, sound, unhashed = SamplingSpec.of(pool).recipe, [], 0
    with Progress("verifying", len(there), "shards") as progress, ThreadPoolExecutor(_THREADS) as threads:
        looked = threads.map(lambda item: _look(read(pool.store, item[0]), recipe, item[1]), there.items())
        for (key, shard), look in zip(there.items(), looked, strict=True):
            unhashed += not look.hashed
            if look.wrong:
                bad.append((key, "; ".join(look.wrong)))
            else:
                sound.append((shard, look.usable))
            progress.advance(note=f"{len(bad)} bad" if bad else "")
    differences = list(_differences(pool, _chosen(sound, regenerate, seed)))
    unequal = [difference for difference in differences if difference is not None]
    equal = len(differences) - len(unequal)
    return PoolCheck(len(there), bad, unhashed, len(differences), equal, max(unequal, default=None))


def summary(verdicts: Sequence[PoolCheck]) -> dict[str, Any]:
    """What several pools came to, as one JSON-able value. ``ok``: nothing is bad, and all that was sampled is equal."""
    bad = [{"key": key, "wrong": wrong} for verdict in verdicts for key, wrong in verdict.bad]
    total = {name: sum(getattr(v, name) for v in verdicts) for name in ("shards", "unhashed", "regenerated", "equal")}
    differences = [v.largest_difference for v in verdicts if v.largest_difference is not None]
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
class _Look:
    wrong: list[str]
    hashed: bool
    usable: list[int]  # rows with an image


def _look(data: bytes, recipe: ShardSpec, shard: Shard) -> _Look:
    try:
        table = pq.read_table(io.BytesIO(data))
        stored = (table.schema.metadata or {}).get(b"sha256")
        found = content_hash(table).encode()
    except (pa.ArrowException, OSError, ValueError) as error:
        return _Look([f"not a readable Parquet file: {str(error).splitlines()[0]}"], True, [])
    wrong = [] if stored in (None, found) else ["the content has not the hash that it was committed with"]
    wrong += _wrong_rows(table, recipe, shard)
    usable = [] if wrong else [row for row, image in enumerate(table["image"]) if image.is_valid]
    return _Look(wrong, stored is not None, usable)


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
        yield f"attempts outside of 0 to {recipe.max_attempts - 1}"
        return
    expected = _expected(attempts, recipe, shard)
    wrong = {name: table[name].to_pylist() for name in _ADDRESSED if not table[name].equals(expected[name])}
    if wrong:
        name, column = next(iter(wrong.items()))
        pairs = enumerate(zip(column, expected[name].to_pylist(), strict=True))
        row, found, right = next((row, found, right) for row, (found, right) in pairs if found != right)
        yield f"{', '.join(wrong)}: not what the address says; in row {row} {name} {found} instead of {right}"
    yield from _wrong_images(table)


def _expected(attempts: Sequence[int], recipe: ShardSpec, shard: Shard) -> pa.Table:
    """The shard as its address has it, without pixels."""
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
        yield f"neither or both of image and defect in rows {one_of(unclear, 6)}"
    sizes: set[tuple[int, ...]] = set()
    for row, image in enumerate(images):
        try:
            sizes |= {decode_image(image).shape} if image is not None else set()
        except OSError as error:
            yield f"the image in row {row} cannot be decoded: {error}"
    if len(sizes) > 1:
        yield f"images of {len(sizes)} sizes"


# -- sampled anew ------------------------------------------------------------------------------------------------------


def _chosen(sound: Sequence[tuple[Shard, list[int]]], count: int, seed: int) -> list[tuple[Shard, list[int]]]:
    """Shards in an order of the seed's, and of each the rows to compare, until there are ``count`` of them."""
    chosen: list[tuple[Shard, list[int]]] = []
    for number in np.random.default_rng(seed).permutation(len(sound)):
        shard, usable = sound[number]
        if count > 0 and usable:
            chosen.append((shard, usable[:count]))
            count -= len(chosen[-1][1])
    return chosen


def _differences(pool: Pool, chosen: Sequence[tuple[Shard, list[int]]]) -> Iterator[int | None]:
    """For each image None if its bytes are equal, else the largest difference of its pixels."""
    if not chosen:
        return
    total = sum(len(rows) for _, rows in chosen)
    with Progress("sampling", total, "images") as progress, sampler_here(SamplingSpec.of(pool)) as sample:
        for shard, rows in chosen:
            anew = sample(shard)["image"]
            positions: Int[np.ndarray, " n"] = np.array(rows, dtype=np.int64)
            held = dict(pool.view([shard], [positions]).images())
            for position, row in enumerate(rows):
                yield None if anew[row].as_py() == held[position] else _distance(anew[row].as_py(), held[position])
            progress.advance(len(rows))


def _distance(anew: bytes | None, held: bytes) -> int:
    """The largest difference of two images' pixels; 255 where there is nothing to compare."""
    if anew is None:
        return 255
    one, other = (decode_image(data).astype(np.int16) for data in (anew, held))
    return int(np.abs(one - other).max()) if one.shape == other.shape else 255
