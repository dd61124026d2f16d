"""Sampling of a shard by the generator, with its condition images and its guide classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from counterpoise.config import Generator
from counterpoise.generators.guidance import Guide
from counterpoise.generators.image_adapter import ImageAdapter
from counterpoise.generators.image_variation import ImageVariation
from counterpoise.generators.text_to_image import Samples, TextToImage
from counterpoise.synthesis.feedback import classifier as feedback
from counterpoise.synthesis.pool import shard as making
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.condition_images import Conditions

if TYPE_CHECKING:
    from counterpoise.synthesis.pool.sampling_spec import SamplingSpec


class ShardSampler:
    """The generator, condition images and guide, in memory.

    Raises:
        CounterpoiseError: One of them cannot be loaded.
    """

    def __init__(self, work: SamplingSpec) -> None:
        self.recipe, device = work.recipe, work.devices.generator
        self.generator = _family(work.generator)(work.generator, device, work.devices.dtype)
        self.conditions = None if work.conditions is None else Conditions(work.conditions)
        self.guides = None if work.guide is None else feedback.guides(work.guide, device)
        self.device = device

    def draw(self, shard: Shard) -> making.SampledShard:
        """Return the shard's pixels, and each image's condition and criterion."""

        def sample(prompts: Sequence[str], negative: str, seeds: Sequence[int]) -> Samples:
            conditions = self._conditions(shard, seeds)
            return self.generator.sample(prompts, negative, seeds, conditions, self._guide(shard, len(seeds)))

        draft = making.draw(sample, self.recipe, shard)
        if self.conditions is not None:
            draft.condition_ids = list(self.conditions.ids(self.conditions.draw(shard.label, shard.group, draft.seeds)))
        if self.guides is not None:
            draft.criteria = self._criteria(draft, shard)
        return draft

    def _conditions(self, shard: Shard, seeds: Sequence[int]) -> list[np.ndarray]:
        if self.conditions is None:
            return []
        return self.conditions.images(self.conditions.draw(shard.label, shard.group, seeds))

    def _guide(self, shard: Shard, images: int) -> Guide | None:
        return None if self.guides is None else self.guides(torch.full((images,), shard.label))

    @torch.no_grad()
    def _criteria(self, draft: making.SampledShard, shard: Shard) -> list[float | None]:
        """Return the criteria of the finished images; None for a defective one."""
        usable = [row for row, defect in enumerate(draft.defects) if defect is None]
        values: list[float | None] = [None] * len(draft.defects)
        guide = self._guide(shard, len(usable))
        if usable and guide is not None:
            pixels = torch.from_numpy(np.stack([draft.pixels[row] for row in usable])).to(self.device)
            for row, value in zip(usable, guide.criterion(pixels.permute(0, 3, 1, 2) / 255).tolist(), strict=True):
                values[row] = value
        return values


def _family(generator: Generator) -> type[TextToImage]:
    if generator.condition is None:
        return TextToImage
    return ImageVariation if generator.condition.adapter is None else ImageAdapter
