"""Cases: single measurements, each run by itself, so that one that fails costs no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu.timing import Box

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One row of the result.

    Attributes:
        name: Model, batch and precision, in words.
        run: Measures within a box and returns the row's columns; see :meth:`gpu.timing.Paired.row`. Others go to
            ``details``.
    """

    name: str
    run: Callable[[Box], Row]


@dataclass(frozen=True)
class Setting:
    """Setting of a measurement: its folder and its sizes.

    Attributes:
        folder: For models and stores; temporary.
        tiny: Models of 16 × 16 pixels and a few steps: for a test on a CPU, whose figures mean nothing.
    """

    folder: Path
    tiny: bool


@dataclass(frozen=True)
class Measurement:
    """Cases of one kind, the most important first.

    Attributes:
        name: A word for the command line.
        title: What is measured against what.
        share: Part of the whole time that its box has; what it leaves goes to the next.
        cases: Yields them; what they share is loaded between two of them, and released after the last.
    """

    name: str
    title: str
    share: float
    cases: Callable[[Setting], Iterator[Case]]
