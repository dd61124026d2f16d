"""How many synthetic images, of what, made how, and which of them may be taken."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from counterpoise.config.base import RESOLVED, Decides, NonNegativeInt, Section, Share


class Plan(Section, decides="selection"):
    """Number of synthetic images of each cell; strategies: :mod:`counterpoise.synthesis.selection.strategies`."""

    strategy: Literal["uniformize", "usb", "asb", "balanced", "biased", "fill", "custom"]
    by: Literal["class", "cell"] = "cell"  # uniformize, fill: level the classes or the cells
    budget: PositiveInt | Literal["usb", "real"] = "usb"  # balanced, biased: images in all; real: as many as there are
    rate: Annotated[float, Field(ge=0.5, lt=1)] | None = None  # biased
    target: PositiveInt | None = None  # fill
    counts: dict[str, NonNegativeInt | dict[str, NonNegativeInt]] | None = None  # custom
    skip: NonNegativeInt = 0  # so many images of each cell are left to other plans; see evaluation.test

    @model_validator(mode="after")
    def _complete(self) -> Plan:
        needs = {"biased": "rate", "fill": "target", "custom": "counts"}
        for strategy, key in needs.items():
            if (self.strategy == strategy) != (getattr(self, key) is not None):
                verb = "needs" if self.strategy == strategy else "does not take"
                raise ValueError(f"strategy {self.strategy!r} {verb} `{key}`")
        for key, strategies in {"by": ("uniformize", "fill"), "budget": ("balanced", "biased")}.items():
            if self.strategy not in strategies and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"strategy {self.strategy!r} does not take `{key}`")
        return self


class Adapter(Section, decides="pixels"):
    """An IP-Adapter: weights that let a pipeline of Stable Diffusion 1, 2 or XL see an image beside the prompt."""

    model: Annotated[str, RESOLVED]  # a hub id, a folder, or package:NAME/path
    revision: Annotated[str | None, RESOLVED] = None
    weights: str  # a file in it, such as models/ip-adapter_sd15.safetensors
    encoder: str  # the folder in it of the CLIP vision tower that the adapter was trained with: models/image_encoder
    scale: Annotated[float, Field(ge=0)] = 1.0  # weight of the image's attention beside the prompt's


class Condition(Section, decides="pixels"):
    """Real images as a condition beside the prompt: each synthetic image sees the embedding of one of its cell."""

    # without one the pipeline itself takes images (StableUnCLIPImg2Img)
    adapter: Annotated[Adapter | None, RESOLVED] = None
    dropout: Annotated[float, Field(ge=0, le=1)] = 0.0  # probability that a part of the embedding becomes zero
    dropout_of: Literal["element", "embedding"] = "element"  # what a part is: each number (as in FG), or all at once
    rescale: bool = False  # divide what is kept by 1 - dropout
    noise_level: Annotated[int, Field(ge=0, lt=1000)] = 0  # of the noise that unCLIP adds to the embedding

    @model_validator(mode="after")
    def _rescalable(self) -> Condition:
        if self.rescale and self.dropout == 1:
            raise ValueError("nothing is kept at `dropout: 1`, so nothing can be rescaled")
        return self

    @model_validator(mode="after")
    def _noise_is_of_unclip(self) -> Condition:
        if self.adapter is not None and self.noise_level:
            raise ValueError("an adapter adds no noise: leave out `noise_level`")
        return self


class Generator(Section, decides="pixels"):
    """A pipeline of diffusers: text to image, or with ``condition`` from a prompt and an image."""

    model: Annotated[str, RESOLVED]  # a hub id, a folder, or package:NAME/path
    revision: Annotated[str | None, RESOLVED] = None
    # auto: bfloat16 on a GPU, float32 on a CPU
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], RESOLVED] = "auto"
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Decides("runtime")] = "auto"
    scheduler: str | None = None  # a diffusers scheduler class; by default the model's own
    num_inference_steps: PositiveInt = 25
    guidance_scale: Annotated[float, Field(ge=0)] = 7.5
    height: PositiveInt | None = None  # by default the model's own
    width: PositiveInt | None = None
    condition: Condition | None = None
    channels_last: bool = False  # memory format of the denoiser; faster convolutions on GPUs
    compile: bool = False  # torch.compile the denoiser: minutes at the start of every sampler, then faster steps
    seed: NonNegativeInt = 0


class Feedback(Section, decides="pixels"):
    """Guidance by the task's own classifier (FG); see :mod:`counterpoise.synthesis.feedback.criteria`."""

    # loss, entropy, hardness, module:function; or weights of several
    criterion: Annotated[str | dict[str, float], RESOLVED] = "entropy"
    # the classifier: a stage of this experiment, trained on real images alone;
    stage: Annotated[str | None, RESOLVED] = None
    checkpoint: Annotated[str | None, RESOLVED] = None  # or weights (safetensors) of the same `training.backbone`
    scale: float = 0.03  # length of the nudge ÷ length of the latents
    every: PositiveInt = 5  # guide one step in so many
    start: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of the steps before guidance
    stop: Annotated[float, Field(ge=0, le=1)] = 1.0
    predicted: Literal["blend", "plain"] = "blend"  # see counterpoise.generators.guidance.Guide.blend
    # an AutoencoderTiny for the predicted image, by hub id or folder
    decoder: Annotated[str | None, RESOLVED] = None
    checkpoint_decoder: Annotated[bool, Decides("runtime")] = False  # decode twice to save memory
    # train → sample → train again: how often the classifier is renewed, and the pool with it
    rounds: Annotated[PositiveInt, RESOLVED] = 1
    # of the classifier's training, whatever the experiment's is: one pool for all seeds
    seed: Annotated[NonNegativeInt, RESOLVED] = 0

    @model_validator(mode="after")
    def _consistent(self) -> Feedback:
        if (self.stage is None) == (self.checkpoint is None):
            raise ValueError("the classifier is either a `stage` or a `checkpoint`")
        if self.rounds > 1 and self.stage is None:
            raise ValueError("`rounds` train the classifier anew: name a `stage`, not a `checkpoint`")
        if self.stop <= self.start:
            raise ValueError(f"`stop` must come after `start`; found {self.start:g} and {self.stop:g}")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """Criteria by name, with their weights."""
        return {self.criterion: 1.0} if isinstance(self.criterion, str) else self.criterion


class Scorer(Section, decides="pixels"):
    """A CLIP of open_clip: an architecture and its weights' tag, or a model name alone (hf-hub:…, local-dir:…)."""

    model: Annotated[str, RESOLVED] = "ViT-B-32"
    pretrained: Annotated[str | None, RESOLVED] = None
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Decides("runtime")] = "auto"


class Selection(Section, decides="selection"):
    """Filters of the pool's images (:mod:`counterpoise.synthesis.selection.filters`); each is off at null."""

    clip_similarity: float | None = None  # least cosine with the own prompt
    clip_margin: float | None = None  # least lead of the cell's plain prompt over every rival cell's, as cosines
    zero_shot: Literal["label", "cell"] | None = None  # CLIP must see the class, or class and group, asked for
    near_duplicate: Share | None = None  # a cosine with an earlier image of the cell from which on one is too many
    grey: PositiveFloat | None = None  # levels of 255 by which red must differ from the mean channel
    custom: dict[str, Any] = {}  # module:function of your own: its settings
    max_draw: Annotated[float, Field(ge=1)] = 3.0  # a cell may draw at most this many times what its plan wants

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
        """The filters that are on and need CLIP's scores."""
        needing = ("clip_similarity", "clip_margin", "zero_shot", "near_duplicate")
        return [name for name in needing if getattr(self, name) is not None]


class ActorResources(Section, decides="runtime"):
    """How many actors, and what each reserves in Ray."""

    workers: PositiveInt | None = None  # by default as many as the cluster has room for
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] = 0.0


class Pool(Section, decides="pixels"):
    """How the pool is filled."""

    shard_size: PositiveInt = 32  # images sampled in one batch and committed together
    max_attempts: PositiveInt = 3  # per image, before it is quarantined
    sampling: ActorResources = ActorResources()
    scoring: ActorResources = ActorResources(workers=1, num_cpus=0.0)  # beside as many samplers as there are CPUs
    # share of quarantined images that is an error
    max_quarantined: Annotated[float, Field(ge=0, le=1), Decides("runtime")] = 0.05
