"""Feedback guidance in two dimensions: minority modes gain mass under entropy guidance, without retraining.

Askari Hemmat et al. 2024, A.2. Two classes, each of a majority mode (90 % of its points) and a minority mode (10 %). A
small diffusion model learns them; a linear classifier learns the majority modes, and its boundary runs through the
minority ones. Sampling is then guided to what the classifier is unsure of, by the code that guides images: here an
"image" is two numbers.

    python examples/feedback_toy.py --out toy.png
"""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.nn import functional as F

from counterpoise.generators.guidance import Guide, guided

MODES = np.array([[[-1.2, 0.9], [1.5, 0.4]], [[1.2, -0.9], [-1.5, -0.4]]], np.float32)  # [class][majority, minority]
SPREAD, MINORITY = 0.18, 0.1
STEPS = 30


def dataset(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points (n, 2), their classes and whether each is of the minority mode."""
    rng = np.random.default_rng(seed)
    labels, minority = rng.integers(0, 2, n), rng.random(n) < MINORITY
    points = MODES[labels, minority.astype(int)] + SPREAD * rng.standard_normal((n, 2), np.float32)
    return torch.from_numpy(points), torch.from_numpy(labels), torch.from_numpy(minority)


class Denoiser(nn.Module):
    """Predicts the noise of points (n, 2, 1, 1) of a class at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(2 + 16 + 2, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2)
        )
        self.register_buffer("waves", torch.linspace(0, 4, 8).exp())

    def forward(self, sample: Tensor, time: Tensor, labels: Tensor) -> tuple[Tensor]:
        """Return the predicted noise, as a tuple like diffusers' models."""
        phase = (time.float() / 1000).view(-1, 1).expand(len(sample), 1) * self.waves
        one_hot = F.one_hot(labels, 2).float()
        inputs = torch.cat([sample.flatten(1), phase.sin(), phase.cos(), one_hot], 1)
        return (self.body(inputs).view_as(sample),)


def train_denoiser(points: Tensor, labels: Tensor, scheduler: DDIMScheduler, steps: int, seed: int) -> Denoiser:
    """Train the denoiser on labelled points."""
    torch.manual_seed(seed)
    model = Denoiser()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        rows = torch.randint(0, len(points), (512,))
        clean, noise, time = points[rows].view(-1, 2, 1, 1), torch.randn(512, 2, 1, 1), torch.randint(0, 1000, (512,))
        predicted = model(scheduler.add_noise(clean, noise, time), time, labels[rows])[0]
        optimizer.zero_grad()
        F.mse_loss(predicted, noise).backward()
        optimizer.step()
    return model.requires_grad_(False)


def train_classifier(points: Tensor, labels: Tensor, minority: Tensor, seed: int) -> nn.Linear:
    """Train a linear classifier for some epochs, which are enough for the majority modes."""
    torch.manual_seed(seed)
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(points), labels).backward()
        optimizer.step()
    return model.requires_grad_(False)


def sample(model: Denoiser, scheduler: DDIMScheduler, labels: Tensor, guide: Guide | None, seed: int) -> Tensor:
    """Points (n, 2) of these classes. What ``guided`` hooks is a pipeline's denoiser and its scheduler's step."""
    pipeline = SimpleNamespace(unet=model, scheduler=scheduler)
    scheduler.set_timesteps(STEPS)
    z = torch.randn(len(labels), 2, 1, 1, generator=torch.Generator().manual_seed(seed))
    with guided(pipeline, guide, len(labels)), torch.no_grad():
        for time in scheduler.timesteps:
            noise = model(z, time, labels)[0]
            z = scheduler.step(noise, time, z, return_dict=False)[0]
    return z.flatten(1)


def minority_share(points: Tensor, labels: Tensor) -> float:
    """Share of the points in their class's minority mode: within three standard deviations of its centre."""
    distances = torch.cdist(points[:, None], torch.from_numpy(MODES)[labels]).squeeze(1)
    return (distances[:, 1] < 3 * SPREAD).float().mean().item()


def run(steps: int = 4000, scale: float = 0.05, stop: float = 0.6, n: int = 2000, seed: int = 0) -> dict:
    """Everything, from data to samples; ``plain`` and ``guided`` are (points, share of the minority modes)."""
    points, labels, minority = dataset(4000, seed)
    scheduler = DDIMScheduler(clip_sample=False)
    model = train_denoiser(points, labels, scheduler, steps, seed)
    classifier = train_classifier(points, labels, minority, seed)

    def entropy(images: Tensor) -> Tensor:
        logs = classifier(2 * images.flatten(1) - 1).log_softmax(1)  # decoding maps [-1, 1] to [0, 1]
        return -(logs.exp() * logs).sum(1)

    asked = torch.arange(n) % 2
    found = {"data": (points, minority_share(points, labels)), "labels": labels, "asked": asked}
    found["classifier"] = classifier
    for name, guide in (
        ("plain", None),
        ("guided", Guide(entropy, scale, every=1, stop=stop, blend=False, checkpoint=False)),
    ):
        made = sample(model, scheduler, asked, guide, seed + 1)
        found[name] = (made, minority_share(made, asked))
    return found


def plot(found: dict, path: Path) -> None:
    """Plot the real and the sampled points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = (
        ("data", "training data", "labels"),
        ("plain", "sampled", "asked"),
        ("guided", "guided by entropy", "asked"),
    )
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), sharex=True, sharey=True, layout="constrained")
    weight, bias = found["classifier"].weight, found["classifier"].bias
    direction, offset = (weight[0] - weight[1]).numpy(), float(bias[0] - bias[1])
    xs = np.array([-2.4, 2.4])
    for axis, (name, title, labels) in zip(axes, panels, strict=True):
        points, share = found[name]
        axis.scatter(*points.T, c=np.array(["#3b6fb6", "#c8553d"])[found[labels]], s=4, alpha=0.5, linewidths=0)
        axis.plot(xs, -(direction[0] * xs + offset) / direction[1], color="#444", lw=1, ls="--")
        axis.set_title(f"{title}: {share:.0%} in minority modes", fontsize=10)
        axis.set(xlim=(-2.4, 2.4), ylim=(-2, 2), aspect="equal")
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("feedback_toy.png"), help="the picture [%(default)s]")
    parser.add_argument("--scale", type=float, default=0.05, help="of the guidance [%(default)s]")
    parser.add_argument("--stop", type=float, default=0.6, help="share of the steps that are guided [%(default)s]")
    options = parser.parse_args()
    found = run(scale=options.scale, stop=options.stop)
    plot(found, options.out)
    print(f"share in minority modes: data {found['data'][1]:.3f}, sampled {found['plain'][1]:.3f}, "
          f"guided {found['guided'][1]:.3f}; picture: {options.out}")  # fmt: skip
