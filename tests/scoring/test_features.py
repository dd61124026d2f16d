"""Extractors and the features of a view."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import inception_v3

from counterpoise.config import Scorer
from counterpoise.errors import ModelError
from counterpoise.scoring import features
from counterpoise.scoring.clip import Clip
from counterpoise.scoring.features import Extractor
from counterpoise.storage.codec import decode_image
from counterpoise.storage.uri import open_store
from toy_bias import make_view


@pytest.fixture
def view(tmp_path):
    return make_view(open_store(tmp_path / "store"), "some", [[60, 20], [30, 40]])


def mean_colors(images):
    return np.stack([image.mean(axis=(0, 1), dtype=np.float32) for image in images])


def test_features_are_in_the_views_order_batch_by_batch(view):
    sizes = []

    def embed(images):
        sizes.append(len(images))
        assert all(image.shape == (9, 9, 3) for image in images)
        return mean_colors(images)

    shuffled = view.take(np.random.default_rng(0).permutation(len(view)))
    found = features.features(shuffled, Extractor("mean colour", features.bilinear(9), 9, embed))
    images = dict(shuffled.images())
    expected = mean_colors([decode_image(images[position], 9) for position in range(len(view))])
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.float32
    assert sum(sizes) == len(view)
    assert max(sizes) == 64


def test_clip_is_the_scorer(tiny_models, view):
    scorer = Scorer(model=str(tiny_models / "clip"))
    extractor = features.clip(scorer, "cpu")
    some = view.take(np.arange(5))
    expected = Clip(scorer, "cpu").embed_images([decode_image(data) for _, data in sorted(some.images())])
    np.testing.assert_allclose(features.features(some, extractor), expected, atol=1e-6)
    assert extractor.resizer == "bicubic antialias 16 shortest (open_clip)"
    assert scorer.model in extractor.name


def test_inception_is_torchvisions(tmp_path, monkeypatch, view):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert not features.has_inception()
    with pytest.raises(ModelError, match=r"realism\.extractor"):
        features.inception("cpu")
    path = tmp_path / "hub" / "checkpoints" / "inception_v3_google-0cc3c7bd.pth"
    path.parent.mkdir(parents=True)
    torch.manual_seed(0)
    model = inception_v3(weights=None, init_weights=False, transform_input=True).eval()  # as with published weights
    torch.save(model.state_dict(), path)
    assert features.has_inception()

    extractor, some = features.inception("cpu"), view.take(np.arange(2))
    found = features.features(some, extractor)
    model.fc = torch.nn.Identity()
    images = [Image.fromarray(decode_image(data)).resize((299, 299), Image.BILINEAR) for _, data in some.images()]
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 255
    normalised = (pixels - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    with torch.no_grad():
        expected = model(normalised)
    assert found.shape == (2, 2048)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert (extractor.name, extractor.resizer) == (
        "torchvision Inception_V3_Weights.IMAGENET1K_V1",
        "bilinear antialias 299",
    )
    path.write_bytes(b"torn")
    with pytest.raises(ModelError, match="cannot be loaded"):
        features.inception("cpu")


def test_inceptions_weights_are_those_of_torchvision():
    from torchvision.models import Inception_V3_Weights

    weights = Inception_V3_Weights.IMAGENET1K_V1
    assert str(weights) == features.INCEPTION
    assert weights.url.endswith(f"/{features._inception_path().name}")
