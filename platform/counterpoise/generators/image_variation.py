"""Sampling from prompts and the embedding of a real image, by Stable unCLIP.

Askari Hemmat et al., "Feedback-guided Data Synthesis for Imbalanced Classification", TMLR 2024, section 3: a condition
image keeps samples close to the real data, and dropout on its embedding prevents copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from counterpoise import config
from counterpoise.core.rng import dropout_bits
from counterpoise.generators.text_to_image import TextToImage


class ImageVariation(TextToImage):
    """StableUnCLIPImg2ImgPipeline in memory; arguments and errors as of :class:`TextToImage`."""

    family = "StableUnCLIPImg2ImgPipeline"

    @torch.no_grad()
    def _image_condition(
        self, conditions: Sequence[UInt8[np.ndarray, "height width 3"]], seeds: Sequence[int]
    ) -> dict[str, Any]:
        assert self.config.condition is not None
        pictures = [Image.fromarray(image) for image in conditions]
        pixels = self.pipeline.feature_extractor(images=pictures, return_tensors="pt").pixel_values
        encoder = self.pipeline.image_encoder
        embeds = encoder(pixels.to(self.device, encoder.dtype)).image_embeds
        return {
            "image_embeds": drop_out(embeds, self.config.condition, seeds),
            "noise_level": self.config.condition.noise_level,
        }


def drop_out(embeds: Float[Tensor, "n d"], condition: config.Condition, seeds: Sequence[int]) -> Float[Tensor, "n d"]:
    """Set parts of each image's embedding to zero.

    The paper states dropout with probability p only. Elements are dropped independently, and kept ones are rescaled
    only with ``condition.rescale``.

    Args:
        embeds: Embeddings, one per image.
        condition: Settings of the dropout.
        seeds: Seeds, one per image. Each determines its mask, by other bits than those of its noise.
    """
    if not condition.dropout:
        return embeds
    parts = embeds.shape[1] if condition.dropout_of == "element" else 1
    draws = [torch.rand(parts, generator=torch.Generator().manual_seed(dropout_bits(seed))) for seed in seeds]
    kept = (torch.stack(draws) >= condition.dropout).to(embeds)
    return embeds * kept / (1 - condition.dropout if condition.rescale else 1)
