"""A stage's fit: a node of the graph of stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from safetensors.torch import save as save_safetensors
from torch import Tensor

from counterpoise import config
from counterpoise.storage.store import Store
from counterpoise.storage.view import ImageView
from counterpoise.training.engine import loop
from counterpoise.training.engine.loop import Row
from counterpoise.training.parameters.view_gradients import Gradients

OnEpoch = Callable[[str, Row], None]  # (stage name, row); called where the fit runs, in worker 0


@dataclass(frozen=True)
class Fit:
    """All that a worker needs to fit a stage: a :class:`counterpoise.execution.graph.Node`. Can be pickled.

    Attributes:
        recipe: How it trains.
        views: The training images; more than one are concatenated.
        validation: The images that choose the epoch.
        seed: Of fresh weights, order and augmentation.
        start: Key of the weights to start from; None for fresh ones.
        before: The fit whose weights these are, if one made them.
        reference: The fit whose mistakes this one looks at.
        gradients: What the selective mask comes from.
        store: Where the result goes.
        digest: Its address in the store.
        about: What the stage's record says besides, such as what its digest covers.
    """

    recipe: loop.StageRecipe
    views: list[ImageView]
    validation: ImageView
    seed: int
    start: str | None
    before: Fit | None
    reference: Fit | None
    gradients: Gradients | None
    store: Store
    digest: str
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def stage(self) -> config.Stage:
        return self.recipe.stage

    @property
    def training(self) -> config.Training:
        return self.recipe.training

    @property
    def select_by(self) -> config.SelectBy:
        return self.stage.select_by or self.training.select_by

    @property
    def sees_groups(self) -> bool:
        """Whether training or selection looks at a group label."""
        return self.stage.group_aware or self.select_by in config.GROUP_METRICS

    @property
    def weights_key(self) -> str:
        return f"stages/{self.digest}/weights.safetensors"

    @property
    def checkpoint_key(self) -> str:
        return f"stages/{self.digest}/checkpoint"

    @property
    def record_key(self) -> str:
        return f"stages/{self.digest}/stage.json"

    @property
    def parents(self) -> tuple[Any, ...]:
        """What must be done before this."""
        return tuple(node for node in (self.before, self.reference, self.gradients) if node is not None)

    @property
    def num_workers(self) -> int:
        return self.training.num_workers

    @property
    def resources(self) -> config.ActorResources:
        return self.training.resources

    @property
    def note(self) -> str:
        """What a progress bar says of it."""
        return f"stage {self.stage.name}, seed {self.seed}"

    def done(self) -> bool:
        return self.store.exists(self.record_key)

    def finish(
        self,
        weights: dict[str, Tensor],
        epoch: int,
        history: list[Row],
        seconds: float,
        moved: dict[str, bool] | None = None,
    ) -> None:
        """Puts weights and then the record into the store: where the record is, the weights are."""
        self.store.create(
            self.weights_key, save_safetensors({name: value.contiguous() for name, value in weights.items()})
        )
        record = {"name": self.stage.name, "epoch": epoch, "history": history, "seconds": round(seconds, 3)}
        record |= {} if moved is None else {"moved": moved}
        self.store.create(self.record_key, json.dumps(record | self.about, indent=1).encode())
        self.store.delete(self.checkpoint_key)
