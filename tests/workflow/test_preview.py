"""A preview shows the pool's own first images, side by side under labels, and says what it left out."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from counterpoise.errors import ConfigError
from counterpoise.report import figures
from counterpoise.storage.codec import decode_image, encode_image
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.in_process import sampler_here
from counterpoise.synthesis.pool.sampling_spec import SamplingSpec
from counterpoise.workflow import preview as previewing
from counterpoise.workflow.preview import Column, parse_sweep, preview, spread
from counterpoise.workflow.run import Run

DATA = {
    "adapter": "testbed",
    "classes": ["circle", "ring", "cross"],
    "groups": ["red", "blue"],
    "per_cell": {"train": 2, "validation": 1, "test": 1},
}


@pytest.fixture
def make_job(tiny_models, tmp_path):
    from tiny import make_experiment

    opened = []

    def make(**changes):
        sections = {"data": DATA, "tracking": {"enabled": False}, "scorer": None, **changes}
        opened.append(Run([make_experiment(tiny_models, tmp_path / "store", **sections)]))
        return opened[-1].__enter__()

    yield make
    for job in opened:
        job.__exit__(None, None, None)


def loader(job):
    """What the command line gives: the same experiment with one more override."""
    from counterpoise.config import Experiment

    def load(override):
        key, _, value = override.partition("=")
        section, _, leaf = key.partition(".")
        tree = job.suite.shared.model_dump()
        tree[section][leaf] = float(value) if section == "generator" else value
        return [Experiment.model_validate(tree)]

    return load


def pool_of(job):
    return next(iter(job.pools.values()))


def test_its_images_are_the_pools_first_ones(make_job):
    """Shards of 8 in the pool, 3 images here; and the tiny model's last bits are finer than a pixel's."""
    job = make_job()
    pool = pool_of(job)
    (shown,), criteria, _ = previewing._sample([Column(None, job.suite.shared, pool)], [(1, 0), (2, 1)], 3, pool)
    assert criteria == [None]  # nothing guides
    with sampler_here(SamplingSpec.of(pool)) as sample:
        for cell, images in shown.items():
            held = sample(Shard(*cell, 0))
            for image, original in zip(images, held["image"].to_pylist()[:3], strict=True):
                difference = decode_image(image).astype(int) - decode_image(original)
                assert abs(difference).max() <= 1
                assert decode_image(original).std() > 1


def test_a_grid_of_all_cells(make_job, tmp_path):
    job = make_job()
    done = preview(job, loader(job), tmp_path / "new" / "look.png", 2, 24, None)
    with Image.open(tmp_path / "new" / "look.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 200
    assert (done["cells"], done["images"], done["left_out"], done["values"]) == (6, 12, [], [])
    assert done["seconds"] > 0
    assert done["images_per_second"] == pytest.approx(12 / done["seconds"], rel=0.2)
    assert job.store.list("pool") == []


def test_cells_left_out_are_named(make_job, tmp_path):
    job = make_job()
    done = preview(job, loader(job), tmp_path / "look.png", 1, 4, None)
    assert done["left_out"] == ["ring × red", "ring × blue"]


def test_a_sweep_keeps_the_seeds(make_job, tmp_path, monkeypatch):
    job = make_job()
    seen = []

    def spy(work):
        seen.append(work)
        return sampler_here(work)

    monkeypatch.setattr(previewing, "sampler_here", spy)
    done = preview(job, loader(job), tmp_path / "look.png", 2, 2, "generator.guidance_scale=1,9")
    assert (done["values"], done["images"]) == (["1", "9"], 2 * 2 * 2)
    assert [work.generator.guidance_scale for work in seen] == [1, 9]
    assert {work.recipe.digest for work in seen} == {pool_of(job).digest}
    assert {work.recipe.shard_size for work in seen} == {2}


def test_a_sweep_changes_pixels_and_not_the_noise(make_job):
    job = make_job()
    columns = previewing._columns(job.suite.shared, job, loader(job), "generator.guidance_scale=7.5,1")
    (base, other), _, _ = previewing._sample(columns, [(0, 0)], 2, pool_of(job))
    (same,), _, _ = previewing._sample([Column(None, job.suite.shared, pool_of(job))], [(0, 0)], 2, pool_of(job))
    assert base == same  # 7.5 is what the config says
    assert base[0, 0] != other[0, 0]


@pytest.mark.parametrize(
    ("sweep", "hint"),
    [
        ("generator.guidance_scale", "invalid --sweep value"),
        ("=1,2", "invalid --sweep value"),
        ("generator.guidance_scale=", "invalid --sweep value"),
        ("generator.guidance_scale=1,,2", "invalid --sweep value"),
        ("generator.guidance_scale=1,1", "invalid --sweep value"),
        ("generator.guidance_scale=1,1.0", "the same images"),
        ("training.backbone=small_cnn,resnet18", "the same images"),
        ("data.group=shape,color", "cannot be swept"),
    ],
)
def test_sweeps_that_make_no_sense(make_job, tmp_path, sweep, hint):
    job = make_job()
    with pytest.raises(ConfigError, match=hint):
        preview(job, loader(job), tmp_path / "look.png", 1, 4, sweep)
    assert not (tmp_path / "look.png").exists()


def test_values_with_commas():
    text = 'prompts.template="a {label}, drawn", a {label}'
    assert parse_sweep(text) == ("prompts.template", ["a {label}, drawn", "a {label}"])


def test_defects_are_counted_and_grey(make_job, tmp_path):
    import tiny

    tiny.make_diffusion(tmp_path / "broken", broken=True)
    job = make_job(generator={"model": str(tmp_path / "broken"), "num_inference_steps": 1})
    done = preview(job, loader(job), tmp_path / "look.png", 2, 2, None)
    assert done["defects"] == done["images"] == 4


def test_a_method_with_plans_is_shown_before_one_without(make_job):
    with_plans = make_job().suite.shared
    without = with_plans.model_copy(update={"method": "plain", "plans": {}})
    nothing = without.model_copy(update={"generator": None})
    assert previewing._shown([nothing, without, with_plans]) is with_plans
    assert previewing._shown([nothing, without]) is without
    with pytest.raises(ConfigError, match="no generator is configured"):
        previewing._shown([nothing])


@pytest.mark.parametrize("name", ["look.jpg", "look", "file/look.png"])
def test_files_that_cannot_be_written(make_job, tmp_path, name):
    (tmp_path / "file").write_text("")
    job = make_job()
    with pytest.raises(ConfigError, match="--out"):
        preview(job, loader(job), tmp_path / name, 1, 1, None)


@pytest.mark.parametrize(
    ("shape", "cells", "chosen"),
    [
        ((2, 2), 24, [(0, 0), (0, 1), (1, 0), (1, 1)]),
        ((5, 1), 3, [(0, 0), (2, 0), (4, 0)]),
        ((3, 2), 5, [(0, 0), (0, 1), (2, 0), (2, 1)]),
        ((3, 4), 2, [(0, 0), (0, 3)]),
        ((100, 1), 1, [(0, 0)]),
    ],
)
def test_spread(shape, cells, chosen):
    assert spread(shape, cells) == chosen


def test_every_shape_is_spread_within_its_bound():
    for classes in range(1, 13):
        for groups in range(1, 5):
            for cells in range(1, 30):
                found = spread((classes, groups), cells)
                assert len(set(found)) == len(found) <= cells
                assert len(found) == classes * groups or len(found) > 0


def test_the_grid_draws_every_image_where_it_belongs():
    red, blue = (encode_image(np.full((100, 50, 3), color, np.uint8)) for color in ((255, 0, 0), (0, 0, 255)))
    figure = figures.grid([[[red, None], [blue, blue]]], ["$a$"], ["x", "y"], "title")
    canvas = figure.axes[0].images[0].get_array()
    strip = canvas.shape[1] // 2
    assert canvas[52, 50].tolist() == [255, 0, 0]
    assert canvas[52, 5].tolist() == [255, 255, 255]  # beside the tall picture
    assert canvas[52, 102 + 50].tolist() == [235, 235, 235]
    assert canvas[52, strip + 50].tolist() == canvas[52, strip + 102 + 50].tolist() == [0, 0, 255]
    figure.savefig(io.BytesIO())  # a dollar in a name is no formula


def test_work_is_the_pools_but_for_its_size(make_job):
    pool = pool_of(make_job())
    work = previewing._work(pool, pool, 3)
    assert dataclasses.replace(
        work, recipe=SamplingSpec.of(pool).recipe, cpus=SamplingSpec.of(pool).cpus
    ) == SamplingSpec.of(pool)
