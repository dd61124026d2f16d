"""How well images fit their prompt, and whether the prompt of another cell fits better. Plain arrays.

CLIP score: Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", 2021 (here without its
factor of 2.5 and without cutting off negative values).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int


def similarity_and_margin(
    images: Float[np.ndarray, "n d"], texts: Float[np.ndarray, "m d"], own: int, rivals: Int[np.ndarray, " r"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Cosine with the own text, and its lead over the best of the rivals.

    Args:
        images: Unit vectors.
        texts: Unit vectors.
        own: Which text the images were asked for.
        rivals: Which texts they could be mistaken for. Without any, the lead is infinite.

    Returns:
        Similarities in [-1, 1]; margins in [-2, 2], or infinity.
    """
    cosines = images @ texts.T
    best_rival = cosines[:, rivals].max(axis=1, initial=-np.inf)
    return cosines[:, own], cosines[:, own] - best_rival


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
