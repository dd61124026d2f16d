"""CLIP scoring: our embedding of decoded images against a bare loop of open_clip."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import open_clip
import torch
from PIL import Image

from counterpoise.config import Scorer
from counterpoise.scoring.clip import Clip
from gpu.cases import Case, Row, Setting
from gpu.models import DEVICE, save_clip
from gpu.timing import Box, take_turns, typical_seconds

GOAL = 0.95


def scoring(setting: Setting) -> Iterator[Case]:
    """Cases of two architectures on images of 512 pixels a side, as a generator makes them."""
    side, batches = (16, (2,)) if setting.tiny else (512, (16, 64))
    for architecture in ("ViT-B-32", "ViT-L-14"):
        folder = save_clip(architecture, setting.folder, setting.tiny)
        clip = Clip(Scorer(model=folder), DEVICE)
        model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", device=DEVICE)
        for batch in batches:
            images = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
            yield Case(
                f"{architecture}, {side} px, batch {batch}",
                functools.partial(_scoring, clip, model.eval(), preprocess, images),
            )
        del clip, model
        torch.cuda.empty_cache()


def _scoring(clip: Clip, model: torch.nn.Module, preprocess, images: np.ndarray, box: Box) -> Row:
    @torch.inference_mode()
    def bare() -> None:
        batch = torch.stack([preprocess(Image.fromarray(image)) for image in images]).to(DEVICE)
        model.encode_image(batch, normalize=True).cpu()

    ready = torch.stack([preprocess(Image.fromarray(image)) for image in images]).to(DEVICE)
    with torch.inference_mode():
        alone = typical_seconds(lambda: model.encode_image(ready, normalize=True))
    paired = take_turns(lambda: clip.embed_images(list(images)), bare, box)
    return paired.row(len(images), paired.speed, GOAL) | {"model_alone_images_per_second": len(images) / alone}
