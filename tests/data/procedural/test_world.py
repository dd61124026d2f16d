"""The procedural world: every image is reproducible, and shows what it says."""

import numpy as np
import pytest

from counterpoise.data.procedural import world


def everything(rendering: world.Rendering, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two images of each of the 128 cells and their labels."""
    sizes = [len(values) for values in world.FACTORS.values()]
    labels = np.stack(np.unravel_index(np.arange(256) % 128, sizes), 1)
    return world.render(*labels.T, rendering=rendering, seed=seed), labels


@pytest.mark.parametrize("rendering", ["web", "real"])
def test_images_are_bytes_and_reproducible(rendering: world.Rendering):
    images, _ = everything(rendering)
    assert images.shape == (256, 32, 32, 3)
    assert images.dtype == np.uint8
    assert np.array_equal(images, everything(rendering)[0])
    assert not np.array_equal(images, everything(rendering, seed=1)[0])
    assert not np.array_equal(images[:128], images[128:]), "the same cell twice must not be the same picture"


@pytest.mark.parametrize("rendering", ["web", "real"])
def test_an_image_depends_on_its_own_address_only(rendering: world.Rendering):
    images, labels = everything(rendering)
    alone = world.render(*labels[100:101].T, rendering=rendering, seed=0, start=100)
    assert np.array_equal(alone[0], images[100])
    others = labels.copy()
    others[np.arange(256) != 100] = 0
    assert np.array_equal(world.render(*others.T, rendering=rendering, seed=0)[100], images[100])


def test_a_set_larger_than_a_chunk_is_the_same_in_pieces():
    labels = np.random.default_rng(0).integers(0, (8, 4, 4), (world.CHUNK + 5, 3))
    whole = world.render(*labels.T, rendering="web", seed=3)
    tail = world.render(*labels[-9:].T, rendering="web", seed=3, start=len(labels) - 9)
    assert np.array_equal(whole[-9:], tail)


def test_changing_the_color_moves_nothing_but_the_object():
    red, blue = (world.render(np.array([3]), np.array([c]), np.array([1]), rendering="web", seed=5)[0] for c in (0, 2))
    same = (red == blue).all(-1)
    assert 0.4 < same.mean() < 0.95
    assert same[:, 0].all()
    assert same[0].all()


def test_the_object_has_its_color_and_lies_in_the_image():
    images, labels = everything("web")
    for name, index in zip(world.COLORS, range(4), strict=True):
        centres = images[(labels[:, 1] == index) & (labels[:, 0] == 0)][:, 12:20, 12:20].reshape(-1, 3)
        typical = np.median(centres, 0) / 255
        assert np.abs(typical - world.RGB[index]).max() < 0.12, name


def test_the_camera_is_harder_than_the_web():
    def spread(rendering: world.Rendering) -> float:
        light = everything(rendering)[0].mean((1, 2, 3))
        return float(np.abs(light[:128] - light[128:]).mean())

    assert spread("real") > 2 * spread("web"), "exposure varies more within a cell"
    assert world.POSE["real"][1] > world.POSE["web"][1], "and so does the place"


def test_unknown_factors_and_renderings_are_refused():
    with pytest.raises(ValueError, match="color"):
        world.render(np.array([0]), np.array([4]), np.array([0]), rendering="web", seed=0)
    with pytest.raises((ValueError, TypeError), match="rendering"):
        world.render(np.array([0]), np.array([0]), np.array([0]), rendering="film", seed=0)  # type: ignore[arg-type]


def test_no_images_are_no_error():
    none = np.zeros(0, int)
    assert world.render(none, none, none, rendering="web", seed=0).shape == (0, 32, 32, 3)


def test_captions():
    assert world.caption(3, 0, 0) == "a photo of a red star on grass"
    assert world.caption("ring", "blue", "sand") == "a photo of a blue ring on sand"
    assert world.caption(3, 0, 0, template="a photo of a {shape}") == "a photo of a star"
    rng = np.random.default_rng(0)
    drawn = [world.caption(3, 0, 2, rng) for _ in range(400)]
    full = np.mean([all(word in text for word in ("red", "star", "water")) for text in drawn])
    assert 0.68 < full < 0.82
    assert {"a photo of a red star", "a photo of a star on water"} <= set(drawn)
