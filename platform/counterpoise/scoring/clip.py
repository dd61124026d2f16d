"""CLIP embeddings: images and texts as unit vectors, whose cosine measures their similarity.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import open_clip
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors import SafetensorError

from counterpoise import config
from counterpoise.core.model_source import is_folder, locate
from counterpoise.errors import ModelError


class Clip:
    """CLIP model of open_clip in memory, in float32.

    Args:
        scorer: The model; a folder must hold ``open_clip_config.json`` and weights.
        device: ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ModelError: The model cannot be loaded.
    """

    def __init__(self, scorer: config.Scorer, device: str) -> None:
        located = locate(scorer.model, "scorer.model")
        name = f"local-dir:{located}" if is_folder(located) else located
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # timm's and quick_gelu's, which a user cannot mend
                model, _, self._preprocess = open_clip.create_model_and_transforms(
                    name, pretrained=scorer.pretrained, device=device
                )
                self._tokenize: Any = open_clip.get_tokenizer(name)
        except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            remedy = "set an architecture and weights of open_clip.list_pretrained(), hf-hub:owner/name or a folder"
            raise ModelError(
                "the scorer cannot be loaded", where="scorer.model", found=f"{scorer.model}: {lines[0]}", remedy=remedy
            ) from error
        self._model, self._device = model.eval(), device
        self._texts: dict[str, np.ndarray] = {}

    @property
    def resizer(self) -> str:
        """Name of the method that resizes images to the model's size: ``bicubic antialias 224 shortest``."""
        settings = self._model.visual.preprocess_cfg
        sides = dict.fromkeys(np.atleast_1d(settings["size"]).tolist())  # one for a square
        return f"{settings['interpolation']} antialias {'×'.join(map(str, sides))} {settings['resize_mode']}"

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, "m d"]:
        """Embed texts as unit vectors."""
        features = self._model.encode_text(self._tokenize(list(texts)).to(self._device), normalize=True)
        return features.float().cpu().numpy()

    def embed_text(self, text: str) -> Float[np.ndarray, " d"]:
        """Embed one text as a unit vector; each distinct text is embedded once, and alone."""
        if text not in self._texts:
            self._texts[text] = self.embed_texts([text])[0]
        return self._texts[text]

    @torch.inference_mode()
    def embed_images(self, images: Sequence[UInt8[np.ndarray, "height width 3"]]) -> Float[np.ndarray, "n d"]:
        """Embed images, uint8 RGB, as unit vectors, in one batch."""
        batch = torch.stack([self._preprocess(Image.fromarray(image)) for image in images])
        features = self._model.encode_image(batch.to(self._device), normalize=True)
        return features.float().cpu().numpy()
