"""What a generator and its CLIP learn from: images with known factors, and the sentences that are true of them.

A `Pair` is the whole difference between the shapes and the fashion models; the training code sees nothing else.
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
    """A labelled source of images. Labels are int (N, F), one column per factor, in the order of `factors`."""

    name: str
    data: str  # for the model card
    factors: dict[str, tuple[str, ...]]
    full: tuple[str, ...]  # caption templates that name every factor; the first is the default
    partial: tuple[str, ...]
    probes: dict[str, str]  # factor -> the template for zero-shot classification by that factor alone

    @abstractmethod
    def images(self, labels: np.ndarray, seed: int, start: int = 0) -> np.ndarray:
        """uint8 (N, 32, 32, 3) as the generator sees them, the same for the same arguments."""

    @abstractmethod
    def held_out(self, labels: np.ndarray, seed: int) -> np.ndarray:
        """Like `images`, of images that training never sees."""

    @abstractmethod
    def judge_images(self, labels: np.ndarray, seed: int) -> np.ndarray:
        """What the oracle is trained on: wider than what the generator sees."""

    def cells(self) -> np.ndarray:
        """All combinations of the factors, int (cells, F)."""
        return np.array(list(product(*(range(len(values)) for values in self.factors.values()))))

    def labels(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """n labels in which each cell is as frequent as any other, in random order."""
        cells = self.cells()
        return rng.permutation(np.resize(cells[rng.permutation(len(cells))], (n, cells.shape[1])))

    def masked(self, labels: np.ndarray, template: str) -> np.ndarray:
        """Labels with -1 for every factor that the template leaves out: what a caption claims."""
        named = [("{%s}" % key) in template for key in self.factors]  # noqa: UP031
        return np.where(named, labels, -1)

    def fill(self, template: str, label: np.ndarray) -> str:
        """The caption: "a photo of a {color} {shape}" and (3, 1, 2) -> "a photo of a red star"."""
        names = {key: values[max(0, int(i))] for (key, values), i in zip(self.factors.items(), label, strict=True)}
        return template.format(**names)

    def captions(self, labels: np.ndarray, rng: np.random.Generator) -> tuple[list[str], np.ndarray]:
        """A caption for each label and what it claims, int (N, F) with -1 for what it leaves out.

        One in two is the default template, one in four another full one, one in four leaves factors out.
        """
        texts, claims = [], []
        for label, (u, v) in zip(labels, rng.random((len(labels), 2)), strict=True):
            others = self.partial if u >= 0.75 else self.full[1:]
            template = self.full[0] if u < 0.5 else others[int(v * len(others))]
            texts.append(self.fill(template, label))
            claims.append(self.masked(label, template))
        return texts, np.array(claims)

    def vocabulary(self) -> list[str]:
        """Every caption once, for the tokenizer and for the cache of text embeddings."""
        seen = {self.fill(t, cell): None for t in (*self.full, *self.partial) for cell in self.cells()}
        return list(seen)


class Shapes(Pair):
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
        return world.render(*labels.T, rendering="web", seed=seed, start=start)

    def held_out(self, labels: np.ndarray, seed: int) -> np.ndarray:
        return self.images(labels, seed + 10_000)

    def judge_images(self, labels: np.ndarray, seed: int) -> np.ndarray:
        half = len(labels) // 2
        web = world.render(*labels[:half].T, rendering="web", seed=seed + 20_000)
        return np.concatenate([web, world.render(*labels[half:].T, rendering="real", seed=seed + 20_000)])


class Fashion(Pair):
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
        return self._tinted(self.train[0][0::2], self.train[1][0::2], labels, seed, start)

    def held_out(self, labels: np.ndarray, seed: int) -> np.ndarray:
        return self._tinted(*self.test, labels, seed, 0)

    def judge_images(self, labels: np.ndarray, seed: int) -> np.ndarray:
        return self._tinted(*self.train, labels, seed, 0)

    def _tinted(self, grey: np.ndarray, of: np.ndarray, labels: np.ndarray, seed: int, start: int) -> np.ndarray:
        """The photographs of a class in an order drawn from the seed, one after the other, tinted and resized."""
        rows = np.empty(len(labels), np.int64)
        for index in range(len(CLASSES)):
            at = np.flatnonzero(labels[:, 0] == index)
            order = np.random.default_rng((seed, index)).permutation(np.flatnonzero(of == index))
            rows[at] = order[(start + np.arange(len(at))) % len(order)]
        colors = np.array(list(TINTS.values()), np.uint8)[labels[:, 1]]
        return tint(resize(grey[rows]), colors)


def read_fashion(root: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 28, 28) and labels int (N,) of "train" or "t10k" from the four original .gz files."""
    for folder in (root, root / "FashionMNIST" / "raw"):
        if (folder / f"{part}-images-idx3-ubyte.gz").exists():
            return _idx(folder / f"{part}-images-idx3-ubyte.gz"), _idx(folder / f"{part}-labels-idx1-ubyte.gz")
    raise FileNotFoundError(f"no {part}-images-idx3-ubyte.gz in {root} or {root}/FashionMNIST/raw")


def _idx(path: Path) -> np.ndarray:
    raw = gzip.decompress(path.read_bytes())
    shape = struct.unpack(f">{raw[3]}I", raw[4 : 4 + 4 * raw[3]])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def resize(grey: np.ndarray, size: int = world.SIZE) -> np.ndarray:
    """uint8 (N, H, W) -> uint8 (N, size, size): bilinear, pixel centres aligned as PIL and torchvision align them."""
    at = np.clip((np.arange(size) + 0.5) * grey.shape[1] / size - 0.5, 0, grey.shape[1] - 1)
    weight = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(grey.shape[1]))).astype(np.float32)
    return (weight @ grey.astype(np.float32) @ weight.T + 0.5).astype(np.uint8)


def make_pair(name: str, fashion_root: Path | None) -> Pair:
    if name == "shapes":
        return Shapes()
    if fashion_root is None:
        raise ValueError("the fashion pair needs the folder of the Fashion-MNIST files: --fashion-root")
    return Fashion(fashion_root)
