"""Index of a pool: the index rows of its shards, so that selection opens no shard.

A sampler leaves its shard's index row beside the shard, as a *note*. Whoever runs the sampling gathers the rows of a
thousand shards into one immutable *segment*, whose name is its hash, and removes their notes. Two processes may gather
the same rows; a row that stands twice counts once, and that of a note before that of a segment. Rows that do not count,
as those of a shard whose file was removed, leave the segments with the next gathering. All of this can be made again
from the shards: a damaged segment or note is discarded, with a line that says so, and only the seconds that sampling
took are lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from counterpoise.core.progress import warn
from counterpoise.errors import StoreError
from counterpoise.storage.records import DamagedError
from counterpoise.storage.store import Store
from counterpoise.synthesis.pool import segments
from counterpoise.synthesis.pool.address import Shard, folder
from counterpoise.synthesis.pool.shard_file import HEAD, INDEX, from_file, index_row

T = TypeVar("T")
_SMALL = 8  # segments that are not full, before they are merged
_LOOSE = 64  # shards outside the segments that a reader accepts before it gathers them itself
_THREADS = 8
_GROUP, _LABEL = 32, 46  # bits below group and label in a shard's code


_TRIES = 5  # readings of a pool whose rows another process gathers meanwhile
_MISSING = -1  # code of a segment's row whose shard is not in the store


@dataclass
class _Part:
    """Index rows: of a segment, or outside of one. Both are in memory, so that others may merge the segment.

    Attributes:
        codes: Code of each row's shard.
        content: The rows, or the bytes of their segment.
        key: Key of the segment; empty for rows that were not read from one, or that were merged.
        stored: True if a segment holds the rows.
    """

    codes: Int[np.ndarray, " n"]
    content: pa.Table | bytes
    key: str = ""
    stored: bool = False

    def columns(self, names: Sequence[str]) -> pa.Table:
        return segments.columns(self.content, names) if isinstance(self.content, bytes) else self.content.select(names)


class _Gathered(Exception):
    """A segment or note that was listed is no longer there: another process has gathered its rows."""


class PoolIndex:
    """Index rows of the shards in the store, by rank: the position of a row among all rows that were read.

    Args:
        store: The store.
        digest: The pool's address.
        shard_size: Images of a shard.
    """

    def __init__(self, store: Store, digest: str, shard_size: int) -> None:
        self.store, self.digest, self.shard_size = store, digest, shard_size
        self._parts: list[_Part] = []
        self._listed = np.empty(0, np.int64)
        for left in reversed(range(_TRIES)):
            try:
                self._load(store.list(folder(digest)), last=not left)
                break
            except _Gathered:
                continue
        if self._loose() > _LOOSE:
            self.gather()

    def __len__(self) -> int:
        return len(self._codes)

    def __contains__(self, shard: Shard) -> bool:
        place = int(np.searchsorted(self._codes, code := code_of(shard)))
        return place < len(self._codes) and bool(self._codes[place] == code)

    @property
    def shards(self) -> list[Shard]:
        """The shards, in the order of label, group and number."""
        return [shard_of(code) for code in self._codes.tolist()]

    def ranks(self, shards: Iterable[Shard]) -> Int[np.ndarray, " n"]:
        """Return the ranks of shards that are there."""
        codes = np.array([code_of(shard) for shard in shards], np.int64)
        return self._ranks[np.searchsorted(self._codes, codes)]

    def prefix(self, label: int, group: int) -> Int[np.ndarray, " n"]:
        """Return the ranks of a cell's shards, from number 0 up to the first that is missing."""
        first, stop = np.searchsorted(
            self._codes, [code_of(Shard(label, group, 0)), code_of(Shard(label, group + 1, 0))]
        )
        numbers = self._codes[first:stop] & ((1 << _GROUP) - 1)
        gaps = np.flatnonzero(numbers != np.arange(len(numbers)))
        return self._ranks[first : first + gaps[0] if len(gaps) else stop]

    def column(self, name: str) -> pa.ChunkedArray:
        """Return a column of :data:`counterpoise.synthesis.pool.shard_file.INDEX` by rank.

        It has a value for each shard or, where the index row has a list, ``shard_size`` values for each shard.
        """
        if name not in self._columns:
            with ThreadPoolExecutor(_THREADS) as threads:
                tables = list(threads.map(lambda part: part.columns([name]), self._parts))
            kind = INDEX.field(name).type
            column = pa.chunked_array([chunk for table in tables for chunk in table[name].chunks], kind)
            self._columns[name] = pc.list_flatten(column) if pa.types.is_list(kind) else column
        return self._columns[name]

    def values(self, name: str) -> np.ndarray:
        """Return a numeric column; null is NaN, or -1 in a column of integers."""
        if name not in self._arrays:
            column = self.column(name)
            missing = float("nan") if pa.types.is_floating(column.type) else -1
            self._arrays[name] = (column.fill_null(missing) if column.null_count else column).to_numpy()
        return self._arrays[name]

    def by_shard(self, name: str) -> np.ndarray:
        """Return a numeric column by rank: (shards,), or (shards, shard_size) for values of images."""
        values = self.values(name)
        return values.reshape(-1, self.shard_size) if pa.types.is_list(INDEX.field(name).type) else values

    def shard_at(self, rank: int) -> Shard:
        """Return the shard with a rank."""
        return Shard(*(int(self.by_shard(name)[rank]) for name in HEAD))

    def add(self, rows: Sequence[pa.Table]) -> None:
        """Add the index rows of shards that were committed; when they fill a segment, it is written."""
        self._append(rows)
        self._listed = np.union1d(self._listed, np.concatenate([np.empty(0, np.int64), *map(_codes, rows)]))
        self._renumber()
        if self._loose() >= segments.SHARDS:
            self.gather()

    def gather(self) -> None:
        """Write the rows outside the segments into segments, with those of small segments if there are many.

        Ranks stay as they are: what was gathered stays in memory, as it was read.
        """
        if not self._loose():
            return
        ends = np.cumsum([len(part.codes) for part in self._parts])
        ranked = np.split(np.isin(np.arange(ends[-1]), self._ranks), ends[:-1])
        small = {part.key for part in self._parts if part.key and len(part.codes) < segments.SHARDS // 2}
        merged, rows = [], []
        for part, counts in zip(self._parts, ranked, strict=True):
            if merge := bool(part.key) and (not counts.all() or (part.key in small and len(small) >= _SMALL)):
                merged.append(part)
            if merge or not part.stored:
                rows.append(part.columns(INDEX.names).filter(pa.array(counts)))
        written = segments.write(self.store, self.digest, pa.concat_tables(rows))
        for part in merged:
            if part.key not in written:
                self.store.delete(part.key)
            part.key = ""
        for part in self._parts:
            if not part.stored:
                part.stored = True
                segments.delete_notes(self.store, self.digest, map(shard_of, part.codes.tolist()))

    def _loose(self) -> int:
        """Return the number of rows outside the segments."""
        return sum(len(part.codes) for part in self._parts if not part.stored)

    def _load(self, keys: Sequence[str], last: bool) -> None:
        """Read notes, segments and, where there is neither, shards.

        Raises:
            _Gathered: Another process has just gathered what is among the keys, and this is not the last try.
        """
        listed = np.unique(np.array([code_of(shard) for shard in map(Shard.from_key, keys) if shard], np.int64))
        present, shards = set(keys), [shard_of(code) for code in listed.tolist()]
        noted = [shard for shard in shards if segments.note_key(self.digest, shard) in present]
        self._parts, self._listed = [], listed
        with ThreadPoolExecutor(_THREADS) as threads:
            self._append([row for row in threads.map(partial(self._note, last=last), noted) if row is not None])
            self._parts += filter(None, threads.map(partial(self._segment, last=last), segments.keys(keys)))
            known = np.concatenate([np.empty(0, np.int64), *(part.codes for part in self._parts)])
            self._append(list(threads.map(self._from_file, map(shard_of, np.setdiff1d(listed, known).tolist()))))
        self._renumber()

    def _append(self, rows: Sequence[pa.Table]) -> None:
        if rows:
            table = pa.concat_tables(rows)
            self._parts.append(_Part(_codes(table), table))

    def _renumber(self) -> None:
        """Rank the rows; those of a shard whose file is missing, or that stands twice, have no rank."""
        codes = np.concatenate([np.empty(0, np.int64), *(part.codes for part in self._parts)])
        unique, first = np.unique(codes, return_index=True)
        there = np.isin(unique, self._listed)
        self._codes, self._ranks = unique[there], first[there]
        self._columns: dict[str, pa.ChunkedArray] = {}
        self._arrays: dict[str, np.ndarray] = {}

    def _segment(self, key: str, last: bool) -> _Part | None:
        """Return a segment; None if it is damaged, which removes it, or not there at the last try."""
        try:
            data = self._unless_gathered(key, last, partial(segments.read, self.store, key))
        except DamagedError as error:
            warn(f"{error.where} is damaged: this index is made again from the shards")
            self.store.delete(key)
            return None
        if data is None:
            return None
        codes = _codes(segments.columns(data, HEAD))
        return _Part(np.where(np.isin(codes, self._listed), codes, _MISSING), data, key, stored=True)

    def _note(self, shard: Shard, last: bool) -> pa.Table | None:
        """Return the row of a note; None if it is damaged, which removes it, or not there at the last try."""
        read = partial(segments.read_note, self.store, self.digest, shard)
        return self._unless_gathered(segments.note_key(self.digest, shard), last, read)

    def _unless_gathered(self, key: str, last: bool, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except StoreError as error:
            if self.store.exists(key):
                raise
            if not last:
                raise _Gathered from error
            return None

    def _from_file(self, shard: Shard) -> pa.Table:
        """Return the index row of a shard's file, without costs."""
        data = self.store.read(key := shard.key(self.digest))
        return index_row(data, from_file(data, self.digest, shard, f"{self.store.uri}/{key}"), shard)


def code_of(shard: Shard) -> int:
    """Return an integer for a shard; the order is that of label, group and number."""
    return shard.label << _LABEL | shard.group << _GROUP | shard.number


def shard_of(code: int) -> Shard:
    """Return the shard of :func:`code_of`."""
    return Shard(code >> _LABEL, code >> _GROUP & (1 << _LABEL - _GROUP) - 1, code & (1 << _GROUP) - 1)


def _codes(rows: pa.Table) -> Int[np.ndarray, " n"]:
    label, group, number = (rows[name].to_numpy().astype(np.int64) for name in HEAD)
    return label << _LABEL | group << _GROUP | number
