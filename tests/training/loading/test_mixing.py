"""Mixup and CutMix against torchvision's, and who is mixed with whom."""

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import v2

from counterpoise.config.training import Mix
from counterpoise.training.loading.mixing import Mixing, apply_mixing, cut_box, epoch_mixing

ROLLED = np.roll(np.arange(6), 1)  # torchvision's partners: the image before
SYNTHETIC = np.array([True, False, False, True, False, False, True, False])
BATCHES = [np.array([0, 1, 2, 3, 4]), np.array([5, 7]), np.array([6, 3, 0]), np.array([2, 6])]


@pytest.fixture
def images():
    return torch.randint(0, 256, (6, 3, 16, 16), generator=torch.Generator().manual_seed(0)).float()


def soft(labels, mixing):
    """What losses see: the labels as shares of classes."""
    hot = torch.nn.functional.one_hot(labels, 4).float()
    return mixing.lam * hot + (1 - mixing.lam) * hot[mixing.partners]


LABELS = torch.tensor([0, 3, 1, 1, 2, 0])


@pytest.mark.parametrize("lam", [0.0, 0.3, 1.0])
def test_mixup_is_torchvisions(images, lam, monkeypatch):
    theirs = v2.MixUp(num_classes=4)
    monkeypatch.setattr(theirs._dist, "sample", lambda _: torch.tensor(lam))
    expected, expected_labels = theirs(images, LABELS)
    mixing = Mixing(ROLLED, lam, None)
    torch.testing.assert_close(apply_mixing(images, images[ROLLED], mixing), expected)
    torch.testing.assert_close(soft(LABELS, mixing), expected_labels)
    torch.testing.assert_close(apply_mixing(images.byte(), images[ROLLED].byte(), mixing), expected)


@pytest.mark.parametrize(("lam", "row", "column"), [(0.0, 8, 8), (0.4, 3, 14), (0.75, 8, 7), (0.9, 0, 0), (1.0, 5, 5)])
def test_cutmix_is_torchvisions(images, lam, row, column, monkeypatch):
    theirs = v2.CutMix(num_classes=4)
    monkeypatch.setattr(theirs._dist, "sample", lambda _: torch.tensor(lam, dtype=torch.float64))
    drawn = iter([torch.tensor([column]), torch.tensor([row])])
    monkeypatch.setattr(torch, "randint", lambda *_, **__: next(drawn))
    expected, expected_labels = theirs(images, LABELS)
    box = cut_box(lam, row, column, 16)
    mixing = Mixing(ROLLED, 1 - (box[1] - box[0]) * (box[3] - box[2]) / 256, box)
    assert torch.equal(apply_mixing(images, images[ROLLED], mixing), expected)
    torch.testing.assert_close(soft(LABELS, mixing), expected_labels)
    assert torch.equal(apply_mixing(images.byte(), images[ROLLED].byte(), mixing), expected.byte())


def test_images_given_are_not_changed(images):
    before = images.clone()
    for box in (None, (0, 8, 0, 8)):
        apply_mixing(images, images[ROLLED], Mixing(ROLLED, 0.5, box))
    assert torch.equal(images, before)


def test_cutmix_counts_the_pixels_that_are_left():
    batches = [np.arange(4)] * 50
    mixings = epoch_mixing(Mix(name="cutmix"), batches, SYNTHETIC, 16, 0, 0)
    ones, zeros = torch.ones(1, 3, 16, 16), torch.zeros(1, 3, 16, 16)
    left = [apply_mixing(ones, zeros, mixing).mean().item() for mixing in mixings]
    assert left == pytest.approx([mixing.lam for mixing in mixings])
    assert len(set(left)) > 20


def test_lam_is_drawn_from_beta_once_for_a_batch_anew_in_every_epoch():
    batches = [np.arange(2)] * 2000
    drawn = [mixing.lam for mixing in epoch_mixing(Mix(alpha=0.4), batches, SYNTHETIC, 16, 0, 0)]
    assert stats.kstest(drawn, stats.beta(0.4, 0.4).cdf).pvalue > 1e-3
    again, other = (epoch_mixing(Mix(alpha=0.4), batches, SYNTHETIC, 16, 0, epoch) for epoch in (0, 1))
    assert [mixing.lam for mixing in again] == drawn
    assert not set(drawn) & {mixing.lam for mixing in other}


def test_partners_are_a_permutation_of_the_batch():
    for epoch in range(5):
        for batch, mixing in zip(BATCHES, epoch_mixing(Mix(), BATCHES, SYNTHETIC, 16, 0, epoch), strict=True):
            assert sorted(mixing.partners) == list(range(len(batch)))


def test_real_images_meet_synthetic_ones_or_nobody():
    mix, seen = Mix(pairs="real_synthetic"), []
    for epoch in range(300):
        mixings = epoch_mixing(mix, BATCHES, SYNTHETIC, 16, 0, epoch)
        both, real, synthetic, pair = ((batch, m.partners) for batch, m in zip(BATCHES, mixings, strict=True))
        for batch, partners in (both, pair):
            assert (SYNTHETIC[batch[partners]] != SYNTHETIC[batch]).all()
        for batch, partners in (real, synthetic):
            assert partners.tolist() == list(range(len(batch)))
        seen.append(both[1])
    counts = [np.bincount(column, minlength=5) for column in np.array(seen).T]
    assert stats.chisquare(counts[0][[1, 2, 4]]).pvalue > 1e-3  # any of the three real ones
    assert stats.chisquare(counts[1][[0, 3]]).pvalue > 1e-3


def test_losses_weighted_by_lam_are_the_cross_entropy_with_soft_labels(images):
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    (mixing,) = epoch_mixing(Mix(), [np.arange(6)], np.zeros(6, bool), 16, 3, 0)
    hard = torch.nn.functional.cross_entropy(logits, LABELS, reduction="none")
    partners = torch.nn.functional.cross_entropy(logits, LABELS[mixing.partners], reduction="none")
    expected = torch.nn.functional.cross_entropy(logits, soft(LABELS, mixing), reduction="none")
    torch.testing.assert_close(mixing.lam * hard + (1 - mixing.lam) * partners, expected)
