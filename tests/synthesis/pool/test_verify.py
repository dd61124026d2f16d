"""Every way in which a shard can be wrong is found; a sound pool is found sound, and its images come out again."""

import io
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from counterpoise.errors import ConfigError
from counterpoise.execution.devices import Devices
from counterpoise.storage.codec import decode_image, encode_image
from counterpoise.storage.schema import LabelSpace
from counterpoise.storage.store import read
from counterpoise.storage.uri import open_store
from counterpoise.synthesis.pool import in_process, segments
from counterpoise.synthesis.pool import verify as verifying
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.pool.sampling_spec import SamplingSpec
from counterpoise.synthesis.pool.shard_file import SHARD, content_hash, from_file, to_file
from counterpoise.synthesis.pool.verify import summary, verify
from counterpoise.synthesis.prompts.resolve import resolve

SHARDS = [Shard(0, 0, 0), Shard(0, 0, 1), Shard(1, 1, 0)]


@pytest.fixture(scope="module")
def filled(tiny_models, tmp_path_factory):
    """A store with three shards of four, committed by the workers without Ray."""
    store = tmp_path_factory.mktemp("filled") / "store"
    pool = _pool(tiny_models, store)
    pool.prepare()
    for row in in_process.receipts(SamplingSpec.of(pool), SHARDS):
        assert row["created"][0].as_py()
    return store


def _pool(models, store):
    from tiny import make_experiment

    experiment = make_experiment(models, store, pool={"shard_size": 4})
    return _pool_of(experiment, open_store(store))


def _pool_of(experiment, store):
    names = LabelSpace(("star", "disc"), ("red", "blue"))
    return Pool.of(experiment, names, store, resolve(experiment.prompts, names, store))


@pytest.fixture
def pool(tiny_models, filled, tmp_path):
    shutil.copytree(filled, tmp_path / "store")
    return _pool(tiny_models, tmp_path / "store")


def key_of(pool, shard):
    return shard.key(pool.digest)


def rows_of(pool, shard):
    return from_file(read(pool.store, key_of(pool, shard)), pool.digest, shard, "here")


def rewrite(pool, shard, change, rehash=False):
    """The shard's file with ``change(table)`` in it; its hashes stay unless they are to be made anew."""
    key = key_of(pool, shard)
    plain = pq.read_table(io.BytesIO(read(pool.store, key)))
    table = change(plain)
    metadata = dict(plain.schema.metadata)
    if rehash:
        about = json.loads(metadata[b"counterpoise"])
        whole = table if set(table.column_names) >= set(SHARD.names) else plain
        metadata[b"counterpoise"] = json.dumps(about | {"sha256": content_hash(whole)}).encode()
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="none", use_dictionary=False)
    pool.store.replace(key, buffer.getvalue())
    if rehash:
        forget(pool, shard)


def forget(pool, shard):
    """The index does not know the shard's file any more."""
    pool.store.delete(segments.note_key(pool.digest, shard))


def put(table, name, row, value):
    values = table[name].to_pylist()
    values[row] = value
    column = table.schema.get_field_index(name)
    return table.set_column(column, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def the_only(verdict):
    ((key, wrong),) = verdict.bad
    return key, wrong


def test_a_sound_pool(pool):
    before = {key: read(pool.store, key) for key in pool.store.list("")}
    verdict = verify(pool, 0, 0)
    assert verdict == verifying.PoolCheck([key_of(pool, shard) for shard in SHARDS], [], [], 0, 0, None)
    assert summary([verdict, verdict]) == {
        "ok": True,
        "bad": [],
        "gaps": [],
        "shards": 6,
        "regenerated": 0,
        "equal": 0,
        "largest_difference": None,
    }
    assert {key: read(pool.store, key) for key in pool.store.list("")} == before


def test_nothing_is_sound(tiny_models, tmp_path):
    assert verify(_pool(tiny_models, tmp_path / "nothing"), 3, 0) == verifying.PoolCheck([], [], [], 0, 0, None)


@pytest.mark.parametrize(("asked", "compared"), [(1, 1), (5, 5), (100, 12)])
def test_images_come_out_again(pool, asked, compared):
    verdict = verify(pool, asked, 0)
    assert (verdict.regenerated, verdict.equal, verdict.largest_difference) == (compared, compared, None)
    assert summary([verdict])["ok"]


def test_the_seed_chooses_shards():
    sound = [(Shard(0, 0, number), [0, 2, 3]) for number in range(20)]
    chosen = verifying._shards_to_sample(sound, 4, 0)
    assert [len(rows) for _, rows in chosen] == [3, 1]
    assert verifying._shards_to_sample(sound, 4, 0) == chosen
    assert len({shard for seed in range(20) for shard, _ in verifying._shards_to_sample(sound, 4, seed)}) > 10
    assert verifying._shards_to_sample([(Shard(0, 0, 0), [])], 4, 0) == []


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("column", ["image", "embedding"])
def test_every_flipped_byte_of_an_image_or_vector_is_found(pool, column, known):
    """One byte in the file, wherever it hits the values: the length of the file stays, the hash does not.

    The file's own hash finds it also if the index knows nothing of the file.
    """
    key = key_of(pool, SHARDS[1])
    sound = read(pool.store, key)
    value = rows_of(pool, SHARDS[1])[column][2].as_py()
    start = sound.index(value)
    if not known:
        forget(pool, SHARDS[1])
    for offset in np.random.default_rng(0).integers(len(value), size=12):
        torn = bytearray(sound)
        torn[start + offset] ^= 1
        pool.store.replace(key, bytes(torn))
        found, wrong = the_only(verify(pool, 0, 0))
        assert found == key
        assert "hash" in wrong


def test_no_flipped_byte_passes_unseen_where_the_index_knows_the_file(pool):
    key = key_of(pool, SHARDS[0])
    sound = read(pool.store, key)
    for offset in np.random.default_rng(1).integers(len(sound), size=60):
        torn = bytearray(sound)
        torn[offset] ^= 1 << (offset % 8)
        pool.store.replace(key, bytes(torn))
        assert the_only(verify(pool, 0, 0))[0] == key


def test_flipped_bytes_anywhere_never_change_what_is_read_or_crash(pool):
    """Also if the index knows nothing of the file."""
    key = key_of(pool, SHARDS[0])
    sound, table = read(pool.store, key), rows_of(pool, SHARDS[0])
    forget(pool, SHARDS[0])
    footer = len(sound) - 3000
    places = [
        *np.random.default_rng(1).integers(footer, size=30),
        *np.random.default_rng(2).integers(footer, len(sound), size=150),
    ]
    for offset in places:
        torn = bytearray(sound)
        torn[offset] ^= 1 << (offset % 8)
        pool.store.replace(key, bytes(torn))
        bad = verify(pool, 0, 0).bad
        if not bad:  # it hit padding, or a description that nobody reads: what is read is what was written
            assert rows_of(pool, SHARDS[0]).equals(table)


def test_a_torn_file(pool):
    key = key_of(pool, SHARDS[0])
    for data in (b"", read(pool.store, key)[:-100]):
        pool.store.replace(key, data)
        assert "not the file of a shard" in the_only(verify(pool, 0, 0))[1]


def test_a_dropped_row(pool):
    rewrite(pool, SHARDS[0], lambda table: table.slice(1), rehash=True)
    assert the_only(verify(pool, 0, 0)) == (key_of(pool, SHARDS[0]), "3 rows instead of 4")


def test_a_missing_column(pool):
    rewrite(pool, SHARDS[0], lambda table: table.drop_columns("clip_margin"), rehash=True)
    assert the_only(verify(pool, 0, 0))[1].startswith("not the file of a shard")


def test_a_column_of_another_type(pool):
    def texts(table):
        position = table.schema.get_field_index("seed")
        return table.set_column(position, "seed", pa.array(["a", "b", "c", "d"]))

    rewrite(pool, SHARDS[0], texts, rehash=True)
    assert the_only(verify(pool, 0, 0))[1].startswith("not the file of a shard")


def test_a_wider_column_is_not_the_file_of_the_index(pool):
    """Its values are the same, so that its own hash fits."""

    def wider(table):
        position = table.schema.get_field_index("attempt")
        return table.set_column(position, "attempt", table["attempt"].cast(pa.int64()))

    rewrite(pool, SHARDS[0], wider)
    assert the_only(verify(pool, 0, 0))[1] == "not the file that the index describes"


def test_a_pool_of_another_dataset(pool):
    """Names are no longer in every file, but in the pool's address."""
    for shard in SHARDS:
        table = rows_of(pool, shard)
        pool.store.replace(key_of(pool, shard), to_file(table, "of_another_pool", shard))
    bad = verify(pool, 0, 0).bad
    assert [key for key, _ in bad] == [key_of(pool, shard) for shard in SHARDS]
    assert all("the file of another shard: of_another_pool" in wrong for _, wrong in bad)


def test_two_files_swapped(pool):
    one, other = (key_of(pool, shard) for shard in (SHARDS[0], SHARDS[2]))
    first, second = read(pool.store, one), read(pool.store, other)
    pool.store.replace(one, second)
    pool.store.replace(other, first)
    bad = dict(verify(pool, 0, 0).bad)
    assert bad.keys() == {one, other}
    assert bad[one] == f"the file of another shard: {pool.digest} [1, 1, 0]"
    assert bad[other] == f"the file of another shard: {pool.digest} [0, 0, 0]"


def test_a_shard_of_another_number(pool):
    pool.store.replace(key_of(pool, SHARDS[1]), read(pool.store, key_of(pool, SHARDS[0])))
    assert the_only(verify(pool, 0, 0))[1] == f"the file of another shard: {pool.digest} [0, 0, 0]"


def test_the_rows_of_another_shard_under_this_address(pool):
    """Who wrote the file may have been wrong: the seeds tell."""
    table = rows_of(pool, SHARDS[0])
    for shard in (SHARDS[1], SHARDS[2]):
        sound = read(pool.store, key_of(pool, shard))
        pool.store.replace(key_of(pool, shard), to_file(table, pool.digest, shard))
        forget(pool, shard)
        key, wrong = the_only(verify(pool, 0, 0))
        assert key == key_of(pool, shard)
        assert "seeds are not those of the address" in wrong
        pool.store.replace(key, sound)


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("seed", 1, "seed"),
        ("seed", None, "seed"),
        ("attempt", 3, "attempts"),
        ("attempt", 1, "seed"),
        ("attempt", None, "attempts"),
        ("defect", "one colour all over", "an image and a defect"),
        ("image", None, "an image and a defect"),
        ("image", b"no image", "row 2 cannot be decoded"),
        ("image", encode_image(np.zeros((4, 4, 3), np.uint8)), "sizes"),
    ],
)
def test_values_that_are_not_the_address_s(pool, name, value, hint):
    """Also with a hash that fits: who wrote the file may have been wrong."""
    rewrite(pool, SHARDS[0], lambda table: put(table, name, 2, value), rehash=True)
    key, wrong = the_only(verify(pool, 0, 0))
    assert key == key_of(pool, SHARDS[0])
    assert hint in wrong
    assert "hash" not in wrong


def test_scores_are_hashed_too(pool):
    rewrite(pool, SHARDS[0], lambda table: put(table, "clip_margin", 1, 0.5))
    assert "hash" in the_only(verify(pool, 0, 0))[1]


def test_a_file_without_a_hash(pool):
    key = key_of(pool, SHARDS[0])
    buffer = io.BytesIO()
    pq.write_table(rows_of(pool, SHARDS[0]), buffer)
    pool.store.replace(key, buffer.getvalue())
    assert the_only(verify(pool, 0, 0))[0] == key
    forget(pool, SHARDS[0])
    assert the_only(verify(pool, 0, 0))[0] == key


@pytest.mark.parametrize("gathered", [True, False])
def test_a_file_that_is_not_the_one_of_the_index(pool, gathered):
    """It is sound in itself: another version of Parquet or another kind of machine has written it."""
    if gathered:
        pool.index.gather()
    shutil.copytree(pool.store.root, pool.store.root.parent / "copy")
    rewrite(pool, SHARDS[1], lambda table: table)
    assert the_only(verify(pool, 0, 0)) == (key_of(pool, SHARDS[1]), "not the file that the index describes")
    shutil.rmtree(pool.store.root)
    shutil.move(pool.store.root.parent / "copy", pool.store.root)
    assert verify(pool, 0, 0).bad == []


def test_damaged_segments_and_notes(pool):
    """They can be made again, but are damage all the same."""
    note = segments.note_key(pool.digest, SHARDS[0])
    sound = read(pool.store, note)
    pool.store.replace(note, sound[:-1] + bytes([sound[-1] ^ 1]))
    assert the_only(verify(pool, 0, 0)) == (note, "the content does not match its hash")
    pool.store.replace(note, read(pool.store, segments.note_key(pool.digest, SHARDS[1])))
    assert the_only(verify(pool, 0, 0)) == (note, "the note of another shard")
    pool.store.replace(note, sound)
    pool.index.gather()
    (segment,) = segments.keys(pool.store.list(""))
    assert verify(pool, 0, 0).bad == []
    whole = read(pool.store, segment)
    pool.store.replace(segment, whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    assert the_only(verify(pool, 0, 0)) == (segment, "the content does not match the SHA-256 in its name")
    assert pool.store.exists(segment)  # verification writes nothing


def test_missing_shards_are_gaps_and_not_bad(pool):
    pool.index.gather()
    pool.store.delete(key_of(pool, SHARDS[0]))
    pool.store.create(key_of(pool, Shard(1, 1, 3)), b"")
    verdict = verify(pool, 0, 0)
    assert verdict.gaps == [key_of(pool, one) for one in (SHARDS[0], Shard(1, 1, 1), Shard(1, 1, 2))]
    assert [key for key, _ in verdict.bad] == [key_of(pool, Shard(1, 1, 3))]
    assert summary([verdict, verdict])["gaps"] == verdict.gaps * 2


def test_other_pixels_under_a_hash_that_fits_are_found_by_sampling(pool):
    def brighter(table):
        pixels = decode_image(table["image"][1].as_py()).astype(int)
        return put(table, "image", 1, encode_image(np.clip(pixels + 7, 0, 255).astype(np.uint8)))

    rewrite(pool, SHARDS[0], brighter, rehash=True)
    assert verify(pool, 0, 0).bad == []
    verdict = verify(pool, 12, 0)
    assert (verdict.regenerated, verdict.equal, verdict.largest_difference) == (12, 11, 7)
    assert not summary([verdict])["ok"]


def test_bad_shards_are_not_sampled_anew(pool):
    rewrite(pool, SHARDS[0], lambda table: put(table, "seed", 0, 1))
    assert verify(pool, 12, 0).regenerated == 8


def test_the_same_pixels_in_other_bytes_differ_by_nothing(pool):
    def recompressed(table):
        from PIL import Image

        buffer = io.BytesIO()
        Image.open(io.BytesIO(table["image"][0].as_py())).save(buffer, format="PNG", compress_level=0)
        return put(table, "image", 0, buffer.getvalue())

    rewrite(pool, SHARDS[0], recompressed, rehash=True)
    verdict = verify(pool, 12, 0)
    assert (verdict.equal, verdict.largest_difference) == (11, 0)


@pytest.mark.parametrize("name", ["7-0/000000.parquet", "0-0/0000000.parquet", "0-0/first.parquet"])
def test_files_that_are_no_shards(pool, name):
    key = f"pool/{pool.digest}/{name}"
    pool.store.create(key, read(pool.store, key_of(pool, SHARDS[0])))
    assert (key, "not the key of a shard") in verify(pool, 0, 0).bad


def test_the_description_is_looked_at(pool):
    pool.store.replace(pool.description_key, b"{")
    assert the_only(verify(pool, 0, 0)) == (pool.description_key, "the pool's description is damaged")
    pool.store.delete(pool.description_key)
    assert the_only(verify(pool, 0, 0))[0] == pool.description_key
    assert not pool.store.exists(pool.description_key)


def test_quarantined_images_are_no_defect_of_the_file(tiny_models, tmp_path):
    import tiny
    from tiny import make_experiment

    tiny.make_diffusion(tmp_path / "broken", broken=True)
    generator = {"model": str(tmp_path / "broken"), "num_inference_steps": 2}
    experiment = make_experiment(tiny_models, tmp_path / "store", generator=generator, pool={"shard_size": 2})
    pool = _pool_of(experiment, open_store(experiment.store))
    pool.prepare()
    with in_process.sampler_here(SamplingSpec.of(pool)) as sample:
        table = sample(SHARDS[0])
    assert pc.count(table["defect"]).as_py() == 2
    pool.store.create(key_of(pool, SHARDS[0]), to_file(table, pool.digest, SHARDS[0]))
    assert verify(pool, 5, 0) == verifying.PoolCheck([key_of(pool, SHARDS[0])], [], [], 0, 0, None)


def test_the_process_keeps_its_threads(pool):
    import torch

    before = torch.get_num_threads()
    with in_process.sampler_here(SamplingSpec.of(pool)) as sample:
        assert torch.get_num_threads() == 1
        sample(SHARDS[0])
    assert torch.get_num_threads() == before


@pytest.mark.skipif("CUDA_VISIBLE_DEVICES" in os.environ, reason="there may be a GPU")
def test_a_pool_of_a_gpu_cannot_be_sampled_without_one(pool):
    import dataclasses

    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    work = dataclasses.replace(SamplingSpec.of(pool), devices=Devices("cuda", "bfloat16", "cpu"))
    with pytest.raises(ConfigError, match="no GPU"), in_process.sampler_here(work):
        pass


def test_the_hash_covers_values_and_their_order():
    def table(**changes):
        nothing = {name: [None, None] for name in SHARD.names}
        return pa.table(nothing | {"image": [b"xy", b"z"], "seed": [1, None]} | changes, schema=SHARD)

    backwards = table().select(SHARD.names[::-1])
    assert content_hash(table()) == content_hash(backwards)
    others = [
        table(image=[b"x", b"yz"]),
        table(image=[b"z", b"xy"]),
        table(image=[b"xy", None]),
        table(image=[None, None], embedding=[b"xy", b"z"]),
        table(seed=[None, 1]),
        table(seed=[None, None], attempt=[1, None]),
        table(clip_margin=[0.5, None]),
    ]
    assert len({content_hash(one) for one in [table(), *others]}) == 8
