"""Every method file runs from the dataset to its numbers, on the testbed at a tiny size."""

from pathlib import Path

import pytest

from counterpoise.config import compose
from counterpoise.errors import PlanError
from counterpoise.workflow.run import Run

pytestmark = pytest.mark.usefixtures("ray_cluster")

METHODS = sorted(path.stem for path in (compose.CONFIGS / "methods").glob("*.yaml"))
VARIATIONS = ["uniform_image", "uniform_dropout"]  # want an image variation generator
LEVELLING = [name for name in METHODS if name.startswith("feedback") or name == "uniform"]  # want a long tail
SHAPES = "package:counterpoise/testbed/models/shapes"

FILE = """
extends: {dataset}
name: tiny
methods: [{methods}]
store: {store}
data: {{per_cell: {{train: 24, validation: 6, test: 4}}, {imbalance}}}
generator: {{model: {model}, num_inference_steps: 2}}
{more}
pool: {{shard_size: 8, sampling: {{workers: 0}}}}
training: {{epochs: 2, batch_size: 16, optimizer: {{lr: 2.0e-3}}, augmentation: [flip]}}
evaluation: {{bootstrap: 0}}
tracking: {{enabled: false}}
"""


def run(folder: Path, methods: list[str], dataset: str, imbalance: str, model: str, more: str = ""):
    file = folder / "tiny.yaml"
    file.write_text(
        FILE.format(
            dataset=f"datasets/{dataset}",
            methods=", ".join(methods),
            imbalance=imbalance,
            model=model,
            more=more,
            store=folder / "s",
        )
    )
    with Run(compose.load(str(file))) as job:
        return job.outcomes, job


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COUNTERPOISE_CACHE", str(tmp_path / "cache"))


def test_the_methods_on_biased_data(tmp_path):
    methods = [name for name in METHODS if name not in (*VARIATIONS, *LEVELLING)]
    outcomes, job = run(tmp_path, methods, "shapes", "imbalance: {kind: biased, rate: 0.8}", f"{SHAPES}/diffusion")
    assert [outcome.method for outcome in outcomes] == methods
    for outcome in outcomes:
        assert 0 <= outcome.test["metrics"]["worst_group_accuracy"] <= 1
        stages = {stage["name"]: stage for stage in outcome.stages}
        assert all(stage["history"] for stage in stages.values())
    trained = {stage["digest"] for outcome in outcomes for stage in outcome.stages}
    written = {key.split("/")[1] for key in job.store.list("stages/")}
    assert trained == written  # every stage once, however many methods share it
    assert len(trained) < sum(len(outcome.stages) for outcome in outcomes)


@pytest.mark.parametrize(
    ("methods", "model", "more"),
    [
        (VARIATIONS, "unclip", ""),
        (LEVELLING, "diffusion", "scorer: null"),  # a pool for each method, and nothing here looks at scores
    ],
)
def test_the_methods_on_a_long_tail(tmp_path, methods, model, more):
    long_tail = "classes: [circle, ring, cross], imbalance: {kind: long_tailed, factor: 6}"
    outcomes, _ = run(tmp_path, methods, "shapes_long_tail", long_tail, f"{SHAPES}/{model}", more)
    assert [outcome.method for outcome in outcomes] == methods
    assert all(outcome.images_drawn for outcome in outcomes)


def test_synthetic_test_images_are_none_that_were_trained_on(tmp_path):
    """FFR, Table 3."""
    plans = "plans: {usb: {strategy: usb}, held_out: {strategy: balanced, budget: 24, skip: SKIP}}"
    biased = "classes: [circle, ring], imbalance: {kind: biased, rate: 0.8}"  # 24 and 6 in a class

    def usb(skip):
        method = f"{{extends: usb, method: usb, {plans.replace('SKIP', str(skip))}, evaluation: {{test: held_out}}}}"
        return run(tmp_path, [method], "shapes", biased, f"{SHAPES}/diffusion")

    ((outcome,), job) = usb(18)
    views = job.views(job.suite.shared.method)
    assert [cell["n"] for cell in outcome.test["cells"]] == [6] * 4
    assert set(views["held_out"].column("index")) == set(range(18, 24))
    assert set(views["usb"].column("index")) == set(range(18))
    with pytest.raises(PlanError, match=r"plans\.held_out\.skip[\s\S]*2 images of 'usb'[\s\S]*at least 18"):
        usb(17)
