"""The mask of AIM-Fair (Zhao et al., CVPR 2025): the parameter tensors to fine-tune on synthetic images.

Gradients of the model that was fitted to biased real images are compared between views. A small difference between real
and equally biased synthetic images means that the domain matters little to a tensor; a large difference between biased
and balanced synthetic images means that the bias matters much. Tensors that rank high in both are fine-tuned.

The two dicts of differences depend on the model and the views only and can be stored as JSON: another ``top_k`` then
costs a sort.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Literal

import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from counterpoise import config
from counterpoise.errors import ConfigError
from counterpoise.training.models import Classifier
from counterpoise.training.parameters.trainable import candidates, set_mode

Batch = tuple[UInt8[Tensor, "_ 3 _ _"], Int[Tensor, "_"]]  # "_": the last batch may be smaller


def mean_gradients(
    model: Classifier, stage: config.Stage, batches: Iterable[Batch], seed: int = 0
) -> dict[str, Tensor]:
    """Return each candidate tensor's gradient of the mean cross-entropy, averaged over batches.

    The mean is over batches as in the authors' code, so that the images of a smaller batch count more. The model is
    in the stage's training mode (the authors' batch norm uses each batch's statistics) and stays unchanged.

    Args:
        model: The start of the fine-tuning, without adapters.
        stage: The stage; its ``batch_norm`` sets the mode, and ``frozen`` excludes batch norm's tensors.
        batches: One pass through a view: augmented images (n, 3, height, width) and their labels (n,).
        seed: Seed of dropout.

    Raises:
        ConfigError: A gradient is not finite.
    """
    model = copy.deepcopy(model)
    set_mode(model, stage)
    device, steps = model.mean.device, 0
    tensors = candidates(model, stage)
    for parameter in tensors.values():
        parameter.requires_grad_()
        parameter.grad = torch.zeros_like(parameter)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for images, labels in batches:
            nn.functional.cross_entropy(model(images.to(device)), labels.to(device)).backward()
            steps += 1
    gradients = {name: parameter.grad / steps for name, parameter in tensors.items() if parameter.grad is not None}
    for name, gradient in gradients.items():
        if not gradient.isfinite().all():
            remedy = "lower the learning rate of the stage that it starts from"
            raise ConfigError("a gradient is not finite", where=f"stage {stage.name!r}", found=name, remedy=remedy)
    return gradients


def differences(
    gradients_a: dict[str, Tensor], gradients_b: dict[str, Tensor], distance: Literal["absolute", "cosine"]
) -> dict[str, float]:
    """Return the distance between two gradients of each tensor.

    ``absolute`` is the mean of |a - b| over the tensor's elements; ``cosine`` is 1 - cos(a, b), from 0 to 2, where a
    gradient of zeros is at 1 from any other and at 0 from zeros.
    """
    measure = {"absolute": _absolute, "cosine": _cosine}[distance]
    pairs = {name: (a.double().flatten(), gradients_b[name].double().flatten()) for name, a in gradients_a.items()}
    return {name: measure(a, b).item() for name, (a, b) in pairs.items()}


def _absolute(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().mean()


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).any() * (1 - nn.functional.cosine_similarity(a, b, dim=0))


def ranked_mask(similar: dict[str, float], different: dict[str, float], top_k: int | float) -> list[str]:
    """Return the tensors among the k least of ``similar`` and among the k greatest of ``different``.

    At least 2k - n and at most k of n tensors are returned, in their own order. Among equal differences the earlier
    tensor comes first.

    Args:
        similar: Differences between the gradients of two views that differ in the domain, such as real and biased.
        different: Differences between those of two views that differ in the bias, such as biased and balanced.
        top_k: k, or as a share below 1 of the n tensors the nearest whole number k, at least 1.

    Raises:
        ConfigError: k is more than n, or no tensor is among both.
    """
    n, k = len(similar), count(top_k, len(similar))
    if k > n:
        raise ConfigError(
            "top_k is more than the number of tensors", where="trainable.top_k", found=k, allowed=f"1 to {n}"
        )
    alike, apart = _ranks(similar), _ranks(different, greatest=True)
    mask = [name for name in similar if max(alike[name], apart[name]) <= k]
    if not mask:
        least = min(max(alike[name], apart[name]) for name in similar)
        raise ConfigError(
            "no tensor is among the top k of both rankings",
            where="trainable.top_k",
            found=f"{k} of {n} tensors",
            allowed=f"at least {least} (for any rankings, at least {n // 2 + 1})",
            remedy=f"set top_k to {least} or more",
        )
    return mask


def count(top_k: int | float, n: int) -> int:
    """Return k of n tensors: ``top_k`` itself, or for a share below 1 the nearest whole number, at least 1."""
    return top_k if isinstance(top_k, int) else max(1, round(top_k * n))


def _ranks(values: dict[str, float], greatest: bool = False) -> dict[str, int]:
    order = sorted(values, key=values.__getitem__, reverse=greatest)  # stable either way
    return {name: rank for rank, name in enumerate(order, start=1)}
