"""Oracle: a small network that classifies every factor of an image, trained apart from the models that it measures."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from counterpoise.testbed.clip import degrade, pixels
from counterpoise.testbed.loop import Trainer, generators
from counterpoise.testbed.pairs import Pair


class Oracle(nn.Module):
    """Classifier of images (N, 3, 32, 32) in 0..1, with one head of logits (N, values) per factor."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes
        plan = [(3, 16, 1), (16, 32, 2), (32, 64, 1), (64, 64, 2), (64, 96, 1), (96, 96, 2)]
        blocks: list[nn.Module] = []
        for before, after, stride in plan:
            conv = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            blocks += [conv, nn.BatchNorm2d(after), nn.ReLU()]
        self.body = nn.Sequential(*blocks, nn.Flatten(), nn.Dropout(0.1), nn.Linear(96 * 16, sum(sizes)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the logits, one (N, values) per factor."""
        return self.body(x * 4 - 2).split(self.sizes, dim=1)


def factor_sizes(pair: Pair) -> tuple[int, ...]:
    """Return the number of values of each factor."""
    return tuple(len(values) for values in pair.factors.values())


def train_oracle(path: Path, pair: Pair, steps: int, batch: int, seed: int) -> Trainer:
    """Train the oracle on degraded images of the pair; the checkpoint is at `path`."""
    torch.manual_seed(seed)
    model = Oracle(factor_sizes(pair))

    def loss(step: int) -> torch.Tensor:
        rng, noise = generators(seed, step)
        labels = pair.labels(batch, rng)
        x = degrade(pixels(pair.judge_images(labels, seed=int(rng.integers(2**31)))), noise)
        truth = torch.from_numpy(labels)
        return torch.stack([functional.cross_entropy(out, truth[:, i]) for i, out in enumerate(model(x))]).sum()

    return Trainer(path, model, lr=2e-3, ema=0.99).fit(steps, loss)


@torch.no_grad()
def judge(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Classify uint8 (N, 32, 32, 3) by every factor: int (N, F)."""
    model.eval()
    parts = [torch.stack([o.argmax(1) for o in model(part)], 1) for part in pixels(images).split(256)]
    return torch.cat(parts).numpy()


def accuracy(model: nn.Module, pair: Pair, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Measure the oracle's accuracy per factor on uint8 (N, 32, 32, 3) with labels int (N, F)."""
    hits = (judge(model, images) == labels).mean(0)
    return {name: round(float(hit), 4) for name, hit in zip(pair.factors, hits, strict=True)}


@torch.no_grad()
def spread(model: Oracle, images: np.ndarray, labels: np.ndarray) -> float:
    """Measure the variety of images within a class of the first factor.

    It is the standard deviation of the features before the last layer, averaged over features and classes. Only sets
    of equal size and balance are comparable.
    """
    model.eval()
    features = torch.cat([model.body[:-2](part * 4 - 2) for part in pixels(images).split(256)]).numpy()
    classes = labels[:, 0]
    return float(np.mean([features[classes == c].std(0).mean() for c in np.unique(classes)]))


def save_oracle(model: Oracle, path: Path) -> None:
    """Write half-precision weights, without BatchNorm's counters, so that all entries are of one type."""
    state = {k: v.half().contiguous() for k, v in model.state_dict().items() if v.is_floating_point()}
    save_file(state, path, metadata={"sizes": ",".join(map(str, model.sizes))})


def load_oracle(path: Path, sizes: tuple[int, ...]) -> Oracle:
    """Load the weights that :func:`save_oracle` wrote."""
    model = Oracle(sizes)
    model.load_state_dict({k: v.float() for k, v in load_file(path).items()}, strict=False)
    return model.eval()
