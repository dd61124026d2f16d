"""Autoencoder of the diffusion model: 32x32x3 pixels to 16x16x4 latents and back.

The downsampling factor is only two: with four, a network of this size lost the textures and a quarter of the shapes.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from counterpoise.testbed.clip import pixels
from counterpoise.testbed.loop import Trainer, generators
from counterpoise.testbed.pairs import Pair

KL = 1e-3


def make_vae() -> AutoencoderKL:
    """Create the autoencoder with random weights."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=32,
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        scaling_factor=1.0,  # explicit, because diffusers resets a defaulted value to its default on loading
    )


def train_vae(path: Path, pair: Pair, steps: int, batch: int, seed: int) -> Trainer:
    """Train by L1 and squared errors of pixels, and L1 of neighbours' differences, which keeps outlines sharp."""
    torch.manual_seed(seed)
    model = make_vae()

    def loss(step: int) -> torch.Tensor:
        rng, noise = generators(seed, step)
        x = pixels(pair.images(pair.labels(batch, rng), seed=int(rng.integers(2**31)))) * 2 - 1
        posterior = model.encode(x).latent_dist
        y = model.decode(posterior.sample(generator=noise)).sample
        pixel = functional.l1_loss(y, x) + 2 * functional.mse_loss(y, x)
        edge = sum(functional.l1_loss(y.diff(dim=d), x.diff(dim=d)) for d in (2, 3))
        return pixel + 0.5 * edge + KL * posterior.kl().mean() / posterior.mean[0].numel()

    return Trainer(path, model, lr=3e-3, weight_decay=0.0, ema=0.995).fit(steps, loss)


@torch.no_grad()
def encode(model: AutoencoderKL, images: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode uint8 (N, 32, 32, 3) to posterior means and standard deviations, half (N, 4, 16, 16) each, unscaled."""
    mean, std = [], []
    for part in np.array_split(images, max(1, len(images) // 128)):
        posterior = model.encode(pixels(part) * 2 - 1).latent_dist
        mean.append(posterior.mean.half())
        std.append(posterior.std.half())
    return torch.cat(mean), torch.cat(std)


@torch.no_grad()
def reconstruct(model: AutoencoderKL, images: np.ndarray) -> np.ndarray:
    """Reconstruct uint8 images through the posterior mean."""
    out = []
    for part in np.array_split(images, max(1, len(images) // 128)):
        y = model.decode(model.encode(pixels(part) * 2 - 1).latent_dist.mean).sample
        out.append(((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy())
    return np.concatenate(out)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the peak signal-to-noise ratio of uint8 images, in dB."""
    return float(10 * np.log10(255**2 / np.mean((a.astype(np.float32) - b) ** 2)))
