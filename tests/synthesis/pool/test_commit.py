"""A shard and its note, whoever stored the shard first and whenever a run was killed."""

import hashlib

import numpy as np
import pytest

from counterpoise.errors import StoreError
from counterpoise.storage.codec import decode_image, encode_image
from counterpoise.storage.store import read
from counterpoise.synthesis.pool import actors, segments
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.pool.shard_file import from_file, index_row, to_file
from filler import Filler

SHARD = Shard(0, 1, 0)
ABOUT = {"device": "mine", "started": 12.0, "sample": 3.0, "encode": 0.5, "commit": 9.0}


@pytest.fixture
def pool(make_pool):
    return make_pool()


@pytest.fixture
def tables(make_pool, tmp_path):
    """The rows of a shard, and what another kind of machine might make: one pixel differs."""
    elsewhere = make_pool(store=tmp_path / "elsewhere")
    Filler().put(elsewhere, SHARD)
    table = from_file(read(elsewhere.store, SHARD.key(elsewhere.digest)), elsewhere.digest, SHARD, "elsewhere")
    images = table["image"].to_pylist()
    pixels = decode_image(images[3]).copy()
    pixels[0, 0, 0] ^= 1
    images[3] = encode_image(pixels)
    return table, table.set_column(table.schema.get_field_index("image"), table.schema.field("image"), [images])


def commit(pool, table, **about):
    created, row = actors.commit(pool.store, pool.digest, SHARD, table, ABOUT | about)
    (row,) = row.to_pylist()
    return created, row


def note_of(pool):
    (row,) = segments.read_note(pool.store, pool.digest, SHARD).to_pylist()
    return row


def check_described(pool, row):
    """A row describes the file in the store, which has these images."""
    data = read(pool.store, SHARD.key(pool.digest))
    assert row["sha256"] == hashlib.sha256(data).digest()
    assert row["bytes"] == len(data)
    assert len([image for _, image in Pool(pool.spec, pool.names, pool.store).view(np.arange(8)).images()]) == 8


def test_a_shard_and_its_note(pool, tables):
    created, row = commit(pool, tables[0])
    assert created
    assert [row[name] for name in ("label", "group", "number")] == [0, 1, 0]
    assert [row[name] for name in ("device", "sample", "encode", "score")] == ["mine", 3.0, 0.5, None]
    assert row == note_of(pool)
    assert read(pool.store, SHARD.key(pool.digest)) == to_file(tables[0], pool.digest, SHARD)
    check_described(pool, row)


def test_another_run_stored_the_same_bytes(pool, tables):
    """Its note stays, with what the shard in the store has cost."""
    commit(pool, tables[0], device="theirs", sample=7.0)
    created, row = commit(pool, tables[0])
    assert not created
    assert row == note_of(pool)
    assert (row["device"], row["sample"]) == ("theirs", 7.0)
    check_described(pool, row)


def test_another_run_stored_other_bytes(pool, tables):
    """What is stored counts: the pool never changes."""
    commit(pool, tables[1], device="theirs", sample=7.0)
    before = read(pool.store, SHARD.key(pool.digest))
    created, row = commit(pool, tables[0])
    assert not created
    assert read(pool.store, SHARD.key(pool.digest)) == before
    assert row == note_of(pool)
    assert (row["device"], row["sample"]) == ("theirs", 7.0)
    check_described(pool, row)


@pytest.mark.parametrize("other", [0, 1])
def test_another_run_stored_and_gathered_the_shard(pool, tables, other):
    """There is no note: with other bytes nothing is known but the file."""
    commit(pool, tables[other], device="theirs", sample=7.0)
    pool.index.gather()
    created, row = commit(pool, tables[0])
    assert not created
    assert row == note_of(pool)
    assert row["device"] == (None if other else "mine")
    check_described(pool, row)


@pytest.mark.parametrize("other", [0, 1])
def test_another_run_stored_the_shard_between_note_and_shard(pool, tables, other, monkeypatch):
    """It found a note that was not its own, and replaced it when its shard was stored."""
    create, done = pool.store.create, []

    def create_late(key, data):
        if key == SHARD.key(pool.digest) and not done:
            done.append(key)
            monkeypatch.setattr(pool.store, "create", create)
            assert commit(pool, tables[other], device="theirs", sample=7.0)[0]
        return create(key, data)

    monkeypatch.setattr(pool.store, "create", create_late)
    created, row = commit(pool, tables[0])
    assert not created
    assert row == note_of(pool)
    assert (row["device"], row["sample"]) == ("theirs", 7.0)
    check_described(pool, row)


@pytest.mark.parametrize("other", [0, 1])
def test_a_kill_between_note_and_shard(pool, tables, other, monkeypatch):
    """The next run makes the note that of its own shard, also if another kind of machine left the first."""
    create = pool.store.create

    def fail(key, data):
        if key == SHARD.key(pool.digest):
            raise StoreError("killed")
        return create(key, data)

    with monkeypatch.context() as patch:
        patch.setattr(pool.store, "create", fail)
        with pytest.raises(StoreError, match="killed"):
            commit(pool, tables[other], device="theirs", sample=7.0)
    assert note_of(pool)["device"] == "theirs"
    assert Pool(pool.spec, pool.names, pool.store).index.shards == []
    created, row = commit(pool, tables[0])
    assert created
    assert row == note_of(pool)
    assert (row["device"], row["sample"]) == ("mine", 3.0)
    check_described(pool, row)


def test_a_kill_between_shard_and_the_note_that_replaces_anothers(pool, tables, monkeypatch):
    """The note describes a file that was never stored: the next commit of the shard mends it."""
    data = to_file(tables[0], pool.digest, SHARD)
    segments.write_note(pool.store, pool.digest, SHARD, index_row(data, tables[0], SHARD))
    pool.store.create(SHARD.key(pool.digest), to_file(tables[1], pool.digest, SHARD))
    created, row = commit(pool, tables[0])
    assert not created
    assert row == note_of(pool)
    check_described(pool, row)


def test_a_damaged_note_is_replaced(pool, tables, capsys):
    commit(pool, tables[0])
    key = segments.note_key(pool.digest, SHARD)
    pool.store.replace(key, read(pool.store, key)[:-1])
    _, row = commit(pool, tables[0])
    assert f"{key} is damaged" in capsys.readouterr().err
    assert row == note_of(pool)
    check_described(pool, row)
