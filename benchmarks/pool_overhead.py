"""Overhead of the pool over a bare loop, as ratios measured in one run on one machine.

The bare loop calls the same diffusers pipeline on the same batches, with a generator for each image, in one process,
and throws the pixels away. The pool also encodes, scores and commits them, with one worker and with two. The bare
loop runs before and after, so that a machine that changed its speed in between shows; and twice side by side, which
is what two workers could reach at best.

    python benchmarks/pool_overhead.py --shards 60
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from counterpoise.config import Experiment
from counterpoise.core.model_source import locate
from counterpoise.execution.cluster import connect, disconnect
from counterpoise.storage.schema import LabelSpace
from counterpoise.storage.uri import open_store
from counterpoise.synthesis.pool import sampling
from counterpoise.synthesis.pool.address import Shard, seed
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.prompts.resolve import resolve

NAMES = LabelSpace(("star", "disc"), ("red", "blue"))
CEILING, SCALING = 0.90, 1.6  # one worker ÷ bare loop, two workers ÷ one worker


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = "package:counterpoise/testbed/models/shapes"
    parser.add_argument("--diffusion", default=f"{models}/diffusion", help="a pipeline [%(default)s]")
    parser.add_argument("--clip", default=f"{models}/clip", help="a scorer, or nothing with --clip '' [%(default)s]")
    parser.add_argument("--shards", type=int, default=60, help="batches of each run [%(default)s]")
    parser.add_argument("--shard-size", type=int, default=32, help="images of a batch [%(default)s]")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps [%(default)s]")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale [%(default)s]")
    parser.add_argument("--json", type=Path, help="also write the result here")
    parser.add_argument("--bare", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_pool(options: argparse.Namespace, store: str, workers: int) -> Pool:
    """Return a pool of four cells in a store."""
    sections = {
        "name": "overhead",
        "method": "overhead",
        "store": store,
        "data": {"adapter": "testbed"},
        "generator": {
            "model": options.diffusion,
            "num_inference_steps": options.steps,
            "guidance_scale": options.guidance,
        },
        "scorer": {"model": options.clip} if options.clip else None,
        "pool": {"shard_size": options.shard_size, "sampling": {"workers": workers}, "max_quarantined": 1.0},
        "stages": [{"name": "none", "data": ["real"]}],
    }
    experiment = Experiment.model_validate(sections)
    return Pool.of(experiment, NAMES, open_store(store), resolve(experiment.prompts, NAMES, open_store(store)))


def shards_of(options: argparse.Namespace) -> list[Shard]:
    """Return the shards to sample, spread over the cells."""
    return [Shard(number % 2, number // 2 % 2, number // 4) for number in range(options.shards)]


def bare_loop(options: argparse.Namespace) -> float:
    """Images per second of the pipeline alone, in this process."""
    import diffusers
    import torch

    torch.set_num_threads(1)
    pool = make_pool(options, "unused", 1)
    pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(
        locate(options.diffusion, "--diffusion"), dtype=torch.float32
    )
    pipeline.set_progress_bar_config(disable=True)
    started = time.perf_counter()
    for shard in shards_of(options):
        indices = range(shard.number * options.shard_size, (shard.number + 1) * options.shard_size)
        seeds = [seed(pool.digest, shard.label, shard.group, index, 0) for index in indices]
        pipeline(
            pool.generation["prompts"][shard.label][shard.group] * options.shard_size,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            generator=[torch.Generator().manual_seed(one) for one in seeds],
            output_type="np",
        )
    return options.shards * options.shard_size / (time.perf_counter() - started)


def pool_run(options: argparse.Namespace, workers: int) -> dict[str, float]:
    """Run the pool with a number of workers; return rates with and without start-up, and seconds by step."""
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        began = time.time()
        connect()
        receipts = sampling.sample(make_pool(options, folder, workers), shards_of(options))
        ended = time.time()
        disconnect()
    first, images = min(receipt.started for receipt in receipts), options.shards * options.shard_size
    steps = {step: sum(receipt.seconds.get(step, 0.0) for receipt in receipts) for step in sampling.STEPS}
    return {
        "images_per_second": images / (ended - first),
        "with_startup": images / (ended - began),
        "startup": first - began,
        **steps,
    }


def bare_loops(count: int) -> float:
    """Images per second of so many bare loops side by side, each in a process of its own, as the samplers are."""
    command = [sys.executable, *sys.argv, "--bare"]
    loops = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    return sum(float(loop.communicate()[0].splitlines()[-1]) for loop in loops)


def main() -> None:
    """Run the bare loop and the pool in turn, and print the table."""
    options = arguments()
    if options.bare:
        print(bare_loop(options))
        return
    before, side_by_side = bare_loops(1), bare_loops(2)
    one, two = pool_run(options, 1), pool_run(options, 2)
    after = bare_loops(1)
    bare = float(np.mean([before, after]))
    result = {
        "model": options.diffusion,
        "shards": options.shards,
        "shard_size": options.shard_size,
        "steps": options.steps,
        "guidance": options.guidance,
        "bare": {"before": before, "after": after, "two": side_by_side},
        "one": one,
        "two": two,
        "one_over_bare": one["images_per_second"] / bare,
        "one_over_bare_with_startup": one["with_startup"] / bare,
        "two_over_one": two["images_per_second"] / one["images_per_second"],
        "two_over_one_with_startup": two["with_startup"] / one["with_startup"],
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in ("torch", "diffusers", "ray")},
    }
    print(table(result))
    print(json.dumps(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def table(result: dict) -> str:
    """Return the results as a Markdown table."""
    bare, one, two = result["bare"], result["one"], result["two"]
    rows = [
        "| run | images/s | images/s with start-up | start-up s | sample s | encode s | score s | commit s |",
        "|---|---|---|---|---|---|---|---|",
        f"| bare loop, before and after | {bare['before']:.3f}, {bare['after']:.3f} | | | | | | |",
        f"| two bare loops side by side | {bare['two']:.3f} | | | | | | |",
    ]
    for name, run in (("one worker", one), ("two workers", two)):
        seconds = " | ".join(f"{run[step]:.2f}" for step in ("startup", "sample", "encode", "score", "commit"))
        rows.append(f"| {name} | {run['images_per_second']:.3f} | {run['with_startup']:.3f} | {seconds} |")
    ratios = (("one ÷ bare", "one_over_bare", CEILING), ("two ÷ one", "two_over_one", SCALING))
    for name, key, goal in ratios:
        verdict = "met" if result[key] >= goal else "missed"
        whole = result[f"{key}_with_startup"]
        rows.append(f"\n{name}: {result[key]:.3f} (goal {goal}: {verdict}); with start-up {whole:.3f}")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
