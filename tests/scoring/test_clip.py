"""CLIP through open_clip: the vectors are open_clip's own, and what cannot be loaded says so."""

import shutil

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from counterpoise.config import Scorer
from counterpoise.errors import ModelError
from counterpoise.scoring.clip import Clip


@pytest.fixture(scope="module")
def clip(tiny_models):
    return Clip(Scorer(model=str(tiny_models / "clip")), "cpu")


def test_vectors_are_open_clips(clip, tiny_models):
    name = f"local-dir:{tiny_models / 'clip'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    images = np.random.default_rng(0).integers(0, 255, (3, 20, 24, 3), np.uint8)
    with torch.no_grad():
        expected = model.eval().encode_image(torch.stack([preprocess(Image.fromarray(image)) for image in images]))
        text = model.encode_text(open_clip.get_tokenizer(name)(["a red star"]))
    expected = torch.nn.functional.normalize(expected, dim=-1)
    np.testing.assert_allclose(clip.embed_images(list(images)), expected, atol=1e-6)
    np.testing.assert_allclose(clip.embed_texts(["a red star"]), torch.nn.functional.normalize(text, dim=-1), atol=1e-6)


def test_vectors_have_length_one(clip):
    assert np.linalg.norm(clip.embed_texts(["a", "b"]), axis=1) == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize("torn", ["open_clip_model.safetensors", "open_clip_config.json"])
def test_what_cannot_be_loaded(tiny_models, tmp_path, torn):
    shutil.copytree(tiny_models / "clip", tmp_path / "clip")
    (tmp_path / "clip" / torn).write_bytes(b"{")
    with pytest.raises(ModelError, match=r"scorer\.model"):
        Clip(Scorer(model=str(tmp_path / "clip")), "cpu")


def test_unknown_architecture_or_weights():
    with pytest.raises(ModelError, match="cannot be loaded"):
        Clip(Scorer(model="ViT-Z-1", pretrained="openai"), "cpu")
    with pytest.raises(ModelError, match="cannot be loaded"):
        Clip(Scorer(model="ViT-B-32", pretrained="nobody"), "cpu")
