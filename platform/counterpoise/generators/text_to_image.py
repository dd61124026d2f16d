"""Sampling from prompts, by any text-to-image pipeline of diffusers."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging
from jaxtyping import Float, UInt8
from transformers.utils import logging as transformers_logging

from counterpoise import config
from counterpoise.core.model_source import is_folder, locate
from counterpoise.errors import ConfigError, ModelError, did_you_mean, one_of
from counterpoise.generators.guidance import Guide, denoiser_of, guided

_UNIFORM = 1 / 255  # standard deviation of the pixels, in every channel, below which an image is uniform


@dataclass(frozen=True)
class Samples:
    """Sampled images of one batch.

    Attributes:
        pixels: Images, 0 to 255.
        defects: For each image, None or its defect: not finite, uniform, or held back by the pipeline's safety
            checker. The pixels of a defective image are meaningless.
    """

    pixels: UInt8[np.ndarray, "n height width 3"]
    defects: list[str | None]


def check(generator: config.Generator) -> None:
    """Raise ConfigError if diffusers has no scheduler of that name. Loads nothing."""
    _scheduler_class(generator.scheduler)


class TextToImage:
    """Text-to-image pipeline in memory.

    Args:
        generator: The model and its sampling settings.
        device: ``cpu``, ``cuda`` or ``mps``.
        dtype: Name of the torch dtype to compute in.

    Raises:
        ModelError: The weights cannot be loaded, or the pipeline is not text-to-image.
        ConfigError: The scheduler does not exist, or a negative prompt is given to a pipeline that takes none.
    """

    family = "AutoPipelineForText2Image"

    def __init__(self, generator: config.Generator, device: str, dtype: str) -> None:
        self.config = generator
        self.pipeline = _load(self.family, generator, getattr(torch, dtype)).to(device)
        denoiser = denoiser_of(self.pipeline)
        if generator.channels_last:
            denoiser.to(memory_format=torch.channels_last)
        if generator.compile:
            denoiser.forward = torch.compile(denoiser.forward)
        self.device = device
        self._accepts = set(inspect.signature(self.pipeline.__call__).parameters)
        self._embeddings: dict[tuple[str, str], dict[str, torch.Tensor] | None] = {}

    def sample(
        self,
        prompts: Sequence[str],
        negative: str,
        seeds: Sequence[int],
        conditions: Sequence[UInt8[np.ndarray, "height width 3"]] = (),
        guide: Guide | None = None,
    ) -> Samples:
        """Sample one batch: an image per prompt and seed, and per condition image if the pipeline takes these.

        Every image has its own random generator, on the CPU, so that its noise depends on its seed alone. Its pixels
        still depend, in the last bit, on its batch.

        Args:
            prompts: Prompts, one per image.
            negative: Negative prompt of all images; empty for none.
            seeds: Seeds of the noise, one per image.
            conditions: Condition images, uint8 RGB, one per image; empty for a pipeline without image condition.
            guide: Guidance of the sampling.

        Raises:
            ConfigError: A negative prompt is given to a pipeline that takes none.
        """
        if negative and "negative_prompt" not in self._accepts:
            found = f"{negative!r} for {type(self.pipeline).__name__}"
            raise ConfigError("the pipeline takes no negative prompt", where="prompts.negative", found=found)
        with guided(self.pipeline, guide, len(prompts), self._size()):
            output = self.pipeline(
                **self._condition(list(prompts), negative),
                **self._image_condition(conditions, seeds),
                generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                output_type="np",
                **self._settings(),
            )
        return to_samples(np.asarray(output.images), output.get("nsfw_content_detected", output.get("nsfw_detected")))

    def _image_condition(self, conditions: Sequence[np.ndarray], seeds: Sequence[int]) -> dict[str, Any]:
        return {}

    def _size(self) -> tuple[int, int] | None:
        """Return height and width of the pipeline's images in pixels."""
        default = getattr(self.pipeline, "default_sample_size", 0) * getattr(self.pipeline, "vae_scale_factor", 1)
        height, width = self.config.height or default, self.config.width or default
        return (height, width) if height and width else None

    def _settings(self) -> dict[str, Any]:
        names = ("num_inference_steps", "guidance_scale", "height", "width")
        values = {name: getattr(self.config, name) for name in names}
        return {name: value for name, value in values.items() if value is not None and name in self._accepts}

    def _condition(self, prompts: list[str], negative: str) -> dict[str, Any]:
        """Return prompts as embeddings, each encoded once and alone, or as text if the pipeline takes no embeddings."""
        encoded = [self._encode(prompt, negative) for prompt in prompts]
        if any(embedding is None for embedding in encoded):
            text: dict[str, Any] = {"prompt": prompts}
            return text | ({"negative_prompt": [negative] * len(prompts)} if negative else {})
        first = encoded[0] or {}
        return {name: torch.cat([embedding[name] for embedding in encoded if embedding]) for name in first}

    def _encode(self, prompt: str, negative: str) -> dict[str, torch.Tensor] | None:
        if (prompt, negative) not in self._embeddings:
            self._embeddings[prompt, negative] = self._encode_uncached(prompt, negative)
        return self._embeddings[prompt, negative]

    @torch.no_grad()
    def _encode_uncached(self, prompt: str, negative: str) -> dict[str, torch.Tensor] | None:
        names = embedding_names(self.pipeline)
        if names is None:
            return None
        parameters = inspect.signature(self.pipeline.encode_prompt).parameters
        arguments = {
            **{name: None for name in ("prompt_2", "prompt_3") if name in parameters},
            "prompt": prompt,
            "device": torch.device(self.device),
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": self.config.guidance_scale > 1,
            "negative_prompt": negative or None,
        }
        values = self.pipeline.encode_prompt(**arguments)
        return {name: value for name, value in zip(names, values, strict=True) if value is not None}


def embedding_names(pipeline: Any) -> tuple[str, ...] | None:
    """Return the names of the embeddings that ``encode_prompt`` returns and the pipeline's call accepts, or None.

    Stable Diffusion 1 and 2 return two tensors, SDXL and SD3 four. Others also return masks or position ids and are
    called with text.
    """
    if not hasattr(pipeline, "encode_prompt"):
        return None
    parameters = inspect.signature(pipeline.encode_prompt).parameters
    if "negative_prompt_embeds" not in parameters or "prompt_attention_mask" in parameters:
        return None
    names: tuple[str, ...] = ("prompt_embeds", "negative_prompt_embeds")
    if "negative_pooled_prompt_embeds" in parameters:
        names += ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    accepted = inspect.signature(pipeline.__call__).parameters
    return names if all(name in accepted for name in names) else None


def to_samples(images: Float[np.ndarray, "n height width 3"], unsafe: Sequence[bool] | None = None) -> Samples:
    """Convert a pipeline's output in [0, 1] to pixels and defects."""
    finite = np.isfinite(images).all(axis=(1, 2, 3))
    pixels = (np.nan_to_num(images).clip(0, 1) * 255).round().astype(np.uint8)
    uniform = (pixels.std(axis=(1, 2)) < _UNIFORM * 255).all(axis=1)
    defects: list[str | None] = [None] * len(images)
    for index in range(len(images)):
        if unsafe is not None and unsafe[index]:
            defects[index] = "held back by the safety checker"
        elif not finite[index]:
            defects[index] = "pixels are not finite"
        elif uniform[index]:
            defects[index] = "one colour all over"
    return Samples(pixels, defects)


def _load(family: str, generator: config.Generator, dtype: torch.dtype) -> Any:
    _quiet()
    located = locate(generator.model, "generator.model")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about missing or renamed settings of old files, which a user cannot mend
            pipeline = getattr(diffusers, family).from_pretrained(
                located,
                revision=None if is_folder(located) else generator.revision,
                dtype=dtype,
                local_files_only=is_folder(located),
            )
            if generator.scheduler is not None:
                scheduler = _scheduler_class(generator.scheduler)
                pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    except (OSError, ValueError, RuntimeError, AttributeError, ImportError, KeyError) as error:
        found = f"{generator.model}: {first_line(error)}"
        remedy = f"set it to a pipeline that diffusers' {family}.from_pretrained can load"
        if family == TextToImage.family:
            remedy += "; for an image variation pipeline also set generator.condition"
        raise ModelError(
            "the generator cannot be loaded", where="generator.model", found=found, remedy=remedy
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False)  # guidance needs the gradient of the latents, never of a weight
    return pipeline


def _scheduler_class(name: str | None) -> Any:
    if name is None:
        return None
    known = [candidate for candidate in dir(diffusers) if candidate.endswith("Scheduler")]
    if name not in known:
        remedy = did_you_mean(name, known)
        raise ConfigError(
            "diffusers has no such scheduler",
            where="generator.scheduler",
            found=name,
            allowed=one_of(known),
            remedy=remedy,
        )
    return getattr(diffusers, name)


def _quiet() -> None:
    """Silence the libraries' progress bars and advice, which nothing displays in a worker."""
    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, else the name of its class."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
