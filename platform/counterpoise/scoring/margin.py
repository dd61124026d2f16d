"""Whether images fit the prompt of their cell better than those of others. Plain arrays of CLIP's unit vectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def margin(
    images: Float[np.ndarray, "n d"], texts: Float[np.ndarray, "m d"], own: int, rivals: Int[np.ndarray, " r"]
) -> Float[np.ndarray, " n"]:
    """The lead of the own text's cosine over that of the best rival.

    Args:
        images: Unit vectors.
        texts: Unit vectors.
        own: Which text the images were asked for.
        rivals: Which texts they could be mistaken for. Without any, the lead is infinite.

    Returns:
        Margins in [-2, 2], or infinity.
    """
    cosines = images @ texts.T
    return cosines[:, own] - cosines[:, rivals].max(axis=1, initial=-np.inf)


def nearest(
    images: Float[np.ndarray, "n d"], texts: Float[np.ndarray, "m d"], own: int, rivals: Int[np.ndarray, " r"]
) -> Int[np.ndarray, " n"]:
    """Which text fits each image best: zero-shot classification (Radford et al. 2021, section 3.1).

    The own text wins ties; texts that say the same as it are no rivals, so they never take its images.
    """
    options = np.concatenate([[own], rivals]).astype(np.int64)
    return options[np.argmax(images @ texts[options].T, axis=1)]


def rivals_of(own: int, prompts: Sequence[str]) -> Int[np.ndarray, " r"]:
    """The prompts that say something else than prompt ``own``."""
    return np.flatnonzero([prompt != prompts[own] for prompt in prompts])
