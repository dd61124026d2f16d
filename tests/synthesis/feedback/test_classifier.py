"""A classifier guides the pool: what the address covers, where weights and statistics come from, what images become."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from counterpoise.config import Feedback
from counterpoise.errors import DataError, ModelError
from counterpoise.execution import graph
from counterpoise.storage.codec import encode_image
from counterpoise.storage.uri import open_store
from counterpoise.synthesis.feedback import classifier as feedback
from counterpoise.synthesis.pool.actors import SamplingActor
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.condition_images import Conditions
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.pool.sampling_spec import SamplingSpec
from counterpoise.synthesis.pool.shard_sampler import ShardSampler
from counterpoise.synthesis.prompts.resolve import resolve
from image_table import store_images
from tiny import make_experiment
from tiny_families import save, save_adapter

STAGES = [{"name": "teacher", "data": ["real"], "epochs": 1}, {"name": "final", "data": ["real", "synthetic"]}]
TRAINING = {"backbone": "small_cnn", "image_size": 16, "batch_size": 8}


@pytest.fixture
def real(tmp_path, names):
    """Twelve images of three of four cells; star × blue is empty."""
    store, rng = open_store(str(tmp_path / "store")), np.random.default_rng(0)
    labels, groups = [0, 1, 1] * 4, [0, 0, 1] * 4
    images = [encode_image(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in labels]
    return store_images(store, "real", images, labels, groups, names, ids=[f"real-{number}" for number in range(12)])


@pytest.fixture
def guided_pool(tiny_models, tmp_path, names, real):
    """Makes a pool that feedback guides, and if asked for its classifier; keywords go into the feedback section."""

    def make(taught=False, **settings):
        section = {"stage": "teacher", "scale": 0.1, "every": 1, **settings}
        experiment = make_experiment(
            tiny_models, tmp_path / "store", feedback=section, stages=STAGES, training=TRAINING, scorer=None
        )
        if experiment.feedback.stage:
            teacher = feedback.of_stage(experiment, {"real": real}, real, "teacher")
        else:
            teacher = feedback.of_checkpoint(experiment, real)
        if taught:
            if experiment.feedback.stage:
                graph.run_all(feedback.guide_fits(experiment, {"real": real}, real, "teacher"))
            teacher.compute_statistics(real)
        prompts = resolve(experiment.prompts, names, real.store)
        return Pool.of(experiment, names, real.store, prompts, real, teacher)

    return make


SHARD = Shard(0, 1, 0)


def criteria(pool):
    """The criteria of a shard's images, from the same noise for every pool."""
    work = SamplingSpec.of(pool)
    recipe = dataclasses.replace(work.recipe, digest="noise")
    return np.array(ShardSampler(dataclasses.replace(work, recipe=recipe)).draw(SHARD).criteria)


def test_the_address_covers_what_decides_pixels(guided_pool):
    """Without anything being trained."""
    digests = [
        guided_pool(**changes).digest
        for changes in (
            {}, {"scale": 0.2}, {"criterion": "loss"}, {"criterion": {"loss": 1.0, "entropy": 0.5}}, {"every": 2},
            {"criterion": "hardness"}, {"stop": 0.5}, {"predicted": "plain"}, {"seed": 1},
        )
    ]  # fmt: skip
    assert len(set(digests)) == len(digests)
    assert guided_pool(checkpoint_decoder=True).digest == guided_pool(criterion={"entropy": 1.0}).digest == digests[0]
    assert not guided_pool().guide.store.list("stages/")


@pytest.mark.parametrize("criterion", ["loss", "entropy", "hardness"])
def test_guided_images_score_higher(guided_pool, real, criterion):
    values = [criteria(guided_pool(criterion=criterion, scale=scale, taught=True)) for scale in (0.0, 0.1, 0.4)]
    assert values[0].mean() < values[1].mean() < values[2].mean()


def test_a_guided_shard_is_written_with_its_criterion(guided_pool, real):
    pool = guided_pool(taught=True)
    request = pa.table({"label": [SHARD.label], "group": [SHARD.group], "number": [SHARD.number]})
    sampler = SamplingActor(SamplingSpec.of(pool))
    rows = sampler(request)["table"][0].as_py()
    table = pa.ipc.open_stream(rows).read_all()
    assert np.isfinite(table["criterion"].to_numpy()).all()
    assert table["condition_id"].null_count == len(table)
    assert sampler(request)["table"][0].as_py() == rows


def test_a_checkpoint_is_the_stage_it_was(guided_pool, real, tmp_path):
    pool = guided_pool(taught=True)
    weights = {name: value.contiguous() for name, value in pool.guide.classifier().state_dict().items()}
    save_file(weights, tmp_path / "weights.safetensors")
    from_file = guided_pool(stage=None, checkpoint=str(tmp_path / "weights.safetensors"), taught=True)
    assert from_file.digest != pool.digest  # a file's address is its hash
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    assert torch.equal(from_file.guide.classifier()(images), pool.guide.classifier()(images))
    assert np.isfinite(criteria(from_file)).all()


def test_a_checkpoint_that_does_not_fit(guided_pool, tmp_path):
    with pytest.raises(ModelError, match=r"feedback\.checkpoint"):
        guided_pool(stage=None, checkpoint=str(tmp_path / "nowhere.safetensors"))
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="small_cnn"):
        ShardSampler(SamplingSpec.of(guided_pool(stage=None, checkpoint=str(tmp_path / "other.safetensors"))))


def test_statistics_are_computed_once(guided_pool, real):
    pool = guided_pool(criterion="hardness", taught=True)
    key = pool.guide.statistics_key
    assert pool.store.exists(key)
    assert guided_pool(criterion={"hardness": 0.5, "loss": 1.0}, taught=True).guide.statistics_key == key
    assert guided_pool(criterion="entropy", seed=4, taught=True).store.list("statistics/") == [
        pool.guide.statistics_record,
        key,
    ]


def test_a_tiny_decoder_takes_the_autoencoders_place(guided_pool, real, tmp_path):
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(tmp_path / "tiny")  # fmt: skip
    plain, quick = guided_pool(taught=True), guided_pool(decoder=str(tmp_path / "tiny"), taught=True)
    assert plain.digest != quick.digest
    assert (criteria(plain) != criteria(quick)).any()
    with pytest.raises(ModelError, match=r"feedback\.decoder"):
        ShardSampler(SamplingSpec.of(guided_pool(decoder=str(tmp_path))))


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({}, "either `stage` or `checkpoint`"),
        ({"stage": "a", "checkpoint": "b"}, "either `stage` or `checkpoint`"),
        ({"checkpoint": "b", "rounds": 2}, "give a `stage`"),
        ({"stage": "a", "start": 0.5, "stop": 0.5}, "`stop` must come after `start`"),
    ],
)
def test_sections_that_make_no_sense(section, problem):
    with pytest.raises(ValidationError, match=problem):
        Feedback(**section)


@pytest.mark.parametrize(("stage", "problem"), [("final", "trains on real, synthetic"), ("first", "is not a stage")])
def test_the_teacher_has_seen_real_images_alone(tiny_models, tmp_path, stage, problem):
    with pytest.raises(ValidationError, match=problem):
        make_experiment(tiny_models, tmp_path, feedback={"stage": stage}, stages=STAGES)


# -- conditions --------------------------------------------------------------------------------------------------------


def test_conditions_are_of_the_cell_or_else_of_the_class(real):
    conditions, seeds = Conditions(real), [number << 32 for number in range(40)]
    found = conditions.draw(1, 1, seeds)
    assert set(zip(real.labels[found], real.groups[found], strict=True)) == {(1, 1)}
    assert len(set(found)) == 4  # all of the cell
    empty = conditions.draw(0, 1, seeds)
    assert set(real.labels[empty]) == {0}
    np.testing.assert_array_equal(conditions.draw(1, 1, seeds[7:8]), found[7:8])
    images = conditions.images(found[:6])
    np.testing.assert_array_equal(images[0], images[4])  # four images in a circle
    with pytest.raises(DataError, match="star"):
        Conditions(real.where(label=1))


@pytest.mark.parametrize("family", ["unclip", "sd-epsilon"])
def test_a_conditioned_pool_says_which_image_it_saw(tiny_models, tmp_path, names, real, family):
    condition = {"dropout": 0.5}
    if family != "unclip":
        adapter = save_adapter(family, tmp_path / "adapter")
        files = {"weights": "adapter.safetensors", "encoder": "image_encoder"}
        condition["adapter"] = {"model": str(adapter), **files}
    folder = save(family, tmp_path / family)
    generator = {"model": str(folder), "num_inference_steps": 2, "condition": condition}
    experiment = make_experiment(tiny_models, tmp_path / "store", generator=generator, scorer=None)
    prompts = resolve(experiment.prompts, names, real.store)
    pool = Pool.of(experiment, names, real.store, prompts, real)
    assert (
        pool.digest
        != Pool.of(
            experiment, names, real.store, resolve(experiment.prompts, names, real.store), real.take(np.arange(11))
        ).digest
    )
    draft = ShardSampler(SamplingSpec.of(pool)).draw(Shard(1, 1, 0))
    assert set(draft.condition_ids) <= {"real-2", "real-5", "real-8", "real-11"}
    assert len(set(draft.condition_ids)) > 1
