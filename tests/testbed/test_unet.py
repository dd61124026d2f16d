"""The denoiser's loss, against a denoiser that knows the answer."""

import numpy as np
import pytest
import torch

from counterpoise.testbed.pairs import Shapes
from counterpoise.testbed.unet import make_scheduler, velocity_loss


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_true_velocity_has_no_loss(scale):
    """Of latents that are known: with x = a·z + s·ε, the velocity a·ε - s·z is (a·x - z) / s."""
    pair, signal = Shapes(), make_scheduler().alphas_cumprod
    labels = pair.labels(6, np.random.default_rng(0))
    latents = {
        "mean": torch.arange(6.0).view(6, 1, 1, 1).expand(6, 4, 16, 16).half(),
        "labels": torch.from_numpy(labels),
    }
    latents["std"] = torch.zeros(6, 4, 16, 16).half()
    texts = {caption: torch.full((2, 3), float(len(caption))) for caption in ["", *pair.vocabulary()]}
    seen = []

    def condition(rows, rng, noise):
        seen.append(rows)
        return torch.from_numpy(rows)[:, None]

    def model(x, t, text, class_labels, return_dict):
        z = scale * latents["mean"][class_labels[:, 0]].float()
        a, s = signal[t].sqrt().view(-1, 1, 1, 1), (1 - signal[t]).sqrt().view(-1, 1, 1, 1)
        assert text.shape == (64, 2, 3)
        assert (text[:, 0, 0] == 0).any()  # the empty caption
        assert (text[:, 0, 0] > 0).any()
        return ((a * x - z) / s + offset,)

    loss = velocity_loss(model, pair, latents, texts, batch=64, seed=0, scale=scale, condition=condition)
    offset = 0.0
    assert float(loss(0)) < 1e-6
    offset = 0.5
    assert float(loss(0)) == pytest.approx(0.25, rel=1e-3)
    loss(1)
    assert np.array_equal(seen[0], seen[1])  # the step's number says which images
    assert not np.array_equal(seen[1], seen[2])
