"""Configuration of the trainable parameters of a stage: one class for each way to choose them, told apart by ``name``.

The implementations are in :mod:`counterpoise.training.parameters`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt

from counterpoise.config.base import OR_WORD, Section, Share

Pair = Annotated[list[str], Field(min_length=2, max_length=2)]


class TrainableSettings(Section, decides="weights"):
    """Trainable parameters of a stage; all others are frozen and excluded from the optimizer."""


class All(TrainableSettings, decides="weights"):
    """All parameters."""

    name: Literal["all"]


class LastLayer(TrainableSettings, decides="weights"):
    """The last layer."""

    name: Literal["last_layer"]


class Blocks(TrainableSettings, decides="weights"):
    """Blocks of the backbone, by name."""

    name: Literal["blocks"]
    blocks: list[str] = Field(min_length=1)  # names of the backbone's modules, such as layer4


class AllButBlocks(TrainableSettings, decides="weights"):
    """All parameters but those of some blocks of the backbone."""

    name: Literal["all_but_blocks"]
    blocks: list[str] = Field(min_length=1)


class RandomTensors(TrainableSettings, decides="weights"):
    """Parameter tensors drawn by seed."""

    name: Literal["random"]
    share: Share  # of the parameter tensors


class Lora(TrainableSettings, decides="weights"):
    """Low-rank updates (Hu et al. 2022), and the last layer."""

    name: Literal["lora"]
    rank: PositiveInt = 4
    alpha: PositiveFloat = 8.0  # the update is multiplied by alpha / rank


class Selective(TrainableSettings, decides="weights"):
    """Tensors chosen by their gradients on pairs of views (AIM-Fair, Zhao et al. 2025)."""

    name: Literal["selective"]
    top_k: PositiveInt | Share  # tensors taken from each ranking, as a count or a share
    similar: Pair = ["real", "biased"]  # two views; tensors whose gradients differ least are taken
    different: Pair = ["biased", "balanced"]  # two views; tensors whose gradients differ most are taken
    distance: Literal["absolute", "cosine"] = "absolute"  # distance of two gradients of a tensor


Trainable = Annotated[
    All | LastLayer | Blocks | AllButBlocks | RandomTensors | Lora | Selective, Discriminator("name"), OR_WORD
]
