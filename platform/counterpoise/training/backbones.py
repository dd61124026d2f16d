"""Names of backbones, and what each can take. Built-in ones are checked without torch, others by building their shapes.

The networks are in :mod:`counterpoise.training.models`.
"""

from __future__ import annotations

from counterpoise.config import Training
from counterpoise.errors import ConfigError, did_you_mean, one_of

BUILT_IN = ("small_cnn", "small_resnet")  # with a linear head, for images of any size; they have no published weights

# In training these two also return auxiliary logits; none of the papers uses them.
_UNUSABLE = {"googlenet", "inception_v3"}


def backbones() -> list[str]:
    """Return the allowed names of ``training.backbone``."""
    from torchvision import models  # takes more than a second, which built-in backbones need not wait for

    return [*BUILT_IN, *sorted(set(models.list_models(module=models)) - _UNUSABLE)]


def weights_name(training: Training) -> str | None:
    """Return the name of the published initial weights, such as ``ResNet50_Weights.IMAGENET1K_V2``, or None."""
    if not training.pretrained:
        return None
    from torchvision import models

    return str(models.get_model_weights(training.backbone).DEFAULT)


def check_backbone(training: Training) -> None:
    """Raise ConfigError unless the backbone exists, has the requested weights and head, and takes such images."""
    name = training.backbone
    if name not in BUILT_IN and name not in (known := backbones()):
        raise ConfigError(
            "unknown backbone",
            where="training.backbone",
            found=name,
            allowed=one_of(known) + "; all classification models of torchvision",
            remedy=did_you_mean(name, known),
        )
    if training.pretrained and name in BUILT_IN:
        remedy = "use a torchvision model, or training.pretrained=false"
        raise ConfigError(
            "this backbone has no pretrained weights", where="training.pretrained", found=name, remedy=remedy
        )
    if name not in BUILT_IN:
        _check_shapes(training)


def _check_shapes(training: Training) -> None:
    """Raise ConfigError unless the backbone has a last layer for its head, and takes images of this size."""
    import torch

    from counterpoise.training.models import Classifier, last_linear, without_data

    size, backbone = training.image_size, without_data(training.backbone)
    if training.head == "cosine":
        last_linear(backbone)
    try:
        with torch.device("meta"), torch.no_grad():
            Classifier(backbone).eval()(torch.empty(1, 3, size, size, dtype=torch.uint8))
    except (RuntimeError, AssertionError) as error:
        remedy = "224 works for all torchvision models; small_cnn and small_resnet take any size"
        found = f"{training.backbone} cannot take images of this size"
        raise ConfigError(found, where="training.image_size", found=size, remedy=remedy) from error
