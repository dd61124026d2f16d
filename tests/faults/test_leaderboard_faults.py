"""A leaderboard whose process is killed: the same command goes on, and repeats no stage that was finished."""

import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from counterpoise.cli import main
from processes import Run

pytestmark = pytest.mark.usefixtures("ray_cluster")

# "twice" begins as erm does, under another name; three stages of each of two seeds are different ones
TWICE = "{extends: erm, method: twice, stages: [{name: first, data: [real]}, {name: second, data: [real], epochs: 24}]}"
STAGES = 6


def records(store):
    """inode and time of every finished stage's record, by key."""
    found = {path: path.stat() for path in (store / "stages").glob("*/stage.json")}
    return {path.parent.name: (status.st_ino, status.st_mtime_ns) for path, status in found.items()}


@pytest.fixture
def command(tmp_path):
    return [
        "compare", "demo", "--methods", "erm,twice,resample",
        "--seeds", "2", f"methods=[{TWICE}]", "--out", str(tmp_path / "out"), "--json", f"store={tmp_path / 'store'}",
        "data.per_cell={train: 120, validation: 12, test: 12}", "data.imbalance={kind: biased, rate: 0.9}",
        "training.epochs=12", "evaluation.bootstrap=0", "tracking.enabled=false",
    ]  # fmt: skip


@pytest.fixture
def killed(command):
    """The command in a process of its own."""
    run = Run(Path(sys.executable).with_name("counterpoise"), *command)
    yield run
    run.end()


def run(command):
    """The same in this process; what it printed."""
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(600)
def test_a_killed_leaderboard_resumes_and_repeats_no_finished_stage(killed, command, tmp_path):
    store = tmp_path / "store"
    killed.wait_for(2, lambda: records(store))
    killed.kill_all()
    before = records(store)
    assert 2 <= len(before) < STAGES
    assert not (tmp_path / "out" / "leaderboard.json").exists()

    told = run(command)
    after = records(store)
    assert len(after) == STAGES
    assert before.items() <= after.items()  # not a file was touched
    assert told["stages"] == {"fitted": STAGES - len(before), "found": len(before)}
    assert [(row["method"], row["seed"]) for row in told["rows"]] == [
        (method, seed) for method in ("erm", "twice", "resample") for seed in (0, 1)
    ]

    again = run(command)
    assert again["stages"] == {"fitted": 0, "found": STAGES}
    assert again["methods"] == told["methods"]
