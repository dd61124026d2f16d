"""A cluster whose head has no CPUs: everything heavy runs on another node, nothing in the driver."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest
import ray
from click.testing import CliRunner

from counterpoise.cli import main
from counterpoise.execution import cluster

pytestmark = pytest.mark.slow
RAY = Path(sys.executable).with_name("ray")
CONFIG = """
extends: datasets/shapes.yaml
name: head
store: {store}
data: {{per_cell: {{train: 16, validation: 4, test: 4}}, imbalance: {{kind: biased, rate: 0.75}}}}
generator: {{model: {models}/diffusion, num_inference_steps: 2, guidance_scale: 1.0}}
scorer: {{model: {models}/clip}}
pool: {{shard_size: 8, max_quarantined: 1.0, sampling: {{workers: 1}}}}
training: {{backbone: small_cnn, image_size: 16, batch_size: 16, epochs: 1}}
evaluation: {{bootstrap: 0}}
realism: {{extractor: clip}}
tracking: {{enabled: false}}
method: guided
plans: {{even: {{strategy: usb}}}}
feedback: {{stage: teacher, criterion: hardness}}
stages:
  - {{name: teacher, data: [real]}}
  - {{name: both, data: [real, even]}}
"""
# Where the work of each node of the graph begins
HEAVY = [
    "counterpoise.data.dataset._import",
    "counterpoise.training.engine.fit.make_trainer",
    "counterpoise.synthesis.feedback.classifier.GuideClassifier.compute_statistics",
    "counterpoise.workflow.realism._measure",
    "counterpoise.workflow.outcomes._measure",
]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def small_head():
    """The address of a cluster of two nodes, the first of which has no CPUs."""
    cluster.disconnect()  # of other tests in this process
    folder, port = Path(tempfile.mkdtemp(prefix="head-")), free_port()
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    quiet = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    shared = ["--block", "--disable-usage-stats", f"--temp-dir={folder}"]
    address = f"127.0.0.1:{port}"
    commands = [
        [RAY, "start", "--head", "--num-cpus=0", f"--port={port}", "--include-dashboard=false", *shared],
        [RAY, "start", f"--address={address}", "--num-cpus=2", "--block", "--disable-usage-stats"],
    ]
    nodes = []
    try:
        for command in commands:
            nodes.append(subprocess.Popen([str(part) for part in command], **quiet))
            time.sleep(8)
        yield address
    finally:
        ray.shutdown()
        for process in [child for node in nodes for child in psutil.Process(node.pid).children(True)] + nodes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        for node in nodes:
            node.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.timeout(600)
def test_nothing_heavy_runs_in_the_driver(small_head, tiny_models, tmp_path, monkeypatch):
    def here(*args, **kwargs):
        raise AssertionError("this ran in the driver")

    for name in HEAVY:  # in this process alone: the workers import their own
        monkeypatch.setattr(name, here)
    monkeypatch.setenv("RAY_ADDRESS", small_head)
    file = tmp_path / "head.yaml"
    file.write_text(CONFIG.format(store=tmp_path / "store", models=tiny_models))
    done = CliRunner().invoke(main, ["run", str(file), "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["synthesize"]["sampled"] > 0
    assert result["stages"]["fitted"] == 1  # the teacher was fitted before, to guide
    assert result["realism"][0]["reused"] is False
    nodes = {node["NodeID"]: node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]}
    assert sorted(nodes.values()) == [0, 2]
