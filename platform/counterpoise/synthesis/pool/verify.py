"""Verification of a pool: every shard is read, decoded and compared with its address; some are sampled again.

A shard's rows follow from its address, except for pixels and scores. Those were hashed when they were committed. Only
sampling them again shows that the hashed pixels are those of the address.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from counterpoise.core.progress import Progress
from counterpoise.core.rng import stream
from counterpoise.errors import CounterpoiseError, StoreError, one_of
from counterpoise.storage.codec import decode_image
from counterpoise.storage.records import DamagedError
from counterpoise.storage.store import Store
from counterpoise.synthesis.pool import segments
from counterpoise.synthesis.pool.address import Shard, folder
from counterpoise.synthesis.pool.address import seed as image_seed
from counterpoise.synthesis.pool.in_process import sampler_here
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.pool.sampling_spec import SamplingSpec
from counterpoise.synthesis.pool.shard_file import HEAD, from_file
from counterpoise.synthesis.pool.shard_spec import ShardSpec

_THREADS = 4


@dataclass(frozen=True)
class PoolCheck:
    """Result of checking a pool.

    Attributes:
        keys: Keys of the shards read.
        bad: Keys of bad shards in the store, each with its defects.
        gaps: Keys of shards that are missing before others of their cell.
        regenerated: Images sampled again.
        equal: Number of these with the same bytes as in the pool.
        largest_difference: Largest pixel difference, 0 to 255, of the others from the pool's; None if all are equal.
    """

    keys: list[str]
    bad: list[tuple[str, str]]
    gaps: list[str]
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
    shards = {key: shard for key in keys if (shard := _shard_at(pool, key)) is not None}
    known = {*shards, *segments.keys(keys)}
    bad = [(key, "not the key of a shard") for key in keys if key.endswith(".parquet") and key not in known]
    described = _Described(pool, keys, shards)
    if shards:
        bad = [*_description(pool), *described.damaged, *bad]
    sound: list[tuple[Shard, list[int]]] = []
    with Progress("verifying", len(shards), "shards") as progress, ThreadPoolExecutor(_THREADS) as threads:
        files = (described.files.get(shard, set()) for shard in shards.values())
        checks = threads.map(partial(_check, pool), shards, shards.values(), files)
        for (key, shard), check in zip(shards.items(), checks, strict=True):
            if check.wrong:
                bad.append((key, "; ".join(check.wrong)))
            else:
                sound.append((shard, check.usable))
            progress.advance(note=f"{len(bad)} bad" if bad else "")
    differences = list(_differences(pool, _shards_to_sample(sound, regenerate, seed)))
    unequal = [difference for difference in differences if difference is not None]
    equal = len(differences) - len(unequal)
    gaps = _gaps(pool, shards.values())
    return PoolCheck(list(shards), bad, gaps, len(differences), equal, max(unequal, default=None))


def summary(checks: Sequence[PoolCheck]) -> dict[str, Any]:
    """Return the checks of several pools as one JSON-able value; ``ok``: nothing is bad, all pixels are equal."""
    bad = [{"key": key, "wrong": wrong} for check in checks for key, wrong in check.bad]
    total = {name: sum(getattr(check, name) for check in checks) for name in ("regenerated", "equal")}
    differences = [check.largest_difference for check in checks if check.largest_difference is not None]
    return {
        "ok": not bad and total["equal"] == total["regenerated"],
        "bad": bad,
        "shards": sum(len(check.keys) for check in checks),
        "gaps": [key for check in checks for key in check.gaps],
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


class _Described:
    """The files that the index describes.

    Attributes:
        files: SHA-256 of each shard's file, in segments and notes; more than one if they disagree.
        damaged: Keys of damaged segments and notes, each with its defect.
    """

    def __init__(self, pool: Pool, keys: Sequence[str], shards: Mapping[str, Shard]) -> None:
        self.files: dict[Shard, set[bytes]] = {}
        self.damaged: list[tuple[str, str]] = []
        self._store = store = pool.store
        present = set(keys)
        for key in segments.keys(keys):
            self._add(key, partial(_segment, store, key))
        for shard in shards.values():
            if (key := segments.note_key(pool.digest, shard)) in present:
                self._add(key, partial(_note, store, key, shard))

    def _add(self, key: str, read: Callable[[], pa.Table]) -> None:
        try:
            rows = read().select([*HEAD, "sha256"])
        except DamagedError as error:
            self.damaged.append((key, str(error.found)))
            return
        except StoreError:
            if self._store.exists(key):
                raise
            return  # another process has just gathered it
        for *address, sha in zip(*(column.to_pylist() for column in rows.columns), strict=True):
            self.files.setdefault(Shard(*address), set()).add(sha)


def _segment(store: Store, key: str) -> pa.Table:
    return segments.columns(segments.read(store, key), [*HEAD, "sha256"])


def _note(store: Store, key: str, shard: Shard) -> pa.Table:
    return segments.from_note(store.read(key), shard, key)


def _gaps(pool: Pool, shards: Iterable[Shard]) -> list[str]:
    present, last = set(shards), dict[tuple[int, int], int]()
    for shard in present:
        cell = shard.label, shard.group
        last[cell] = max(last.get(cell, 0), shard.number)
    every = (Shard(*cell, number) for cell, most in sorted(last.items()) for number in range(most))
    return [shard.key(pool.digest) for shard in every if shard not in present]


# -- one shard ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ShardCheck:
    wrong: list[str]
    usable: list[int]  # rows with an image


def _check(pool: Pool, key: str, shard: Shard, described: Set[bytes]) -> _ShardCheck:
    try:
        data = pool.store.read(key)
        table = from_file(data, pool.digest, shard, key)
    except CounterpoiseError as error:
        return _ShardCheck([str(error.found or error.message)], [])
    wrong = list(_wrong_rows(table, pool.recipe, shard))
    if described - {hashlib.sha256(data).digest()}:
        wrong.append("not the file that the index describes")
    return _ShardCheck(wrong, [] if wrong else np.flatnonzero(table["image"].is_valid()).tolist())


def _wrong_rows(table: pa.Table, recipe: ShardSpec, shard: Shard) -> Iterator[str]:
    if len(table) != recipe.shard_size:
        yield f"{len(table)} rows instead of {recipe.shard_size}"
        return
    attempts = table["attempt"].to_pylist()
    if not all(attempt is not None and 0 <= attempt < recipe.max_attempts for attempt in attempts):
        yield f"attempts outside 0 to {recipe.max_attempts - 1}"
        return
    first = shard.number * recipe.shard_size
    for row, (attempt, stored) in enumerate(zip(attempts, table["seed"].to_pylist(), strict=True)):
        right = image_seed(recipe.noise, shard.label, shard.group, first + row, attempt)
        if stored != right:
            yield f"seeds are not those of the address; in row {row} {stored} instead of {right}"
            break
    yield from _wrong_images(table)


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
            images, key = sample(shard)["image"].to_pylist(), shard.key(pool.digest)
            pooled = from_file(pool.store.read(key), pool.digest, shard, key)["image"].to_pylist()
            for row in rows:
                yield None if images[row] == pooled[row] else _distance(images[row], pooled[row])
            progress.advance(len(rows))


def _distance(image: bytes | None, pooled: bytes) -> int:
    """Return the largest difference of two images' pixels; 255 if one is missing or of another size."""
    if image is None:
        return 255
    first, second = (decode_image(data).astype(np.int16) for data in (image, pooled))
    return int(np.abs(first - second).max()) if first.shape == second.shape else 255
