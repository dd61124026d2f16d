"""Named streams of random numbers.

A stream is NumPy's default generator, seeded with a seed and an address of small integers: ``stream(seed, epoch,
Epoch.MIX)``. The same seed and address give the same numbers on every machine, whatever else was drawn before, so that
work can be split, repeated and resumed. Artifacts in the stores of users rest on these numbers: an address never
changes, and a new stream takes a free one.

| drawn                                                  | address                           |
| ------------------------------------------------------ | --------------------------------- |
| splits, tints, rows that an imbalance keeps            | (:class:`Data`)                   |
| an epoch's order, augmentation and mixing              | (epoch, :class:`Epoch`)           |
| torch's global generators in an epoch                  | (epoch, rank), :func:`torch_seed` |
| DFR's search for its strength, and its refits          | (:class:`Dfr`)                    |
| bootstrap test sets                                    | (:data:`BOOTSTRAP`)               |
| images of a class that realism compares                | (class)                           |
| factors of a cell of the procedural world              | (cell)                            |
| an image of the procedural world                       | (rendering, number)               |
| tensors drawn at random, domain probe, order of verify | ()                                |

Streams of equal seed and address are equal: those of the bootstrap and of DFR's search, for one. They are drawn from
for different ends, and to part them would change results that are in stores.

Seeds of synthetic images are no streams: an image's 63-bit seed is cut into slices of bits, by :func:`condition_bits`
and :func:`dropout_bits`, and the lower 32 bits seed the noise.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Data(IntEnum):
    """Streams of a dataset, by its seed."""

    SPLITS = 1
    TINTS = 2
    IMBALANCE = 3


class Epoch(IntEnum):
    """Streams of an epoch of training, by the fit's seed."""

    ORDER = 0
    AUGMENTATION = 1
    SUBSAMPLE = 2
    REAL = 3
    SYNTHETIC = 4
    TRANSFORMS = 5
    MIX = 6


class Dfr(IntEnum):
    """Streams of deep feature reweighting, by the fit's seed."""

    TUNING = 0
    REFITS = 1


BOOTSTRAP = 0


def stream(seed: int, *address: int) -> np.random.Generator:
    """Return the generator at an address; see the table above."""
    return np.random.default_rng([seed, *address])


def torch_seed(seed: int, *address: int) -> int:
    """Return a 32-bit seed for torch's generators."""
    return int(np.random.SeedSequence([seed, *address]).generate_state(1)[0])


def condition_bits(seed: int) -> int:
    """Return the bits of an image's seed that choose its condition image: the upper 31."""
    return seed >> 32


def dropout_bits(seed: int) -> int:
    """Return the bits of an image's seed that seed the dropout of its condition: the upper 32.

    All but one of them are those of :func:`condition_bits`.
    """
    return seed >> 31
