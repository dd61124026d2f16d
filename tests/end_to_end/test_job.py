"""``ray job submit --working-dir . -- python jobs/run.py …`` on a local cluster."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture
def cluster(tmp_path):
    """A head node with a dashboard, whose processes are stopped afterwards: these and no others."""
    port, dashboard = free_port(), free_port()
    folder = Path("/tmp") / f"cp-{os.getpid()}"  # short: it holds sockets
    token = tmp_path / "token"
    token.write_text("f" * 64)
    environment = dict(os.environ, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), PYTHONPATH="")
    head = subprocess.Popen(
        [BIN / "ray", "start", "--head", "--block", "--num-cpus=2", f"--port={port}", "--dashboard-host=127.0.0.1",
         f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}",
         f"--temp-dir={folder}", "--disable-usage-stats"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:
        ours = psutil.Process(head.pid).children(recursive=True)
        ours += [p for p in psutil.process_iter(["cmdline"]) if str(folder) in " ".join(p.info["cmdline"] or ())]
        for process in [*ours, head]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()
        psutil.wait_procs(ours, timeout=10)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_submitted_job_runs_the_experiment(cluster, tmp_path, repository):
    address, environment = cluster
    small = [
        "methods=[asb]", "seeds=[0]", "data.per_cell={train: 20, validation: 8, test: 8}", "training.epochs=1",
        "data.imbalance={kind: biased, rate: 0.9}", "generator.num_inference_steps=2", "pool.shard_size=8",
        "pool.sampling.workers=1", "evaluation.bootstrap=0", f"store={tmp_path / 'store'}",
        "--out", str(tmp_path / "out"), "--json",
    ]  # fmt: skip
    submit = [BIN / "ray", "job", "submit", "--address", address, "--working-dir", ".", "--"]
    for _ in range(30):
        done = subprocess.run(
            [*submit, sys.executable, "jobs/run.py", "configs/experiments/demo.yaml", *small],
            cwd=repository, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        said = done.stdout + done.stderr
        if "Failed to connect" not in said and "No available agent" not in said:
            break
        time.sleep(1)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())
    assert row["method"] == "asb"
    assert row["images_drawn"] > 0
    assert list((tmp_path / "store" / "pool").rglob("*.parquet"))
