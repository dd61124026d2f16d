"""Flips and crops, torchvision's transforms, and what is refused."""

import hashlib

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from counterpoise.errors import ConfigError
from counterpoise.training.loading.augmentation import Augmenter, check_transforms

CROP = {"RandomResizedCrop": {"size": 16, "scale": [0.3, 1]}}
MANY = ["flip", CROP, {"RandomApply": {"transforms": [{"ColorJitter": {"hue": 0.3}}], "p": 0.5}}]


@pytest.fixture
def images():
    return torch.randint(0, 256, (40, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_flips_and_crops_are_what_they_say_for_each_image(images):
    augmenter = Augmenter(["flip", "crop"], 16)
    how = augmenter.draw(40, seed=0, epoch=3)
    found = augmenter.apply(images, how, slice(0, 40))
    for number, image in enumerate(images.numpy()):
        flipped = image[:, ::-1] if how.flip[number] else image
        down, right = how.shift[number].tolist()
        padded = np.pad(flipped, ((2, 2), (2, 2), (0, 0)), mode="edge")
        expected = padded[2 - down : 18 - down, 2 - right : 18 - right]
        np.testing.assert_array_equal(found[number].numpy(), expected)
    assert {0, 1} == set(how.flip.int().tolist())
    assert how.shift.abs().max() == 2


def test_flips_and_crops_have_not_changed_since_the_first_release():
    how = Augmenter(["flip", "crop"], 16).draw(1000, seed=3, epoch=5)
    drawn = how.flip.numpy().tobytes() + how.shift.numpy().tobytes()
    assert hashlib.sha256(drawn).hexdigest()[:16] == "3b843a88efbaa231"


def test_only_what_is_listed_happens(images):
    assert not Augmenter(["crop"], 16).draw(40, 0, 0).flip.any()
    assert not Augmenter(["flip"], 16).draw(40, 0, 0).shift.any()
    nothing = Augmenter([], 16)
    assert torch.equal(nothing.apply(images, nothing.draw(40, 0, 0), slice(0, 40)), images)


def test_torchvisions_transforms_do_what_they_do_when_seeded_by_hand(images):
    augmenter = Augmenter([CROP, {"GaussianBlur": {"kernel_size": 3}}], 16)
    how = augmenter.draw(100, seed=1, epoch=2)
    found = augmenter.apply(images, how, slice(30, 70))
    crop, blur = v2.RandomResizedCrop(16, scale=(0.3, 1)), v2.GaussianBlur(3)
    for number, image in enumerate(images):
        torch.manual_seed(int(how.seeds[30 + number]))
        assert torch.equal(found[number].permute(2, 0, 1), blur(crop(image.permute(2, 0, 1))))


@pytest.mark.parametrize("transforms", [["crop", "flip"], MANY], ids=["moved", "changed"])
def test_an_image_looks_the_same_in_any_batch_and_for_any_worker(images, transforms):
    augmenter = Augmenter(transforms, 16)
    how = augmenter.draw(50, seed=0, epoch=0)
    whole = augmenter.apply(images, how, slice(10, 50))
    torch.rand(5)  # whatever else is drawn meanwhile
    parts = [augmenter.apply(images[part], how, slice(10 + part.start, 10 + part.stop)) for part in SLICES]
    assert torch.equal(torch.cat(parts), whole)
    some = np.array([7, 3, 39])
    assert torch.equal(augmenter.apply(images[some], how, 10 + some), whole[some])
    assert whole.shape == images.shape
    assert whole.is_contiguous()
    assert len(augmenter.apply(images[:0], how, slice(0, 0))) == 0


SLICES = [slice(0, 1), slice(1, 17), slice(17, 40)]


@pytest.mark.parametrize("transforms", [["crop"], [CROP]], ids=["moved", "changed"])
def test_every_epoch_seed_and_place_has_chances_of_its_own(transforms):
    image = torch.randint(0, 256, (1, 16, 16, 3), dtype=torch.uint8).expand(60, -1, -1, -1)
    augmenter = Augmenter(transforms, 16)
    seen = [augmenter.apply(image, augmenter.draw(60, *key), slice(0, 60)) for key in ((0, 0), (0, 1), (1, 0))]
    assert not any(torch.equal(seen[a], seen[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
    assert len(seen[0].flatten(1).unique(dim=0)) > 15


def test_torchs_global_generator_is_given_back(images):
    augmenter = Augmenter(MANY, 16)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    check_transforms(MANY, 16)
    augmenter.apply(images, augmenter.draw(40, 0, 0), slice(0, 40))
    assert torch.equal(torch.get_rng_state(), before)


def test_what_can_be_done_is_not_refused():
    check_transforms([], 16)
    check_transforms(["flip", "crop"], 16)
    check_transforms([{"Pad": {"padding": 2}}, {"RandomCrop": {"size": 16}}], 16)
    check_transforms([{"AutoAugment": {"policy": "cifar10"}}, "flip"], 16)
    built = Augmenter([{"RandomRotation": {"degrees": 10, "interpolation": "bilinear"}}], 16)._others[0]
    assert built.interpolation is InterpolationMode.BILINEAR


REFUSED = [
    ({"RandomResizeCrop": {}}, "did you mean 'RandomResizedCrop'"),
    ({"MixUp": {}}, "use the stage's `mix: {name: mixup}`"),
    ({"CutMix": {"num_classes": 3}}, "use the stage's `mix: {name: cutmix}`"),
    ({"InterpolationMode": {}}, "unknown transform"),
    ({"RandomResizedCrop": {}}, "missing 1 required positional argument: 'size'"),
    ({"RandomResizedCrop": {"size": 16, "scal": 1}}, "size, scale, ratio, interpolation"),
    ({"RandomResizedCrop": {"size": 16, "interpolation": "cubic"}}, "'cubic' is not a valid InterpolationMode"),
    ({"RandomResizedCrop": {"size": 32}}, r"uint8 of shape \(3, 32, 32\)"),
    ({"RandomZoomOut": {"p": 0.2}}, "change the type or the size"),  # only sometimes
    ({"TenCrop": {"size": 16}}, "tuple"),
    ({"ToPILImage": {}}, "found:   Image"),
    ({"Normalize": {"mean": [0.5], "std": [0.5]}}, "should be a float tensor"),
    ({"RandomIoUCrop": {}}, "bounding boxes"),
    ({"Lambda": {"lambd": "x"}}, "not callable"),
    ({"RandomGrayscale": {}, "RandomInvert": {}}, "its own entry"),
    ({"RandomApply": {"transforms": [{"ColorJitter": {"hue": 3}}]}}, r"augmentation\.1\.transforms\.0"),
    ({"RandomApply": {"transforms": ["flip"]}}, "RandomHorizontalFlip"),
]


@pytest.mark.parametrize(("transform", "message"), REFUSED, ids=[next(iter(transform)) for transform, _ in REFUSED])
def test_what_cannot_be_done_is_refused_with_its_place_and_reason(transform, message):
    with pytest.raises(ConfigError, match=message) as caught:
        check_transforms(["flip", transform, {"RandomGrayscale": {}}], 16, "stages.fit.augmentation")
    assert str(caught.value.where).startswith("stages.fit.augmentation.1")
