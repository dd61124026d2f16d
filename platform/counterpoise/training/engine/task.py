"""The fit of a stage, as a node of the graph of stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from counterpoise import config
from counterpoise.storage.records import create_record, put_file
from counterpoise.storage.store import Store
from counterpoise.storage.view import ImageView
from counterpoise.training.parameters.view_gradients import Gradients
from counterpoise.training.recipe import Row, StageRecipe, epoch_size

if TYPE_CHECKING:  # imported where weights are stored: results are read without torch
    from torch import Tensor

    from counterpoise.training.engine.process_group import Worker

OnEpoch = Callable[[str, Row], None]  # (stage name, row); called where the fit runs, in worker 0


@dataclass(frozen=True)
class Fit:
    """Everything that a worker needs to fit a stage: a :class:`counterpoise.execution.graph.Node`. Can be pickled.

    Attributes:
        recipe: Training settings.
        views: The training images; more than one are concatenated.
        validation: The images that select the epoch.
        seed: Seed of fresh weights, order and augmentation.
        start: Key of the weights to start from; None for fresh ones.
        before: The fit that produces these weights, if any.
        reference: The fit whose losses and errors weight this stage's images, if any.
        gradients: The node that measures the gradients for the selective mask, if any.
        store: The store that receives the result.
        digest: Its address in the store.
        about: Additional entries of the stage's record, such as the content of its digest.
    """

    recipe: StageRecipe
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
        """The stage's section of the config."""
        return self.recipe.stage

    @property
    def training(self) -> config.Training:
        """The training section of the config."""
        return self.recipe.training

    @property
    def select_by(self) -> config.SelectBy:
        """The criterion that selects the epoch: the stage's own, or the training section's."""
        return self.stage.select_by or self.training.select_by

    @property
    def sees_groups(self) -> bool:
        """True if training or selection uses group labels."""
        return self.stage.group_aware or self.select_by in config.GROUP_METRICS

    @property
    def weights_key(self) -> str:
        """Key of the weights in the store."""
        return f"stages/{self.digest}/weights.safetensors"

    @property
    def checkpoint_key(self) -> str:
        """Key of the checkpoint in the store."""
        return f"stages/{self.digest}/checkpoint"

    @property
    def record_key(self) -> str:
        """Key of the stage's record in the store."""
        return f"stages/{self.digest}/stage.json"

    @property
    def parents(self) -> tuple[Any, ...]:
        """The nodes that must be done before this one."""
        return tuple(node for node in (self.before, self.reference, self.gradients) if node is not None)

    @property
    def num_workers(self) -> int:
        """Number of processes that share the batches."""
        return self.training.num_workers

    @property
    def resources(self) -> config.ActorResources:
        """Resources of each worker."""
        return self.training.resources

    def note(self) -> str:
        """Label for a progress bar."""
        return f"stage {self.stage.name}, seed {self.seed}"

    def done(self) -> bool:
        """Return True if the store has the record."""
        return self.store.exists(self.record_key)

    def cost(self, seconds: float, worker: Worker) -> dict[str, Any]:
        """Return the cost of the fit: a fact of the stage, whichever methods share it.

        Returns:
            ``seconds`` of training in all calls; ``device`` of a worker; ``num_workers``; ``devices``, the
            accelerators that they reserve together, or the workers if they reserve none; and the ``images`` that the
            epochs showed, repeats counted.
        """
        import torch

        gpu = worker.device.type == "cuda"
        return {
            "seconds": round(seconds, 3),
            "device": torch.cuda.get_device_name(worker.device) if gpu else worker.device.type,
            "num_workers": worker.size,
            "devices": worker.size * (self.resources.num_gpus or 1.0),
            "images": 0 if self.stage.dfr else self.recipe.epochs * epoch_size(self.stage, self.views),
        }

    def finish(
        self,
        weights: dict[str, Tensor],
        epoch: int,
        history: list[Row],
        cost: dict[str, Any],
        moved: dict[str, bool] | None = None,
    ) -> None:
        """Store the weights and then the record, so that a record implies its weights."""
        import torch
        from safetensors.torch import save

        data = save({name: value.contiguous() for name, value in weights.items()})
        record: dict[str, Any] = {"name": self.stage.name, "epoch": epoch, "history": history, "cost": cost}
        record |= {} if moved is None else {"moved": moved}
        record |= self.about | {"versions": {"torch": torch.__version__}}
        record["weights_sha256"] = put_file(self.store, self.weights_key, data, self.record_key)
        create_record(self.store, self.record_key, record)
        self.store.delete(self.checkpoint_key)
