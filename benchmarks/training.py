"""Overhead of the training loop over a bare loop, as ratios measured in one process on one machine.

The bare loop is the same model with the same optimizer on batches of the same size, from tensors that are in the
device's memory already: no decoding, no augmentation, no validation, no checkpoints, nothing that remembers. It runs
one epoch after each epoch of ours, so that a machine that changes its speed changes it for both.

    python benchmarks/training.py --backbone small_cnn small_resnet resnet18
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from counterpoise.config import Experiment
from counterpoise.data.table import TableFiles, TableWriter, read_view
from counterpoise.storage.codec import encode_image
from counterpoise.storage.schema import LabelSpace
from counterpoise.storage.store import Store
from counterpoise.storage.uri import open_store
from counterpoise.storage.view import ImageView
from counterpoise.training import stages
from counterpoise.training.loading.pixel_cache import PixelCache
from counterpoise.training.models import build_model

NAMES = LabelSpace(("dark", "light"))
GOAL = 0.95  # our steps per second ÷ those of the bare loop
SIZES = {"small_cnn": (32, 200), "small_resnet": (32, 40)}  # pixels a side, steps of an epoch
OTHERS = (64, 12)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    backbones = ["small_cnn", "small_resnet", "resnet18"]
    parser.add_argument("--backbone", nargs="+", default=backbones, help="[%(default)s]")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="the nearest by default")
    parser.add_argument("--batch-size", type=int, default=128, help="[%(default)s]")
    parser.add_argument("--image-size", type=int, help=f"pixels a side; by default 32, {OTHERS[0]} for torchvision's")
    parser.add_argument("--steps", type=int, help="of an epoch; the defaults are for one CPU core, take 400 on a GPU")
    parser.add_argument("--epochs", type=int, default=8, help="of which the first does not count [%(default)s]")
    parser.add_argument("--compile", action="store_true", help="both loops with torch.compile")
    parser.add_argument("--json", type=Path, help="also write the result here")
    return parser.parse_args()


# -- the data and the experiment ---------------------------------------------------------------------------------------


def make_view(store: Store, key: str, n: int, size: int) -> ImageView:
    """Noisy squares, light ones and dark ones, at most 64 different ones; their pixels cost what any image's cost."""
    random = np.random.default_rng(n)
    labels = np.arange(n) % 2
    squares = [random.integers(90 + 20 * label, 150 + 20 * label, (size, size, 3), np.uint8) for label in labels[:64]]
    encoded = [encode_image(square) for square in squares]
    return store_images(store, key, [encoded[number % len(encoded)] for number in range(n)], labels, NAMES)


def store_images(store: Store, key: str, images: list[bytes], labels: np.ndarray, names: LabelSpace) -> ImageView:
    """Store encoded images without groups as a dataset, and return the view of all of them."""
    numbers, group_size = np.arange(len(images)), 1024
    with tempfile.TemporaryDirectory() as folder:
        writer = TableWriter(store, TableFiles(key), Path(folder))
        for start in range(0, len(images), group_size):
            part = numbers[start : start + group_size]
            columns = {
                "id": pa.array([f"{key}/{number}" for number in part.tolist()], pa.string()),
                "label": pa.array(labels[part], pa.int32()),
                "group": pa.array(np.full(len(part), -1), pa.int32()),
                "split": pa.array(["train"] * len(part), pa.string()),
            }
            writer.write(images[start : start + group_size], pa.table(columns))
        writer.finish(names, pa.table({"id": pa.array([], pa.string())}))
    return read_view(store, TableFiles(key))


def make_experiment(options: argparse.Namespace, backbone: str, size: int, store: str) -> Experiment:
    """Return an experiment that trains a backbone at an image size."""
    sections = {
        "name": "training",
        "method": "training",
        "store": store,
        "data": {"adapter": "testbed"},
        "stages": [{"name": "fit", "data": ["real"]}],
        "training": {
            "backbone": backbone,
            "image_size": size,
            "batch_size": options.batch_size,
            "epochs": options.epochs,
            "compile": options.compile,
            "select_by": "last",
        },
    }
    return Experiment.model_validate(sections)


# -- the two loops -----------------------------------------------------------------------------------------------------


class Bare:
    """The loop that ours is measured against.

    Args:
        experiment: Its ``training`` section says which model, batch size and optimizer.
        view: The images.
        channels_last: Memory format of the model and of its batches.
    """

    def __init__(self, experiment: Experiment, view: ImageView, channels_last: bool = False) -> None:
        training = experiment.training
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.batch_size = training.batch_size
        pixels = PixelCache([view], training.image_size)[np.arange(len(view))]
        self.images = torch.from_numpy(pixels).to(self.device)
        self.labels = torch.from_numpy(view.labels.astype(np.int64)).to(self.device)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model = build_model(training, len(NAMES.classes), seed=0).to(self.device).train()
        self.model.to(memory_format=self.layout)
        self.call = torch.compile(self.model) if training.compile else self.model
        optimizer = training.optimizer
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=optimizer.lr, weight_decay=optimizer.weight_decay)

    def epoch(self) -> float:
        """Trains for an epoch. Returns its seconds."""
        started = time.perf_counter()
        for batch in torch.randperm(len(self.images), device=self.device).split(self.batch_size):
            self.step(self.images[batch].permute(0, 3, 1, 2), self.labels[batch])
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Take one gradient step."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):  # as precision=auto
            loss = nn.functional.cross_entropy(self.call(images).float(), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


@dataclass
class Pair:
    """Seconds of each epoch of both loops, in turn, on so many steps an epoch."""

    steps: int
    ours: list[float]
    bare: list[float]

    @property
    def ratio(self) -> np.ndarray:
        """Time of the bare loop ÷ ours, for each epoch."""
        return np.divide(self.bare, self.ours)

    @property
    def extra(self) -> float:
        """Seconds that an epoch of ours takes longer."""
        return float(np.median(np.subtract(self.ours, self.bare)))


def measure(options: argparse.Namespace, backbone: str, size: int, steps: int) -> Pair:
    """Ours, with an epoch of the bare loop after each of its epochs; the first of both does not count."""
    with tempfile.TemporaryDirectory(prefix="training-") as folder:
        os.environ["COUNTERPOISE_CACHE"] = f"{folder}/cache"
        store = open_store(f"{folder}/store")
        view = make_view(store, "train", steps * options.batch_size, size)
        validation = make_view(store, "validation", 2, size)
        experiment = make_experiment(options, backbone, size, store.uri)
        bare, pair = Bare(experiment, view), Pair(steps, [], [])
        resumed = time.perf_counter()

        def take_turns(*_: object) -> None:
            nonlocal resumed
            pair.ours.append(time.perf_counter() - resumed)
            pair.bare.append(bare.epoch())
            resumed = time.perf_counter()

        stages.run(experiment, {"real": view}, validation, take_turns)
    return Pair(steps, pair.ours[1:], pair.bare[1:])


def steps_per_second(options: argparse.Namespace, backbone: str, channels_last: bool) -> float:
    """Return the bare loop's steps per second in a memory format: the median over all epochs but the first."""
    size, steps = SIZES.get(backbone, OTHERS)
    size, steps = options.image_size or size, options.steps or steps
    with tempfile.TemporaryDirectory(prefix="training-") as folder:
        os.environ["COUNTERPOISE_CACHE"] = f"{folder}/cache"
        store = open_store(f"{folder}/store")
        view = make_view(store, "train", steps * options.batch_size, size)
        bare = Bare(make_experiment(options, backbone, size, store.uri), view, channels_last)
        return steps / float(np.median([bare.epoch() for _ in range(options.epochs)][1:]))


# -- the result --------------------------------------------------------------------------------------------------------


def compare(options: argparse.Namespace, backbone: str) -> dict:
    """Compare with the bare loop. The overhead per step follows from epochs of two lengths, which end alike."""
    size, steps = SIZES.get(backbone, OTHERS)
    size, steps = options.image_size or size, options.steps or steps
    long, short = (measure(options, backbone, size, count) for count in (steps, max(steps // 4, 1)))
    bare_step = float(np.median(long.bare)) / long.steps
    extra_step = (long.extra - short.extra) / max(long.steps - short.steps, 1)
    return {
        "backbone": backbone,
        "image_size": size,
        "steps": steps,
        "bare_steps_per_second": 1 / bare_step,
        "ours_steps_per_second": 1 / (bare_step + extra_step),
        "steps_ratio": bare_step / (bare_step + extra_step),
        "epoch_end_seconds": long.extra - steps * extra_step,
        "epochs_ratio": [float(value) for value in np.quantile(long.ratio, [0.25, 0.5, 0.75])],
        "seconds": {"ours": long.ours, "bare": long.bare, "ours_short": short.ours, "bare_short": short.bare},
    }


def table(rows: list[dict]) -> str:
    """Return the results as a Markdown table."""
    columns = ("backbone", "px", "steps", "bare steps/s", "our steps/s", "ratio", "goal")
    columns += ("an epoch's end, s", "whole epochs [quartiles]")
    lines = [f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
    for row in rows:
        low, median, high = row["epochs_ratio"]
        verdict = "met" if row["steps_ratio"] >= GOAL else "missed"
        lines.append(
            f"| {row['backbone']} | {row['image_size']} | {row['steps']} | {row['bare_steps_per_second']:.2f} "
            f"| {row['ours_steps_per_second']:.2f} | {row['steps_ratio']:.3f} | {GOAL}: {verdict} "
            f"| {row['epoch_end_seconds']:.2f} | {median:.3f} [{low:.3f}, {high:.3f}] |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure all backbones and print the table."""
    options = arguments()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA is first asked for
    elif options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: there is none")
    rows = [compare(options, backbone) for backbone in options.backbone]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    circumstances = {"device": device, "batch_size": options.batch_size, "epochs": options.epochs}
    circumstances |= {"load": os.getloadavg()[0], "torch": version("torch"), "torchvision": version("torchvision")}
    print(table(rows))
    result = circumstances | {"rows": rows}
    print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
