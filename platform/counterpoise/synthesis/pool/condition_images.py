"""Condition images: for each synthetic image one real image of its cell, drawn by its seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from counterpoise.core.rng import condition_bits
from counterpoise.errors import DataError
from counterpoise.storage.view import ImageView


class Conditions:
    """The condition images of a dataset.

    Args:
        view: The real training images.

    Raises:
        DataError: A class has none.
    """

    def __init__(self, view: ImageView) -> None:
        self.view = view
        for label, name in enumerate(view.names.classes):
            if not (view.labels == label).any():
                remedy = "remove the class, or sample without generator.condition"
                raise DataError("a class has no real image to condition on", where="data", found=name, remedy=remedy)

    def draw(self, label: int, group: int, seeds: Sequence[int]) -> Int[np.ndarray, " n"]:
        """Return positions in the view: of the cell, or of the whole class if the cell has no images.

        A seed's upper 31 bits select; its lower 32 seed the noise.
        """
        of_class = self.view.labels == label
        of_cell = of_class & (self.view.groups == group) if self.view.names.groups else of_class
        candidates = np.flatnonzero(of_cell if of_cell.any() else of_class)
        return candidates[[condition_bits(seed) % len(candidates) for seed in seeds]]

    def images(self, positions: Int[np.ndarray, " n"]) -> list[np.ndarray]:
        """Return the images at these positions as uint8 (height, width, 3) arrays."""
        images = dict(self.view.take(positions).decoded())
        return [images[position] for position in range(len(positions))]

    def ids(self, positions: Int[np.ndarray, " n"]) -> list[str]:
        """Return the ids of the images at these positions."""
        return self.view.index["id"].take(positions).to_pylist()
