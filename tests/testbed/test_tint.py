"""Tinting multiplies, and leaves black black."""

import numpy as np
import pytest

from counterpoise.data.tint import TINTS, tint


def test_white_becomes_the_tint_black_stays_and_grey_changes_nothing():
    grey = np.array([[[0, 255], [100, 7]]], np.uint8)
    for rgb in TINTS.values():
        out = tint(grey, np.array([rgb], np.uint8))[0]
        assert out.shape == (2, 2, 3)
        assert out[0, 0].tolist() == [0, 0, 0]
        assert out[0, 1].tolist() == list(rgb)
        assert np.abs(out[1, 0] - 100 * np.array(rgb) / 255).max() <= 0.5
    assert np.array_equal(tint(grey, np.array([TINTS["grey"]], np.uint8))[0], np.repeat(grey[0][..., None], 3, -1))


def test_wrong_types_and_forms_are_refused():
    with pytest.raises(TypeError, match="uint8"):
        tint(np.zeros((1, 2, 2)), np.zeros((1, 3), np.uint8))
    with pytest.raises(ValueError, match=r"\(N, 3\)"):
        tint(np.zeros((2, 2, 2), np.uint8), np.zeros((1, 3), np.uint8))
