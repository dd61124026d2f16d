"""Feature extractors for realism measures, and the features of a view.

Values of FID, density and coverage are comparable only under the same extractor and resizer: so an extractor carries
the names of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8

from counterpoise import config
from counterpoise.core.progress import Progress
from counterpoise.errors import ModelError
from counterpoise.storage.view import ImageView

Images = Sequence[UInt8[np.ndarray, "height width 3"]]
_BATCH = 64
_INCEPTION_SIZE = 299

# Name and file of torchvision's weights, whose module takes more than a second to import
INCEPTION, _INCEPTION_FILE = "Inception_V3_Weights.IMAGENET1K_V1", "inception_v3_google-0cc3c7bd.pth"


@dataclass(frozen=True)
class Extractor:
    """Network that embeds images.

    Attributes:
        name: Name of the network and its weights.
        resizer: Name of the method that resizes images to the network's size.
        size: Height and width that :func:`features` decodes images to; None if ``embed`` resizes them itself.
        embed: Function from a batch of images to their features, (n, d).
    """

    name: str
    resizer: str
    size: int | None
    embed: Callable[[Images], Float[np.ndarray, "n d"]]


def bilinear(size: int) -> str:
    """Return the name of the resizer of :func:`counterpoise.storage.codec.decode_image`."""
    return f"bilinear antialias {size}"


def clip(scorer: config.Scorer, device: str) -> Extractor:
    """Load a CLIP image tower; features are unit vectors. Raises ModelError if it cannot be loaded."""
    from counterpoise.scoring.clip import Clip  # open_clip takes seconds to import

    model = Clip(scorer, device)
    name = f"{scorer.model} {scorer.pretrained}" if scorer.pretrained else scorer.model
    return Extractor(f"CLIP {name}", f"{model.resizer} (open_clip)", None, model.embed_images)


def has_inception() -> bool:
    """Return True if Inception's weights are in torch's hub cache."""
    return _inception_path().is_file()


def check_inception() -> None:
    """Raise ModelError unless Inception's weights are in torch's hub cache; nothing is ever downloaded."""
    if not has_inception():
        raise ModelError(
            "Inception's weights are not on this machine",
            where="realism.extractor",
            found=f"nothing at {_inception_path()}",
            allowed="auto, clip (the scorer), model, none; inception once its weights are downloaded",
            remedy="download them: python -c \"from torchvision.models import *; inception_v3(weights='DEFAULT')\"",
        )


def inception(device: str) -> Extractor:
    """Load torchvision's Inception v3: the 2,048 features before the last layer.

    FIDs in papers are mostly measured with another conversion of Inception and other resizers: values from here are
    comparable with each other, not with those.

    Raises:
        ModelError: The weights are not in the cache, or cannot be loaded.
    """
    from torchvision.models import inception_v3

    check_inception()
    path = _inception_path()
    model = inception_v3(weights=None, init_weights=False, transform_input=False)
    try:
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a truncated file makes torch raise almost anything
        remedy = "delete the file and download it again"
        raise ModelError(
            "Inception's weights cannot be loaded", where=path, found=type(error).__name__, remedy=remedy
        ) from error
    model.fc = torch.nn.Identity()
    model.eval().to(device)

    @torch.inference_mode()
    def embed(images: Images) -> Float[np.ndarray, "n d"]:
        batch = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2)
        return model(batch.float() / 127.5 - 1).cpu().numpy()

    return Extractor(f"torchvision {INCEPTION}", bilinear(_INCEPTION_SIZE), _INCEPTION_SIZE, embed)


def _inception_path() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", _INCEPTION_FILE)


def features(view: ImageView, extractor: Extractor, progress: Progress | None = None) -> Float[np.ndarray, "n d"]:
    """Compute the features of a view's images, in its order. Images are streamed; a few hundred are in memory.

    Args:
        view: The images, at least one.
        extractor: The network.
        progress: Progress to advance by each batch.

    Raises:
        DataError: An image cannot be read.
    """
    collected = None
    decoded = view.decoded(extractor.size)
    while batch := list(islice(decoded, _BATCH)):
        positions, images = zip(*batch, strict=True)
        embedded = extractor.embed(images)
        if collected is None:
            collected = np.empty((len(view), embedded.shape[1]), np.float32)
        collected[list(positions)] = embedded
        if progress is not None:
            progress.advance(len(batch))
    if collected is None:
        raise ValueError("features of no image have no dimension")
    return collected


def stored(view: ImageView, progress: Progress | None = None) -> Float[np.ndarray, "n d"] | None:
    """Return the scorer's vectors stored with synthetic images, in the view's order; None unless each image has one.

    They equal :func:`clip`'s features of the images up to float16 rounding, and no pixels are read.
    """
    vectors = view.embeddings()
    if not vectors.size or np.isnan(vectors).any():
        return None
    if progress is not None:
        progress.advance(len(view))
    return vectors
