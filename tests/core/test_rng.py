"""The numbers that artifacts in stores rest on."""

import numpy as np
import pytest

from counterpoise.core import rng


def test_a_stream_is_numpys_generator_of_seed_and_address():
    """In every form in which the addresses were once written out where they are used."""
    cases = [
        (rng.stream(7), np.random.default_rng(7)),
        (rng.stream(7, rng.Data.SPLITS), np.random.default_rng((7, 1))),
        (rng.stream(7, rng.Data.TINTS), np.random.default_rng((7, 2))),
        (rng.stream(7, rng.Data.IMBALANCE), np.random.default_rng((7, 3))),
        (rng.stream(7, rng.BOOTSTRAP), np.random.default_rng([7, 0])),
        (rng.stream(7, rng.Dfr.TUNING), np.random.default_rng([7, 0])),
        (rng.stream(7, rng.Dfr.REFITS), np.random.default_rng([7, 1])),
        (rng.stream(2**40, 5), np.random.default_rng([2**40, 5])),
        (rng.stream(7, 1, 2**35), np.random.default_rng((7, 1, 2**35))),
    ]
    names = ("ORDER", "AUGMENTATION", "SUBSAMPLE", "REAL", "SYNTHETIC", "TRANSFORMS", "MIX")
    cases += [
        (rng.stream(7, 3, rng.Epoch[name]), np.random.default_rng([7, 3, code])) for code, name in enumerate(names)
    ]
    for ours, theirs in cases:
        assert ours.integers(2**63, size=3).tolist() == theirs.integers(2**63, size=3).tolist()


def test_drawn_numbers_are_those_of_the_stores():
    assert rng.stream(0, 4, rng.Epoch.MIX).integers(2**32, size=2).tolist() == [2611562788, 2012079190]
    assert rng.torch_seed(0, 4, 1) == 2040376534


@pytest.mark.parametrize("streams", [rng.Data, rng.Epoch, rng.Dfr])
def test_the_streams_of_one_seed_differ(streams):
    firsts = [rng.stream(1, *([0] * (streams is rng.Epoch)), code).integers(2**63) for code in streams]
    assert len(set(firsts)) == len(streams)


def test_slices_of_an_images_seed():
    seed = 0b101 << 60 | 0b1 << 31 | 0b11
    assert rng.condition_bits(seed) == 0b101 << 28
    assert rng.dropout_bits(seed) == (0b101 << 29) + 1
