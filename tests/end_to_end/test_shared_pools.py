"""Methods that share a pool, sampled for real: each with its own filters and its own rounds of feedback."""

from pathlib import Path

import pytest

from counterpoise.config import compose
from counterpoise.workflow import reporting
from counterpoise.workflow.run import Run

FILE = """
extends: datasets/shapes.yaml
name: tiny
methods:
{methods}
store: {store}
data:
  classes: [circle, ring]
  per_cell: {{train: 12, validation: 6, test: 4}}
  imbalance: {{kind: biased, rate: 0.75}}
generator: {{model: package:counterpoise/testbed/models/shapes/diffusion, num_inference_steps: 2}}
pool: {{shard_size: 8, sampling: {{workers: 0}}}}
training: {{epochs: 1, batch_size: 16}}
evaluation: {{bootstrap: 0}}
realism: {{extractor: none}}
tracking: {{enabled: false}}
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the methods, all of them or one, to their report. Returns the job and what it says."""
    monkeypatch.setenv("COUNTERPOISE_CACHE", str(tmp_path / "cache"))

    def run(*methods, only=None):
        file = Path(tmp_path, "tiny.yaml")
        file.write_text(FILE.format(methods="\n".join(f"  - {method}" for method in methods), store=tmp_path / "store"))
        with Run(compose.load(str(file), only_method=only)) as job:
            return job, reporting.run_all(job, tmp_path / "report")

    return run


def images(job, method):
    return {plan: view.column("id").tolist() for plan, view in job.synthesized.views(method).items()}


def test_each_method_is_judged_by_its_own_filters(run):
    methods = (
        "usb",
        "{extends: usb, method: strict, selection: {clip_margin: 10}, stages: [{name: m, data: [real, usb]}]}",
    )
    job, told = run(*methods)
    assert job.pools["usb"] is job.pools["strict"]
    wanted = int(job.wanted["usb", "usb"].sum())
    assert len(images(job, "usb")["usb"]) == wanted > 0
    assert images(job, "strict")["usb"] == []
    done = told["synthesize"]
    assert {cell["plan"] for cell in done["short_cells"]} == {"strict/usb"}
    assert done["images"] == wanted
    assert done["rejected"]["clip_margin"] > wanted
    assert [row["method"] for row in told["rows"]] == ["usb", "strict"]
    for method in ("usb", "strict"):
        alone, _ = run(*methods, only=method)
        assert images(alone, method) == images(job, method)
        assert [task.key for task in alone.method_runs] == [
            task.key for task in job.method_runs if task.experiment.method == method
        ]


@pytest.mark.timeout(600)  # it trains and samples in actors that start anew
def test_each_method_has_its_own_rounds_of_feedback(run):
    """Two of three methods are twins: they share the second round, too."""
    guided = "{{extends: feedback, method: {}, plans: {{uniform: {{by: cell}}}}, feedback: {{every: 1, rounds: {}}}}}"
    job, told = run(guided.format("once", 1), guided.format("twice", 2), guided.format("twin", 2))
    rounds = job.synthesized.rounds
    assert {method: len(found) for method, found in rounds.items()} == {"once": 1, "twice": 2, "twin": 2}
    assert rounds["once"][0].pool is rounds["twice"][0].pool is rounds["twin"][0].pool
    assert rounds["twice"][1] == rounds["twin"][1]
    assert rounds["twice"][1].pool.digest != rounds["twice"][0].pool.digest
    assert images(job, "twice") == images(job, "twin") != images(job, "once")
    assert len(told["synthesize"]["pool"].split()) == 2
    used = {outcome.method: outcome.synthetic_images for outcome in job.outcomes}
    each = len(images(job, "once")["uniform"])
    assert used == {"once": each, "twice": 2 * each, "twin": 2 * each}  # whichever was sampled first
    alone, _ = run(guided.format("once", 1), guided.format("twice", 2), only="once")
    assert images(alone, "once") == images(job, "once")
