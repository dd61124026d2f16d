"""An adapter's images are diffusers' own, one by one; a batch keeps them apart, and guidance composes with them."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoPipelineForText2Image
from PIL import Image
from pydantic import ValidationError

from counterpoise.config import Condition, Generator
from counterpoise.errors import ModelError
from counterpoise.generators.guidance import Guide
from counterpoise.generators.image_adapter import ImageAdapter
from tiny_families import save, save_adapter, stable_diffusion, vision

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # inside diffusers' schedulers

PROMPTS, SEEDS = ["a red star", "a blue disc", "a red star"], [3, 2**62 + 5, 7]
CONDITIONS = list(np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8))
FILES = {"weights": "adapter.safetensors", "encoder": "image_encoder"}
KINDS = [("sd-epsilon", False), ("sd-epsilon", True), ("sdxl", False)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A pipeline's and its adapter's."""

    @functools.cache
    def folders(family, patches=False):
        folder = tmp_path_factory.mktemp(family)
        return SimpleNamespace(
            pipeline=save(family, folder / "pipeline"), adapter=save_adapter(family, folder / "adapter", patches)
        )

    return folders


def generator(folders, adapter=None, settings=None, **condition):
    condition["adapter"] = {"model": str(folders.adapter), **FILES, **(adapter or {})}
    sampling = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 16, "width": 16, **(settings or {})}
    return Generator(model=str(folders.pipeline), condition=condition, **sampling)


def load(folders, **changes):
    return ImageAdapter(generator(folders, **changes), "cpu", "float32")


def floats(model, rows, guide=None, conditions=CONDITIONS):
    """Pixels before they are rounded, as far as a caller may see them."""
    rows = list(rows)
    made = model.sample(
        [PROMPTS[row] for row in rows], "", [SEEDS[row] for row in rows], [conditions[row] for row in rows], guide
    )
    return made.pixels.astype(int)


def redness(images):
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


@pytest.mark.parametrize("guidance_scale", [3.0, 1.0])
@pytest.mark.parametrize(("family", "patches"), KINDS)
def test_each_image_is_what_diffusers_alone_makes(folders, family, patches, guidance_scale):
    """Given one picture, one prompt and one seed there; a batch of three pictures here."""
    found = folders(family, patches)
    settings = {"guidance_scale": guidance_scale}
    ours = floats(load(found, adapter={"scale": 0.7}, settings=settings), range(3))
    pipeline = AutoPipelineForText2Image.from_pretrained(found.pipeline)
    pipeline.load_ip_adapter(found.adapter, subfolder="", weight_name="adapter.safetensors")
    pipeline.set_ip_adapter_scale(0.7)
    pipeline.set_progress_bar_config(disable=True)
    for row, (prompt, seed, image) in enumerate(zip(PROMPTS, SEEDS, CONDITIONS, strict=True)):
        (theirs,) = pipeline(
            prompt, ip_adapter_image=Image.fromarray(image), generator=torch.Generator().manual_seed(seed),
            num_inference_steps=4, height=16, width=16, output_type="np", **settings,
        ).images  # fmt: skip
        np.testing.assert_allclose(ours[row], np.rint(theirs * 255).astype(int), atol=1)


@pytest.mark.parametrize("guide", [None, Guide(redness, 0.1, every=1)], ids=["unguided", "guided"])
@pytest.mark.parametrize(("family", "patches"), KINDS)
def test_an_image_of_a_batch_is_the_image_alone(folders, family, patches, guide):
    model = load(folders(family, patches), dropout=0.3)
    together = floats(model, range(3), guide)
    np.testing.assert_allclose(together, np.concatenate([floats(model, [row], guide) for row in range(3)]), atol=1)
    others = [CONDITIONS[0], CONDITIONS[0], CONDITIONS[2]]  # the second image sees another picture
    changed = (floats(model, range(3), guide, others) != together).any((1, 2, 3))
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize(("family", "patches"), KINDS)
def test_the_picture_matters_as_much_as_asked(folders, family, patches):
    found = folders(family, patches)
    plain, absent = floats(load(found), range(3)), floats(load(found, adapter={"scale": 0.0}), range(3))
    assert (absent != plain).any()
    assert np.array_equal(floats(load(found, adapter={"scale": 0.0}), range(3), None, CONDITIONS[::-1]), absent)
    dropped = floats(load(found, dropout=0.5), range(3))
    assert (dropped != plain).any()
    assert np.array_equal(floats(load(found, dropout=0.5), range(3)), dropped)


@pytest.mark.parametrize(("family", "patches"), KINDS)
def test_guidance_composes(folders, family, patches):
    model = load(folders(family, patches))
    plain = floats(model, range(3))
    scores = []
    for scale in (-0.2, 0.0, 0.2):
        pixels = floats(model, range(3), Guide(redness, scale, every=1, blend=False))
        scores.append(redness(torch.from_numpy(pixels.astype(np.float32)).permute(0, 3, 1, 2)))
        assert np.array_equal(pixels, plain) == (scale == 0)
    assert (scores[0] < scores[1]).all()
    assert (scores[1] < scores[2]).all()


def test_no_weight_asks_for_a_gradient(folders):
    model = load(folders("sd-epsilon"))
    parts = (model.pipeline.unet, model.pipeline.image_encoder)
    assert not any(weight.requires_grad for part in parts for weight in part.parameters())


def test_a_distilled_model_has_no_half_without_a_prompt(folders, tmp_path):
    """It is told the guidance scale as a number."""
    pipeline = stable_diffusion(time_cond_proj_dim=8)
    pipeline.save_pretrained(tmp_path)
    found = SimpleNamespace(pipeline=tmp_path, adapter=folders("sd-epsilon").adapter)
    model = load(found)
    (embeds,) = model._image_condition(CONDITIONS, SEEDS)["ip_adapter_image_embeds"]
    assert embeds.shape == (3, 1, 16)
    assert (floats(model, range(3)) != floats(model, range(3), None, CONDITIONS[::-1])).any()


# -- what does not fit -------------------------------------------------------------------------------------------------


def test_an_adapter_of_another_family_is_said(folders):
    found = SimpleNamespace(pipeline=folders("sd-epsilon").pipeline, adapter=folders("sdxl").adapter)
    with pytest.raises(ModelError, match="cannot be loaded into this pipeline"):
        load(found)


def test_an_encoder_that_it_was_not_trained_with_is_said(folders, tmp_path):
    found = SimpleNamespace(pipeline=folders("sd-epsilon").pipeline, adapter=save_adapter("sd-epsilon", tmp_path))
    vision(projection_dim=24).save_pretrained(tmp_path / "image_encoder")
    with pytest.raises(ModelError, match=r"generator\.condition\.adapter\.encoder"):
        load(found)


@pytest.mark.parametrize("adapter", [{"weights": "none.safetensors"}, {"encoder": "none"}, {"model": "/none"}], ids=str)
def test_files_that_are_not_there(folders, adapter):
    with pytest.raises(ModelError, match=r"generator\.condition\.adapter"):
        load(folders("sd-epsilon"), adapter=adapter)


def test_a_pipeline_without_adapters_is_said(folders, tmp_path):
    found = SimpleNamespace(pipeline=save("flux", tmp_path), adapter=folders("sd-epsilon").adapter)
    with pytest.raises(ModelError, match="FluxPipeline"):
        load(found)


def test_an_adapter_adds_no_noise():
    with pytest.raises(ValidationError, match="noise_level"):
        Condition(adapter={"model": "a/b", **FILES}, noise_level=10)
