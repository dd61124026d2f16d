"""Killed at random moments and run again, the pool ends up with the same bytes as if nothing had happened."""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from counterpoise.synthesis import sampling

SCRIPT = Path(__file__).parent / "fill_pool.py"
sys.path.append(str(SCRIPT.parent))

from fill_pool import SHARDS, fill  # noqa: E402


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
    return listed(store, "pool/*/*/*.parquet")


def files(store):
    """Those that never change: shards, the pool's description, classifiers and their statistics."""
    return {key: value for key, value in listed(store, "**/*").items() if not key.endswith("/rate.json")}


def hashes(store):
    return {key: sha for key, (sha, _, _) in shards(store).items()}


def descendants(pid):
    """Command lines by process id of all that ``pid`` started, directly or not."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in listing.splitlines()]
    family = {pid}
    for _ in range(10):
        family |= {int(row[0]) for row in rows if int(row[1]) in family}
    return {int(row[0]): row[2].strip() for row in rows if int(row[0]) in family - {pid}}


class Run:
    """The script in a process of its own, with a Ray cluster of its own."""

    def __init__(self, kind, models, store):
        self.store = store
        self.folder = tempfile.mkdtemp(prefix="cp")  # short: Ray's sockets lie in it
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(models), str(store), kind],
            env={**os.environ, "RAY_TMPDIR": self.folder},
            stdout=subprocess.PIPE,
            text=True,
        )

    def wait_for_shards(self, count):
        """Waits until the store has so many shards, and then a random moment."""
        deadline = time.monotonic() + 240
        while len(hashes(self.store)) < count:
            assert self.process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(random.uniform(0, 0.5))

    def kill_sampler(self):
        samplers = [pid for pid, command in descendants(self.process.pid).items() if "Sampler" in command]
        os.kill(random.choice(samplers), signal.SIGKILL)

    def kill_driver(self):
        self.family = descendants(self.process.pid)
        self.process.kill()
        self.process.wait()

    def kill_all(self):
        """The driver and its cluster, as when the machine goes down."""
        self.kill_driver()
        for pid in self._left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _left(self):
        """Those of a killed driver's family that are alive."""
        return [pid for pid, command in self.family.items() if _command(pid) == command]

    def wait_until_gone(self):
        """The cluster of a killed driver must end by itself."""
        deadline = time.monotonic() + 180
        while alive := self._left():
            assert time.monotonic() < deadline, f"left behind: {[self.family[pid] for pid in alive]}"
            time.sleep(0.5)

    def finish(self):
        output = self.process.stdout.read()
        assert self.process.wait() == 0
        return json.loads(output.splitlines()[-1])

    def end(self):
        for pid in [*descendants(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _command(pid):
    """The command line of a process now; empty if it has ended."""
    done = subprocess.run(["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip()


@pytest.fixture
def start(tiny_models):
    runs = []

    def begin(kind, store):
        runs.append(Run(kind, tiny_models, store))
        return runs[-1]

    yield begin
    for run in runs:
        run.end()


@pytest.mark.timeout(900)
def test_bytes_do_not_depend_on_workers_or_kills(tiny_models, tmp_path, start):
    one = fill("plain", tiny_models, tmp_path / "one", workers=1)
    two = fill("plain", tiny_models, tmp_path / "two", workers=2)
    assert one.sampled == two.sampled == 8 * SHARDS["plain"]
    expected = hashes(tmp_path / "one")
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

    run = start("plain", store)
    done = run.finish()
    last = shards(store)
    assert hashes(store) == expected  # none lost, none different
    assert first.items() <= second.items() <= last.items()  # none written twice: not a file was touched
    assert len(first) < len(second) < len(last)
    assert set(done["fresh"]) == set(last) - set(second)
    assert (done["sampled"], done["reused"]) == (8 * (SHARDS["plain"] - len(second)), 8 * len(second))
    temporary = list((store / ".tmp").iterdir())
    assert len(temporary) <= 2  # what the killed were writing; swept after a day
    for killed in (begun, again):
        killed.wait_until_gone()


# -- pools whose pixels hang on more than a generator ------------------------------------------------------------------


@pytest.fixture(scope="module", params=["guided", "conditioned"])
def filled(request, tiny_models, tmp_path_factory):
    """Its kind, and a store in which one worker has filled it."""
    import tiny_families

    if request.param == "conditioned":
        tiny_families.save("unclip", tiny_models / "unclip")
    store = tmp_path_factory.mktemp(request.param)
    done = fill(request.param, tiny_models, store, workers=1)
    assert done.sampled == 8 * SHARDS[request.param] == 8 * len(hashes(store))
    return request.param, store


def test_a_guided_or_conditioned_pool_that_is_there_is_not_sampled(filled, tiny_models, monkeypatch):
    kind, store = filled
    before = files(store)
    monkeypatch.setattr(sampling, "sample", None)  # whoever samples now fails
    done = fill(kind, tiny_models, store, workers=1)
    assert (done.sampled, done.reused) == (0, 8 * SHARDS[kind])
    assert files(store) == before  # nor was a classifier trained again


def test_killed_with_two_workers_it_goes_on_to_the_bytes_of_one(filled, tiny_models, tmp_path, start):
    kind, store = filled
    run = start(kind, tmp_path)
    run.wait_for_shards(2)
    run.kill_all()
    first = files(tmp_path)
    left = SHARDS[kind] - len(hashes(tmp_path))
    assert left > 0
    done = fill(kind, tiny_models, tmp_path, workers=2)
    assert (done.sampled, len(done.fresh)) == (8 * left, left)
    assert hashes(tmp_path) == hashes(store)
    assert first.items() <= files(tmp_path).items()  # neither a shard nor the classifier was written again
