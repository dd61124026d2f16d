"""Procedural world of 32x32 RGB images with known factors: shape, colour and background.

Two renderings of the same world stand for the two sources of images. "web" stands for the training data of a
foundation model: clean and roughly centred. "real" stands for the user's camera: off-centre, blurred, noisy, unevenly
lit. A generator trained on "web" therefore resembles "real" without matching it.

Image i of a call depends only on its three factors, the rendering, the seed and `start + i`: its
random numbers come from `numpy.random.default_rng((seed, code of the rendering, start + i))`, drawn in a fixed order
that the factors do not enter. Two images that differ in their colour alone are therefore counterfactuals of each other.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np

from counterpoise.core.rng import stream
from counterpoise.data.procedural.shapes import SDF

SIZE = 32
SHAPES: tuple[str, ...] = tuple(SDF)
COLORS: tuple[str, ...] = ("red", "yellow", "blue", "white")
BACKGROUNDS: tuple[str, ...] = ("grass", "sand", "water", "brick")
FACTORS: dict[str, tuple[str, ...]] = {"shape": SHAPES, "color": COLORS, "background": BACKGROUNDS}

RGB = np.array([[214, 40, 40], [246, 210, 44], [48, 78, 226], [240, 240, 236]], np.float32) / 255

Rendering = Literal["web", "real"]

# Pose ranges: radius in pixels (low, high), largest offset of the centre in pixels, largest rotation in radians.
POSE = {"web": ((7.5, 10.5), 3.5, 0.3), "real": ((5.0, 11.0), 6.0, 0.6)}
CODE = {"web": 0, "real": 1}
CHUNK = 1024

DEFAULT_TEMPLATE = "a photo of a {color} {shape} on {background}"
FULL_TEMPLATES: tuple[str, ...] = (
    DEFAULT_TEMPLATE,
    "a picture of a {color} {shape} on {background}",
    "an image of a {color} {shape} on {background}",
    "a {color} {shape} on {background}",
)
PARTIAL_TEMPLATES: tuple[str, ...] = (
    "a photo of a {color} {shape}",
    "a photo of a {shape} on {background}",
    "a photo of a {shape}",
    "a photo of a {color} object on {background}",
    "a photo of a {color} object",
    "a photo of an object on {background}",
)


def caption(
    shape: int | str,
    color: int | str,
    background: int | str,
    rng: np.random.Generator | None = None,
    template: str | None = None,
) -> str:
    """Describe the image in words: "a photo of a red star on grass".

    Factors are names or indices into SHAPES, COLORS and BACKGROUNDS. `template` may leave factors out; without one,
    `rng` draws a template (a full one three times in four), and without `rng` it is DEFAULT_TEMPLATE.
    """
    if template is None:
        template = DEFAULT_TEMPLATE if rng is None else draw_template(rng)
    given = {"shape": shape, "color": color, "background": background}
    names = {key: value if isinstance(value, str) else FACTORS[key][value] for key, value in given.items()}
    return template.format(**names)


def draw_template(rng: np.random.Generator) -> str:
    """Draw a full template with probability 0.75 (two in three the default), else one that leaves factors out."""
    u, v = rng.random(2)
    if u >= 0.75:
        return PARTIAL_TEMPLATES[int(v * len(PARTIAL_TEMPLATES))]
    return DEFAULT_TEMPLATE if u < 0.5 else FULL_TEMPLATES[1 + int(v * (len(FULL_TEMPLATES) - 1))]


def render(
    shape: np.ndarray,
    color: np.ndarray,
    background: np.ndarray,
    *,
    rendering: Rendering,
    seed: int,
    start: int = 0,
) -> np.ndarray:
    """Draw N images.

    Args:
        shape: int (N,), indices into SHAPES.
        color: int (N,), indices into COLORS.
        background: int (N,), indices into BACKGROUNDS.
        rendering: "web" or "real".
        seed: Seed of all random numbers.
        start: Address of the first image, so that a large set can be drawn in pieces: rendering images 0..n in one
            call or in several with the matching `start` gives the same bytes.

    Returns:
        uint8 (N, 32, 32, 3).
    """
    if rendering not in POSE:
        raise ValueError(f"rendering must be one of {sorted(POSE)}, not {rendering!r}")
    labels = np.stack(np.broadcast_arrays(np.asarray(shape), np.asarray(color), np.asarray(background)), 1)
    for column, (name, values) in enumerate(FACTORS.items()):
        if labels.size and not 0 <= labels[:, column].min() <= labels[:, column].max() < len(values):
            raise ValueError(f"{name} must lie in 0..{len(values) - 1}: {values}")
    out = np.empty((len(labels), SIZE, SIZE, 3), np.uint8)
    for low in range(0, len(labels), CHUNK):
        part = labels[low : low + CHUNK]
        out[low : low + CHUNK] = _render(part, rendering, _draw(len(part), seed, rendering, start + low))
    return out


class _Random:
    """Random numbers of n images: `u` (n, 24) uniform, `low` (n, 6, 6), `blade` (n, 5, 16), `grain` normal."""

    def __init__(self, n: int) -> None:
        self.u = np.empty((n, 24), np.float32)
        self.low = np.empty((n, 6, 6), np.float32)
        self.blade = np.empty((n, 5, 16), np.float32)
        self.grain = np.empty((n, SIZE, SIZE, 3), np.float32)

    def between(self, column: int, low: float, high: float) -> np.ndarray:
        """Return column `column` of `u` scaled to (low, high), as (n, 1, 1)."""
        return (low + (high - low) * self.u[:, column])[:, None, None]


def _draw(n: int, seed: int, rendering: str, start: int) -> _Random:
    r = _Random(n)
    for i in range(n):
        rng = stream(seed, CODE[rendering], start + i)
        r.u[i] = rng.random(24, dtype=np.float32)
        r.low[i] = rng.standard_normal((6, 6), dtype=np.float32)
        r.blade[i] = rng.standard_normal((5, 16), dtype=np.float32)
        r.grain[i] = rng.standard_normal((SIZE, SIZE, 3), dtype=np.float32)
    return r


def _render(labels: np.ndarray, rendering: str, r: _Random) -> np.ndarray:
    radius, offset, angle = POSE[rendering]
    d, px, py = _distance(labels[:, 0], r, radius, offset, angle)
    smooth = _upsample(r.low)
    image = np.empty((len(labels), SIZE, SIZE, 3), np.float32)
    for index, texture in enumerate(_TEXTURES):
        of = np.flatnonzero(labels[:, 2] == index)
        if len(of):
            image[of] = texture(_take(r, of), smooth[of])
    image *= (1 - 0.3 * np.exp(-np.maximum(d, 0) / 1.6))[
        ..., None
    ]  # a soft contact shadow lifts any colour off any ground
    fill = RGB[labels[:, 1]][:, None, None] * (1 + 0.1 * (r.u[:, 16:19] - 0.5))[:, None, None]
    theta = r.between(19, 0.0, 2 * np.pi)
    shade = 1 + 0.13 * (np.cos(theta) * px + np.sin(theta) * py) + 0.03 * smooth
    shade = shade * (1 - 0.3 * np.clip(1 - np.abs(d + 0.7), 0, 1))  # a darker rim, about one pixel wide
    alpha = np.clip(0.5 - d, 0, 1)[..., None]
    image += alpha * (fill * shade[..., None] - image)
    image = _camera(image, r) if rendering == "real" else image + 0.012 * r.grain
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _distance(
    shape: np.ndarray, r: _Random, radius: tuple[float, float], offset: float, angle: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute the signed distance to the outline in pixels (n, 32, 32), negative inside, and object coordinates."""
    size, turn = r.between(0, *radius), r.between(1, -angle, angle)
    x = GRID[None, None, :] - r.between(2, -offset, offset)
    y = GRID[None, :, None] - r.between(3, -offset, offset)
    px = (np.cos(turn) * x + np.sin(turn) * y) / size
    py = (-np.sin(turn) * x + np.cos(turn) * y) / size
    d = np.empty_like(px)
    for index, name in enumerate(SHAPES):
        of = np.flatnonzero(shape == index)
        if len(of):
            d[of] = SDF[name](px[of], -py[of])  # the formulas take y upwards
    return d * size, px, py


def _take(r: _Random, of: np.ndarray) -> _Random:
    part = _Random(0)
    part.u, part.low, part.blade, part.grain = r.u[of], r.low[of], r.blade[of], r.grain[of]
    return part


def _interpolation(n: int) -> np.ndarray:
    """Return the (32, n) matrix of linear interpolation from n evenly spaced knots, the outer two on the border."""
    at = np.linspace(0, n - 1, SIZE)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(n))).astype(np.float32)


GRID = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
_UP = {n: _interpolation(n) for n in (5, 6, 16)}


def _upsample(grid: np.ndarray) -> np.ndarray:
    """Resize (n, h, w) to (n, 32, 32), bilinear."""
    return _UP[grid.shape[1]] @ grid @ _UP[grid.shape[2]].T


def _grass(r: _Random, smooth: np.ndarray) -> np.ndarray:
    light = 1 + 0.1 * smooth + 0.16 * _upsample(r.blade)
    return light[..., None] * (np.array([74, 128, 52], np.float32) / 255)


def _sand(r: _Random, smooth: np.ndarray) -> np.ndarray:
    slope, phase = r.between(4, -0.5, 0.5), r.between(5, 0.0, 2 * np.pi)
    ripple = np.sin(2 * np.pi * (GRID[None, :, None] + slope * GRID[None, None, :]) / 9 + phase + 0.8 * smooth)
    light = 1 + 0.05 * smooth + 0.035 * ripple + 0.02 * r.grain[..., 0]
    return light[..., None] * (np.array([196, 164, 116], np.float32) / 255)


def _water(r: _Random, smooth: np.ndarray) -> np.ndarray:
    length, phase, bend = r.between(4, 5.0, 8.0), r.between(5, 0.0, 2 * np.pi), r.between(6, 0.0, 2 * np.pi)
    wave = GRID[None, :, None] / length + 0.22 * np.sin(2 * np.pi * GRID[None, None, :] / 18 + bend)
    crest = np.sin(2 * np.pi * wave + phase + 0.5 * smooth)[..., None]
    return np.array([30, 100, 120], np.float32) / 255 + crest * np.array([0.06, 0.09, 0.10], np.float32)


def _brick(r: _Random, smooth: np.ndarray) -> np.ndarray:
    x = GRID[None, None, :] + r.between(4, 0.0, 12.0) + SIZE
    y = GRID[None, :, None] + r.between(5, 0.0, 7.0) + SIZE
    row = np.floor(y / 7)
    along = np.mod(x + 6 * np.mod(row, 2), 12)
    joint = np.maximum(np.clip(1.6 - np.mod(y, 7), 0, 1), np.clip(1.6 - along, 0, 1))[..., None]
    stone = (1 + 0.09 * smooth)[..., None] * (np.array([124, 70, 54], np.float32) / 255)
    return stone + joint * (np.array([168, 158, 146], np.float32) / 255 - stone)


_TEXTURES: tuple[Callable[[_Random, np.ndarray], np.ndarray], ...] = (_grass, _sand, _water, _brick)


def _camera(image: np.ndarray, r: _Random) -> np.ndarray:
    """Simulate the user's camera: blur, uneven light, exposure, white balance, sensor noise."""
    a = r.between(8, 0.0, 0.28)[..., None]
    for _ in range(2):  # [a, 1 - 2a, a] twice along each axis: a Gaussian of up to 1.06 pixels
        for axis in (1, 2):
            pad = np.pad(image, [(0, 0)] + [(int(k == axis),) * 2 for k in (1, 2)] + [(0, 0)], mode="edge")
            before = pad[:, :-2] if axis == 1 else pad[:, :, :-2]
            after = pad[:, 2:] if axis == 1 else pad[:, :, 2:]
            image = image + a * (before + after - 2 * image)
    theta, slope = r.between(9, 0.0, 2 * np.pi), r.between(10, 0.0, 0.45)
    plane = (np.cos(theta) * GRID[None, None, :] + np.sin(theta) * GRID[None, :, None]) / (SIZE / 2)
    light = r.between(11, 0.55, 1.2) * (1 + slope * plane)
    balance = (1 + 0.2 * (r.u[:, 12:15] - 0.5))[:, None, None]
    return image * light[..., None] * balance + r.between(15, 0.02, 0.06)[..., None] * r.grain
