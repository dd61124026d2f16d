"""The pool on Ray: shards of real pixels, on a disk and on an S3 server, whatever goes wrong on the way."""

import dataclasses
import json
import pickle
import shutil

import boto3
import numpy as np
import pyarrow as pa
import pytest

from counterpoise import config
from counterpoise.errors import ConfigError, ModelError, StoreError, SynthesisError
from counterpoise.storage.codec import decode_image
from counterpoise.storage.schema import VIEW, LabelSpace
from counterpoise.storage.store import read
from counterpoise.synthesis.pool import actors, sampling
from counterpoise.synthesis.pool import shard as making
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.sampling import Sizes, pool_sizes
from counterpoise.synthesis.pool.sampling_spec import SamplingSpec
from counterpoise.synthesis.pool.shard_file import SHARD, to_file
from counterpoise.synthesis.selection import select
from counterpoise.synthesis.selection.selected_images import summary as summarize
from counterpoise.synthesis.selection.verdicts import Verdicts
from filler import ask

SHARDS = [Shard(0, 0, 0), Shard(0, 0, 1), Shard(1, 1, 0)]
BULKY = {"image", "embedding"}


@pytest.fixture
def s3_store(s3_server, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    client = boto3.client("s3")
    client.create_bucket(Bucket="pools")
    client.close()
    return f"s3://pools/{tmp_path.name}"


def in_process(pool, shard):
    """The bytes that a shard must have, made without Ray."""
    from counterpoise.generators.text_to_image import TextToImage
    from counterpoise.scoring.clip import Clip

    work = SamplingSpec.of(pool)
    generator = TextToImage(work.generator, "cpu", "float32")
    table = making.to_table(making.draw(generator.sample, work.recipe, shard), work.recipe)
    if work.scorer is not None:
        clip = Clip(work.scorer, "cpu")
        table = making.score(clip, clip.embed_texts(work.recipe.all_plain), work.recipe, shard, table)
    return to_file(table, pool.digest, shard)


def view_of(pool, shard):
    (rank,) = pool.index.ranks([shard])
    return pool.view(np.arange(8) + 8 * rank)


def rows_of(pool, shard):
    return view_of(pool, shard).index


def places(column):
    return {f"{column}_{part}" for part in ("offset", "length", "sha256")}


@pytest.mark.usefixtures("ray_cluster")
def test_shards_are_what_a_plain_loop_makes(make_pool):
    pool = make_pool()
    receipts = sampling.sample(pool, SHARDS)
    assert pool.index.shards == SHARDS == sorted(receipt.shard for receipt in receipts)
    assert all(receipt.created and receipt.images == 8 and receipt.quarantined == 0 for receipt in receipts)
    assert all(set(receipt.seconds) == {"sample", "encode", "score", "commit"} for receipt in receipts)
    for shard in SHARDS:
        assert read(pool.store, shard.key(pool.digest)) == in_process(pool, shard)
    for receipt in receipts:
        (row,) = receipt.index.to_pylist()
        assert (row["label"], row["group"], row["number"]) == dataclasses.astuple(receipt.shard)
        assert (row["sample"], row["encode"]) == pytest.approx([receipt.seconds[step] for step in ("sample", "encode")])
        assert row["score"] > 0
        assert row["device"] == "cpu"
    table = rows_of(pool, SHARDS[1])
    assert set(table.schema.names) == {*VIEW.names, *places("embedding"), "index", "prompt", *SHARD.names} - BULKY
    assert table["index"].to_pylist() == list(range(8, 16))
    assert table["clip_margin"].null_count == table["embedding_sha256"].null_count == 0
    view = view_of(pool, SHARDS[1])
    assert [pixels.shape for _, pixels in view.decoded()] == [(16, 16, 3)] * 8
    np.testing.assert_allclose(np.linalg.norm(view.embeddings(), axis=1), np.ones(8), rtol=1e-6)
    assert pool.rate() > 0
    assert Verdicts(pool, config.Selection()).available_counts().tolist() == [[16, 0], [0, 8]]


def test_without_workers_this_process_samples_the_same_bytes_without_ray(make_pool):
    """The test is not marked slow, so that it cannot reach Ray."""
    pool = make_pool(pool={"shard_size": 8, "sampling": {"workers": 0}})
    arrived = []
    receipts = sampling.sample(pool, SHARDS, arrived.append)
    assert arrived == receipts
    assert [receipt.shard for receipt in receipts] == SHARDS
    assert all(receipt.created and receipt.images == 8 for receipt in receipts)
    assert all(set(receipt.seconds) == {"sample", "encode", "score", "commit"} for receipt in receipts)
    assert pool.digest == make_pool().digest
    for shard in SHARDS:
        assert read(pool.store, shard.key(pool.digest)) == in_process(pool, shard)
    assert pool.rate() > 0


@pytest.mark.usefixtures("ray_cluster")
def test_the_way_over_s3_and_without_a_scorer(make_pool, s3_store):
    pool = make_pool(store=s3_store, scorer=None)
    wanted = {"p": np.array([[10, 0], [0, 8]])}
    realized = select.select_images(pool, ask(wanted))
    assert realized.sampled == 24
    assert "score" not in realized.cost
    assert realized.cost["sample"] > 0
    for shard in SHARDS:
        assert read(pool.store, shard.key(pool.digest)) == in_process(pool, shard)
        assert rows_of(pool, shard)["clip_margin"].null_count == 8
        assert view_of(pool, shard).embeddings().shape == (8, 0)
    images = dict(realized.views["m", "p"].images())
    assert len(images) == 18
    assert None not in images.values()
    assert decode_image(images[17]).shape == (16, 16, 3)
    assert select.select_images(make_pool(store=s3_store, scorer=None), ask(wanted)).sampled == 0


@pytest.mark.usefixtures("ray_cluster")
def test_the_testbeds_pool_through_filters(make_pool):
    """Real scores of real samples: CLIP finds nearly all in their cell, and what is taken passes every filter."""
    model = "package:counterpoise/testbed/models/shapes"
    pool = make_pool(
        names=LabelSpace(("circle", "ring"), ("red", "blue")),
        generator={"model": f"{model}/diffusion", "num_inference_steps": 10, "guidance_scale": 3.0},
        scorer={"model": f"{model}/clip"},
        pool={"shard_size": 24, "sampling": {"workers": 1}},  # enough in the first round
    )
    requests = ask({"p": np.array([[0, 12], [12, 0]])}, zero_shot="cell", near_duplicate=0.999, grey=0.76)
    realized = select.select_images(pool, requests)
    view = realized.views["m", "p"]
    assert len(view) == 24
    assert (view.column("clip_label") == view.labels).all()
    assert (view.column("clip_group") == view.groups).all()
    for label, group in ((0, 1), (1, 0)):
        vectors = view.where(label=label, group=group).embeddings()
        assert np.tril(vectors @ vectors.T, -1).max() < 0.999
    summary = summarize([realized])
    assert summary["purity"] > 0.8
    assert sum(summary["rejected"].values()) == len(realized.rejects)
    assert len(view) + len(realized.rejects) <= realized.sampled


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_generator_is_an_error(make_pool, tmp_path, workers):
    import tiny

    tiny.make_diffusion(tmp_path / "broken", broken=True)
    settings = {"shard_size": 8, "sampling": {"workers": workers}}
    pool = make_pool(generator={"model": str(tmp_path / "broken"), "num_inference_steps": 2}, pool=settings)
    with pytest.raises(SynthesisError, match="pixels are not finite") as caught:
        select.select_images(pool, ask({"p": np.array([[40, 40], [40, 40]])}))
    assert "quarantined" in str(caught.value)
    pool = make_pool(generator={"model": str(tmp_path / "broken"), "num_inference_steps": 2}, pool=settings)
    assert 0 < len(pool.index) < 20  # it did not go on to the end
    assert Verdicts(pool, config.Selection()).available_counts().sum() == 0
    rows = rows_of(pool, pool.index.shards[0])
    assert rows["attempt"].to_pylist() == [2] * 8
    assert rows["clip_margin"].null_count == 8


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_generator_that_cannot_be_loaded(make_pool, tiny_models, tmp_path, workers):
    shutil.copytree(tiny_models / "diffusion", tmp_path / "torn")
    weights = tmp_path / "torn" / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    settings = {"sampling": {"workers": workers}}
    pool = make_pool(generator={"model": str(tmp_path / "torn")}, scorer=None, pool=settings)
    with pytest.raises(ModelError, match=r"generator\.model"):
        sampling.sample(pool, SHARDS)
    assert pool.index.shards == []
    assert not [key for key in pool.store.list("") if not key.endswith("/generation.json")]


# -- the workers, here -------------------------------------------------------------------------------------------------


def request(shard):
    return pa.table({"label": [shard.label], "group": [shard.group], "number": [shard.number]})


def test_the_users_mistakes_travel_as_values(make_pool, tmp_path):
    """A store that fails, a scorer that cannot be loaded: what comes after a failure passes it on."""
    pool = make_pool()
    sampled = actors.SamplingActor(SamplingSpec.of(pool))(request(SHARDS[0]))
    (tmp_path / "store" / "pool").mkdir(parents=True)
    (tmp_path / "store" / "pool" / pool.digest).write_text("in the way")
    with pytest.raises(StoreError, match=pool.digest):
        raise pickle.loads(actors.CommitActor(SamplingSpec.of(pool))(sampled)["failure"][0].as_py())
    unloadable = config.Scorer(model="ViT-Z-1", pretrained="openai")
    scored = actors.ScoringActor(dataclasses.replace(SamplingSpec.of(pool), scorer=unloadable))(sampled)
    passed_on = actors.CommitActor(SamplingSpec.of(pool))(scored)
    assert passed_on.equals(scored)
    with pytest.raises(ModelError, match=r"scorer\.model"):
        raise pickle.loads(passed_on["failure"][0].as_py())


def test_bugs_are_raised(make_pool):
    sampler = actors.SamplingActor(SamplingSpec.of(make_pool()))
    sampler.models.generator.sample = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        sampler(request(SHARDS[0]))


# -- before anything starts --------------------------------------------------------------------------------------------


def test_an_unknown_scheduler(make_pool):
    model = make_pool().spec.generator.model
    pool = make_pool(generator={"model": model, "scheduler": "NoScheduler"})
    with pytest.raises(ConfigError, match=r"generator\.scheduler"):
        sampling.sample(pool, SHARDS)
    assert pool.store.list("") == []


# -- what is written beside the shards ---------------------------------------------------------------------------------


def test_the_generation_is_written_once(make_pool):
    make_pool().prepare()
    pool = make_pool()
    pool.prepare()
    record = json.loads(read(pool.store, f"pool/{pool.digest}/generation.json"))
    assert record["generation"] == pool.generation
    assert record["recorded"]["torch"]
    assert record["recorded"]["generator device"] == "cpu"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"generation": {}}'])
def test_a_damaged_generation(make_pool, content):
    pool = make_pool()
    pool.store.create(f"pool/{pool.digest}/generation.json", content)
    with pytest.raises(SynthesisError, match="damaged"):
        pool.prepare()


def test_another_generation_under_this_digest(make_pool):
    pool = make_pool()
    pool.store.create(f"pool/{pool.digest}/generation.json", b'{"generation": {}, "recorded": {}}')
    with pytest.raises(SynthesisError, match="was changed"):
        pool.prepare()


def test_other_versions_are_a_warning(make_pool):
    pool = make_pool()
    pool.prepare()
    key = f"pool/{pool.digest}/generation.json"
    record = json.loads(read(pool.store, key))
    record["recorded"]["torch"] = "1.0"
    pool.store.replace(key, json.dumps(record).encode())
    with pytest.warns(UserWarning, match=r"torch 1\.0 then"):
        pool.prepare()


def test_a_damaged_rate_is_no_rate(make_pool):
    pool = make_pool()
    assert pool.rate() is None
    pool.store.replace(f"pool/{pool.digest}/rate.json", b"{")
    assert pool.rate() is None
    pool.record_rate(2.5)
    assert pool.rate() == 2.5


# -- how many workers --------------------------------------------------------------------------------------------------

ONE_CPU, ONE_GPU = {"num_cpus": 1.0}, {"num_cpus": 2.0, "num_gpus": 1.0}


@pytest.mark.parametrize(
    ("pool", "resources", "shards", "sizes"),
    [
        ({}, {"CPU": 2.0}, 100, Sizes(2, 1, 1)),
        ({}, {"CPU": 1.0}, 100, Sizes(1, 1, 1)),
        ({}, {"CPU": 16.0}, 100, Sizes(16, 1, 4)),
        ({}, {"CPU": 16.0}, 3, Sizes(3, 1, 1)),
        ({"scoring": {"workers": 2, "num_cpus": 1}}, {"CPU": 4.0}, 100, Sizes(2, 2, 1)),
        ({"sampling": ONE_GPU}, {"CPU": 64.0, "GPU": 8.0}, 100, Sizes(8, 1, 2)),
        ({"sampling": ONE_GPU}, {"CPU": 8.0, "GPU": 8.0}, 100, Sizes(4, 1, 1)),
        ({"sampling": ONE_GPU, "scoring": {"num_gpus": 0.5}}, {"CPU": 64.0, "GPU": 2.0}, 100, Sizes(1, 1, 1)),
        ({"sampling": {"num_cpus": 0.1}}, {"CPU": 1.0}, 100, Sizes(10, 1, 2)),
        ({"sampling": {"num_cpus": 0}}, {"CPU": 4.0}, 100, Sizes(4, 1, 1)),
        ({"sampling": {"workers": 2}}, {"CPU": 16.0}, 100, Sizes(2, 1, 1)),
    ],
)
def test_as_many_as_there_is_room_for(pool, resources, shards, sizes):
    asked = config.Pool.model_validate(pool)
    assert pool_sizes(asked.sampling, asked.scoring, resources, shards) == sizes


@pytest.mark.parametrize(
    ("pool", "resources", "where"),
    [
        ({"sampling": {"workers": 3}}, {"CPU": 2.0}, "pool.sampling.workers"),
        ({"sampling": {"num_cpus": 4}}, {"CPU": 2.0}, "pool.sampling.num_cpus"),
        ({"sampling": ONE_GPU}, {"CPU": 2.0}, "pool.sampling.num_gpus"),
        ({"scoring": {"workers": 2, "num_cpus": 1}}, {"CPU": 2.0}, "pool.sampling.num_cpus"),
    ],
)
def test_no_room(pool, resources, where):
    """Without these errors the actors would wait for room for ever."""
    asked = config.Pool.model_validate(pool)
    with pytest.raises(ConfigError) as caught:
        pool_sizes(asked.sampling, asked.scoring, resources, 100)
    assert caught.value.where == where


def test_without_a_scorer_nothing_is_kept_for_one():
    assert pool_sizes(config.ActorResources(), None, {"CPU": 2.0}, 100) == Sizes(2, 0, 1)
