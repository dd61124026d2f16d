"""Training images of a stage, with their labels, groups, sampling weights and batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from counterpoise import config
from counterpoise.storage.view import ImageView
from counterpoise.training.loading.batches import epoch_batches, image_weights, shown_shares, stage_groups, subsample
from counterpoise.training.loading.pixel_cache import PixelCache


class StageImages:
    """Pixels, labels, groups and sampling weights of a stage's images.

    Groups are read only for a stage that uses them, so that training without group labels has no access to them.

    Args:
        stage: The stage's mixture, sampling and groups.
        views: Concatenated in this order.
        size: Height and width of the decoded images in pixels.
        seed: Seed of the subsample and of the epochs.
        reference: Logits of another classifier for all images of the views, if the stage has a reference.
    """

    def __init__(
        self,
        stage: config.Stage,
        views: Sequence[ImageView],
        size: int,
        seed: int,
        reference: Float[np.ndarray, "n classes"] | None = None,
    ) -> None:
        self.stage, self.seed = stage, seed
        self.pixels = PixelCache(views, size)
        self.classes = len(views[0].names.classes)
        self.labels = np.concatenate([view.labels for view in views]).astype(np.int64)
        self.synthetic = np.concatenate([view.synthetic for view in views])
        groups = np.zeros_like(self.labels)
        if stage.group_aware:
            groups = stage_groups(
                self.labels, np.concatenate([view.groups for view in views]), self.synthetic, stage.groups
            )
        self.groups = groups
        self.reference = np.zeros(len(self.labels), np.float32)
        wrong = None
        if reference is not None:
            self.reference = _cross_entropy(reference, self.labels)
            wrong = reference.argmax(1) != self.labels
        self._keep(wrong)

    def _keep(self, wrong: np.ndarray | None) -> None:
        """Apply the subsample, if there is one; all later attributes are of the images kept."""
        rule = self.stage.mixture.subsample
        kept = np.arange(len(self.labels))
        if rule is not None:
            kept = subsample(self.labels if rule == "class" else self.groups, self.seed)
        self.kept = kept
        self.labels, self.groups, self.synthetic = self.labels[kept], self.groups[kept], self.synthetic[kept]
        self.reference = self.reference[kept]
        wrong = None if wrong is None else wrong[kept]
        source = None if self.stage.mixture.real_share is None else self.synthetic
        self.weights = image_weights(self.stage.sampling, self.labels, self.groups, wrong, self.stage.upweight, source)

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def group_sizes(self) -> Int[Tensor, " groups"]:
        """The number of images of each group."""
        return torch.from_numpy(np.bincount(self.groups))

    @property
    def prior(self) -> Float[Tensor, " classes"]:
        """The share of each class among the images shown."""
        mixture = self.stage.mixture
        shares = shown_shares(self.weights, self.synthetic, self.labels, mixture, self.classes)
        return torch.from_numpy(shares).float()

    def batches(self, batch_size: int, epoch: int) -> list[np.ndarray]:
        """Return positions of the images of each step of an epoch, from 0 to ``len(self)``."""
        return epoch_batches(self.weights, self.synthetic, self.stage.mixture, batch_size, self.seed, epoch)

    def read(self, positions: Int[np.ndarray, " n"]) -> np.ndarray:
        """Return pixels, uint8 (n, size, size, 3)."""
        return self.pixels[self.kept[positions]]


def _cross_entropy(logits: Float[np.ndarray, "n classes"], labels: Int[np.ndarray, " n"]) -> np.ndarray:
    return torch.nn.functional.cross_entropy(
        torch.from_numpy(logits).float(), torch.from_numpy(labels), reduction="none"
    ).numpy()
