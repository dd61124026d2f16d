"""Ray as we start it: quiet, closed to others, gone afterwards; or joined where there is one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

OWN = """
import os, subprocess, sys
from pathlib import Path
import ray
from counterpoise.execution.cluster import connect, disconnect

connect()
connect()

@ray.remote(num_cpus=0)
def inside():
    return os.environ["OMP_NUM_THREADS"], os.environ.get("PYTHONWARNINGS")

assert ray.get(inside.remote()) == ("1", None)
assert os.environ["PYTHONWARNINGS"] == "error"
assert ray.cluster_resources()["CPU"] == os.cpu_count()
assert not (Path.home() / ".ray").exists()
folders = list(Path(os.environ["RAY_TMPDIR"]).iterdir())
assert len(folders) == 1
try:
    stranger = subprocess.run(
        [sys.executable, "-c", f"import ray; ray.init('{ray.get_runtime_context().gcs_address}')"],
        env={**{k: v for k, v in os.environ.items() if "AUTH" not in k}, "RAY_AUTH_MODE": "disabled"},
        capture_output=True, timeout=60,
    )
    assert stranger.returncode != 0, "a stranger was let in"
finally:
    disconnect()
assert not ray.is_initialized()
assert not folders[0].exists()
print("well")
"""


@pytest.mark.slow
def test_a_cluster_of_our_own(tmp_path):
    folder = Path("/tmp") / f"cp{os.getpid()}"  # short: Ray's sockets lie in it
    ended = subprocess.Popen(["true"])
    ended.wait()
    (folder / f"cpray-{ended.pid}-abc" / "session").mkdir(parents=True)  # what a killed process left behind
    try:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")},
            "HOME": str(tmp_path),
            "PYTHONWARNINGS": "error",
            "RAY_TMPDIR": str(folder),
        }
        environment.pop("OMP_NUM_THREADS", None)
        done = subprocess.run([sys.executable, "-c", OWN], env=environment, capture_output=True, text=True, check=False)
    finally:
        shutil.rmtree(folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "well\n"
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("address", "message"),
    [("http://127.0.0.1:8265", "RAY_API_SERVER_ADDRESS"), ("127.0.0.1:9", "refused"), ("no.such.host:6379", "unset")],
)
def test_a_cluster_that_is_not_there(address, message):
    """In a process of its own: in this one, another test's cluster may be connected."""
    code = "from counterpoise.execution.cluster import connect; connect()"
    environment = {**os.environ, "RAY_ADDRESS": address}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    error = done.stderr[done.stderr.rindex("ConfigError") :]
    assert "RAY_ADDRESS" in error
    assert message in error
