"""Feedback guidance: shifts of the latents, every few steps, along the gradient of a score of the predicted image.

Askari Hemmat et al., "Feedback-guided Data Synthesis for Imbalanced Classification", TMLR 2024, equations 5 to 8.

The hook is the pair *denoiser call* and *scheduler step*. Every pipeline of diffusers has both, and both are needed:
only the denoiser call knows the noise prediction and can be differentiated, and only the scheduler step can shift the
latents from which it continues. The step-end callback of some pipelines gets neither prediction nor gradient, so it
would need a second forward pass, and unCLIP pipelines lack it. Modular guiders get predictions without latents and do
not exist for Stable Diffusion 1 and 2. Without guidance nothing is hooked, so that images equal the pipeline's bit by
bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from counterpoise.generators.prediction import noise_level, predict_clean, prediction_type

Criterion = Callable[[Float[Tensor, "n channels height width"]], Float[Tensor, " n"]]

_TINY = 1e-12


@dataclass(frozen=True)
class Guide:
    """Settings of the guidance of a batch.

    Attributes:
        criterion: Differentiable score of images with values around [0, 1], each by itself. Guidance increases it.
        scale: Norm of the shift ÷ norm of an image's latents.
        every: Guide every n-th step, from the first step on.
        start: Share of the steps before guidance begins.
        stop: Share of the steps after which it ends.
        blend: True: score the decoded blend σ·x₀ + (1 - σ)·z, stretched to [0, 1], as the authors' code does, which is
            steadier in early steps. False: score x₀ decoded, as in the paper's text.
        checkpoint: Recompute the decoder in the backward pass instead of keeping its activations.
        decoder: AutoencoderTiny that replaces the autoencoder for the predicted image.
    """

    criterion: Criterion
    scale: float
    every: int = 5
    start: float = 0.0
    stop: float = 1.0
    blend: bool = True
    checkpoint: bool = True
    decoder: Any = None

    def guides(self, step: int, steps: int) -> bool:
        """Return True if step ``step`` of ``steps``, from 0, is guided."""
        return step % self.every == 0 and self.start <= step / steps < self.stop


@contextmanager
def guided(pipeline: Any, guide: Guide | None, images: int, size: tuple[int, int] | None = None) -> Iterator[None]:
    """Guide the pipeline's sampling inside the block.

    Args:
        pipeline: Any diffusers pipeline with ``unet`` or ``transformer`` and a scheduler of :mod:`.prediction`.
        guide: Settings; None or a scale of 0 changes nothing.
        images: Number of images in the batch. The denoiser's batch is this large, or twice as large under
            classifier-free guidance, with the unconditional half first.
        size: Height and width in pixels, for pipelines that pack their latents (Flux).

    Raises:
        ConfigError: Guidance does not support the scheduler.
    """
    if guide is None or guide.scale == 0:
        yield
        return
    hook = _Hook(pipeline, guide, images, size)
    with _replaced(denoiser_of(pipeline), "forward", hook.denoise), _replaced(pipeline.scheduler, "step", hook.step):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Override a method, or an instance attribute (of a compiled module) in its place, inside the block."""
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)
        if before is not None:
            setattr(owner, name, before)


class _Hook:
    """Hooks of one batch, with the state of its current step."""

    def __init__(self, pipeline: Any, guide: Guide, images: int, size: tuple[int, int] | None) -> None:
        self.pipeline, self.guide, self.images, self.size = pipeline, guide, images, size
        self.scheduler = pipeline.scheduler
        self.kind = prediction_type(self.scheduler)
        self._forward, self._step = denoiser_of(pipeline).forward, self.scheduler.step
        self.number = 0  # current step
        self.direction: Tensor | None = None  # direction of its shift, once computed
        # pipelines inspect the signature of a scheduler's step
        self.step = functools.wraps(self._step)(lambda *args, **kwargs: self._shifted_step(*args, **kwargs))

    def denoise(self, *args: Any, **kwargs: Any) -> Any:
        """Call the denoiser; on a guided step also compute the direction, from the conditional half of the batch."""
        if self.direction is not None or not self.guide.guides(self.number, len(self.scheduler.timesteps)):
            return self._forward(*args, **kwargs)
        batch = len(args[0] if args else kwargs["hidden_states"])
        if batch == self.images:
            return self._differentiate(args, kwargs)
        plain = self._forward(*_half(args, self.images, 0), **_half(kwargs, self.images, 0))
        prompted = self._differentiate(_half(args, self.images, 1), _half(kwargs, self.images, 1))
        return (torch.cat([plain[0], prompted[0]]), *plain[1:])

    def _differentiate(self, args: tuple, kwargs: dict[str, Any]) -> Any:
        sample = args[0] if args else kwargs["hidden_states"]
        with torch.enable_grad():
            leaf = sample.detach().requires_grad_(True)
            output = (
                self._forward(leaf, *args[1:], **kwargs) if args else self._forward(**kwargs | {"hidden_states": leaf})
            )
            values = self.guide.criterion(self._predicted_image(leaf, output[0]))
            (gradient,) = torch.autograd.grad(values.float().sum(), leaf)
        self.direction = _unit(gradient)
        return (output[0].detach(), *output[1:])

    def _predicted_image(self, sample: Tensor, output: Tensor) -> Tensor:
        alpha, sigma = noise_level(self.scheduler, self.number)
        if output.shape[1] == 2 * sample.shape[1] and output.ndim == 4:  # the other half is a learned variance
            output = output[:, : sample.shape[1]]
        clean = predict_clean(self.kind, sample, output, alpha, sigma)
        if not self.guide.blend:
            return self._decode(clean)
        image = self._decode(sigma * clean + (1 - sigma) * sample)
        low = image.detach().amin((1, 2, 3), keepdim=True)
        high = image.detach().amax((1, 2, 3), keepdim=True)
        return (image - low) / (high - low).clamp_min(_TINY)

    def _decode(self, latents: Tensor) -> Tensor:
        if self.guide.checkpoint:
            return checkpoint(decode, self.pipeline, latents, self.guide.decoder, self.size, use_reentrant=False)
        return decode(self.pipeline, latents, self.guide.decoder, self.size)

    def _shifted_step(self, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.direction is not None:
            length = torch.linalg.vector_norm(sample.float().flatten(1), dim=1).view(-1, *[1] * (sample.ndim - 1))
            sample = sample + (self.guide.scale * length * self.direction).to(sample.dtype)
            self.direction = None
        self.number += 1
        return self._step(model_output, timestep, sample, *args, **kwargs)


def denoiser_of(pipeline: Any) -> torch.nn.Module:
    """Return the pipeline's network that predicts noise."""
    return pipeline.unet if getattr(pipeline, "unet", None) is not None else pipeline.transformer


def decode(
    pipeline: Any, latents: Tensor, decoder: Any, size: tuple[int, int] | None
) -> Float[Tensor, "n channels height width"]:
    """Decode a pipeline's latents to images with values around [0, 1]; latents of pixel models are the images.

    Predictions of pixel models in early steps exceed their range many times, and the scheduler thresholds them only
    later. They are scaled down rather than clipped: a clipped pixel has no gradient.
    """
    autoencoder = decoder or getattr(pipeline, "vae", None)
    if autoencoder is None:
        reach = latents.detach().abs().amax((1, 2, 3), keepdim=True).clamp_min(1)
        return latents / reach / 2 + 0.5
    if hasattr(pipeline, "_unpack_latents"):
        assert size is not None, "packed latents do not say what their height and width are"
        latents = pipeline._unpack_latents(latents, *size, pipeline.vae_scale_factor)
    settings = autoencoder.config
    latents = latents / settings.scaling_factor + (getattr(settings, "shift_factor", None) or 0.0)
    dtype = next(autoencoder.parameters()).dtype  # .dtype would walk through all modules, every time
    return autoencoder.decode(latents.to(dtype), return_dict=False)[0] / 2 + 0.5


def _unit(gradient: Float[Tensor, n * shape]) -> Float[Tensor, n * shape]:
    """Scale each image's gradient to norm 1; one that is not finite (float16 overflows) becomes 0."""
    gradient = gradient.float()
    length = torch.linalg.vector_norm(gradient.flatten(1), dim=1).view(-1, *[1] * (gradient.ndim - 1))
    return torch.where(torch.isfinite(length) & (length > _TINY), gradient / length, 0.0)


def _half(value: Any, images: int, half: int) -> Any:
    """Return one half of every tensor of a doubled batch, at any depth of the arguments."""
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == 2 * images:
        return value[half * images : (half + 1) * images]
    if isinstance(value, dict):
        return {key: _half(item, images, half) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_half(item, images, half) for item in value)
    return value
