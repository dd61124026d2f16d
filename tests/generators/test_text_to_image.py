"""The generator is the pipeline it loads: same pixels, whatever is cached or stored in half precision."""

import shutil

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline

from counterpoise.config import Generator
from counterpoise.errors import ConfigError, ModelError
from counterpoise.generators.text_to_image import TextToImage, check
from tiny_families import save

PROMPTS = ["a red star", "a blue disc", "a red star"]
SEEDS = [3, 2**62 + 5, 7]


def generator(folder, **changes):
    return Generator(**{"model": str(folder / "diffusion"), "num_inference_steps": 3, "guidance_scale": 4.0, **changes})


def bare(folder, negative=None, scheduler=None, **settings):
    """The same batch by diffusers alone."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder / "diffusion", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler:
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    settings = {"num_inference_steps": 3, "guidance_scale": 4.0, **settings}
    negatives = [negative] * 3 if negative else None
    images = pipeline(PROMPTS, negative_prompt=negatives, generator=generators, output_type="np", **settings).images
    return np.rint(images * 255).astype(int)


@pytest.mark.parametrize(
    ("changes", "negative", "bare_changes"),
    [
        ({}, "", {}),
        ({}, "blur", {"negative": "blur"}),
        ({"guidance_scale": 1.0}, "", {"guidance_scale": 1.0}),
        ({"height": 32, "width": 16}, "", {"height": 32, "width": 16}),
        ({"scheduler": "EulerDiscreteScheduler"}, "", {"scheduler": EulerDiscreteScheduler}),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:__array__ implementation")  # inside diffusers' schedulers
def test_pixels_are_the_pipelines(tiny_models, changes, negative, bare_changes):
    sampler = TextToImage(generator(tiny_models, **changes), "cpu", "float32")
    samples = sampler.sample(PROMPTS, negative, SEEDS)
    assert samples.defects == [None] * 3
    # one grey level: prompts are encoded one by one here and together there
    np.testing.assert_allclose(samples.pixels.astype(int), bare(tiny_models, **bare_changes), atol=1)
    again = sampler.sample(PROMPTS, negative, SEEDS)
    np.testing.assert_array_equal(again.pixels, samples.pixels)


def test_each_distinct_prompt_is_encoded_once(tiny_models):
    sampler = TextToImage(generator(tiny_models), "cpu", "float32")
    calls = []
    encode = sampler.pipeline.text_encoder.forward
    sampler.pipeline.text_encoder.forward = lambda *a, **k: calls.append(1) or encode(*a, **k)
    sampler.sample(PROMPTS, "", SEEDS)
    first = len(calls)
    sampler.sample(PROMPTS, "", SEEDS)
    assert 0 < first <= 4  # two prompts, each with the empty one
    assert len(calls) == first


def test_half_precision_files_are_computed_in_float32(tiny_models, tmp_path):
    import tiny

    tiny.make_diffusion(tmp_path / "diffusion", dtype=torch.float16)
    sampler = TextToImage(generator(tmp_path), "cpu", "float32")
    assert {p.dtype for p in sampler.pipeline.unet.parameters()} == {torch.float32}
    assert {p.dtype for p in sampler.pipeline.text_encoder.parameters()} == {torch.float32}
    difference = sampler.sample(PROMPTS, "", SEEDS).pixels.astype(int) - bare(tiny_models)
    assert np.abs(difference).mean() < 3


def test_a_broken_model_makes_defects(tmp_path):
    import tiny

    tiny.make_diffusion(tmp_path / "diffusion", broken=True)
    samples = TextToImage(generator(tmp_path), "cpu", "float32").sample(PROMPTS, "", SEEDS)
    assert samples.defects == ["pixels are not finite"] * 3


@pytest.mark.parametrize("family", ["sd-epsilon", "if"])
def test_what_the_safety_checker_held_back(tmp_path, family):
    """Stable Diffusion and DeepFloyd IF report it under two names."""
    sampler = TextToImage(Generator(model=str(save(family, tmp_path)), num_inference_steps=2), "cpu", "float32")
    found = ([False, True, False], None) if family == "if" else ([False, True, False],)
    sampler.pipeline.run_safety_checker = lambda image, *_: (image, *found)
    samples = sampler.sample(PROMPTS, "", SEEDS)
    assert samples.defects == [None, "held back by the safety checker", None]


def test_the_scheduler_is_diffusers(tiny_models):
    sampler = TextToImage(generator(tiny_models, scheduler="DDPMScheduler"), "cpu", "float32")
    assert isinstance(sampler.pipeline.scheduler, DDPMScheduler)
    with pytest.raises(ConfigError, match="did you mean 'DDIMScheduler'"):
        check(generator(tiny_models, scheduler="DDIMSchedular"))


@pytest.mark.parametrize("damage", ["truncate", "remove", "class"])
def test_what_cannot_be_loaded(tiny_models, tmp_path, damage):
    shutil.copytree(tiny_models / "diffusion", tmp_path / "diffusion")
    weights = tmp_path / "diffusion" / "unet" / "diffusion_pytorch_model.safetensors"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif damage == "remove":
        weights.unlink()
    else:
        index = tmp_path / "diffusion" / "model_index.json"
        index.write_text(index.read_text().replace("StableDiffusionPipeline", "NoSuchPipeline"))
    with pytest.raises(ModelError, match=r"generator\.model"):
        TextToImage(generator(tmp_path), "cpu", "float32")


def test_channels_last_changes_no_more_than_rounding(tiny_models):
    plain = TextToImage(generator(tiny_models), "cpu", "float32").sample(PROMPTS, "", SEEDS).pixels.astype(int)
    sampler = TextToImage(generator(tiny_models, channels_last=True), "cpu", "float32")
    weight = sampler.pipeline.unet.conv_in.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert np.abs(sampler.sample(PROMPTS, "", SEEDS).pixels - plain).max() <= 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.filterwarnings("ignore")  # of torch's compiler
def test_a_compiled_denoiser_is_the_same_denoiser(tiny_models):
    plain = TextToImage(generator(tiny_models), "cpu", "float32").sample(PROMPTS, "", SEEDS).pixels.astype(int)
    compiled = TextToImage(generator(tiny_models, compile=True), "cpu", "float32")
    assert np.abs(compiled.sample(PROMPTS, "", SEEDS).pixels - plain).max() <= 1
