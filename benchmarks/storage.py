"""Cost of storage: CPU seconds, peak memory, requests and bytes of pools that no model had to sample.

Each pool has 1,000 classes of 2 groups and shards of 32 images. Its shard files are links to one file, and the index
describes them; both are what sampling leaves. Every measurement is a process of its own.

    python benchmarks/storage.py --s3 --images 64000 --pixels 8   # requests to an S3 server on this machine
    python benchmarks/storage.py --codecs *.jpg # codecs, on images of yours
    python benchmarks/storage.py --shards       # single shards of 32 to 512 px
    python benchmarks/storage.py                # 64k, 256k and 1.28M images in a local folder

``benchmarks/storage.md`` has the figures.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
from PIL import Image

from counterpoise import config
from counterpoise.execution.devices import Devices
from counterpoise.storage import s3_requests
from counterpoise.storage.codec import decode_image, encode_image
from counterpoise.storage.schema import LabelSpace
from counterpoise.storage.uri import open_store
from counterpoise.synthesis.pool import actors, segments, shard_file
from counterpoise.synthesis.pool import shard as making
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.pool.sampling_spec import SamplingSpec
from counterpoise.synthesis.pool.spec import PoolSpec
from counterpoise.synthesis.selection import select
from counterpoise.synthesis.selection.request import PlanRequest
from counterpoise.training.loading.pixel_cache import PixelCache

CLASSES, GROUPS, SIZE = 1000, 2, 32
NAMES = LabelSpace(tuple(f"class {number:04d}" for number in range(CLASSES)), ("red", "blue"))


def pool_in(store) -> Pool:
    """Return the pool, of a generator that does not exist: reading needs none."""
    generation = {
        "prompts": [[[f"a {group} {name}"] for group in NAMES.groups] for name in NAMES.classes],
        "plain": [[name] * GROUPS for name in NAMES.classes],
        "negative": "",
        "shard_size": SIZE,
        "max_attempts": 3,
        "storage": {"format": 3, "codec": "webp"},
    }
    resources = config.ActorResources()
    devices = Devices("cpu", "float32", "cpu")
    return Pool(PoolSpec(generation, config.Generator(model="none"), None, devices, resources, resources), NAMES, store)


def make(root: str, images: int, pixels: int) -> None:
    """Fill a store with a pool of so many images of ``pixels`` × ``pixels``."""
    store, random = open_store(root), np.random.default_rng(0)
    pool, shards = pool_in(store), images // SIZE
    values = {name: [None] * SIZE for name in shard_file.SHARD.names} | {
        "image": [encode_image(random.integers(0, 256, (pixels, pixels, 3), np.uint8), "webp") for _ in range(SIZE)],
        "embedding": [random.normal(size=512).astype(np.float16).tobytes() for _ in range(SIZE)],
        "seed": random.integers(1 << 60, size=SIZE).tolist(),
        "attempt": [0] * SIZE,
    }
    table = pa.table(values, schema=shard_file.SHARD)
    data = shard_file.to_file(table, pool.digest, Shard(0, 0, 0))
    row = shard_file.index_row(data, table, Shard(0, 0, 0), "none", {"sample": 1.0, "encode": 0.1, "score": 0.1})
    addresses = [
        (*divmod(number % (CLASSES * GROUPS), GROUPS), number // (CLASSES * GROUPS)) for number in range(shards)
    ]
    template = Path(root, "template")
    template.write_bytes(data)
    for address in addresses:
        path = Path(root, Shard(*address).key(pool.digest))
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(template, path)
    for start in range(0, shards, segments.SHARDS):
        part = addresses[start : start + segments.SHARDS]
        rows = pa.concat_tables([row] * len(part)).combine_chunks()
        for place, name in enumerate(shard_file.HEAD):
            rows = rows.set_column(place, name, pa.array([one[place] for one in part], pa.int32()))
        margins = random.uniform(-0.05, 1, (len(part), SIZE)).astype(np.float32)
        column = pa.array(margins.tolist(), pa.list_(pa.float32()))
        rows = rows.set_column(rows.schema.get_field_index("clip_margin"), "clip_margin", column)
        segments.write(store, pool.digest, rows)
    pool.prepare()


def requests(images: int) -> list[PlanRequest]:
    """Return a plan for three quarters of the pool's images, with a filter that rejects one of 20."""
    counts = np.full((CLASSES, GROUPS), max(int(images / CLASSES / GROUPS * 0.75), 1))
    return [PlanRequest("m", "p", counts, 0, config.Selection(clip_margin=0.0, max_draw=4.0), 0.05)]


def plan(store, images: int) -> dict[str, float]:
    """Do what ``counterpoise plan`` does with a pool."""
    held, missing = select.forecast(pool_in(store), requests(images))
    return {"held": int(held.sum()), "missing": int(missing.sum())}


def realize(store, images: int) -> dict[str, float]:
    """Do what ``counterpoise synthesize`` does with nothing to sample."""
    view = select.select_images(pool_in(store), requests(images)).views["m", "p"]
    return {"images": len(view), "digest": int(view.digest, 16) % 1000}


def batches(store, images: int) -> dict[str, float]:
    """Count the bytes read for ten random batches of 256 images, relative to the bytes of these images."""
    view = select.select_images(pool_in(store), requests(images)).views["m", "p"]
    read, wanted, ranged = 0, 0, store.read_range

    def counted(key, start, stop):
        nonlocal read
        read += stop - start
        return ranged(key, start, stop)

    store.read_range = counted
    random = np.random.default_rng(0)
    for _ in range(10):
        some = view.take(random.integers(len(view), size=256))
        for _, image in some.images():
            wanted += len(image or b"")
    return {"read/images": round(read / wanted, 3)}


def epochs(store, images: int) -> dict[str, float]:
    """Count the images decoded for the first epoch of a view, and of another plan over the same images."""
    from counterpoise.storage import view as views

    view = select.select_images(pool_in(store), requests(images)).views["m", "p"]
    view, decoded, decode = view.take(np.arange(2000)), 0, views.decode_image

    def counted(*arguments):
        nonlocal decoded
        decoded += 1
        return decode(*arguments)

    views.decode_image = counted
    found = []
    for part in (view, view.take(np.arange(0, 2000, 2)[::-1])):
        decoded = 0
        PixelCache([part], 16)[np.arange(len(part))]
        found.append(decoded)
    return {"first": found[0], "another plan": found[1]}


def shards(pixels: int) -> dict[str, float]:
    """Measure a shard: bytes beside images and vectors, and its time on a sampler that takes 0.1 s for an image.

    ``idle`` is the share of the time in which the sampler waits: its two threads are called as Ray calls them.
    """
    from counterpoise.synthesis.pool.shard import SampledShard

    random = np.random.default_rng(0)
    smooth = random.integers(0, 256, (SIZE, 9, 9, 3), np.uint8)
    drawn = [np.asarray(Image.fromarray(one).resize((pixels, pixels), Image.Resampling.BICUBIC)) for one in smooth]
    drawn = [
        (one + random.integers(0, 8, one.shape)).clip(0, 255).astype(np.uint8) for one in drawn
    ]  # like a photograph
    with tempfile.TemporaryDirectory() as place:
        pool = pool_in(open_store(place))
        nothing: list = [None] * SIZE

        class Sampler:
            def draw(self, shard):
                time.sleep(0.1 * SIZE)
                return SampledShard(drawn, [1] * SIZE, [0] * SIZE, nothing, nothing, nothing)

        actor = actors.SamplingActor.__new__(actors.SamplingActor)
        actor.work, actor.failure, actor.threads, actor.lock = SamplingSpec.of(pool), None, 1, threading.Lock()
        actor.models, actor.device = Sampler(), "none"
        started = time.monotonic()
        with ThreadPoolExecutor(2) as threads:
            rows = list(threads.map(lambda number: actor(actors.row_of(Shard(0, 0, number))), range(6)))
        idle = 1 - 6 * 0.1 * SIZE / (time.monotonic() - started)
        table = making.from_ipc(rows[0]["table"][0].as_py())
        vectors = [random.normal(size=512).astype(np.float16).tobytes() for _ in range(SIZE)]
        table = table.set_column(table.column_names.index("embedding"), "embedding", pa.array(vectors, pa.binary()))
        before = time.process_time()
        actors.commit(pool.store, pool.digest, Shard(1, 0, 0), table, {"device": "none"})
        committed = time.process_time() - before
        size = Path(place, Shard(1, 0, 0).key(pool.digest)).stat().st_size
    bulky = sum(len(image) for image in table["image"].to_pylist()) + SIZE * 1024
    encoded = rows[0]["encode"][0].as_py()
    return {
        "kb": round(size / 1e3, 1),
        "other_bytes": round(1 - bulky / size, 4),
        "encode_s": round(encoded, 3),
        "commit_s": round(committed, 3),
        "idle": round(idle, 4),
    }


def codecs(files: list[Path]) -> None:
    """Print milliseconds of CPU to encode and to decode an image, and its kilobytes, for each size and codec."""
    photographs = [Image.open(file).convert("RGB") for file in files]
    for pixels in (64, 128, 256, 512, 1024):
        images = [np.asarray(one.resize((pixels, pixels), Image.Resampling.BICUBIC)) for one in photographs] * 5
        for codec in ("png", "webp", "jpeg:95"):
            encode_image(images[0], codec)  # the first call loads the codec
            begun = time.process_time()
            encoded = [encode_image(image, codec) for image in images]
            between = time.process_time()
            for data in encoded:
                decode_image(data)
            spent = (between - begun, time.process_time() - between)
            each = ", ".join(f"{1000 * seconds / len(images):.2f}" for seconds in spent)
            print(f"{pixels:>5} {codec:8} {each} ms, {sum(map(len, encoded)) / len(images) / 1e3:.1f} KB", flush=True)


MEASURES = {"plan": plan, "realize": realize, "batches": batches, "epochs": epochs}


class Counted:
    """Counter of a store's requests, by kind."""

    def __init__(self, store) -> None:
        self.counts: dict[str, int] = {}
        for name in ("list", "read", "read_range", "open", "exists"):
            setattr(store, name, self._counting(name, getattr(store, name)))

    def _counting(self, name, method):
        def call(*arguments):
            self.counts[name] = self.counts.get(name, 0) + 1
            return method(*arguments)

        return call


def count_http() -> Counter[str]:
    """Return a counter of the requests that this process sends to S3 from now on, by method."""
    counts, make_client = Counter[str](), s3_requests._make_client

    def counting(*arguments):
        client = make_client(*arguments)
        client.meta.events.register("before-send.s3", lambda request, **_: counts.update([request.method]))
        return client

    s3_requests._make_client = counting
    return counts


def copied_to_s3(root: str) -> str:
    """Copy a store to a server of this process; return its address there."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    boto3.client("s3").create_bucket(Bucket="pools")
    local, remote = open_store(root), open_store("s3://pools/copy")
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda key: remote.create(key, local.read(key)), local.list("pool/")))
    return "s3://pools/copy"


def measure(name: str, root: str, images: int) -> None:
    """Print one measurement as JSON; called in a process of its own."""
    store = open_store(root)
    counted, http = Counted(store), count_http()
    before, started = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    found = MEASURES[name](store, images)
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        json.dumps(
            {
                "cpu_s": round(cpu, 2),
                "wall_s": round(time.monotonic() - started, 2),
                "peak_mb": round(after.ru_maxrss / 1024),
                "requests": counted.counts if "://" not in root else dict(http),
                **found,
            }
        )
    )


def main() -> None:
    """Make the pools and measure each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[64_000, 256_000, 1_280_000])
    parser.add_argument("--pixels", type=int, default=32)
    parser.add_argument("--s3", action="store_true", help="measure on an S3 server of this process")
    parser.add_argument("--shards", action="store_true", help="measure single shards instead of pools")
    parser.add_argument("--codecs", type=Path, nargs="+", metavar="FILE", help="measure codecs on these images")
    parser.add_argument("--measure", nargs=3, metavar=("NAME", "STORE", "IMAGES"))
    given = parser.parse_args()
    if given.measure:
        measure(given.measure[0], given.measure[1], int(given.measure[2]))
        return
    if given.codecs:
        codecs(given.codecs)
        return
    if given.shards:
        for pixels in (32, 64, 256, 512):
            print(f"{pixels:>4} px {json.dumps(shards(pixels))}", flush=True)
        return
    with tempfile.TemporaryDirectory() as place:
        os.environ["COUNTERPOISE_CACHE"] = f"{place}/cache"
        for images in given.images:
            root = f"{place}/{images}"
            Path(root).mkdir()
            make(root, images, given.pixels)
            root = copied_to_s3(root) if given.s3 else root
            for name in MEASURES:
                command = [sys.executable, __file__, "--measure", name, root, str(images)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                print(f"{images:>9,} {name:8} {done.stdout.strip().splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
