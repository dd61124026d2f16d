"""Paired timings on a device, and boxes of time around them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

PAIRS = 5  # at most, of each ratio


class NoTime(Exception):
    """Error: the time left is too short for this case."""


@dataclass
class Box:
    """A span of time that ends at ``deadline``, in seconds of :func:`time.monotonic`."""

    deadline: float

    @property
    def left(self) -> float:
        """Seconds until it ends."""
        return self.deadline - time.monotonic()

    def require(self, seconds: float) -> None:
        """Raise :class:`NoTime` unless so many seconds are left."""
        if seconds > self.left:
            raise NoTime(f"needs about {seconds:.0f} s, {max(self.left, 0):.0f} s were left")


@dataclass
class Paired:
    """Seconds of two runs that took turns.

    Attributes:
        ours: Of the run that is measured.
        bare: Of the run that it is measured against.
        peak: GiB of device memory that ours needed at most; None on a CPU.
    """

    ours: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    peak: float | None = None

    @property
    def speed(self) -> list[float]:
        """Quartiles of bare ÷ ours: 1 if ours costs nothing on top, less if it is slower."""
        return np.quantile(np.divide(self.bare, self.ours), [0.25, 0.5, 0.75]).tolist()

    @property
    def time(self) -> list[float]:
        """Quartiles of ours ÷ bare: how many times as long ours takes."""
        return np.quantile(np.divide(self.ours, self.bare), [0.25, 0.5, 0.75]).tolist()

    def row(self, images: int, ratio: list[float], goal: float | None, least: bool = True) -> dict[str, Any]:
        """Columns of a result's row.

        Args:
            images: Images of one run, for the rates.
            ratio: :attr:`speed` or :attr:`time`.
            goal: What the median should reach.
            least: Whether the goal is a lower bound; otherwise it is an upper one.
        """
        met = None if goal is None else bool(ratio[1] >= goal if least else ratio[1] <= goal)
        return {
            "images_per_second": images / float(np.median(self.ours)),
            "bare_images_per_second": images / float(np.median(self.bare)),
            "ratio": ratio,
            "pairs": len(self.ours),
            "goal": goal,
            "met": met,
            "peak_gib": self.peak,
        }


def synchronize() -> None:
    """Wait until the device has done all that it was asked to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_of(run: Callable[[], Any]) -> float:
    """Return the wall-clock seconds of a run, the device's work included."""
    synchronize()
    started = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - started


def typical_seconds(run: Callable[[], Any], repeats: int = 3) -> float:
    """Return the median seconds of a run after one that warms up."""
    run()
    return float(np.median([seconds_of(run) for _ in range(repeats)]))


def take_turns(ours: Callable[[], Any], bare: Callable[[], Any], box: Box, pairs: int = PAIRS) -> Paired:
    """Time two runs in turn: once each to warm up, then in pairs until the box ends; at least one pair."""
    paired = Paired()
    bare()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    ours()
    synchronize()
    if torch.cuda.is_available():
        paired.peak = torch.cuda.max_memory_allocated() / 2**30
    while len(paired.ours) < pairs:
        paired.bare.append(seconds_of(bare))
        paired.ours.append(seconds_of(ours))
        if box.left < 1.2 * (paired.bare[-1] + paired.ours[-1]):
            break
    return paired
