"""The order of an epoch, its batches and its augmentation."""

import numpy as np
import pytest
import torch
from scipy import stats

from counterpoise.training.sampling import augment, batches, epoch_augmentation, epoch_order, stage_groups

SKEWED = np.repeat([0, 1, 2], [900, 90, 10])


def test_uniform_is_a_new_permutation_every_epoch_and_seed():
    orders = [epoch_order(SKEWED, "uniform", seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(1000)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    np.testing.assert_array_equal(orders[0], epoch_order(SKEWED, "uniform", 0, 0))


def test_group_balanced_shows_every_group_equally_often_and_images_within_it_too():
    drawn = np.concatenate([epoch_order(SKEWED, "group_balanced", 0, epoch) for epoch in range(50)])
    shown = np.bincount(SKEWED[drawn])
    assert stats.chisquare(shown).pvalue > 1e-3
    assert stats.chisquare(np.bincount(drawn[SKEWED[drawn] == 2])[-10:]).pvalue > 1e-3


def test_group_balanced_draws_as_torchs_weighted_sampler_does():
    weights = 1 / np.bincount(SKEWED)[SKEWED]
    sampler = torch.utils.data.WeightedRandomSampler(weights, 50_000, generator=torch.Generator().manual_seed(0))
    theirs = np.bincount(SKEWED[list(sampler)])
    ours = np.bincount(np.concatenate([SKEWED[epoch_order(SKEWED, "group_balanced", 1, e)] for e in range(50)]))
    assert stats.chi2_contingency([theirs, ours]).pvalue > 1e-3


def test_groups_are_cells_or_cells_and_sources_numbered_over_what_occurs():
    labels, groups = np.array([0, 0, 3, 3, 3]), np.array([1, 2, 1, 1, 1])
    synthetic = np.array([False, False, False, True, False])
    assert stage_groups(labels, groups, synthetic, "cell").tolist() == [0, 1, 2, 2, 2]
    assert stage_groups(labels, groups, synthetic, "cell_source").tolist() == [0, 1, 2, 3, 2]


@pytest.mark.parametrize(("n", "size", "expected"), [(10, 4, [4, 3, 3]), (8, 4, [4, 4]), (3, 128, [3])])
def test_batches_are_even(n, size, expected):
    cut = batches(np.arange(n), size)
    assert [len(batch) for batch in cut] == expected
    assert np.concatenate(cut).tolist() == list(range(n))


def test_augmentation_is_what_it_says_for_each_image():
    images = torch.randint(0, 256, (40, 16, 16, 3), dtype=torch.uint8)
    how = epoch_augmentation(["flip", "crop"], 40, 16, seed=0, epoch=3)
    found = augment(images, how)
    for number, image in enumerate(images.numpy()):
        flipped = image[:, ::-1] if how.flip[number] else image
        down, right = how.shift[number].tolist()
        padded = np.pad(flipped, ((2, 2), (2, 2), (0, 0)), mode="edge")
        expected = padded[2 - down : 18 - down, 2 - right : 18 - right]
        np.testing.assert_array_equal(found[number].numpy(), expected)


def test_augmentation_is_drawn_per_epoch_and_can_be_cut_for_workers():
    images = torch.randint(0, 256, (10, 16, 16, 3), dtype=torch.uint8)
    first, second = (epoch_augmentation(["crop"], 10, 16, 0, epoch) for epoch in (0, 1))
    assert not first.flip.any()
    assert first.shift.abs().max() <= 2
    assert not torch.equal(first.shift, second.shift)
    parts = torch.cat([augment(images[:4], first[:4]), augment(images[4:], first[4:])])
    assert torch.equal(parts, augment(images, first))
    assert epoch_augmentation([], 10, 16, 0, 0) is None
