"""Images per second from the cache of decoded images, as ratios to a bare memory-mapped array in one process.

Random batches of 128 are read from the cache and from a NumPy array that maps one file with the same pixels. The two
alternate, batch by batch, so that a machine that changes its speed changes it for both. Rates are per second of CPU
time, because other processes use the cores; only *cold* is by the clock. *First* reads each image for the first time in
the process, when the cache also compares checksums; *warm* has all files in memory; *cold* has none there
(posix_fadvise drops them). *Filling* decodes into an empty cache, and the bare loop decodes into the mapped array; the
last column then has the bytes that the cache takes, relative to those of the pixels.

    python benchmarks/pixel_cache.py

Two CPU cores that other processes were using too, one thread, a local disk:

| images | | ours/s | bare/s | ratio | bytes |
| --- | --- | --- | --- | --- | --- |
| 20,000 of 64 px | first | 71,682 | 440,529 | 0.16 |
| 20,000 of 64 px | warm | 611,171 | 594,425 | 1.03 |
| 20,000 of 64 px | cold | 37,082 | 59,448 | 0.62 |
| 20,000 of 64 px | filling | 8,338 | 12,927 | 0.65 | 1.001 |
| 2,000 of 224 px | first | 10,020 | 49,822 | 0.20 |
| 2,000 of 224 px | warm | 32,720 | 72,553 | 0.45 |
| 2,000 of 224 px | cold | 6,304 | 5,171 | 1.22 |
| 2,000 of 224 px | filling | 1,252 | 1,988 | 0.63 | 1.000 |

Views of up to 256 MB, such as the first, are held in memory from the second time on.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from counterpoise.storage.codec import encode_image
from counterpoise.storage.schema import LabelSpace
from counterpoise.storage.uri import open_store
from counterpoise.storage.view import ImageView
from counterpoise.training.loading.pixel_cache import PixelCache
from training import store_images

BATCH = 128
Gather = Callable[[np.ndarray], np.ndarray]


def make_view(store: str, n: int, size: int) -> ImageView:
    """Noise, 64 different images; the costs of reading and decoding do not depend on what is seen."""
    random = np.random.default_rng(n)
    encoded = [encode_image(random.integers(0, 256, (size, size, 3), np.uint8)) for _ in range(64)]
    images = [encoded[number % len(encoded)] for number in range(n)]
    return store_images(open_store(store), "noise", images, np.zeros(n, np.int64), LabelSpace(("noise",)))


def drop_pages(folder: Path) -> None:
    """Drop the pages of all files in a folder from memory."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def race(
    ours: Gather, bare: Gather, batches: list[np.ndarray], clock: Callable[[], float] = time.process_time
) -> tuple[float, float]:
    """Read the batches with both, in turns; return the images per second of each."""
    seconds = [0.0, 0.0]
    for number, batch in enumerate(batches):
        for index in ((0, 1), (1, 0))[number % 2]:
            started = clock()
            (ours, bare)[index](batch)
            seconds[index] += clock() - started
    images = sum(map(len, batches))
    return images / seconds[0], images / seconds[1]


def measure(n: int, size: int, repeats: int, folder: Path) -> list[str]:
    """Return lines of the table for n images of a size."""
    os.environ["COUNTERPOISE_CACHE"] = str(folder / "cache")
    view = make_view(str(folder / "store"), n, size)
    started = time.process_time()
    cache = PixelCache([view], size)
    filling = n / (time.process_time() - started)
    started = time.process_time()
    array = np.memmap(folder / "bare", np.uint8, "w+", shape=cache.shape)
    for position, data in view.images():
        array[position] = view.decode(position, data, size)
    bare_filling = n / (time.process_time() - started)
    array.flush()
    del array

    def bare() -> Gather:
        return np.memmap(folder / "bare", np.uint8, "r", shape=cache.shape).__getitem__

    random = np.random.default_rng(0)
    epoch = np.array_split(random.permutation(n), -(-n // BATCH))
    results = {"first": race(cache.__getitem__, bare(), epoch)}
    mapped = bare()
    runs = [race(cache.__getitem__, mapped, epoch) for _ in range(repeats)]
    results["warm"] = tuple(np.median(runs, axis=0).tolist())
    del mapped
    drop_pages(folder)
    cache = PixelCache([view], size)
    results["cold"] = race(cache.__getitem__, bare(), epoch, time.perf_counter)
    taken = sum(path.stat().st_blocks for path in (folder / "cache").rglob("*.px")) * 512 / (n * size * size * 3)
    results["filling"] = (filling, bare_filling)
    lines = [
        f"| {n:,} of {size} px | {kind} | {ours:,.0f} | {mapped:,.0f} | {ours / mapped:.2f} |"
        for kind, (ours, mapped) in results.items()
    ]
    return [*lines[:-1], f"{lines[-1]} {taken:.3f} |"]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="warm epochs [%(default)s]")
    options = parser.parse_args()
    print("| images | | ours/s | bare/s | ratio | bytes |\n| --- | --- | --- | --- | --- | --- |")
    for n, size in ((20_000, 64), (2_000, 224)):
        with tempfile.TemporaryDirectory(prefix="pixels-") as folder:
            print("\n".join(measure(n, size, options.repeats, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
