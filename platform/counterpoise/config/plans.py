"""Configuration of plans, the numbers of synthetic images per cell: one class for each ``strategy``.

The implementations are in :mod:`counterpoise.synthesis.selection.strategies`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from counterpoise.config.base import NonNegativeInt, Section

Level = Literal["class", "cell"]
Budget = PositiveInt | Literal["usb", "real"]  # images in all: as many as USB's, or as real ones


class PlanSettings(Section, decides="selection"):
    """Base of the plans' settings."""

    strategy: str
    skip: NonNegativeInt = 0  # images of each cell to leave to other plans; see evaluation.test


class Uniformize(PlanSettings, decides="selection"):
    """Every class as large as the largest, or every cell as the largest of its group."""

    strategy: Literal["uniformize"]
    by: Level = "cell"


class Usb(PlanSettings, decides="selection"):
    """Every cell as large as the largest."""

    strategy: Literal["usb"]


class Asb(PlanSettings, decides="selection"):
    """Equally many images for every cell, in all as many as USB's."""

    strategy: Literal["asb"]


class Balanced(PlanSettings, decides="selection"):
    """Equally many images for every cell."""

    strategy: Literal["balanced"]
    budget: Budget = "usb"


class Biased(PlanSettings, decides="selection"):
    """Equally many images for every class, most of them for its majority group."""

    strategy: Literal["biased"]
    rate: Annotated[float, Field(ge=0.5, lt=1)]  # share of the majority group
    budget: Budget = "usb"


class Fill(PlanSettings, decides="selection"):
    """Every class or cell filled up to ``target``."""

    strategy: Literal["fill"]
    target: PositiveInt  # images per class or cell after filling
    by: Level = "cell"


class Custom(PlanSettings, decides="selection"):
    """Numbers as given."""

    strategy: Literal["custom"]
    counts: dict[str, NonNegativeInt | dict[str, NonNegativeInt]]  # class -> images, or class -> group -> images


Plan = Annotated[
    Uniformize | Usb | Asb | Balanced | Biased | Fill | Custom,
    Field(discriminator="strategy"),
]
