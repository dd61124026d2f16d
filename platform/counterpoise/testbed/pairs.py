"""Training data of a generator and its CLIP: images with known factors, and captions that are true of them.

A `Pair` is the only difference between the shapes and the fashion models; the training code depends on nothing else.
"""

import gzip
import struct
from abc import ABC, abstractmethod
from itertools import product
from pathlib import Path

import numpy as np

from counterpoise.data.procedural import world
from counterpoise.data.tint import TINTS, tint

CLASSES: tuple[str, ...] = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
_FASHION_FULL = ("a photo of a {tint} {class}", "a picture of a {tint} {class}", "an image of a {tint} {class}")
_FASHION_PARTIAL = ("a photo of a {class}", "a picture of a {class}", "a photo of a {tint} object")


class Pair(ABC):
    """Labelled source of images. Labels are int (N, F), one column per factor, in the order of `factors`."""

    name: str
    data: str  # for the model card
    factors: dict[str, tuple[str, ...]]
    full: tuple[str, ...]  # caption templates that name every factor; the first is the default
    partial: tuple[str, ...]
    probes: dict[str, str]  # factor -> the template for zero-shot classification by that factor alone

    @abstractmethod
    def images(self, labels: np.ndarray, seed: int, start: int = 0) -> np.ndarray:
        """Return training images of the generator, uint8 (N, 32, 32, 3), the same for the same arguments."""

    @abstractmethod
    def held_out(self, labels: np.ndarray, seed: int) -> np.ndarray:
        """Return images like `images`, but never used in training."""

    @abstractmethod
    def judge_images(self, labels: np.ndarray, seed: int) -> np.ndarray:
        """Return training images of the oracle, from a wider distribution than the generator's."""

    def cells(self) -> np.ndarray:
        """Return all combinations of the factors, int (cells, F)."""
        return np.array(list(product(*(range(len(values)) for values in self.factors.values()))))

    def labels(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Draw n labels in which each cell is equally frequent, in random order."""
        cells = self.cells()
        return rng.permutation(np.resize(cells[rng.permutation(len(cells))], (n, cells.shape[1])))

    def masked(self, labels: np.ndarray, template: str) -> np.ndarray:
        """Return the labels that a caption claims: -1 for every factor that the template leaves out."""
        named = [("{%s}" % key) in template for key in self.factors]  # noqa: UP031
        return np.where(named, labels, -1)

    def fill(self, template: str, label: np.ndarray) -> str:
        """Fill a template: "a photo of a {color} {shape}" and (3, 1, 2) give "a photo of a red star"."""
        names = {key: values[max(0, int(i))] for (key, values), i in zip(self.factors.items(), label, strict=True)}
        return template.format(**names)

    def captions(self, labels: np.ndarray, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
        """Draw a caption for each label, and the labels it claims, int (N, F) with -1 for factors left out.

        One in two uses the default template, one in four another full one, one in four leaves factors out.
        """
        texts, claims = [], []
        for label, (u, v) in zip(labels, rng.random((len(labels), 2)), strict=True):
            others = self.partial if u >= 0.75 else self.full[1:]
            template = self.full[0] if u < 0.5 else others[int(v * len(others))]
            texts.append(self.fill(template, label))
            claims.append(self.masked(label, template))
        return texts, np.array(claims)

    def vocabulary(self) -> list[str]:
        """Return every caption once, for the tokenizer and for the cache of text embeddings."""
        captions = {self.fill(t, cell): None for t in (*self.full, *self.partial) for cell in self.cells()}
        return list(captions)


class Shapes(Pair):
    """Images of the procedural world."""

    name = "shapes"
    data = 'the "web" rendering of counterpoise.data.procedural.world (procedural, drawn on the fly)'
    factors = world.FACTORS
    full = world.FULL_TEMPLATES
    partial = world.PARTIAL_TEMPLATES
    probes = {  # noqa: RUF012
        "shape": "a photo of a {shape}",
        "color": "a photo of a {color} object",
        "background": "a photo of an object on {background}",
    }

    def images(self, labels: np.ndarray, seed: int, start: int = 0) -> np.ndarray:
        """Render images of the generator's world, "web"."""
        return world.render(*labels.T, rendering="web", seed=seed, start=start)

    def held_out(self, labels: np.ndarray, seed: int) -> np.ndarray:
        """Render "web" images with seeds that training does not use."""
        return self.images(labels, seed + 10_000)

    def judge_images(self, labels: np.ndarray, seed: int) -> np.ndarray:
        """Render images, half "web" and half "real"."""
        half = len(labels) // 2
        web = world.render(*labels[:half].T, rendering="web", seed=seed + 20_000)
        return np.concatenate([web, world.render(*labels[half:].T, rendering="real", seed=seed + 20_000)])


class Fashion(Pair):
    """Tinted images of Fashion-MNIST, read from the folder `root`."""

    name = "fashion"
    data = "Fashion-MNIST, the even-indexed 30,000 of its 60,000 training images, tinted, resized from 28 to 32 pixels"
    factors = {"class": CLASSES, "tint": tuple(TINTS)}  # noqa: RUF012
    full = _FASHION_FULL
    partial = _FASHION_PARTIAL
    probes = {"class": "a photo of a {class}", "tint": "a photo of a {tint} object"}  # noqa: RUF012

    def __init__(self, root: Path) -> None:
        self.train = read_fashion(root, "train")
        self.test = read_fashion(root, "t10k")

    def images(self, labels: np.ndarray, seed: int, start: int = 0) -> np.ndarray:
        """Take the even-indexed training photographs."""
        return self._tinted(self.train[0][0::2], self.train[1][0::2], labels, seed, start)

    def held_out(self, labels: np.ndarray, seed: int) -> np.ndarray:
        """Take the test photographs."""
        return self._tinted(*self.test, labels, seed, 0)

    def judge_images(self, labels: np.ndarray, seed: int) -> np.ndarray:
        """Take all training photographs."""
        return self._tinted(*self.train, labels, seed, 0)

    def _tinted(self, grey: np.ndarray, of: np.ndarray, labels: np.ndarray, seed: int, start: int) -> np.ndarray:
        """Take each class's photographs in an order drawn from the seed, tinted and resized."""
        rows = np.empty(len(labels), np.int64)
        for index in range(len(CLASSES)):
            at = np.flatnonzero(labels[:, 0] == index)
            order = np.random.default_rng((seed, index)).permutation(np.flatnonzero(of == index))
            rows[at] = order[(start + np.arange(len(at))) % len(order)]
        colors = np.array(list(TINTS.values()), np.uint8)[labels[:, 1]]
        return tint(resize(grey[rows]), colors)


def read_fashion(root: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Read images uint8 (N, 28, 28) and labels int (N,) of "train" or "t10k" from the four original .gz files."""
    for folder in (root, root / "FashionMNIST" / "raw"):
        if (folder / f"{part}-images-idx3-ubyte.gz").exists():
            return _idx(folder / f"{part}-images-idx3-ubyte.gz"), _idx(folder / f"{part}-labels-idx1-ubyte.gz")
    raise FileNotFoundError(f"no {part}-images-idx3-ubyte.gz in {root} or {root}/FashionMNIST/raw")


def _idx(path: Path) -> np.ndarray:
    raw = gzip.decompress(path.read_bytes())
    shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def resize(grey: np.ndarray, size: int = world.SIZE) -> np.ndarray:
    """Resize uint8 (N, H, W) to (N, size, size): bilinear, pixel centres aligned as in PIL and torchvision."""
    at = np.clip((np.arange(size) + 0.5) * grey.shape[1] / size - 0.5, 0, grey.shape[1] - 1)
    weight = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(grey.shape[1]))).astype(np.float32)
    return (weight @ grey.astype(np.float32) @ weight.T + 0.5).astype(np.uint8)


def make_pair(name: str, fashion_root: Path | None) -> Pair:
    """Create the pair "shapes", or "fashion" from the folder of the Fashion-MNIST files."""
    if name == "shapes":
        return Shapes()
    if fashion_root is None:
        raise ValueError("the fashion pair needs the folder of the Fashion-MNIST files: --fashion-root")
    return Fashion(fashion_root)
