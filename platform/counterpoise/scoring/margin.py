"""CLIP margins and zero-shot classes: the fit of images to their cell's prompt against rival cells' prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def margin(
    images: Float[np.ndarray, "n d"], texts: Float[np.ndarray, "m d"], own: int, rivals: Int[np.ndarray, " r"]
) -> Float[np.ndarray, " n"]:
    """Compute the cosine with the images' own text minus the largest one with a rival text.

    Args:
        images: Unit vectors of the images.
        texts: Unit vectors of the texts.
        own: Index of the images' own text.
        rivals: Indices of the rival texts. Without any, the margin is infinite.

    Returns:
        Margins in [-2, 2], or infinity.
    """
    cosines = images @ texts.T
    return cosines[:, own] - cosines[:, rivals].max(axis=1, initial=-np.inf)


def nearest(
    images: Float[np.ndarray, "n d"], texts: Float[np.ndarray, "m d"], own: int, rivals: Int[np.ndarray, " r"]
) -> Int[np.ndarray, " n"]:
    """Return the index of the text nearest to each image: zero-shot classification (Radford et al. 2021, sec. 3.1).

    The own text wins ties. Texts equal to it are not among the rivals, so they never take its images.
    """
    options = np.concatenate([[own], rivals]).astype(np.int64)
    return options[np.argmax(images @ texts[options].T, axis=1)]


def rivals_of(own: int, prompts: Sequence[str]) -> Int[np.ndarray, " r"]:
    """Return the indices of the prompts that differ from prompt ``own``."""
    return np.flatnonzero([prompt != prompts[own] for prompt in prompts])
