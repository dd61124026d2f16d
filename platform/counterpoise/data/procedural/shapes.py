"""Signed distances of the eight shapes, in units of the shape's radius: negative inside, zero on the outline.

Each function takes two float arrays of equal shape, x to the right and y upwards, and returns an array of that shape.
The distances are exact near the outline, as anti-aliasing needs. The star's and the heart's formulas follow
Inigo Quilez, "2D distance functions" (https://iquilezles.org/articles/distfunctions2d/).
"""

from collections.abc import Callable

import numpy as np


def circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance to a circle."""
    return np.hypot(x, y) - 0.92


def square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance to a square."""
    return _box(x, y, 0.84, 0.84)


def triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance to a triangle."""
    y = y + 0.12
    side = np.abs(x) * (np.sqrt(3) / 2) + y * 0.5
    return np.maximum(side, -y) - 0.58


def star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance to a five-pointed star."""
    radius, inner = 1.16, 0.46
    k1, k2 = (0.809016994375, -0.587785252292), (-0.809016994375, -0.587785252292)
    x = np.abs(x)
    for kx, ky in (k1, k2):
        over = 2 * np.maximum(kx * x + ky * y, 0)
        x, y = x - over * kx, y - over * ky
    x, y = np.abs(x), y - radius
    bx, by = inner * 0.587785252292, inner * 0.809016994375 - 1
    along = np.clip((x * bx + y * by) / (bx * bx + by * by), 0, radius)
    return np.hypot(x - bx * along, y - by * along) * np.sign(y * bx - x * by)


def cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance to a cross."""
    return np.minimum(_box(x, y, 1.0, 0.33), _box(x, y, 0.33, 1.0))


def ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance to a ring."""
    return np.abs(np.hypot(x, y) - 0.74) - 0.24


def heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance to a heart."""
    scale = 1.78
    x, y = np.abs(x) / scale, y / scale + 0.56
    lobe = np.hypot(x - 0.25, y - 0.75) - np.sqrt(2) / 4
    along = 0.5 * np.maximum(x + y, 0)
    flank = np.sqrt(np.minimum(x**2 + (y - 1) ** 2, (x - along) ** 2 + (y - along) ** 2)) * np.sign(x - y)
    return scale * np.where(x + y > 1, lobe, flank)


def crescent(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the signed distance to a crescent."""
    return np.maximum(np.hypot(x + 0.1, y) - 0.98, 0.78 - np.hypot(x - 0.42, y - 0.14))


def _box(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


SDF: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    f.__name__: f for f in (circle, square, triangle, star, cross, ring, heart, crescent)
}
