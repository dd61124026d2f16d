"""Classifiers: small backbones for small images, and torchvision's by name."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from urllib.error import URLError

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from counterpoise.config import Training
from counterpoise.errors import ConfigError, ModelError
from counterpoise.storage.records import read_file, read_record
from counterpoise.storage.store import Store

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COSINE_SCALE = 64.0  # the s of Deng et al. 2019 and Kim et al. 2022


class Classifier(nn.Module):
    """A backbone preceded by pixel normalisation (ImageNet's mean and deviation).

    It takes uint8 pixels, so that the saved, served and logged model covers the whole way from an image to its logits.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        for name, values in (("mean", IMAGENET_MEAN), ("deviation", IMAGENET_STD)):
            self.register_buffer(name, 255 * torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(
        self, images: UInt8[Tensor, "n 3 height width"] | Float[Tensor, "n 3 height width"]
    ) -> Float[Tensor, "n classes"]:
        """Return logits of images with values from 0 to 255; floats have gradients."""
        return self.backbone((images.to(self.mean.dtype) - self.mean) / self.deviation)

    def logits_and_features(
        self, images: UInt8[Tensor, "n 3 height width"] | Float[Tensor, "n 3 height width"]
    ) -> tuple[Float[Tensor, "n classes"], Float[Tensor, "n d"]]:
        """Return logits and the input of the last linear layer.

        A network without a linear layer (SqueezeNet) gives the logits twice.
        """
        taken: list[Tensor] = []
        last = [layer for _, layer in _linear_layers(self.backbone)[-1:]]
        handles = [layer.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0])) for layer in last]
        try:
            logits = self(images)
        finally:
            for handle in handles:
                handle.remove()
        return logits, taken[0].flatten(1) if taken else logits


class CosineHead(nn.Linear):
    """A last layer on angles: ``COSINE_SCALE`` · cos(features, class direction); no bias.

    It is a linear layer with the weight (classes, d) under the same key, so that :func:`last_linear` finds it. The
    lengths of the weight's rows change nothing. Deng et al. 2019, eq. 2.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes, bias=False)

    def reset_parameters(self) -> None:
        """Draw directions evenly from the sphere."""
        nn.init.normal_(self.weight)
        with torch.no_grad():
            self.weight.copy_(nn.functional.normalize(self.weight))

    def forward(self, input: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """Return logits in [-64, 64], in float32 also under bfloat16 autocast.

        In bfloat16, 64 · cos would come in steps of 0.25.

        Features shorter than 0.001 (AdaFace's bound too) count as if they had that length, because the gradient grows
        with its inverse.
        """
        with torch.autocast(input.device.type, enabled=False):
            precise = input.to(torch.promote_types(input.dtype, torch.float32))
            features = nn.functional.normalize(precise, eps=1e-3)
            return COSINE_SCALE * nn.functional.linear(features, nn.functional.normalize(self.weight))


class NormalizedLinear(nn.Linear):
    """A last layer on features scaled to length 1; features of zeros stay as they are."""

    def forward(self, input: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """Return logits of features (n, d), scaled to length 1."""
        return super().forward(nn.functional.normalize(input))


def with_normalized_head(model: Classifier) -> Classifier:
    """Scale the features to length 1 before the last linear layer, in place; weights keep their names.

    It serves heads that were fitted to features of length 1, as in FFR's deep feature reweighting.
    :meth:`Classifier.logits_and_features` still gives the unscaled features. A layer without a bias gets one, of zeros.

    Raises:
        ConfigError: See :func:`last_linear`.
    """
    name, head = last_linear(model.backbone)
    normalized = nn.utils.skip_init(NormalizedLinear, head.in_features, head.out_features)  # draws no random numbers
    normalized.weight = head.weight
    normalized.bias = nn.Parameter(head.weight.new_zeros(len(head.weight))) if head.bias is None else head.bias
    model.backbone.set_submodule(name, normalized)
    return model


def last_linear(backbone: nn.Module) -> tuple[str, nn.Linear]:
    """Return the name and module of the layer that gives the logits: the last linear one registered.

    Raises:
        ConfigError: There is none, as in SqueezeNet, whose logits come from a convolution.
    """
    layers = _linear_layers(backbone)
    if not layers:
        raise ConfigError(
            "this backbone has no linear layer to serve as its head",
            where="training.backbone",
            found=type(backbone).__name__,
            remedy="a cosine head, a fresh head or training of the last layer alone needs another backbone: "
            "small_cnn, or any torchvision model but SqueezeNet",
        )
    return layers[-1]


def fresh_head(model: Classifier, seed: int) -> None:
    """Draw new weights for the last layer, as the layer's own constructor does; the rest of the model stays.

    They depend only on the seed and the layer's type and shape: they are drawn on the CPU whatever the model's device,
    and torch's global generator keeps its state. (Some of torchvision's models draw their first head otherwise: a VGG
    from a normal distribution of deviation 0.01, a ViT's is zero.)

    Raises:
        ConfigError: See :func:`last_linear`.
    """
    _, layer = last_linear(model.backbone)
    fresh = copy.deepcopy(layer).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh.reset_parameters()
    layer.load_state_dict(fresh.state_dict())


def _linear_layers(backbone: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]


def small_cnn(classes: int) -> nn.Module:
    """Return four 3×3 convolutions: 137,000 weights, 2.8 million multiplications for a 32 px image.

    GroupNorm (Wu & He 2018) instead of batch norm: an image's logits then depend on no other image, so results do not
    depend on how a batch is split among workers. Strides replace pooling between convolutions, because a CPU spends its
    time on large early feature maps. The maximum over positions ends the network, because small off-centre objects
    vanish in a mean.
    """
    return _named(
        layer1=nn.Sequential(*_convolution(3, 24, stride=2)),
        layer2=nn.Sequential(*_convolution(24, 48, stride=2)),
        layer3=nn.Sequential(*_convolution(48, 96, stride=2)),
        layer4=nn.Sequential(*_convolution(96, 96)),
        pool=_Maximum(),
        fc=nn.Linear(96, classes),
    )


def small_resnet(classes: int) -> nn.Module:
    """Return four residual blocks (He et al. 2016) with GroupNorm; some thirteen times :func:`small_cnn`'s work."""
    return _named(
        stem=nn.Sequential(*_convolution(3, 32)),
        layer1=_Residual(32, 64),
        layer2=_Residual(64, 128),
        layer3=_Residual(128, 128),
        layer4=_Residual(128, 256),
        pool=_Maximum(),
        fc=nn.Linear(256, classes),
    )


def _named(**modules: nn.Module) -> nn.Sequential:
    """Chain the modules, under torchvision's names for a ResNet's parts."""
    return nn.Sequential(OrderedDict(modules))


class _Maximum(nn.Module):
    """Each channel's maximum over positions. Unlike adaptive max pooling its gradient is deterministic on a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3))


class _Residual(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(channels, out, stride=2), *_convolution(out, out)[:2])
        self.skip = nn.Conv2d(channels, out, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


def _convolution(channels: int, out: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
    return [convolution, nn.GroupNorm(8, out), nn.ReLU(inplace=True)]


# Their names are those of counterpoise.training.backbones; a test keeps the two equal.
BUILT_IN: dict[str, Callable[[int], nn.Module]] = {"small_cnn": small_cnn, "small_resnet": small_resnet}


def build_model(training: Training, classes: int, seed: int) -> Classifier:
    """Return a classifier with fresh weights, on the CPU.

    Args:
        training: Names the backbone and its head, which :func:`counterpoise.training.backbones.check_backbone` finds
            right; with ``pretrained`` all but the head are torchvision's default weights.
        classes: Number of logits.
        seed: Seed of the fresh weights; torch's global generator keeps its state.

    Raises:
        ModelError: The pretrained weights cannot be loaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = _untrained(training.backbone, classes)
        if training.head == "cosine":
            name, head = last_linear(backbone)
            backbone.set_submodule(name, CosineHead(head.in_features, classes))
    if training.pretrained:
        _load_pretrained(backbone, training.backbone)
    return Classifier(backbone).to(memory_format=torch.channels_last)


def restored_model(training: Training, classes: int, seed: int, store: Store, key: str | None) -> Classifier:
    """Return a classifier with the weights at ``key`` of the store, on the CPU.

    Without a key it has :func:`build_model`'s weights.
    """
    if key is None:
        return build_model(training, classes, seed)
    model = build_model(training.model_copy(update={"pretrained": False}), classes, seed)
    model.load_state_dict(load_weights(store, key))
    return model


def load_weights(store: Store, key: str) -> dict[str, Tensor]:
    """Return the state dict of a :class:`Classifier` at ``key``.

    Raises:
        DamagedError: It is not what was stored.
        ModelError: A file that a stage starts from is not in the format safetensors.
    """
    try:
        return load_safetensors(read_weights(store, key))
    except SafetensorError as error:
        remedy = "name a state dict of the backbone, saved as safetensors"
        raise ModelError("these weights cannot be read", where=key, found=error, remedy=remedy) from error


def read_weights(store: Store, key: str) -> bytes:
    """Return the bytes of weights, whose SHA-256 is in the record of their stage, or their name if a user gave them.

    Raises:
        DamagedError: They are not what was stored.
    """
    folder, _, name = key.rpartition("/")
    if folder == "weights":
        return read_file(store, key, name.removesuffix(".safetensors"))
    return read_file(store, key, read_record(store, f"{folder}/stage.json")["weights_sha256"])


def _untrained(name: str, classes: int) -> nn.Module:
    if name in BUILT_IN:
        return BUILT_IN[name](classes)
    from torchvision import models

    return models.get_model(name, weights=None, num_classes=classes)


def without_data(name: str) -> nn.Module:
    """Return the backbone with two logits on the meta device: shapes only."""
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return _untrained(name, 2)
        except NotImplementedError:  # RegNets compute their widths in tensors while they are built
            return _untrained(name, 2).to("meta")


def _load_pretrained(backbone: nn.Module, name: str) -> None:
    """Copy torchvision's default weights of equal shape, which are all but the head's."""
    from torchvision import models

    try:
        published = models.get_model(name, weights="DEFAULT").state_dict()
    except (URLError, OSError, RuntimeError) as error:
        remedy = "go online once so that torchvision can download them, or copy the file to TORCH_HOME/hub/checkpoints"
        raise ModelError(
            f"the pretrained weights of {name} cannot be loaded",
            where="training.pretrained",
            found=error,
            remedy=remedy,
        ) from error
    own = backbone.state_dict()
    fitting = {key: value for key, value in published.items() if key in own and value.shape == own[key].shape}
    backbone.load_state_dict(own | fitting)
