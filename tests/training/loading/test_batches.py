"""What an epoch shows: weights, subsets, the order and the batches."""

import hashlib

import numpy as np
import pytest
import torch
from scipy import stats

from counterpoise.config.training import Mixture
from counterpoise.training.loading.batches import epoch_batches, image_weights, shown_shares, stage_groups, subsample

SKEWED = np.repeat([0, 1, 2], [900, 90, 10])
PLAIN, HALF = Mixture(), Mixture(real_share=0.5)
NONE = np.zeros(1000, bool)
UNIFORM = np.full(1000, 1e-3)


def balanced(groups):
    return image_weights("group_balanced", np.zeros_like(groups), groups)


def order(weights, seed, epoch, batch_size=64):
    """The positions that an epoch shows, one batch after the other."""
    return np.concatenate(epoch_batches(weights, np.zeros(len(weights), bool), PLAIN, batch_size, seed, epoch))


def digest(positions):
    return hashlib.sha256(positions.astype("<i8").tobytes()).hexdigest()[:16]


# -- weights -----------------------------------------------------------------------------------------------------------


def test_weights_by_hand():
    labels, groups = np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 1, 2])
    wrong = np.array([False, True, False, False, False])

    def weights(sampling, **more):
        return image_weights(sampling, labels, groups, **more).tolist()

    assert weights("uniform") == pytest.approx([1 / 5] * 5)
    assert weights("class_balanced") == pytest.approx([1 / 8] * 4 + [1 / 2])
    assert weights("square_root") == pytest.approx([1 / 6] * 4 + [1 / 3])  # classes as √4 : √1
    assert weights("group_balanced") == pytest.approx([1 / 9] * 3 + [1 / 3] * 2)
    assert weights("errors", wrong=wrong, upweight=6.0) == pytest.approx([1 / 10, 6 / 10, 1 / 10, 1 / 10, 1 / 10])
    with pytest.raises(ValueError, match="which images are wrong"):
        weights("errors")


def test_sizes_are_those_within_a_source_where_each_is_drawn_from_by_itself():
    labels, synthetic = np.array([0, 0, 0, 1, 0, 1, 1]), np.array([False] * 4 + [True] * 3)
    weights = image_weights("class_balanced", labels, labels, source=synthetic)
    assert weights.tolist() == pytest.approx([1 / 12] * 3 + [1 / 4, 1 / 4] + [1 / 8] * 2)


def test_groups_are_cells_or_cells_and_sources_numbered_over_what_occurs():
    labels, groups = np.array([0, 0, 3, 3, 3]), np.array([1, 2, 1, 1, 1])
    synthetic = np.array([False, False, False, True, False])
    assert stage_groups(labels, groups, synthetic, "cell").tolist() == [0, 1, 2, 2, 2]
    assert stage_groups(labels, groups, synthetic, "cell_source").tolist() == [0, 1, 2, 3, 2]


def test_a_subsample_has_as_many_of_each_as_the_rarest_drawn_evenly():
    cells = np.random.default_rng(0).permutation(np.repeat([0, 4, 7], [30, 5, 12]))
    drawn = [subsample(cells, seed) for seed in range(300)]
    for positions in drawn:
        assert (np.diff(positions) > 0).all()
        assert np.unique(cells[positions], return_counts=True)[1].tolist() == [5, 5, 5]
    np.testing.assert_array_equal(subsample(cells, 3), drawn[3])
    shown = np.bincount(np.concatenate(drawn), minlength=len(cells))
    assert (shown[cells == 4] == 300).all()
    assert stats.chisquare(shown[cells == 0]).pvalue > 1e-3
    assert stats.chisquare(shown[cells == 7]).pvalue > 1e-3


# -- one source, or several that are concatenated ----------------------------------------------------------------------


def test_equal_weights_give_a_new_permutation_every_epoch_and_seed():
    orders = [order(UNIFORM, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(positions) == list(range(1000)) for positions in orders)
    assert len({tuple(positions) for positions in orders}) == 4
    np.testing.assert_array_equal(orders[0], order(UNIFORM, 0, 0))


def test_the_order_of_an_epoch_has_not_changed_since_the_first_release():
    assert digest(order(UNIFORM, 3, 5)) == "aeb76f4f7a29ea00"
    assert digest(order(balanced(SKEWED), 3, 5)) == "80d47ad85588c868"


def test_group_balanced_shows_every_group_equally_often_and_images_within_it_too():
    drawn = np.concatenate([order(balanced(SKEWED), 0, epoch) for epoch in range(50)])
    shown = np.bincount(SKEWED[drawn])
    assert stats.chisquare(shown).pvalue > 1e-3
    assert stats.chisquare(np.bincount(drawn[SKEWED[drawn] == 2])[-10:]).pvalue > 1e-3


def test_group_balanced_draws_as_torchs_weighted_sampler_does():
    weights = 1 / np.bincount(SKEWED)[SKEWED]
    sampler = torch.utils.data.WeightedRandomSampler(weights, 50_000, generator=torch.Generator().manual_seed(0))
    theirs = np.bincount(SKEWED[list(sampler)])
    ours = np.bincount(np.concatenate([SKEWED[order(balanced(SKEWED), 1, epoch)] for epoch in range(50)]))
    assert stats.chi2_contingency([theirs, ours]).pvalue > 1e-3


def test_errors_are_shown_so_much_more_often():
    wrong = np.zeros(1000, bool)
    wrong[:20] = True
    weights = image_weights("errors", SKEWED, SKEWED, wrong=wrong, upweight=49.0)
    shown = sum(wrong[order(weights, 0, epoch)].sum() for epoch in range(20))
    assert stats.binomtest(int(shown), 20_000, 0.5).pvalue > 1e-3  # 20 · 49 against 980 · 1


@pytest.mark.parametrize(("n", "size", "expected"), [(10, 4, [4, 3, 3]), (8, 4, [4, 4]), (3, 128, [3])])
def test_batches_are_even(n, size, expected):
    cut = epoch_batches(np.full(n, 1 / n), np.zeros(n, bool), PLAIN, size, 0, 0)
    assert [len(batch) for batch in cut] == expected
    assert sorted(np.concatenate(cut)) == list(range(n))


# -- a share of each batch ---------------------------------------------------------------------------------------------

MIXED = np.arange(100) % 5 > 0  # 20 real images, 80 synthetic ones


@pytest.mark.parametrize(
    ("share", "batch_size", "sizes", "real"),
    [
        (0.5, 25, [25] * 4, 12),
        (0.3, 10, [10] * 10, 3),
        (0.01, 50, [50] * 2, 1),  # at least one
        (0.99, 30, [25] * 4, 24),
        (0.3, 2, [2] * 50, 1),
    ],
)
def test_every_batch_has_its_share_of_real_images(share, batch_size, sizes, real):
    batches = epoch_batches(np.full(100, 0.01), MIXED, Mixture(real_share=share), batch_size, 0, 0)
    assert [len(batch) for batch in batches] == sizes
    assert [int((~MIXED[batch]).sum()) for batch in batches] == [real] * len(sizes)


def test_an_odd_number_of_images_in_pairs_leaves_no_batch_with_one_source():
    synthetic = np.array([False, True, True])
    batches = epoch_batches(np.full(3, 1 / 3), synthetic, HALF, 2, 0, 0)
    assert [sorted(synthetic[batch]) for batch in batches] == [[False, True]] * 2


def test_each_source_goes_through_its_permutations_across_epochs():
    epochs = [np.concatenate(epoch_batches(np.full(100, 0.01), MIXED, HALF, 20, 0, epoch)) for epoch in range(8)]
    shown = np.concatenate(epochs)
    real, synthetic = shown[~MIXED[shown]], shown[MIXED[shown]]
    assert np.bincount(real, minlength=100)[~MIXED].tolist() == [20] * 20  # 8 · 50 = 20 · 20
    assert np.bincount(synthetic, minlength=100)[MIXED].tolist() == [5] * 80
    assert max(np.bincount(epochs[0][~MIXED[epochs[0]]])) == 3  # 50 of 20: two rounds and a half
    rounds = real.reshape(20, 20)  # of 10 in a batch, so that a round ends where a batch does
    assert (np.sort(rounds, 1) == np.flatnonzero(~MIXED)).all()
    assert len({tuple(set(positions[:10])) for positions in rounds}) == 20  # each round has an order of its own
    first, second = (set(epoch[MIXED[epoch]]) for epoch in epochs[:2])
    assert (len(first), len(first | second)) == (50, 80)  # none a second time before all were there once


def test_an_epoch_does_not_know_of_the_others():
    def seventh():
        return epoch_batches(np.full(100, 0.01), MIXED, HALF, 30, 4, 7)

    first = seventh()
    for epoch in range(7):
        epoch_batches(np.full(100, 0.01), MIXED, HALF, 30, 4, epoch)
    for one, other in zip(first, seventh(), strict=True):
        np.testing.assert_array_equal(one, other)
    others = epoch_batches(np.full(100, 0.01), MIXED, HALF, 30, 4, 8)
    assert not np.array_equal(np.concatenate(first), np.concatenate(others))


def test_sources_are_spread_over_a_batch_so_that_each_worker_gets_both():
    halves = [batch[:10] for epoch in range(40) for batch in epoch_batches(UNIFORM[:100], MIXED, HALF, 20, 0, epoch)]
    real = np.array([(~MIXED[half]).sum() for half in halves])
    assert abs(real.mean() - 5) < 0.5  # hypergeometric: mean 5, deviation 1.15
    assert real.std() > 0.5


def test_weights_count_within_each_source():
    labels = np.where(np.arange(100) < 80, 0, 1)
    weights = image_weights("class_balanced", labels, labels, source=MIXED)
    shown = np.concatenate(
        [batch for epoch in range(60) for batch in epoch_batches(weights, MIXED, Mixture(real_share=0.2), 20, 0, epoch)]
    )
    counts = [int(((labels == y) & (s == MIXED))[shown].sum()) for s in (False, True) for y in (0, 1)]
    assert sum(counts[:2]) == 1200
    assert stats.chisquare(counts, np.array([0.1, 0.1, 0.4, 0.4]) * 6000).pvalue > 1e-3


def test_a_source_without_images_is_an_error():
    with pytest.raises(ValueError, match="no synthetic"):
        epoch_batches(UNIFORM, NONE, HALF, 32, 0, 0)
    with pytest.raises(ValueError, match="no real"):
        shown_shares(UNIFORM, ~NONE, SKEWED, HALF, 3)
    with pytest.raises(ValueError, match="at least two"):
        epoch_batches(np.full(100, 0.01), MIXED, HALF, 1, 0, 0)


# -- what is shown in the long run -------------------------------------------------------------------------------------


def test_shares_by_hand():
    def shares(sampling, mixture=PLAIN, synthetic=NONE, **more):
        weights = image_weights(sampling, SKEWED, SKEWED, **more)
        return shown_shares(weights, synthetic, SKEWED, mixture, 4).tolist()

    assert shares("uniform") == pytest.approx([0.9, 0.09, 0.01, 0])
    assert shares("class_balanced") == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    roots = [30, 90**0.5, 10**0.5]
    assert shares("square_root") == pytest.approx([root / sum(roots) for root in roots] + [0])
    synthetic = SKEWED > 0  # 900 real ones of class 0, synthetic 90 and 10 of classes 1 and 2
    assert shares("uniform", HALF, synthetic) == pytest.approx([0.5, 0.45, 0.05, 0])
    assert shares("uniform", Mixture(real_share=0.2), synthetic) == pytest.approx([0.2, 0.72, 0.08, 0])


@pytest.mark.parametrize("sampling", ["uniform", "class_balanced", "square_root"])
@pytest.mark.parametrize("mixture", [PLAIN, Mixture(real_share=0.25)], ids=["concatenated", "shared"])
def test_shares_are_those_of_what_batches_show(sampling, mixture):
    random = np.random.default_rng(0)
    labels, synthetic = random.choice(3, 400, p=[0.7, 0.2, 0.1]), random.random(400) < 0.4
    weights = image_weights(sampling, labels, labels)
    shown = np.concatenate(
        [batch for epoch in range(50) for batch in epoch_batches(weights, synthetic, mixture, 40, 0, epoch)]
    )
    expected = shown_shares(weights, synthetic, labels, mixture, 3)
    assert expected.sum() == pytest.approx(1)
    np.testing.assert_allclose(np.bincount(labels[shown]) / len(shown), expected, atol=0.01)
