"""Sampling from prompts and the embedding of a real image, by a text-to-image pipeline with an IP-Adapter.

Ye et al., "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models", 2023: every
cross-attention of the denoiser gets a second pair of key and value projections, for the image.

Diffusers shares its image prompts among *all* prompts of a batch: it takes a list as several pictures for each prompt,
and repeats embeddings for every prompt. Its denoiser does accept one picture per image, so the pipeline's repetition is
switched off here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from diffusers.loaders import IPAdapterMixin
from diffusers.models.embeddings import ImageProjection
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from transformers import CLIPVisionModelWithProjection

from counterpoise import config
from counterpoise.core.model_source import is_folder, locate
from counterpoise.errors import ModelError
from counterpoise.generators.image_variation import drop_out
from counterpoise.generators.text_to_image import TextToImage, first_line

_WHERE = "generator.condition.adapter"


class ImageAdapter(TextToImage):
    """Pipeline of Stable Diffusion 1, 2 or XL with its adapter in memory; arguments of :class:`TextToImage`.

    Raises:
        ModelError: The adapter cannot be loaded, or does not fit the pipeline or its image encoder.
        CounterpoiseError: As of :class:`TextToImage`.
    """

    def __init__(self, generator: config.Generator, device: str, dtype: str) -> None:
        super().__init__(generator, device, dtype)
        assert generator.condition is not None
        assert generator.condition.adapter is not None
        self.condition = generator.condition
        _attach(self.pipeline, generator.condition.adapter)
        self._check_encoder(generator.condition.adapter)

    @torch.no_grad()
    def _image_condition(
        self, conditions: Sequence[UInt8[np.ndarray, "height width 3"]], seeds: Sequence[int]
    ) -> dict[str, Any]:
        embeds, without = self._embed([Image.fromarray(image) for image in conditions])
        dropped = drop_out(embeds.flatten(1), self.condition, seeds).view_as(embeds)
        # a distilled model takes the scale as an input and has no unconditional half
        distilled = getattr(self.pipeline.unet.config, "time_cond_proj_dim", None) is not None
        doubled = self.config.guidance_scale > 1 and not distilled
        return {"ip_adapter_image_embeds": [(torch.cat([without, dropped]) if doubled else dropped)[:, None]]}

    def _embed(self, pictures: list[Image.Image]) -> tuple[Float[Tensor, "n ..."], Float[Tensor, "n ..."]]:
        """Embed the pictures, and as many empty ones: pooled or per patch, as the adapter needs."""
        (projection,) = self.pipeline.unet.encoder_hid_proj.image_projection_layers
        patches = not isinstance(projection, ImageProjection)
        return self.pipeline.encode_image(pictures, torch.device(self.device), 1, patches)

    @torch.no_grad()
    def _check_encoder(self, adapter: config.Adapter) -> None:
        """Raise ModelError if the image encoder does not fit the adapter, which loading does not check."""
        try:
            embeds, _ = self._embed([Image.new("RGB", (64, 64))])
            self.pipeline.unet.encoder_hid_proj([embeds[:, None]])
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            raise ModelError(
                "the adapter does not fit its image encoder",
                where=f"{_WHERE}.encoder",
                found=f"{adapter.encoder} with {adapter.weights}: {first_line(error)}",
                remedy="name the CLIP vision tower that the adapter was trained with; face adapters are unsupported",
            ) from error


def _attach(pipeline: Any, adapter: config.Adapter) -> None:
    """Load encoder and adapter into the pipeline."""
    if not isinstance(pipeline, IPAdapterMixin):
        raise ModelError(
            "the pipeline takes no adapter",
            where=_WHERE,
            found=type(pipeline).__name__,
            allowed="pipelines of Stable Diffusion 1, 2 and XL",
        )
    located = locate(adapter.model, f"{_WHERE}.model")
    source: dict[str, Any] = {
        "revision": None if is_folder(located) else adapter.revision,
        "local_files_only": is_folder(located),
    }
    weights = PurePosixPath(adapter.weights)
    folder = "" if weights.parent == PurePosixPath() else str(weights.parent)
    try:
        # not by load_ip_adapter, which always takes the encoder from the hub's main branch
        encoder = CLIPVisionModelWithProjection.from_pretrained(
            located, subfolder=adapter.encoder, dtype=pipeline.unet.dtype, **source
        )
        pipeline.register_modules(image_encoder=encoder.requires_grad_(False).to(pipeline.device))
        pipeline.load_ip_adapter(located, folder, weights.name, image_encoder_folder=None, **source)
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise ModelError(
            "the adapter cannot be loaded into this pipeline",
            where=_WHERE,
            found=f"{adapter.model}, {adapter.weights}: {first_line(error)}",
            remedy="name an adapter that was trained for the pipeline's family, and its image encoder",
        ) from error
    pipeline.unet.requires_grad_(False)
    pipeline.set_ip_adapter_scale(adapter.scale)
    pipeline.prepare_ip_adapter_image_embeds = _as_given


def _as_given(ip_adapter_image: None, ip_adapter_image_embeds: list[Tensor], *_: Any, **__: Any) -> list[Tensor]:
    """Return the embeddings unchanged, in place of the pipeline's method, which repeats them for every prompt."""
    return ip_adapter_image_embeds
