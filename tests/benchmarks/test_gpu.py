"""The measurements for a GPU run at tiny size on a CPU, and their models have the sizes that they claim."""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
GPU = ROOT / "benchmarks" / "gpu"
CASES = {"sampling": 4, "guidance": 4, "independence": 1, "training": 3, "scoring": 2, "denoiser": 2}
# Millions of parameters: denoiser, autoencoder and text encoders of the published checkpoints
SIZES = {"sd15": (859.5, 83.7, 123.1), "sd21": (865.9, 83.7, 340.4), "sdxl": (2567.5, 83.7, 123.1, 694.7)}


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    """What the tiny run wrote, and how it ended."""
    folder = tmp_path_factory.mktemp("gpu")
    # In front of all else, a folder where neither Ray nor MLflow can be imported
    for module in ("ray", "mlflow"):
        (folder / f"{module}.py").write_text(f"raise AssertionError('{module} is not on such a machine')")
    environment = os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    command = [GPU / "run.sh", "--tiny", "--minutes", "4", "--out", folder / "result"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "result"


def test_every_case_is_measured_without_ray_and_mlflow(tiny_run):
    result = json.loads((tiny_run / "result.json").read_text())
    counts = dict.fromkeys(CASES, 0)
    for row in result["rows"]:
        assert not {"error", "skipped"} & row.keys(), row
        counts[row["measurement"]] += 1
    assert counts == CASES
    assert result["tiny"]
    assert result["device"].startswith("cpu")
    assert result["versions"]["torch"] == torch.__version__.split("+")[0]
    assert "--tiny" in result["command"]


def test_rows_hold_ratios_and_the_batch_is_repeatable(tiny_run):
    rows = json.loads((tiny_run / "result.json").read_text())["rows"]
    for row in rows:
        if row["measurement"] == "independence":
            assert row["same_batch_twice_equal"]
            assert 0 <= row["images_equal"] <= row["images"]
            continue
        assert row["bare_images_per_second"] > 0
        if row.get("goal") is not None:
            middle, goal = row["ratio"][1], row["goal"]
            assert row["met"] == (middle <= goal if row["measurement"] == "guidance" else middle >= goal)
        if row["measurement"] != "training":  # a difference of epochs there, which in two steps may be anything
            low, middle, high = row["ratio"]
            assert 0 < low <= middle <= high
            assert row["images_per_second"] > 0
    assert all(row["defects"] == 0 for row in rows if row["measurement"] == "sampling")


def test_the_table_names_every_case(tiny_run):
    result = json.loads((tiny_run / "result.json").read_text())
    page = (tiny_run / "result.md").read_text()
    assert "Its figures mean nothing" in page
    for row in result["rows"]:
        assert f"| {row['case']} |" in page


@pytest.fixture
def gpu(monkeypatch):
    """The measurements' modules."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu import cases, measure, models, timing

    return SimpleNamespace(cases=cases, measure=measure, models=models, timing=timing)


def test_a_case_that_fails_costs_no_other_and_an_interruption_none_that_is_done(gpu, tmp_path):
    def fail(box):
        raise RuntimeError("no such kernel")

    def interrupt(box):
        raise KeyboardInterrupt

    def measured(setting):
        yield gpu.cases.Case("fails", fail)
        yield gpu.cases.Case("too long", lambda box: box.require(3600))
        yield gpu.cases.Case("fits", lambda box: {"images": 3})
        raise OSError("no room for the next model")

    def interrupted(setting):
        yield gpu.cases.Case("interrupted", interrupt)

    kinds = [gpu.cases.Measurement(cases.__name__, cases.__name__, 1, cases) for cases in (measured, interrupted)]
    options = Namespace(minutes=1.0, out=tmp_path / "new", tiny=True)
    with pytest.raises(KeyboardInterrupt):
        gpu.measure.run(kinds, options)
    first, second, third, fourth = json.loads((tmp_path / "new" / "result.json").read_text())["rows"]
    assert first["error"] == "RuntimeError: no such kernel"
    assert second["skipped"].startswith("needs about 3600 s")
    assert third["images"] == 3
    assert fourth["error"] == "OSError: no room for the next model"
    assert "no such kernel" in (tmp_path / "new" / "result.md").read_text()


def test_a_box_passes_on_what_it_leaves(gpu, tmp_path):
    left = []

    def quick(setting):
        yield gpu.cases.Case("quick", lambda box: left.append(box.left) or {})

    kinds = [gpu.cases.Measurement(name, name, 1, quick) for name in "ab"]
    gpu.measure.run(kinds, Namespace(minutes=1.0, out=tmp_path, tiny=True))
    assert left == pytest.approx([30, 60], abs=2)


def test_turns_are_paired_until_the_box_ends(gpu):
    calls = []
    box = gpu.timing.Box(time.monotonic() + 0.3)
    paired = gpu.timing.take_turns(lambda: calls.append("ours") or time.sleep(0.1), lambda: calls.append("bare"), box)
    assert calls == ["bare", "ours"] * 2  # once to warm up, then a pair; a second one would not end in time
    assert len(paired.ours) == len(paired.bare) == 1
    assert paired.speed[1] < 0.1


@pytest.mark.parametrize("name", SIZES)
def test_models_have_the_sizes_of_the_published_ones(gpu, name):
    pipeline = gpu.models.make_pipeline(name, device="meta")
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder, getattr(pipeline, "text_encoder_2", None))
    counts = [sum(weight.numel() for weight in part.parameters()) / 1e6 for part in parts if part is not None]
    assert counts == pytest.approx(SIZES[name], abs=0.1)


@pytest.mark.parametrize("name", SIZES)
def test_denoisers_take_what_their_text_encoders_give(gpu, name):
    unet = gpu.models.make_pipeline(name, device="meta").unet
    side, width = unet.config.sample_size, unet.config.cross_attention_dim
    with torch.device("meta"), torch.no_grad():
        extra = {"added_cond_kwargs": {"text_embeds": torch.empty(2, 1280), "time_ids": torch.empty(2, 6)}}
        latents = torch.empty(2, 4, side, side)
        output = unet(latents, torch.ones(()), torch.empty(2, 77, width), **extra if name == "sdxl" else {}).sample
    assert output.shape == latents.shape
