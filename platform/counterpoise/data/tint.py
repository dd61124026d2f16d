"""Tints: a nuisance colour multiplied onto a grey photograph, like a coloured light."""

import numpy as np

TINTS: dict[str, tuple[int, int, int]] = {
    "red": (255, 70, 70),
    "green": (70, 225, 90),
    "blue": (80, 115, 255),
    "yellow": (255, 225, 60),
    "grey": (255, 255, 255),
}
"""Name of a tint -> RGB of white under it. "grey" leaves a photograph unchanged."""


def tint(grey: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """Multiply each grey image by a colour; black stays black.

    Args:
        grey: uint8 (N, H, W).
        rgb: uint8 (N, 3), one colour per image.

    Returns:
        uint8 (N, H, W, 3), rounded.
    """
    if grey.dtype != np.uint8 or rgb.dtype != np.uint8:
        raise TypeError(f"grey and rgb must be uint8, not {grey.dtype} and {rgb.dtype}")
    if grey.ndim != 3 or rgb.shape != (len(grey), 3):
        raise ValueError(f"grey must be (N, H, W) and rgb (N, 3), not {grey.shape} and {rgb.shape}")
    product = grey[..., None].astype(np.uint16) * rgb[:, None, None, :]
    return ((product + 127) // 255).astype(np.uint8)
