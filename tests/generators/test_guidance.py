"""Guidance composes with every family, changes nothing at scale 0, and keeps the images of a batch apart."""

import functools

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForText2Image,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from counterpoise.config import Generator
from counterpoise.errors import ConfigError
from counterpoise.generators.guidance import Guide, denoiser_of, guided
from counterpoise.generators.prediction import noise_level, predict_clean, prediction_type
from counterpoise.generators.text_to_image import TextToImage
from tiny_families import FAMILIES, save

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # inside diffusers' schedulers

PROMPTS, SEEDS = ["a red star", "a blue disc", "a red star"], [3, 2**62 + 5, 7]
TEXT_FAMILIES = [name for name in FAMILIES if name != "unclip"]


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    @functools.cache
    def sampler(family):
        folder = save(family, tmp_path_factory.mktemp(family))
        settings = {"num_inference_steps": 5, "guidance_scale": 3.0, "height": 16, "width": 16}
        return TextToImage(Generator(model=str(folder), **settings), "cpu", "float32")

    return sampler


def redness(images):
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


def guide(scale, **changes):
    return Guide(criterion=redness, scale=scale, **{"every": 1, "blend": False, **changes})


def floats(sampler, guide, seeds=SEEDS, prompts=PROMPTS):
    """Pixels before they are rounded."""
    with guided(sampler.pipeline, guide, len(prompts), (16, 16)):
        return sampler.pipeline(
            **sampler._condition(prompts, ""),
            **sampler._settings(),
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        ).images


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_without_scale_the_pixels_are_the_pipelines(sampler, family):
    model = sampler(family)
    plain = floats(model, None)
    assert np.array_equal(floats(model, guide(0.0)), plain)
    guided_once = floats(model, guide(0.1))
    assert not np.array_equal(guided_once, plain)
    assert np.array_equal(floats(model, None), plain)  # the hook is gone


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_pixels_are_what_diffusers_alone_makes(sampler, family):
    """The same checkpoint loaded without us, given text: prompts are encoded one by one here and together there."""
    model = sampler(family)
    pipeline = AutoPipelineForText2Image.from_pretrained(model.config.model)
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        PROMPTS,
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="np",
        **model._settings(),
    ).images
    ours = model.sample(PROMPTS, "", SEEDS, guide=guide(0.0)).pixels
    np.testing.assert_allclose(ours.astype(int), np.rint(theirs * 255).astype(int), atol=1)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_guidance_moves_the_criterion_up(sampler, family):
    model = sampler(family)
    scores = [redness(torch.from_numpy(floats(model, guide(scale))).permute(0, 3, 1, 2)) for scale in (-0.1, 0.0, 0.1)]
    assert (scores[0] < scores[1]).all(), scores
    assert (scores[1] < scores[2]).all(), scores


@pytest.mark.parametrize("blend", [True, False])
@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_an_image_of_a_batch_is_the_image_alone(sampler, family, blend):
    model = sampler(family)
    together = floats(model, guide(0.1, blend=blend))
    alone = [
        floats(model, guide(0.1, blend=blend), [seed], [prompt])[0] for seed, prompt in zip(SEEDS, PROMPTS, strict=True)
    ]
    np.testing.assert_allclose(together, np.stack(alone), atol=2e-4)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_a_decoder_that_is_computed_twice_gives_the_same(sampler, family):
    model = sampler(family)
    assert np.array_equal(floats(model, guide(0.1, checkpoint=True)), floats(model, guide(0.1, checkpoint=False)))


def test_steps_that_are_guided(sampler):
    model, calls = sampler("sd-epsilon"), []

    def count(images):
        calls.append(len(images))
        return redness(images)

    floats(model, Guide(criterion=count, scale=0.1, every=2, checkpoint=False))
    assert calls == [3, 3, 3]  # steps 0, 2, 4
    calls.clear()
    floats(model, Guide(criterion=count, scale=0.1, every=1, start=0.4, stop=0.8, checkpoint=False))
    assert calls == [3, 3]  # steps 2 and 3


def test_a_guided_step_costs_no_further_call_for_the_prediction(sampler):
    """Two calls of half the batch instead of one of the whole: the conditional prediction is not computed twice."""
    model, sizes = sampler("sd-epsilon"), []
    denoiser = denoiser_of(model.pipeline)
    forward = denoiser.forward
    denoiser.forward = lambda sample, *a, **k: sizes.append(len(sample)) or forward(sample, *a, **k)
    try:
        floats(model, guide(0.1, every=5))
        assert sizes == [3, 3, 6, 6, 6, 6]
        assert denoiser.forward is not forward  # what was there before the hook is there again
    finally:
        del denoiser.forward


def test_a_criterion_sees_images_where_no_autoencoder_makes_them(sampler):
    """A pixel model's predictions of early steps are dozens of times as bright as an image can be."""
    model, found = sampler("if"), []

    def watch(images):
        found.append((float(images.detach().min()), float(images.detach().max())))
        return redness(images)

    plain = floats(model, guide(0.0))
    scores = redness(torch.from_numpy(floats(model, Guide(watch, 0.1, every=1, blend=False))).permute(0, 3, 1, 2))
    assert all(low >= 0 and high <= 1 for low, high in found)
    assert (scores > redness(torch.from_numpy(plain).permute(0, 3, 1, 2))).all()


def test_gradients_that_are_not_finite_guide_nowhere(sampler):
    model = sampler("sd-epsilon")
    broken = Guide(
        criterion=lambda images: redness(images) * torch.tensor([1.0, float("nan"), 1.0]), scale=0.1, every=1
    )
    images, plain = floats(model, broken), floats(model, None)
    np.testing.assert_allclose(images[1], plain[1], atol=2e-4)
    assert np.abs(images[0] - plain[0]).max() > 1e-3


# -- the predicted clean image -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [4, 11])
@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(beta_schedule="scaled_linear"),
        DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction"),
        DDIMScheduler(prediction_type="sample"),
        DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"),
        EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        EulerDiscreteScheduler(prediction_type="v_prediction", use_karras_sigmas=True),
        DPMSolverMultistepScheduler(beta_schedule="scaled_linear"),
        FlowMatchEulerDiscreteScheduler(shift=3.0),
    ],
    ids=lambda value: f"{type(value).__name__}-{prediction_type(value)}",
)
def test_the_clean_image_is_found_for_every_prediction(scheduler, steps):
    """Noise an image as the scheduler does, give the perfect prediction, and the image comes back."""
    random = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 4, 8, 8, generator=random, dtype=torch.float64) for _ in range(2))
    scheduler.set_timesteps(steps)
    kind = prediction_type(scheduler)
    for step in range(steps):
        time = scheduler.timesteps[step : step + 1]
        if kind == "flow_prediction":
            noisy = scheduler.scale_noise(clean, time, noise)
        elif hasattr(scheduler, "sigmas"):
            noisy = clean + noise * scheduler.sigmas[step]
            noisy = noisy / (scheduler.sigmas[step] ** 2 + 1) ** 0.5
        else:
            noisy = scheduler.add_noise(clean, noise, time)
        alpha, sigma = noise_level(scheduler, step)
        perfect = {
            "epsilon": noise,
            "sample": clean,
            "v_prediction": alpha * noise - sigma * clean,
            "flow_prediction": noise - clean,
        }[kind]
        found = predict_clean(kind, noisy, perfect, alpha, sigma)
        torch.testing.assert_close(found, clean, rtol=1e-3, atol=1e-3)


def test_the_step_of_ddim_agrees(sampler):
    """DDIM computes x₀ on its own way: compare with what its step returns."""
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False)
    scheduler.set_timesteps(6)
    sample, output = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    for step, time in enumerate(scheduler.timesteps):
        theirs = scheduler.step(output, time, sample).pred_original_sample
        torch.testing.assert_close(predict_clean("v_prediction", sample, output, *noise_level(scheduler, step)), theirs)


def test_a_scheduler_that_cannot_be_guided_is_said():
    from diffusers import EDMEulerScheduler

    with pytest.raises(ConfigError, match=r"generator\.scheduler"):
        prediction_type(EDMEulerScheduler())
