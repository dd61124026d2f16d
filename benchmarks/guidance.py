"""Cost of feedback guidance: ratios of runs that alternate in one process, each the median of its pairs.

Against the same pipeline without guidance at the same batch; and against the paper's way as its authors coded it:
one image at a time, the conditional noise prediction computed a second time under gradients, every weight asking for a
gradient, prompts encoded for each image. Criterion: entropy of a small_cnn with random weights.

    python benchmarks/guidance.py

This is for a CPU and the testbed's small model; benchmarks/gpu measures the same at Stable Diffusion 2.1's size.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from counterpoise.config import Generator, Training
from counterpoise.generators.guidance import Guide
from counterpoise.generators.text_to_image import TextToImage
from counterpoise.synthesis.feedback.criteria import ClassifierContext, weighted_criterion
from counterpoise.training.models import build_model

PROMPT, CLASSES = "a photo of a red star", 8
OVERHEAD, SPEEDUP = 1.35, 3.0  # guided ÷ unguided time; batched ÷ one by one images per second


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model = "package:counterpoise/testbed/models/shapes/diffusion"
    parser.add_argument("--model", default=model, help="a Stable Diffusion pipeline [%(default)s]")
    parser.add_argument("--dtype", default="float32", help="of the pipeline [%(default)s]")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--guidance-scale", type=float, default=3.0)
    parser.add_argument("--every", type=int, default=5)
    parser.add_argument("--image-size", type=int, default=32, help="of the classifier [%(default)s]")
    parser.add_argument("--backbone", default="small_cnn", help="of the classifier [%(default)s]")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one-by-one", type=int, default=8, help="images of the paper's way [%(default)s]")
    return parser.parse_args()


def timed(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of several runs, after one of each that warms up; they take turns.

    The thread's own time: what else runs on the machine then counts only for the caches that it takes.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            started = time.process_time()
            run()
            if turn:
                seconds[name].append(time.process_time() - started)
    return seconds


def ratio(some: list[float], others: list[float]) -> float:
    """Return the median ratio of two runs' times, paired by turn."""
    return statistics.median(mine / yours for mine, yours in zip(some, others, strict=True))


def one_by_one(
    pipeline: Any, judge: ClassifierContext, images: int, steps: int, guidance_scale: float, every: int
) -> None:
    """Section 2 of the authors' sampler, restated: batch 1, an own DDIM loop, guidance by a second forward pass.

    Args:
        pipeline: Of Stable Diffusion 1 or 2, with a DDIM scheduler of ε- or v-prediction.
        judge: The classifier that guides.
        images: How many are made, one after the other.
        steps: Denoising steps.
        guidance_scale: Of classifier-free guidance.
        every: One step in so many is guided.
    """
    unet, vae, scheduler, device = pipeline.unet, pipeline.vae, pipeline.scheduler, pipeline.device
    entropy, side = weighted_criterion({"entropy": 1.0}), unet.config.sample_size
    velocity = scheduler.config.prediction_type == "v_prediction"
    for number in range(images):
        text, empty = pipeline.encode_prompt(PROMPT, device, 1, True)
        scheduler.set_timesteps(steps, device=device)
        noise = torch.Generator().manual_seed(number)
        z = torch.randn(1, 4, side, side, generator=noise).to(device, unet.dtype) * scheduler.init_noise_sigma
        for step, t in enumerate(scheduler.timesteps):
            with torch.no_grad():
                both = unet(torch.cat([z, z]), t, encoder_hidden_states=torch.cat([empty, text])).sample
            plain, prompted = both.chunk(2)
            output = plain + guidance_scale * (prompted - plain)
            if step % every == 0:
                z = z.detach().requires_grad_(True)
                again = unet(z, t, encoder_hidden_states=text).sample
                signal = scheduler.alphas_cumprod[int(t)].to(z)
                if velocity:
                    clean = signal.sqrt() * z - (1 - signal).sqrt() * again
                else:
                    clean = (z - (1 - signal).sqrt() * again) / signal.sqrt()
                blend = (1 - signal).sqrt() * clean + (1 - (1 - signal).sqrt()) * z
                image = vae.decode(blend / vae.config.scaling_factor).sample / 2 + 0.5
                image = (image - image.min().detach()) / image.max().detach()
                value = entropy(image, torch.zeros(1, dtype=torch.long, device=z.device), judge)
                (g,) = torch.autograd.grad(value.sum(), z)
                judge.forget()
                z = (z + g / (g.norm() + 1e-8) * z.norm() * 0.03).detach()
            z = scheduler.step(output, t, z).prev_sample
        with torch.no_grad():
            vae.decode(z / vae.config.scaling_factor)


def main() -> None:
    """Measure all batch sizes and print the tables."""
    options = arguments()
    torch.set_num_threads(1)
    sampling = {"num_inference_steps": options.steps, "guidance_scale": options.guidance_scale}
    model = TextToImage(Generator(model=options.model, **sampling), "cpu", options.dtype)
    training = Training(backbone=options.backbone, image_size=options.image_size)
    judge = ClassifierContext(build_model(training, CLASSES, 0), options.image_size)
    entropy = weighted_criterion({"entropy": 1.0})

    def criterion(images: torch.Tensor) -> torch.Tensor:
        values = entropy(images, torch.zeros(len(images), dtype=torch.long, device=images.device), judge)
        judge.forget()
        return values

    guides = {
        "unguided": None,
        "guided": Guide(criterion, 0.03, options.every, checkpoint=False),
        "checkpointed": Guide(criterion, 0.03, options.every, checkpoint=True),
    }
    rows = []
    for batch in options.batches:
        runs = {name: functools.partial(sample, model, batch, guide) for name, guide in guides.items()}
        seconds = timed(runs, options.repeats)
        row: dict[str, float] = {"batch": batch}
        row |= {name: batch / min(seconds[name]) for name in runs}
        row |= {f"{name}_ratio": ratio(seconds[name], seconds["unguided"]) for name in runs}
        rows.append(row)
        print(json.dumps(row), flush=True)
    for part in (model.pipeline.unet, model.pipeline.vae):
        part.requires_grad_(True)
    judge.classifier.requires_grad_(True)
    settings = (options.one_by_one, options.steps, options.guidance_scale, options.every)
    alone = {"paper": lambda: one_by_one(model.pipeline, judge, *settings)}
    paper = options.one_by_one / min(timed(alone, options.repeats)["paper"])
    best = max(row["guided"] for row in rows)
    print(table(rows, paper))
    print(json.dumps({"rows": rows, "one_by_one": paper, "speedup": best / paper, "torch": version("torch")}))


def sample(model: TextToImage, batch: int, guide: Guide | None) -> None:
    """Sample a batch, guided if a guide is given."""
    model.sample([PROMPT] * batch, "", list(range(batch)), guide=guide)


def table(rows: list[dict[str, float]], paper: float) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| batch | unguided images/s | guided images/s | guided ÷ unguided time | with a checkpointed decoder |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['batch']} | {row['unguided']:.2f} | {row['guided']:.2f} "
            f"| {row['guided_ratio']:.3f} (goal {OVERHEAD}) | {row['checkpointed_ratio']:.3f} |"
        )
    best = max(row["guided"] for row in rows)
    lines.append(
        f"\nThe paper's way, one by one: {paper:.2f} images/s; ours is {best / paper:.2f} times that (goal {SPEEDUP})"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
