"""Denoiser of the diffusion model, trained on cached latents with the CLIP's frozen text tower as its condition.

The noise schedule is the cosine with a terminal signal-to-noise ratio of exactly zero (Lin et al. 2024,
https://arxiv.org/abs/2305.08891), the target is the velocity. The usual "scaled linear" schedule was designed for 64x64
latents; on 16x16, with less redundancy between neighbours, half its steps are almost pure noise. Times are drawn mostly
from a logit-normal (Esser et al. 2024, https://arxiv.org/abs/2403.03206): shapes are determined at middle noise.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

from counterpoise.testbed.clip import WIDTH
from counterpoise.testbed.loop import Trainer, generators, plateau
from counterpoise.testbed.pairs import Pair

LEARNING_RATE = {"shapes": 4e-3, "fashion": 2e-3}  # Muon's; AdamW at 2e-3 was worse at equal CPU time on both
UNCONDITIONAL = 0.1  # probability that a caption is replaced by the empty one, for classifier-free guidance


def make_unet(**changes: Any) -> UNet2DConditionModel:
    """Create the denoiser with random weights; `changes` override its settings."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=WIDTH,
        norm_num_groups=8,
        **changes,
    )


def make_scheduler() -> DDIMScheduler:
    """Create the noise schedule: cosine with zero terminal SNR, velocity prediction."""
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def draw_times(n: int, noise: torch.Generator) -> torch.Tensor:
    """Draw times, int64 (n,) in 0..999, stratified: one in five uniform, the others logit-normal."""
    u = (torch.randperm(n, generator=noise) + torch.rand(n, generator=noise)) / n
    bent = torch.sigmoid(0.2 + 1.1 * torch.special.ndtri(u.clamp(1e-4, 1 - 1e-4)))
    t = torch.where(torch.rand(n, generator=noise) < 0.2, u, bent)
    return (t * 1000).long().clamp(0, 999)


def velocity_loss(
    model: Callable[..., tuple[torch.Tensor]],
    pair: Pair,
    latents: dict[str, torch.Tensor],
    texts: dict[str, torch.Tensor],
    batch: int,
    seed: int,
    scale: float = 1.0,
    condition: Callable[[np.ndarray, np.random.Generator, torch.Generator], torch.Tensor] | None = None,
) -> Callable[[int], torch.Tensor]:
    """Build the loss of a step: the mean squared error of the model's velocities on the step's batch.

    Args:
        model: The denoiser.
        pair: Source of the captions.
        latents: Posteriors `mean` and `std`, half (N, 4, 16, 16), and `labels`, int (N, F).
        texts: Caption -> float (CONTEXT, WIDTH), the text tower's hidden states; including the empty caption.
        batch: Batch size.
        seed: Seed of the batches, captions and noise.
        scale: Factor that gives the latents unit variance.
        condition: Function from rows to a further input of the model, its `class_labels`, float (batch, C).
    """
    signal, labels = make_scheduler().alphas_cumprod, latents["labels"].numpy()

    def loss(step: int) -> torch.Tensor:
        rng, noise = generators(seed, step)
        rows = rng.integers(len(labels), size=batch)
        captions, _ = pair.captions(labels[rows], rng)
        drop = rng.random(batch) < UNCONDITIONAL
        text = torch.stack([texts["" if d else c] for c, d in zip(captions, drop, strict=True)])
        mean, std = latents["mean"][rows].float(), latents["std"][rows].float()
        clean = scale * (mean + std * torch.randn(mean.shape, generator=noise))
        eps, t = torch.randn(mean.shape, generator=noise), draw_times(batch, noise)
        a, s = signal[t].sqrt().view(-1, 1, 1, 1), (1 - signal[t]).sqrt().view(-1, 1, 1, 1)
        extra = condition(rows, rng, noise) if condition else None
        v = model(a * clean + s * eps, t, text, class_labels=extra, return_dict=False)[0]
        return functional.mse_loss(v, a * eps - s * clean)

    return loss


def train_unet(
    path: Path,
    pair: Pair,
    latents: dict[str, torch.Tensor],
    texts: dict[str, torch.Tensor],
    steps: int,
    batch: int,
    seed: int,
    on_save: Callable[[Trainer], object] | None = None,
) -> Trainer:
    """Train the denoiser on `latents` of unit variance and `texts`; see :func:`velocity_loss`."""
    torch.manual_seed(seed)
    model = make_unet()
    loss = velocity_loss(model, pair, latents, texts, batch, seed)
    trainer = Trainer(path, model, lr=LEARNING_RATE[pair.name], ema=0.998, muon=True)
    return trainer.fit(steps, loss, schedule=plateau, on_save=on_save)


@torch.no_grad()
def embed_captions(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, pair: Pair) -> dict[str, torch.Tensor]:
    """Return caption -> float (CONTEXT, WIDTH), for every caption of the pair and the empty one."""
    captions = ["", *pair.vocabulary()]
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return dict(zip(captions, encoder(ids).last_hidden_state, strict=True))
