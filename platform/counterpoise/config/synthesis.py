"""Configuration of synthesis: generator, feedback, scorer, selection and pool."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from counterpoise.config.base import RESOLVED, Decides, NonNegativeInt, Section, Share


class Adapter(Section, decides="pixels"):
    """IP-Adapter: weights that add an image condition to a Stable Diffusion 1, 2 or XL pipeline."""

    model: Annotated[str, RESOLVED]  # a hub id, a folder, or package:NAME/path
    revision: Annotated[str | None, RESOLVED] = None
    weights: str  # a file in the model, such as models/ip-adapter_sd15.safetensors
    encoder: str  # folder in the model with the adapter's CLIP vision tower, such as models/image_encoder
    scale: Annotated[float, Field(ge=0)] = 1.0  # weight of the image's attention relative to the prompt's


class Condition(Section, decides="pixels"):
    """Image condition: each synthetic image is sampled with the embedding of a real image of its cell."""

    adapter: Annotated[Adapter | None, RESOLVED] = None  # null: the pipeline itself takes images (StableUnCLIPImg2Img)
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.0  # probability that a part of the embedding is zeroed
    dropout_of: Literal["element", "embedding"] = "element"  # the part: each element (as in FG), or the whole embedding
    rescale: bool = False  # divide the kept parts by 1 - dropout
    noise_level: Annotated[int, Field(ge=0, lt=1000)] = 0  # level of the noise that unCLIP adds to the embedding

    @model_validator(mode="after")
    def _rescalable(self) -> Condition:
        if self.rescale and self.dropout == 1:
            raise ValueError("`rescale` needs `dropout` below 1")
        return self

    @model_validator(mode="after")
    def _noise_is_of_unclip(self) -> Condition:
        if self.adapter is not None and self.noise_level:
            raise ValueError("`noise_level` applies to unCLIP only, not to an adapter")
        return self


class Generator(Section, decides="pixels"):
    """Pipeline of diffusers: text to image, or with ``condition`` from a prompt and an image."""

    model: Annotated[str, RESOLVED]  # a hub id, a folder, or package:NAME/path
    revision: Annotated[str | None, RESOLVED] = None
    # auto: bfloat16 on a GPU, float32 on a CPU
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], RESOLVED] = "auto"
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Decides("runtime")] = "auto"
    scheduler: str | None = None  # a diffusers scheduler class; by default the model's own
    num_inference_steps: PositiveInt = 25
    guidance_scale: Annotated[float, Field(ge=0)] = 7.5
    height: PositiveInt | None = None  # by default the model's own
    width: PositiveInt | None = None  # likewise
    condition: Condition | None = None
    channels_last: bool = False  # memory format of the denoiser: faster convolutions on GPUs
    compile: bool = False  # torch.compile the denoiser: minutes per sampler to start, then faster steps
    seed: NonNegativeInt = 0  # base seed of the noise


class Feedback(Section, decides="pixels"):
    """Feedback guidance by the task's classifier (FG); see :mod:`counterpoise.synthesis.feedback.criteria`."""

    # loss, entropy, hardness or module:function; or criterion -> weight
    criterion: Annotated[str | dict[str, float], RESOLVED] = "entropy"
    # the classifier: a stage of this experiment, trained on real images alone,
    stage: Annotated[str | None, RESOLVED] = None
    checkpoint: Annotated[str | None, RESOLVED] = None  # or weights (safetensors) of the same `training.backbone`
    scale: float = 0.03  # norm of the guidance step ÷ norm of the latents
    every: PositiveInt = 5  # guide every n-th step
    start: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of the steps before guidance begins
    stop: Annotated[float, Field(ge=0, le=1)] = 1.0  # share of the steps after which guidance ends
    predicted: Literal["blend", "plain"] = "blend"  # see counterpoise.generators.guidance.Guide.blend
    decoder: Annotated[str | None, RESOLVED] = None  # an AutoencoderTiny for the predicted image, by hub id or folder
    # recompute the decoder in the backward pass to save memory
    checkpoint_decoder: Annotated[bool, Decides("runtime")] = False
    rounds: Annotated[PositiveInt, RESOLVED] = 1  # rounds of training the classifier and sampling a pool with it
    # seed of the classifier; the experiment's seeds share it, and so the pool
    seed: Annotated[NonNegativeInt, RESOLVED] = 0

    @model_validator(mode="after")
    def _consistent(self) -> Feedback:
        if (self.stage is None) == (self.checkpoint is None):
            raise ValueError("give the classifier as either `stage` or `checkpoint`")
        if self.rounds > 1 and self.stage is None:
            raise ValueError("`rounds` retrain the classifier: give a `stage`, not a `checkpoint`")
        if self.stop <= self.start:
            raise ValueError(f"`stop` must come after `start`; found {self.start:g} and {self.stop:g}")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """Criteria by name, with their weights."""
        return {self.criterion: 1.0} if isinstance(self.criterion, str) else self.criterion


class Scorer(Section, decides="pixels"):
    """CLIP model of open_clip: an architecture and a tag of weights, or a model name alone (hf-hub:…, local-dir:…)."""

    model: Annotated[str, RESOLVED] = "ViT-B-32"
    pretrained: Annotated[str | None, RESOLVED] = None
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Decides("runtime")] = "auto"


class Selection(Section, decides="selection"):
    """Filters of synthetic images (:mod:`counterpoise.synthesis.selection.filters`); null switches one off."""

    clip_similarity: float | None = None  # least CLIP cosine with the image's prompt
    clip_margin: float | None = None  # least CLIP cosine with the cell's plain prompt minus that of any rival cell's
    zero_shot: Literal["label", "cell"] | None = None  # CLIP's zero-shot class, or class and group, must be the cell's
    near_duplicate: Share | None = None  # CLIP cosine with an earlier image of the cell from which one is rejected
    grey: PositiveFloat | None = None  # least difference of mean red from the mean of all channels, in levels of 255
    custom: dict[str, Any] = {}  # user-defined filter as module:function -> its settings
    max_draw: Annotated[float, Field(ge=1)] = 3.0  # draw at most this multiple of a cell's target count

    @field_validator("custom")
    @classmethod
    def _references(cls, custom: dict[str, Any]) -> dict[str, Any]:
        for name in custom:
            module, _, function = name.partition(":")
            if not (function.isidentifier() and all(part.isidentifier() for part in module.split("."))):
                raise ValueError(f"{name!r} is not of the form module:function")
        return custom

    @property
    def scored(self) -> list[str]:
        """Names of the active filters that need CLIP scores."""
        needing = ("clip_similarity", "clip_margin", "zero_shot", "near_duplicate")
        return [name for name in needing if getattr(self, name) is not None]


class ActorResources(Section, decides="runtime"):
    """Number of Ray workers, and the resources that each reserves."""

    workers: PositiveInt | None = None  # by default as many as the cluster's resources allow
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] = 0.0


class SamplingResources(ActorResources, decides="runtime"):
    """Number of Ray workers that sample, and the resources that each reserves.

    With 0 workers, images are sampled and scored in this process, one shard after the other. This saves the workers'
    start, some 15 seconds, and is faster for small pools.
    """

    workers: NonNegativeInt | None = None


def _codec(value: object) -> object:
    """Return ``{jpeg: 95}``, as YAML reads ``jpeg: 95``, as the text ``jpeg:95``."""
    return f"jpeg:{value['jpeg']}" if isinstance(value, dict) and value.keys() == {"jpeg"} else value


Codec = Annotated[str, BeforeValidator(_codec), Field(pattern=r"^(webp|png|jpeg:([1-9]\d?|100))$")]


class Pool(Section, decides="pixels"):
    """Sampling of the pool. Only ``shard_size``, ``max_attempts`` and ``codec`` affect its content."""

    shard_size: PositiveInt = 32  # images sampled in one batch and committed together
    max_attempts: PositiveInt = 3  # samples of an image before it is quarantined
    codec: Codec = "webp"  # of the stored images: webp and png are lossless; jpeg:95 is not
    sampling: SamplingResources = SamplingResources()
    scoring: ActorResources = ActorResources(workers=1, num_cpus=0.0)  # 0 CPUs: samplers may use all
    # largest share of quarantined images; more is an error
    max_quarantined: Annotated[float, Field(ge=0, le=1), Decides("runtime")] = 0.05
