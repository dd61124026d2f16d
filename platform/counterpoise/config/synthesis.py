"""How many synthetic images, of what, made how, and which of them may be taken."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from counterpoise.config.base import NonNegativeInt, Section


class Plan(Section):
    """How many synthetic images each cell gets; see :mod:`counterpoise.synthesis.plan` for the strategies."""

    strategy: Literal["uniformize", "usb", "asb", "balanced", "biased", "fill", "custom"]
    by: Literal["class", "cell"] = "cell"  # uniformize, fill: level the classes or the cells
    budget: PositiveInt | Literal["usb"] = "usb"  # balanced, biased: images in all
    rate: Annotated[float, Field(ge=0.5, lt=1)] | None = None  # biased
    target: PositiveInt | None = None  # fill
    counts: dict[str, NonNegativeInt | dict[str, NonNegativeInt]] | None = None  # custom

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


class Generator(Section):
    """A text-to-image pipeline of diffusers."""

    model: str  # a hub id, a folder, or package:NAME/path
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # auto: bfloat16 on a GPU, float32 on a CPU
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    scheduler: str | None = None  # a diffusers scheduler class; by default the model's own
    num_inference_steps: PositiveInt = 25
    guidance_scale: Annotated[float, Field(ge=0)] = 7.5
    height: PositiveInt | None = None  # by default the model's own
    width: PositiveInt | None = None
    seed: NonNegativeInt = 0


class Scorer(Section):
    """A CLIP of open_clip: an architecture and its weights' tag, or a model name alone (hf-hub:…, local-dir:…)."""

    model: str = "ViT-B-32"
    pretrained: str | None = None
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"


class Selection(Section):
    """Which pool images a plan may take."""

    clip_margin: float | None = None  # least lead of the cell's plain prompt over every rival's, as cosines; null: all
    max_draw: Annotated[float, Field(ge=1)] = 3.0  # a cell may draw at most this many times what its plan wants


class Workers(Section):
    """How many actors, and what each reserves in Ray."""

    workers: PositiveInt | None = None  # by default as many as the cluster has room for
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] = 0.0


class Pool(Section):
    """How the pool is filled. Only ``shard_size`` and ``max_attempts`` decide what it holds."""

    shard_size: PositiveInt = 32  # images sampled in one batch and committed together
    max_attempts: PositiveInt = 3  # per image, before it is quarantined
    sampling: Workers = Workers()
    scoring: Workers = Workers(workers=1, num_cpus=0.0)  # beside as many samplers as there are CPUs
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.05  # share of quarantined images that is an error
