"""Image variation is diffusers' own pipeline, with dropout on the embedding and guidance where asked for."""

import numpy as np
import pytest
import torch
from diffusers import StableUnCLIPImg2ImgPipeline
from PIL import Image

from counterpoise.config import Condition, Generator
from counterpoise.errors import ModelError
from counterpoise.generators.guidance import Guide
from counterpoise.generators.image_variation import ImageVariation, drop_out
from counterpoise.generators.text_to_image import TextToImage
from tiny_families import save

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # inside diffusers' schedulers

PROMPTS, SEEDS = ["a red star", "a blue disc", "a red star"], [3, 2**62 + 5, 7]
CONDITIONS = list(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save("unclip", tmp_path_factory.mktemp("unclip"))


def variation(folder, **condition):
    settings = {"num_inference_steps": 4, "guidance_scale": 3.0, "condition": Condition(**condition)}
    return ImageVariation(Generator(model=str(folder), **settings), "cpu", "float32")


def test_pixels_are_the_pipelines(folder):
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    pictures = [Image.fromarray(image) for image in CONDITIONS]
    theirs = pipeline(
        image=pipeline.feature_extractor(pictures, return_tensors="pt").pixel_values,
        prompt=PROMPTS, num_inference_steps=4, guidance_scale=3.0, noise_level=100, output_type="np",
        generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
    ).images  # fmt: skip
    ours = variation(folder, noise_level=100).sample(PROMPTS, "", SEEDS, CONDITIONS).pixels
    np.testing.assert_allclose(ours.astype(int), np.rint(theirs * 255).astype(int), atol=1)


def test_the_condition_and_its_dropout_matter(folder):
    plain = variation(folder).sample(PROMPTS, "", SEEDS, CONDITIONS).pixels
    assert (variation(folder).sample(PROMPTS, "", SEEDS, CONDITIONS[::-1]).pixels != plain).any()
    dropped = variation(folder, dropout=0.5).sample(PROMPTS, "", SEEDS, CONDITIONS).pixels
    assert (dropped != plain).any()
    assert np.array_equal(variation(folder, dropout=0.5).sample(PROMPTS, "", SEEDS, CONDITIONS).pixels, dropped)


def test_guidance_moves_the_criterion(folder):
    def redness(images):
        return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))

    model = variation(folder)
    scores = []
    for scale in (0.0, 0.2):
        pixels = model.sample(PROMPTS, "", SEEDS, CONDITIONS, Guide(redness, scale, every=1, blend=False)).pixels
        scores.append(redness(torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2)))
    assert (scores[1] > scores[0]).all()


def test_dropout_is_per_image_and_as_asked():
    embeds, seeds = torch.ones(64, 400), [number * 2**40 + 9 for number in range(64)]
    elements = drop_out(embeds, Condition(dropout=0.3), seeds)
    assert set(elements.unique().tolist()) == {0.0, 1.0}
    assert elements.mean().item() == pytest.approx(0.7, abs=0.02)
    torch.testing.assert_close(drop_out(embeds[5:6], Condition(dropout=0.3), seeds[5:6]), elements[5:6])
    whole = drop_out(embeds, Condition(dropout=0.5, dropout_of="embedding"), seeds)
    assert set(whole.mean(1).tolist()) == {0.0, 1.0}
    rescaled = drop_out(embeds, Condition(dropout=0.5, rescale=True), seeds)
    assert set(rescaled.unique().tolist()) == {0.0, 2.0}
    assert drop_out(embeds, Condition(), seeds) is embeds


def test_the_wrong_family_says_what_to_do(folder, tiny_models):
    with pytest.raises(ModelError, match=r"set generator\.condition"):
        TextToImage(Generator(model=str(folder)), "cpu", "float32")
    with pytest.raises(ModelError, match="StableUnCLIPImg2ImgPipeline"):
        ImageVariation(Generator(model=str(tiny_models / "diffusion"), condition=Condition()), "cpu", "float32")
