"""What all tests share: a home of their own, one thread per process, no telemetry, one Ray cluster, real images.

Tests that take long are marked ``slow``: all of end_to_end and faults, all that use the fixture ``ray_cluster``, and
those that say so themselves. The others cannot reach Ray, so one that starts it without the mark fails.
"""

import functools
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

# Ray, MLflow and matplotlib write into HOME, and read these variables when they are imported: so set them first.
_HOME = Path(tempfile.mkdtemp(prefix="counterpoise-tests-"))
os.environ.update(
    HOME=str(_HOME),
    MPLCONFIGDIR=str(_HOME / "matplotlib"),
    COUNTERPOISE_CACHE=str(_HOME / "cache"),
    OMP_NUM_THREADS="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    DO_NOT_TRACK="true",
    RAY_USAGE_STATS_ENABLED="0",
    HF_HUB_OFFLINE="1",
    AWS_ACCESS_KEY_ID="testing",
    AWS_SECRET_ACCESS_KEY="testing",
    AWS_DEFAULT_REGION="us-east-1",
)
for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "AWS_ENDPOINT_URL"):
    os.environ.pop(name, None)

_ROOT = Path(__file__).parents[1]
_SLOW_FOLDERS = {"end_to_end", "faults"}
_NOWHERE = "/nonexistent"  # no cluster can be started in this folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _SLOW_FOLDERS.intersection(item.path.parts) or "ray_cluster" in item.fixturenames:
            item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    """Keep tests without the mark ``slow`` from Ray, in this process and in those that they start."""
    if item.get_closest_marker("slow"):
        return (yield)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", _NOWHERE)
        if "ray" in sys.modules:  # a cluster that slow tests use may be connected
            patch.setattr(sys.modules["ray"], "is_initialized", lambda: False)
        return (yield)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return _ROOT


@pytest.fixture(scope="session")
def real_images() -> Path:
    """The folder with real datasets; tests that need it are skipped where it is not."""
    folder = Path(os.environ.get("COUNTERPOISE_TEST_DATA", _ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}: set COUNTERPOISE_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> Path:
    """A folder with ``diffusion`` (a diffusers pipeline) and ``clip`` (of open_clip), with random weights."""
    import tiny

    folder = tmp_path_factory.mktemp("models")
    tiny.make_diffusion(folder / "diffusion")
    tiny.make_clip(folder / "clip")
    return folder


@pytest.fixture(scope="session")
def ray_cluster():
    """A Ray cluster on this machine, shared by all tests of this process that start none of their own."""
    from counterpoise.execution import cluster

    cluster.connect()
    yield
    cluster.disconnect()


def _one_at_a_time(function, lock):
    @functools.wraps(function)
    def locked(*arguments, **keywords):
        with lock:
            return function(*arguments, **keywords)

    return locked


@pytest.fixture(scope="session")
def s3_server():
    """The address of an S3 server over HTTP; buckets and objects live as long as the session."""
    from moto.s3.responses import S3Response
    from moto.server import ThreadedMotoServer

    # S3 decides on a conditional put at once; moto looks first and puts then, and another thread may come between
    deciding = threading.Lock()
    for name in ("_key_response_put", "_key_response_post"):
        setattr(S3Response, name, _one_at_a_time(getattr(S3Response, name), deciding))
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(scope="session")
def strict_s3_server():
    """A server that enforces policies: another moto, that asks for credentials from the first request on."""
    code = (
        "import os, sys; os.environ['INITIAL_NO_AUTH_ACTION_COUNT'] = '0'\n"
        "from moto.server import ThreadedMotoServer\n"
        "server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False); server.start()\n"
        "print(*server.get_host_and_port(), flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as server:
        host, port = server.stdout.readline().split()
        yield f"http://{host}:{port}"
        server.kill()
