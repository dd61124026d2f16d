"""Adapter of the procedural world: images drawn on demand, with known factors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Int
from PIL import Image

from counterpoise import config
from counterpoise.core.rng import stream
from counterpoise.data.adapters.source import Picture, Rows, Source
from counterpoise.data.procedural import world
from counterpoise.errors import DataError

_STRIDE = 1_000_000  # largest per_cell, so that an image keeps its address when per_cell grows
_BATCH = 256


def testbed(data: config.Testbed) -> Source:
    """Open a dataset of ``per_cell`` images of each label × group pair and split; the other factors are uniform.

    Each split has its own seed, so no image of one split is in another. An image depends on the dataset's seed, its
    split, its cell and its index in the cell: larger datasets contain the smaller ones.
    """
    if data.label == data.group:
        raise DataError(
            "label and group are the same factor",
            where="data.group",
            found=data.group,
            allowed=", ".join(factor for factor in world.FACTORS if factor != data.label),
        )
    if (largest := max(data.per_cell.values(), default=0)) > _STRIDE:
        raise DataError("too many images per cell", where="data.per_cell", found=largest, allowed=f"at most {_STRIDE}")
    return Source(_fingerprint(data.rendering), lambda: _rows(data))


def _fingerprint(rendering: world.Rendering) -> str:
    """Return the digest of one image per shape, colour and background; it changes when the renderer changes."""
    factors = np.indices([len(values) for values in world.FACTORS.values()]).reshape(3, -1)
    return hashlib.sha256(world.render(*factors, rendering=rendering, seed=0).tobytes()).hexdigest()[:16]


def _rows(data: config.Testbed) -> Rows:
    labels, groups = world.FACTORS[data.label], world.FACTORS[data.group] if data.group else ("",)
    blocks: list[tuple[int, str, int, int]] = [
        (index, split, label, group)
        for index, split in enumerate(("train", "validation", "test"))
        if split in data.per_cell
        for label in range(len(labels))
        for group in range(len(groups))
    ]
    drawn = {block: _factors(data, *block, len(groups)) for block in blocks}
    names = [(f"{split}/{labels[lab]}/{groups[g]}".rstrip("/"), split, lab, g) for _, split, lab, g in blocks]
    each = [(*name, i) for name, factors in zip(names, drawn.values(), strict=True) for i in range(factors.shape[1])]
    return Rows(
        ids=[f"{prefix}/{i}" for prefix, _, _, _, i in each],
        labels=[labels[label] for _, _, label, _, _ in each],
        groups=[groups[group] for _, _, _, group, _ in each] if data.group else None,
        splits=[split for _, split, _, _, _ in each],
        images=lambda wanted: _pictures(data, drawn, len(groups), wanted),
        classes=labels,
        group_order=groups if data.group else None,
    )


def _seed(data: config.Testbed, split_index: int) -> int:
    return 3 * data.seed + split_index


def _factors(
    data: config.Testbed, split_index: int, split: str, label: int, group: int, groups: int
) -> Int[np.ndarray, "3 _"]:
    """Draw shape, colour and background of the images of a cell."""
    rng = stream(_seed(data, split_index), label * groups + group)
    given = {data.label: label, data.group: group}
    size = data.per_cell[split]  # type: ignore[index]
    return np.stack(
        [
            np.full(size, given[factor]) if factor in given else rng.integers(len(values), size=size)
            for factor, values in world.FACTORS.items()
        ]
    )


def _pictures(
    data: config.Testbed,
    drawn: dict[tuple[int, str, int, int], Int[np.ndarray, "3 _"]],
    groups: int,
    wanted: Bool[np.ndarray, " n"],
) -> Iterator[tuple[int, Picture]]:
    first = 0
    for (split_index, _, label, group), factors in drawn.items():
        size = factors.shape[1]
        for start in range(0, size, _BATCH):
            mask = wanted[first + start : first + min(start + _BATCH, size)]
            if not mask.any():
                continue
            pixels = world.render(
                *factors[:, start : start + len(mask)],
                rendering=data.rendering,
                seed=_seed(data, split_index),
                start=(label * groups + group) * _STRIDE + start,
            )
            yield from ((first + start + int(i), Image.fromarray(pixels[i])) for i in np.flatnonzero(mask))
        first += size
