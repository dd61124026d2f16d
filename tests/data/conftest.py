"""Small real datasets in every form, and a store to import them into."""

import gzip
import io
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter

from counterpoise import config
from counterpoise.data.dataset import Loaded, load
from counterpoise.storage.store import Store
from counterpoise.storage.uri import open_store

ADAPTER: TypeAdapter[config.Data] = TypeAdapter(config.Data)


def picture(number: int, mode: str = "RGB", size: tuple[int, int] = (8, 6)) -> Image.Image:
    """An image that no other number gives."""
    pixels = np.random.default_rng(number).integers(256, size=(size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(pixels, "RGBA") if mode == "RGBA" else Image.fromarray(pixels[..., :3]).convert(mode)
    return image


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def tree(root: Path, layout: str, count: int = 10, **values: list[str]) -> None:
    """``count`` images in each folder that the layout gives for the product of the values."""
    names = [{}]
    for key, options in values.items():
        names = [{**name, key: option} for name in names for option in options]
    for name in names:
        folder = root / layout.format(**name)
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (folder / f"{number:02}.png").write_bytes(encode(picture(number)))


def idx_files(folder: Path, train: int = 60, test: int = 20, packed: bool = True) -> None:
    """The four files of MNIST: image n of a half is filled with the value n, its label is n % 10."""
    folder.mkdir(parents=True, exist_ok=True)
    for half, size in (("train", train), ("t10k", test)):
        pixels = np.repeat(np.arange(size, dtype=np.uint8), 28 * 28)
        labels = np.arange(size, dtype=np.uint8) % 10
        images = struct.pack(">iiii", 2051, size, 28, 28) + pixels.tobytes()
        for name, data in (("images-idx3", images), ("labels-idx1", struct.pack(">ii", 2049, size) + labels.tobytes())):
            path = folder / f"{half}-{name}-ubyte"
            if packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(data))
            else:
                path.write_bytes(data)


@pytest.fixture
def make() -> SimpleNamespace:
    """What makes images and datasets: picture, encode, write, tree, idx_files."""
    return SimpleNamespace(picture=picture, encode=encode, write=write, tree=tree, idx_files=idx_files)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = open_store(tmp_path / "store")
    store.check()
    return store


@pytest.fixture
def imported(store: Store) -> Callable[..., Loaded]:
    """Imports the dataset that the keywords describe; ``splits`` are drawn unless the keywords say otherwise."""

    def imported(**data) -> Loaded:
        return load(ADAPTER.validate_python(data), store)

    return imported


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A folder with 40 images, 20 per class and of each 10 per group, and a CSV file."""
    root = tmp_path / "table"
    lines = ["image,label,group,split"]
    for number in range(40):
        write(root / f"images/{number}.png", encode(picture(number)))
        split = ("train", "train", "train", "val", "test")[number // 4 % 5]
        lines.append(
            f"images/{number}.png,{'cat' if number % 2 else 'dog'},{'red' if number % 4 < 2 else 'blue'},{split}"
        )
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def images_by_id() -> Callable[[Loaded], dict[str, bytes]]:
    def images_by_id(loaded: Loaded) -> dict[str, bytes]:
        ids = loaded.view.index["id"].to_pylist()
        return {ids[position]: image for position, image in loaded.view.images()}

    return images_by_id
