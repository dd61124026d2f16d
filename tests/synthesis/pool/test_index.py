"""The index of a pool: where rows come from, that nothing is lost or read in vain, and what others do meanwhile."""

import numpy as np
import pyarrow as pa
import pytest

from counterpoise.errors import StoreError
from counterpoise.storage.records import DamagedError
from counterpoise.synthesis.pool import index as indexing
from counterpoise.synthesis.pool import segments
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.index import PoolIndex, code_of, shard_of
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.pool.shard_file import HEAD, INDEX
from filler import Filler
from recording_store import RecordingStore

SIZE = 8
COSTLESS = ("device", "sample", "encode", "score")  # what a row made from a shard's file does not know


def seconds(shard):
    return {"sample": 1.0 + shard.number + 10 * shard.group + 100 * shard.label, "encode": 0.5}


def is_bad(label, group, index):
    return index % 5 == 3


@pytest.fixture
def pool(make_pool, tmp_path):
    pool = make_pool()
    return Pool(pool.spec, pool.names, RecordingStore(tmp_path / "store"))


def put(pool, *shards):
    """The index rows of shards that are committed now."""
    filler = Filler(lambda *address: float(np.random.default_rng(address).random()), is_bad, seconds=seconds)
    return [filler.put(pool, shard).index for shard in shards]


def index_of(pool):
    """What a process finds that looks now; the requests are its own."""
    pool.store.requests.clear()
    return PoolIndex(pool.store, pool.digest, SIZE)


def rows_of(index):
    """The index row of each shard."""
    ranks = index.ranks(index.shards)
    columns = {}
    for name in INDEX.names:
        if pa.types.is_list(INDEX.field(name).type):
            values = index.column(name).to_pylist()
            columns[name] = [values[SIZE * rank : SIZE * (rank + 1)] for rank in ranks]
        else:
            columns[name] = index.column(name).take(ranks).to_pylist()
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return dict(zip(index.shards, rows, strict=True))


def expected(rows):
    rows = pa.concat_tables(rows).to_pylist()
    return {Shard(*(row[name] for name in HEAD)): row for row in rows}


def without_costs(rows):
    return {shard: row | dict.fromkeys(COSTLESS) for shard, row in rows.items()}


def notes(pool):
    return [key for key in pool.store.list("pool/") if "/notes/" in key]


def segment_keys(pool):
    return segments.keys(pool.store.list("pool/"))


def forget(pool, *shards):
    segments.delete_notes(pool.store, pool.digest, shards)


SHARDS = [Shard(0, 0, 0), Shard(0, 0, 1), Shard(0, 1, 0), Shard(1, 1, 0), Shard(1, 1, 1)]


# -- where rows come from ----------------------------------------------------------------------------------------------


def test_an_empty_pool(pool):
    index = index_of(pool)
    assert (len(index), index.shards, index.prefix(0, 0).tolist()) == (0, [], [])
    assert Shard(0, 0, 0) not in index
    assert index.by_shard("clip_margin").shape == (0, SIZE)
    index.gather()
    assert pool.store.list("") == []


def test_rows_come_from_notes(pool):
    rows = put(pool, *SHARDS[::-1])
    index = index_of(pool)
    assert pool.store.of("read") == [segments.note_key(pool.digest, shard) for shard in SHARDS]
    assert index.shards == SHARDS
    assert rows_of(index) == expected(rows)
    assert pool.store.of("read_range", "create", "replace", "delete") == []


def test_rows_come_from_shards_without_notes(pool):
    rows = put(pool, *SHARDS)
    forget(pool, *SHARDS)
    index = index_of(pool)
    assert pool.store.of("read") == [shard.key(pool.digest) for shard in SHARDS]
    assert rows_of(index) == without_costs(expected(rows))


def test_rows_come_from_segments(pool):
    rows = put(pool, *SHARDS)
    index_of(pool).gather()
    assert notes(pool) == []
    assert rows_of(index_of(pool)) == expected(rows)
    assert pool.store.of("read") == segment_keys(pool)
    assert len(segment_keys(pool)) == 1


def test_rows_come_from_all_three(pool):
    rows = put(pool, *SHARDS[:2])
    index_of(pool).gather()
    rows += put(pool, *SHARDS[2:])
    forget(pool, SHARDS[3])
    index, known = index_of(pool), expected(rows)
    assert index.shards == SHARDS
    assert rows_of(index) == known | without_costs({SHARDS[3]: known[SHARDS[3]]})


def test_a_damaged_shard_without_a_row_is_an_error_that_names_it(pool):
    put(pool, *SHARDS)
    key = SHARDS[2].key(pool.digest)
    data = pool.store.read(key)
    pool.store.replace(key, data[:-20])
    assert index_of(pool).shards == SHARDS  # the note is enough
    forget(pool, SHARDS[2])
    with pytest.raises(DamagedError) as caught:
        index_of(pool)
    assert caught.value.where == f"{pool.store.uri}/{key}"


def test_a_note_without_a_shard_is_no_row(pool):
    """As a kill between the two leaves it."""
    put(pool, *SHARDS)
    pool.store.delete(SHARDS[1].key(pool.digest))
    assert index_of(pool).shards == [shard for shard in SHARDS if shard != SHARDS[1]]


def test_other_keys_of_the_pool_are_no_shards(pool):
    put(pool, *SHARDS)
    for name in ("generation.json", "rate.json", "0-0/first.parquet"):
        pool.store.create(f"pool/{pool.digest}/{name}", b"something")
    assert index_of(pool).shards == SHARDS


# -- gathering ---------------------------------------------------------------------------------------------------------


def test_a_segment_is_written_when_it_is_full_and_its_notes_go(pool, monkeypatch):
    monkeypatch.setattr(segments, "SHARDS", 4)
    index = index_of(pool)
    shards = [Shard(0, 0, number) for number in range(9)]
    rows = put(pool, *shards)
    index.add(rows[:3])
    assert segment_keys(pool) == []
    assert len(notes(pool)) == 9
    index.add(rows[3:4])
    (first,) = segment_keys(pool)
    assert notes(pool) == sorted(segments.note_key(pool.digest, shard) for shard in shards[4:])
    index.add(rows[4:])  # five more: a full one and the rest
    assert notes(pool) == []
    sizes = {key: len(segments.columns(segments.read(pool.store, key), ["number"])) for key in segment_keys(pool)}
    assert sorted(sizes.values()) == [1, 4, 4]
    assert first in sizes
    assert rows_of(index) == rows_of(index_of(pool)) == expected(rows)


def test_the_end_gathers_what_is_left_once(pool):
    index = index_of(pool)
    index.add(put(pool, *SHARDS))
    index.gather()
    pool.store.requests.clear()
    index.gather()
    assert pool.store.requests == []
    assert len(segment_keys(pool)) == 1


def test_a_reader_of_many_notes_gathers_them(pool, monkeypatch):
    monkeypatch.setattr(indexing, "_LOOSE", 4)
    put(pool, *SHARDS[:4])
    index_of(pool)
    assert (len(notes(pool)), segment_keys(pool)) == (4, [])
    put(pool, *SHARDS[4:])
    index = index_of(pool)
    assert (notes(pool), len(segment_keys(pool))) == ([], 1)
    assert index.shards == index_of(pool).shards == SHARDS


def test_small_segments_are_merged(pool, monkeypatch):
    monkeypatch.setattr(segments, "SHARDS", 20)
    monkeypatch.setattr(indexing, "_SMALL", 3)
    rows = put(pool, *(Shard(0, 0, number) for number in range(10)))  # half full: not small
    index_of(pool).gather()
    (large,) = segment_keys(pool)
    for number in range(10, 13):
        assert len(segment_keys(pool)) == number - 9
        rows += put(pool, Shard(0, 0, number))
        index_of(pool).gather()
    rows += put(pool, Shard(0, 0, 13))
    index = index_of(pool)
    index.gather()
    merged = set(segment_keys(pool))
    assert len(merged) == 2
    assert large in merged
    assert rows_of(index) == rows_of(index_of(pool)) == expected(rows)


def test_segments_are_the_same_bytes_for_the_same_rows(pool):
    put(pool, *SHARDS)
    one, other = index_of(pool), index_of(pool)
    one.gather()
    (key,) = segment_keys(pool)
    other.gather()
    assert segment_keys(pool) == [key]


# -- several processes -------------------------------------------------------------------------------------------------


def test_two_processes_that_gather_the_same_rows(pool):
    rows = put(pool, *SHARDS[:3])
    one, other = index_of(pool), index_of(pool)
    rows += put(pool, *SHARDS[3:])
    other.add(rows[3:])
    one.gather()
    other.gather()
    assert len(segment_keys(pool)) == 2
    assert notes(pool) == []
    assert rows_of(index_of(pool)) == rows_of(other) == expected(rows)
    assert index_of(pool).shards == SHARDS  # each once
    more = put(pool, Shard(1, 0, 0))  # the next that gathers leaves each row in one segment
    index_of(pool).gather()
    held = [segments.columns(segments.read(pool.store, key), ["number"]) for key in segment_keys(pool)]
    assert sum(map(len, held)) == 6
    assert rows_of(index_of(pool)) == expected(rows + more)


def test_what_others_merge_stays_with_those_who_have_read_it(pool, monkeypatch):
    monkeypatch.setattr(indexing, "_SMALL", 3)
    rows = []
    for shard in SHARDS[:3]:
        rows += put(pool, shard)
        index_of(pool).gather()
    reader, other = index_of(pool), index_of(pool)
    more = put(pool, SHARDS[3])
    other.add(more)
    other.gather()
    assert len(segment_keys(pool)) == 1
    assert rows_of(reader) == expected(rows)
    reader.add(more)
    reader.gather()
    assert rows_of(reader) == rows_of(index_of(pool)) == expected(rows + more)


@pytest.mark.parametrize("merge", [False, True])
def test_gathering_between_the_list_and_the_reads_loses_no_cost(pool, monkeypatch, merge):
    """What was listed is gone: the reader lists again, and does not make rows from the shards."""
    monkeypatch.setattr(indexing, "_SMALL", 2)
    rows = put(pool, SHARDS[0])
    index_of(pool).gather()
    rows += put(pool, SHARDS[1])
    index_of(pool).gather()
    rows += put(pool, *SHARDS[2:])
    plain, listed = PoolIndex(pool.store, pool.digest, SIZE), []
    if not merge:
        monkeypatch.setattr(indexing, "_SMALL", 9)
    listing = pool.store.list

    def list_and_gather(prefix):
        keys = listing(prefix)
        if not listed:
            listed.append(keys)
            plain.gather()
        return keys

    monkeypatch.setattr(pool.store, "list", list_and_gather)
    assert rows_of(index_of(pool)) == expected(rows)
    assert not [key for key in pool.store.of("read") if "-" in key.split("/")[2] and key.endswith(".parquet")]


def test_a_store_that_fails_is_no_gathering(pool, monkeypatch):
    put(pool, *SHARDS)
    index_of(pool).gather()

    def failing(key):
        raise StoreError("no answer", where=key)

    monkeypatch.setattr(pool.store, "read", failing)
    with pytest.raises(StoreError, match="no answer"):
        index_of(pool)


# -- damage and loss ---------------------------------------------------------------------------------------------------


def flip(pool, key, place=-1):
    data = bytearray(pool.store.read(key))
    data[place] ^= 1
    pool.store.replace(key, bytes(data))


def test_a_damaged_segment_is_discarded_and_made_again(pool, capsys):
    rows = put(pool, *SHARDS)
    index_of(pool).gather()
    (key,) = segment_keys(pool)
    flip(pool, key, 200)
    index = index_of(pool)
    assert f"{key} is damaged" in capsys.readouterr().err
    assert segment_keys(pool) == []
    assert rows_of(index) == without_costs(expected(rows))
    index.gather()
    assert rows_of(index_of(pool)) == without_costs(expected(rows))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "another"])
def test_a_damaged_note_is_discarded_and_made_again(pool, capsys, damage):
    rows = put(pool, *SHARDS)
    key = segments.note_key(pool.digest, SHARDS[1])
    if damage == "flip":
        flip(pool, key)
    else:
        data = pool.store.read(key)
        another = pool.store.read(segments.note_key(pool.digest, SHARDS[0]))
        pool.store.replace(key, {"cut": data[:-9], "empty": b"", "another": another}[damage])
    index, known = index_of(pool), expected(rows)
    assert f"{key} is damaged" in capsys.readouterr().err
    assert not pool.store.exists(key)
    assert rows_of(index) == known | without_costs({SHARDS[1]: known[SHARDS[1]]})
    index_of(pool).gather()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("gathered", [True, False])
def test_a_removed_shard_is_not_in_the_index_and_comes_back_when_it_is_sampled(pool, gathered):
    """The way to mend a damaged shard. Another machine may give it other last bits: the row is that of the new file."""
    old = expected(put(pool, *SHARDS))
    index_of(pool).gather()
    pool.store.delete(SHARDS[1].key(pool.digest))
    left = [shard for shard in SHARDS if shard != SHARDS[1]]
    index = index_of(pool)
    assert index.shards == left
    assert SHARDS[1] not in index
    assert index.prefix(0, 0).tolist() == index.ranks(SHARDS[:1]).tolist()
    before = index.ranks(left).tolist()
    row = Filler(lambda *address: 0.25, seconds=lambda shard: {"sample": 7.0, "encode": 0.5}).put(pool, SHARDS[1]).index
    new = old | expected([row])
    assert new[SHARDS[1]] != old[SHARDS[1]]
    assert rows_of(index_of(pool)) == new  # for another process, from the note
    index.add([row])
    assert index.ranks(left).tolist() == before
    assert rows_of(index) == new
    if gathered:
        index.gather()
        assert notes(pool) == []
        assert rows_of(index) == new
    assert rows_of(index_of(pool)) == new
    index_of(pool).gather()
    assert rows_of(index_of(pool)) == new
    held = [segments.columns(segments.read(pool.store, key), ["number"]) for key in segment_keys(pool)]
    assert sum(map(len, held)) == len(SHARDS)


def test_a_kill_before_the_notes_are_removed_loses_and_doubles_nothing(pool, monkeypatch):
    rows = put(pool, *SHARDS)
    with monkeypatch.context() as patch:
        patch.setattr(segments, "delete_notes", lambda *_: None)
        index_of(pool).gather()
    assert (len(notes(pool)), len(segment_keys(pool))) == (5, 1)
    index = index_of(pool)
    assert rows_of(index) == expected(rows)
    index.gather()
    assert notes(pool) == []
    assert rows_of(index_of(pool)) == expected(rows)
    assert len(segment_keys(pool)) == 1


# -- ranks -------------------------------------------------------------------------------------------------------------


def test_a_prefix_stops_at_a_gap(pool):
    put(pool, *(Shard(0, 1, number) for number in (0, 1, 2, 4, 5)), Shard(0, 0, 0), Shard(1, 0, 1))
    index = index_of(pool)
    first = [Shard(0, 1, number) for number in range(3)]
    assert index.prefix(0, 1).tolist() == index.ranks(first).tolist()
    assert [index.shard_at(rank) for rank in index.prefix(0, 1).tolist()] == first
    assert index.prefix(0, 0).tolist() == index.ranks([Shard(0, 0, 0)]).tolist()
    assert index.prefix(1, 0).tolist() == index.prefix(1, 1).tolist() == []
    assert Shard(0, 1, 4) in index
    assert Shard(0, 1, 3) not in index
    index.add(put(pool, Shard(0, 1, 3)))
    assert [index.shard_at(rank).number for rank in index.prefix(0, 1).tolist()] == list(range(6))


def test_ranks_stay_when_rows_are_added_or_gathered(pool, monkeypatch):
    monkeypatch.setattr(segments, "SHARDS", 4)
    monkeypatch.setattr(indexing, "_SMALL", 2)
    put(pool, Shard(1, 1, 0), Shard(0, 1, 1))
    index, known = index_of(pool), {}
    for number in range(12):
        index.add(put(pool, Shard(number % 2, 0, number // 2)))
        if number % 3 == 0:
            index.gather()
        ranks = dict(zip(index.shards, index.ranks(index.shards).tolist(), strict=True))
        assert ranks.items() >= known.items()
        assert [index.shard_at(rank) for rank in ranks.values()] == list(ranks)
        known = ranks
        assert index.by_shard("number")[list(ranks.values())].tolist() == [shard.number for shard in ranks]
        assert index.by_shard("seed").shape == (len(index), SIZE)
    assert sorted(known.values()) == list(range(14))


def test_values_by_shard(pool):
    put(pool, *SHARDS)
    index = index_of(pool)
    margins = index.by_shard("clip_margin")
    for shard, rank in zip(SHARDS, index.ranks(SHARDS), strict=True):
        for row in range(SIZE):
            address = (shard.label, shard.group, shard.number * SIZE + row)
            value = np.float32(np.random.default_rng(address).random())
            assert margins[rank, row] == value or (is_bad(*address) and np.isnan(margins[rank, row]))
    assert (index.by_shard("clip_label") == -1).all()  # null


def test_codes_are_in_the_order_of_shards():
    rng = np.random.default_rng(0)
    shards = [Shard(*(int(rng.integers(most)) for most in (100_000, 10_000, 1 << 32))) for _ in range(200)]
    shards += [Shard(0, 0, (1 << 32) - 1), Shard(0, 1, 0), Shard(0, (1 << 14) - 1, 5), Shard(1, 0, 0)]
    assert [shard_of(code_of(shard)) for shard in shards] == shards
    assert sorted(shards) == [shard_of(code) for code in sorted(map(code_of, shards))]


# -- requests ----------------------------------------------------------------------------------------------------------


def test_a_gathered_pool_costs_a_list_and_a_read_of_each_segment(pool, monkeypatch):
    """Whatever is asked of it: no shard is opened, and no segment twice."""
    monkeypatch.setattr(segments, "SHARDS", 2)
    put(pool, *SHARDS)
    index_of(pool).gather()
    keys = segment_keys(pool)
    assert len(keys) == 3
    fresh = Pool(pool.spec, pool.names, pool.store)
    pool.store.requests.clear()
    everything = np.arange(len(fresh.index) * SIZE)
    rows_of(fresh.index)
    fresh.view(everything)
    fresh.purity(np.arange(5))
    fresh.cost(np.arange(5))
    assert sorted(pool.store.requests) == [("list", f"pool/{pool.digest}/"), *(("read", key) for key in keys)]
    list(fresh.view(everything).images())
    shards = {shard.key(pool.digest) for shard in SHARDS}
    assert sorted(pool.store.of("read_range")) == sorted(shards)  # one request for the images of each shard


def test_only_what_a_view_holds_is_read(pool):
    put(pool, *SHARDS)
    index_of(pool).gather()
    view = Pool(pool.spec, pool.names, pool.store).view(np.array([0, 10, 9]))
    pool.store.ranges.clear()
    images = dict(view.images())
    assert sorted(images) == [0, 1, 2]
    sizes = view.column("image_length")
    assert [len(images[position]) for position in range(3)] == sizes.tolist()
    assert sum(stop - start for _, start, stop in pool.store.ranges) <= sizes.sum() + 8
