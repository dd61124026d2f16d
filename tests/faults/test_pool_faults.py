"""Killed at random moments and run again, the pool ends up with the same bytes as if nothing had happened."""

import hashlib
import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fill_pool
from counterpoise.synthesis.pool import sampling, segments
from fill_pool import SHARDS, fill, pool_of
from processes import Run, descendants

SCRIPT = Path(fill_pool.__file__)

pytestmark = pytest.mark.usefixtures("ray_cluster")


def listed(store, pattern):
    """sha256, inode and time of the files in a store, by key."""
    found = {}
    for path in sorted(store.glob(pattern)):
        if not path.is_file() or ".tmp" in path.parts:  # what is being written, or was when its writer was killed
            continue
        status = path.stat()
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        found[path.relative_to(store).as_posix()] = (sha, status.st_ino, status.st_mtime_ns)
    return found


def shards(store):
    return listed(store, "pool/*/*-*/*.parquet")


def files(store):
    """Those that never change: shards, the pool's description, classifiers and their statistics."""
    kept = re.compile(r"(?!pool/[^/]+/(rate\.json|notes/|index/))")
    return {key: value for key, value in listed(store, "**/*").items() if kept.match(key)}


def check_index(kind, models, store):
    """The index describes the shards as they are: every image has its hash, and their costs are known."""
    pool = pool_of(kind, models, store, 0)
    keys = pool.store.list("pool/")
    assert not [key for key in keys if "/notes/" in key]  # gathered
    assert len(segments.keys(keys)) >= 1
    assert {shard.key(pool.digest) for shard in pool.index.shards} == set(shards(store))
    view = pool.view(np.arange(8 * len(pool.index)))
    assert len([data for _, data in view.images() if data is not None]) == len(view)
    assert np.isfinite(pool.index.by_shard("sample")).all()


def hashes(store):
    return {key: sha for key, (sha, _, _) in shards(store).items()}


class FillPool(Run):
    """The script in a process of its own."""

    def __init__(self, kind, models, store):
        self.store = store
        super().__init__(sys.executable, SCRIPT, models, store, kind)

    def wait_for_shards(self, count):
        """Waits until the store has so many shards, and then a random moment."""
        self.wait_for(count, lambda: hashes(self.store))
        time.sleep(random.uniform(0, 0.5))

    def kill_sampler(self):
        samplers = [pid for pid, command in descendants(self.process.pid).items() if "SamplingActor" in command]
        os.kill(random.choice(samplers), signal.SIGKILL)


@pytest.fixture
def start(tiny_models):
    runs = []

    def begin(kind, store):
        runs.append(FillPool(kind, tiny_models, store))
        return runs[-1]

    yield begin
    for run in runs:
        run.end()


@pytest.mark.timeout(900)
def test_bytes_do_not_depend_on_workers_or_kills(tiny_models, tmp_path, start):
    here = fill("plain", tiny_models, tmp_path / "here", workers=0)
    two = fill("plain", tiny_models, tmp_path / "two", workers=2)
    assert here.sampled == two.sampled == 8 * SHARDS["plain"]
    expected = hashes(tmp_path / "here")
    assert len(expected) == SHARDS["plain"]
    assert hashes(tmp_path / "two") == expected

    store = tmp_path / "killed"
    run = begun = start("plain", store)
    run.wait_for_shards(2)
    run.kill_driver()
    first = shards(store)

    run = again = start("plain", store)
    run.wait_for_shards(len(first) + 2)
    run.kill_sampler()
    run.wait_for_shards(len(first) + 3)
    run.kill_driver()
    second = shards(store)

    done = fill("plain", tiny_models, store, workers=2)
    last = shards(store)
    assert hashes(store) == expected  # none lost, none different
    assert first.items() <= second.items() <= last.items()  # none written twice: not a file was touched
    assert len(first) < len(second) < len(last)
    check_index("plain", tiny_models, store)
    assert (done.sampled, done.reused) == (8 * (SHARDS["plain"] - len(second)), 8 * len(second))
    temporary = list((store / ".tmp").iterdir())
    assert len(temporary) <= 2  # what the killed were writing; swept after a day
    for killed in (begun, again):
        killed.wait_until_gone()


# -- pools whose pixels hang on more than a generator ------------------------------------------------------------------


@pytest.fixture(scope="module", params=["guided", "conditioned"])
def filled(request, tiny_models, tmp_path_factory):
    """Its kind, and a store that was filled in this process."""
    import tiny_families

    if request.param == "conditioned":
        tiny_families.save("unclip", tiny_models / "unclip")
    store = tmp_path_factory.mktemp(request.param)
    done = fill(request.param, tiny_models, store, workers=0)
    assert done.sampled == 8 * SHARDS[request.param] == 8 * len(hashes(store))
    return request.param, store


def test_a_guided_or_conditioned_pool_that_is_there_is_not_sampled(filled, tiny_models, monkeypatch):
    kind, store = filled
    before = files(store)
    monkeypatch.setattr(sampling, "sample", None)  # whoever samples now fails
    done = fill(kind, tiny_models, store, workers=1)
    assert (done.sampled, done.reused) == (0, 8 * SHARDS[kind])
    assert files(store) == before  # nor was a classifier trained again


def test_killed_with_two_workers_it_goes_on_to_the_same_bytes(filled, tiny_models, tmp_path, start):
    kind, store = filled
    run = start(kind, tmp_path)
    run.wait_for_shards(2)
    run.kill_all()
    first = files(tmp_path)
    left = SHARDS[kind] - len(hashes(tmp_path))
    assert left > 0
    done = fill(kind, tiny_models, tmp_path, workers=2)
    assert done.sampled == 8 * left
    check_index(kind, tiny_models, tmp_path)
    assert hashes(tmp_path) == hashes(store)
    assert first.items() <= files(tmp_path).items()  # neither a shard nor the classifier was written again
