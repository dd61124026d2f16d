"""Resumable training loop with checkpoints.

Each step draws its batch and its noise from the seed and the step, so a resumed run gives the same numbers as an
uninterrupted one (on one machine, with one thread).
"""

import copy
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from counterpoise.testbed.muon import Muon

SAVE_EVERY_S = 90.0


def generators(seed: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    """Return the random generators of one step, for numpy and for torch."""
    rng = np.random.default_rng((seed, step))
    return rng, torch.Generator().manual_seed(int(rng.integers(2**63)))


def cosine(step: int, steps: int, warmup: int = 50) -> float:
    """Compute the learning-rate factor: linear warm-up, then half a cosine to zero."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def plateau(step: int, steps: int, warmup: int = 100, decay: float = 0.2) -> float:
    """Compute the learning-rate factor: warm-up, constant, and in the last fifth linearly to zero.

    Up to the decay, a shorter run is then the beginning of a longer one: a budget may be reduced during a run.
    """
    return min(1.0, (step + 1) / warmup, (1 - step / steps) / decay)


class Trainer:
    """Model, optimizer, moving average, step and CPU seconds of one training run, kept in `path`."""

    def __init__(
        self,
        path: Path,
        model: nn.Module,
        lr: float,
        weight_decay: float = 0.01,
        ema: float = 0.0,
        muon: bool = False,
    ) -> None:
        self.path, self.model, self.lr, self.decay = path, model, lr, ema
        self.optimizer: torch.optim.Optimizer = (
            Muon(model.parameters(), lr, weight_decay)
            if muon
            else torch.optim.AdamW(model.parameters(), lr, (0.9, 0.99), weight_decay=weight_decay)
        )
        # Any: type checkers see placeholders of diffusers' classes, which are no modules
        self.average: Any = copy.deepcopy(model).requires_grad_(False).eval()
        self.step, self.cpu_s = 0, 0.0
        if path.exists():
            self._load()

    def fit(
        self,
        steps: int,
        loss: Callable[[int], torch.Tensor],
        schedule: Callable[[int, int], float] = cosine,
        on_save: Callable[["Trainer"], object] | None = None,
    ) -> "Trainer":
        """Train up to step `steps`. `loss(step)` returns the batch's loss; `on_save` is called after each save."""
        clock, saved, losses = time.process_time(), time.monotonic(), []
        self.model.train()
        while self.step < steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.lr * schedule(self.step, steps)
            value = loss(self.step)
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.step += 1
            self._update_average()
            losses.append(value.item())
            if self.step % 50 == 0 or self.step == steps:
                spent = self.cpu_s + time.process_time() - clock
                print(f"{self.path.stem} {self.step}/{steps} loss {np.mean(losses):.4f} {spent:.0f} CPU-s", flush=True)
                losses = []
            if self.step == steps or time.monotonic() - saved > SAVE_EVERY_S:
                self.cpu_s += time.process_time() - clock
                self._save()
                if on_save:
                    on_save(self)
                    self.model.train()
                clock, saved = time.process_time(), time.monotonic()
        return self

    def _update_average(self) -> None:
        """Update the moving average, with a smaller decay in early steps, so that the initial weights do not linger."""
        decay = min(self.decay, (1 + self.step) / (10 + self.step)) if self.decay else 0.0
        with torch.no_grad():
            pairs = zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True)
            for mean, value in pairs:
                if mean.dtype.is_floating_point:
                    mean.lerp_(value, 1 - decay)
                else:
                    mean.copy_(value)

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "cpu_s": self.cpu_s,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.path)

    def _load(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.cpu_s = state["step"], state["cpu_s"]
