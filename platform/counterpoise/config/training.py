"""Stages, and what they share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from counterpoise.config.base import RESOLVED, Decides, NonNegativeInt, Section, Share
from counterpoise.config.synthesis import ActorResources

# These two agree with the selectable metrics of counterpoise.evaluation.catalogue: a test holds them together.
SelectBy = Literal["worst_group_accuracy", "balanced_accuracy", "class_balanced_accuracy", "accuracy", "last"]
GROUP_METRICS = ("worst_group_accuracy", "balanced_accuracy")  # to select by these, validation groups must be known

# flip, crop (counterpoise.training.loading.augmentation), or a transform of torchvision.transforms.v2, with arguments
Transform = Literal["flip", "crop"] | dict[str, dict[str, Any]]


def _only(section: Section, chosen: object, takes: dict[str, tuple[str, ...]], needs: bool = False) -> None:
    """Refuses settings that the chosen name does not take (those that are not at their default)."""
    own = takes.get(str(chosen), ())
    for name, keys in takes.items():
        for key in keys:
            if key in own:
                continue
            if getattr(section, key) != type(section).model_fields[key].get_default(call_default_factory=True):
                raise ValueError(f"{chosen!r} does not take `{key}` (that is for {name!r})")
    if needs:
        for key in own:
            if getattr(section, key) in (None, []):
                raise ValueError(f"{chosen!r} needs `{key}`")


def _one_length(section: Stage | Training) -> None:
    if section.epochs is not None and section.steps is not None:
        raise ValueError("give `epochs` or `steps`, not both (`epochs: null` takes back what an extended file says)")


class Objective(Section, decides="weights"):
    """What is minimised: a loss of each image, and a risk that says how much each of a batch's losses counts."""

    loss: Literal[
        "cross_entropy",
        "balanced_softmax",
        "logit_adjustment",
        "focal",
        "ldam",
        "generalized_cross_entropy",
        "arcface",
        "adaface",
    ] = "cross_entropy"
    risk: Literal["mean", "group_dro", "cvar_dro", "relative_difficulty"] = "mean"
    tau: PositiveFloat = 1.0  # logit_adjustment: strength
    gamma: PositiveFloat = 2.0  # focal
    q: Share = 0.7  # generalized_cross_entropy
    max_margin: PositiveFloat = 0.5  # ldam: the rarest class's margin
    margin: PositiveFloat | None = None  # arcface (radians, 0.5 by default), adaface (0.4 by default)
    concentration: PositiveFloat = 0.333  # adaface: h
    scale: PositiveFloat | None = None  # ldam (30 by default): what margined logits are multiplied with
    step_size: PositiveFloat = 0.01  # group_dro: η_q
    adjustment: Annotated[float, Field(ge=0)] = 0.0  # group_dro: C of the generalisation adjustment C / √n_g
    worst_share: Annotated[float, Field(gt=0, le=1)] = 0.2  # cvar_dro: α, the share of a batch that counts

    @model_validator(mode="after")
    def _consistent(self) -> Objective:
        losses = {
            "logit_adjustment": ("tau",),
            "focal": ("gamma",),
            "generalized_cross_entropy": ("q",),
            "ldam": ("max_margin", "scale"),
            "arcface": ("margin",),
            "adaface": ("margin", "concentration"),
        }
        _only(self, self.loss, losses)
        _only(self, self.risk, {"group_dro": ("step_size", "adjustment"), "cvar_dro": ("worst_share",)})
        return self


class Optimizer(Section, decides="weights"):
    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: PositiveFloat = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # sgd
    schedule: Literal["constant", "cosine", "step"] = "constant"
    milestones: list[PositiveInt] = []  # step: epochs after which the rate is multiplied by `decay`
    decay: Share = 0.1  # step

    @model_validator(mode="after")
    def _consistent(self) -> Optimizer:
        _only(self, self.schedule, {"step": ("milestones",)}, needs=True)
        return self


class Mixture(Section, decides="weights"):
    """How the views of a stage come together; without either, they are concatenated."""

    real_share: Share | None = None  # every batch has this share of real images (FG: 0.5), the rest is synthetic
    subsample: Literal["class", "cell"] | None = None  # as many of each class or cell as the rarest has, drawn by seed

    @model_validator(mode="after")
    def _one(self) -> Mixture:
        if self.real_share is not None and self.subsample is not None:
            raise ValueError("give `real_share` or `subsample`, not both")
        return self


class Mix(Section, decides="weights"):
    """Two images become one, their losses are weighted alike (Zhang et al. 2018; Yun et al. 2019)."""

    name: Literal["mixup", "cutmix"] = "mixup"
    alpha: PositiveFloat = 1.0  # of Beta(α, α), drawn once for each batch
    pairs: Literal["any", "real_synthetic"] = "any"  # with any image of the batch, or with one of the other source


class Trainable(Section, decides="weights"):
    """Which parameters move; the others leave the optimizer."""

    name: Literal["all", "last_layer", "blocks", "all_but_blocks", "random", "lora", "selective"] = "all"
    blocks: list[str] = []  # blocks, all_but_blocks: names of the backbone's modules, such as layer4
    share: Share | None = None  # random: share of the parameter tensors, drawn by seed
    rank: PositiveInt = 4  # lora
    alpha: PositiveFloat = 8.0  # lora: the update is multiplied by alpha / rank
    top_k: PositiveInt | Share | None = None  # selective: tensors taken of each ranking, a count or a share
    similar: list[str] = ["real", "biased"]  # selective: two views whose gradients shall differ little,
    different: list[str] = ["biased", "balanced"]  # and two whose gradients shall differ much
    distance: Literal["absolute", "cosine"] = "absolute"  # selective: of two gradients of a tensor

    @model_validator(mode="after")
    def _consistent(self) -> Trainable:
        if self.name in ("blocks", "all_but_blocks") and not self.blocks:
            raise ValueError(f"{self.name!r} needs `blocks`")
        for name, key in (("random", "share"), ("selective", "top_k")):
            if self.name == name and getattr(self, key) is None:
                raise ValueError(f"{name!r} needs `{key}`")
        takes = {
            "blocks": ("blocks",),
            "all_but_blocks": ("blocks",),
            "random": ("share",),
            "lora": ("rank", "alpha"),
            "selective": ("top_k", "similar", "different", "distance"),
        }
        _only(self, self.name, takes)
        if len(self.similar) != 2 or len(self.different) != 2:
            raise ValueError("`similar` and `different` name two views each")
        return self


class Dfr(Section, decides="weights"):
    """Deep feature reweighting (Kirichenko et al. 2023): L1 logistic regression as the last layer, no epochs."""

    strengths: list[PositiveFloat] = Field([3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003], min_length=1)  # C, inverse
    refits: PositiveInt = 20  # on group-balanced draws; coefficients are averaged
    normalize: bool = False  # features to length 1 first, as FFR's authors' code has it


class Stage(Section, decides="weights"):
    """One fit: on which data, with which objective, which parameters, for how long, from where."""

    name: Annotated[str, Decides("place")]
    data: Annotated[list[str], RESOLVED] = Field(min_length=1)  # views: "real", "validation", or names of plans
    mixture: Mixture = Mixture()
    # an earlier stage, "scratch", or a file of weights; by default the stage before
    start: Annotated[str | None, RESOLVED] = None
    head: Literal["kept", "fresh"] = "kept"  # the last layer's weights: the start's, or new ones
    objective: Objective = Objective()
    sampling: Literal["uniform", "class_balanced", "square_root", "group_balanced", "errors"] = "uniform"
    # an earlier stage whose mistakes `errors` and `relative_difficulty` look at
    reference: Annotated[str | None, RESOLVED] = None
    upweight: PositiveFloat = 20.0  # errors: how much more often an image that the reference gets wrong is shown
    groups: Literal["cell", "cell_source"] = "cell"  # what objective and sampling call a group
    trainable: Trainable = Trainable()
    augmentation: Annotated[list[Transform] | None, RESOLVED] = None  # by default training.augmentation
    mix: Mix | None = None
    epochs: Annotated[PositiveInt | None, RESOLVED] = None  # by default training.epochs or training.steps
    # instead of epochs: as many whole epochs as come nearest to this many batches
    steps: Annotated[PositiveInt | None, RESOLVED] = None
    optimizer: Annotated[Optimizer | None, RESOLVED] = None  # by default training.optimizer
    batch_norm: Literal["train", "frozen_statistics", "frozen"] = "train"  # frozen: scale and shift do not move either
    select_by: Annotated[SelectBy | None, RESOLVED] = None  # by default training.select_by
    dfr: Dfr | None = None  # instead of epochs

    @model_validator(mode="after")
    def _consistent(self) -> Stage:
        wants = self.sampling == "errors" or self.objective.risk == "relative_difficulty"
        if wants != (self.reference is not None):
            verb = "need" if wants else "do not take"
            raise ValueError(f"sampling {self.sampling!r} with risk {self.objective.risk!r} {verb} a `reference` stage")
        _one_length(self)
        if self.sampling != "errors" and self.upweight != 20.0:
            raise ValueError(f"sampling {self.sampling!r} does not take `upweight`")
        if self.dfr is not None:
            steps = (
                "mixture",
                "objective",
                "sampling",
                "trainable",
                "augmentation",
                "mix",
                "epochs",
                "steps",
                "optimizer",
            )
            for key in steps:
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(f"`dfr` fits the last layer without epochs, so the stage does not take `{key}`")
        return self

    @property
    def views(self) -> dict[str, list[str]]:
        """The views that this stage learns from, by key: those it trains on, and those that a mask looks at."""
        mask = self.trainable
        looked_at = {"trainable.similar": mask.similar, "trainable.different": mask.different}
        return {"data": self.data} | (looked_at if mask.name == "selective" else {})

    @property
    def plain(self) -> bool:
        """Whether this is nothing but the mean cross-entropy of all images, each as often as the others."""
        return all(
            getattr(self, key) == type(self).model_fields[key].default
            for key in ("mixture", "objective", "sampling", "trainable", "mix", "dfr")
        )

    @property
    def group_aware(self) -> bool:
        """Whether training (not selection) looks at the groups of its images."""
        by_group = self.sampling == "group_balanced" or self.objective.risk == "group_dro"
        return by_group or self.mixture.subsample == "cell" or self.dfr is not None


class Training(Section, decides="weights"):
    """What all stages share."""

    backbone: str = "small_cnn"  # small_cnn, or a torchvision classification model by name
    head: Literal["linear", "cosine"] = "linear"  # cosine: angles to class directions, for arcface and adaface
    pretrained: bool = False  # torchvision's default weights
    # images are resized to this many pixels a side, also those that a classifier sees as it guides (`feedback`)
    image_size: Annotated[PositiveInt, Decides("weights", "pixels")] = 32
    epochs: Annotated[PositiveInt | None, RESOLVED] = None  # of each stage; 20, unless `steps` are given
    # of each stage, instead of epochs: alike for few images and for many
    steps: Annotated[PositiveInt | None, RESOLVED] = None
    batch_size: PositiveInt = 128  # over all workers
    optimizer: Annotated[Optimizer, RESOLVED] = Optimizer()
    augmentation: Annotated[list[Transform], RESOLVED] = []
    select_by: Annotated[SelectBy, RESOLVED] = "worst_group_accuracy"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # of forward passes; auto: bfloat16 on a GPU
    # torch.compile: a minute at the start of every stage, then faster steps
    compile: Annotated[bool, Decides("runtime")] = False
    num_workers: Annotated[PositiveInt, Decides("runtime")] = 1  # Ray Train workers of one fit
    resources: ActorResources = ActorResources(num_cpus=1.0)  # of each worker; resources.workers: fits at once
    max_failures: Annotated[NonNegativeInt, Decides("runtime")] = 2

    @model_validator(mode="before")
    @classmethod
    def _default_length(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("epochs") is None and given.get("steps") is None:
            return {**given, "epochs": 20}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        _one_length(self)
        return self
