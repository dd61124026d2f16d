"""Configuration of training: stages, and the settings that they share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, PositiveFloat, PositiveInt, model_validator

from counterpoise.config.base import OR_WORD, RESOLVED, Decides, NonNegativeInt, Section, Share
from counterpoise.config.objectives import Objective
from counterpoise.config.synthesis import ActorResources
from counterpoise.config.trainable import All, Selective, Trainable

# A test keeps these two equal to the selectable metrics of counterpoise.evaluation.catalogue.
SelectBy = Literal["worst_group_accuracy", "balanced_accuracy", "class_balanced_accuracy", "accuracy", "last"]
GROUP_METRICS = ("worst_group_accuracy", "balanced_accuracy")  # to select by these, validation groups must be known

# flip, crop (counterpoise.training.loading.augmentation), or a transform of torchvision.transforms.v2, with arguments
Transform = Literal["flip", "crop"] | dict[str, dict[str, Any]]


def _one_length(section: Stage | Training) -> None:
    if section.epochs is not None and section.steps is not None:
        raise ValueError("give `epochs` or `steps`, not both (`epochs: null` unsets the value of an extended file)")


class Constant(Section, decides="weights"):
    """Constant learning rate."""

    name: Literal["constant"]


class Cosine(Section, decides="weights"):
    """Learning rate that falls to 0 along half a cosine."""

    name: Literal["cosine"]


class Step(Section, decides="weights"):
    """Learning rate that falls at milestones."""

    name: Literal["step"]
    milestones: list[PositiveInt] = Field(min_length=1)  # epochs after which it is multiplied by `decay`
    decay: Share = 0.1


Schedule = Annotated[Constant | Cosine | Step, Discriminator("name"), OR_WORD]


class Optimizer(Section, decides="weights"):
    """Optimizer and learning-rate schedule."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: PositiveFloat = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # sgd only
    schedule: Schedule = Constant(name="constant")


class Mixture(Section, decides="weights"):
    """Combination of a stage's views; without either key, they are concatenated."""

    real_share: Share | None = None  # every batch has this share of real images (FG: 0.5), the rest is synthetic
    subsample: Literal["class", "cell"] | None = None  # reduce each class or cell to the size of the rarest, by seed

    @model_validator(mode="after")
    def _one(self) -> Mixture:
        if self.real_share is not None and self.subsample is not None:
            raise ValueError("give `real_share` or `subsample`, not both")
        return self


class Mix(Section, decides="weights"):
    """Mixing of image pairs and of their losses with the same weight (Zhang et al. 2018; Yun et al. 2019)."""

    name: Literal["mixup", "cutmix"] = "mixup"
    alpha: PositiveFloat = 1.0  # weight drawn from Beta(α, α), once per batch
    pairs: Literal["any", "real_synthetic"] = "any"  # partner: any image of the batch, or one of the other source


class Dfr(Section, decides="weights"):
    """Deep feature reweighting (Kirichenko et al. 2023): L1 logistic regression as the last layer, no epochs."""

    # values of C to try, the inverse strength of the L1 penalty
    strengths: list[PositiveFloat] = Field([3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003], min_length=1)
    refits: PositiveInt = 20  # on group-balanced draws; coefficients are averaged
    normalize: bool = False  # scale features to length 1 first, as FFR's code does


class Stage(Section, decides="weights"):
    """Training stage: data, objective, trainable parameters, length and start of one fit."""

    name: Annotated[str, Decides("place")]  # unique in the experiment
    data: Annotated[list[str], RESOLVED] = Field(min_length=1)  # views: "real", "validation", or names of plans
    mixture: Mixture = Mixture()
    # an earlier stage, "scratch", or a file of weights; by default the stage before
    start: Annotated[str | None, RESOLVED] = None
    head: Literal["kept", "fresh"] = "kept"  # last layer: kept from the start, or new
    objective: Objective = Objective()
    sampling: Literal["uniform", "class_balanced", "square_root", "group_balanced", "errors"] = "uniform"
    # earlier stage whose mistakes `errors` and `relative_difficulty` use
    reference: Annotated[str | None, RESOLVED] = None
    upweight: PositiveFloat = 20.0  # errors: sampling weight of images that the reference misclassifies
    groups: Literal["cell", "cell_source"] = "cell"  # groups of objective and sampling
    trainable: Trainable = All(name="all")
    augmentation: Annotated[list[Transform] | None, RESOLVED] = None  # by default training.augmentation
    mix: Mix | None = None
    epochs: Annotated[PositiveInt | None, RESOLVED] = None  # by default training.epochs or training.steps
    # instead of epochs: the number of whole epochs nearest to this many batches
    steps: Annotated[PositiveInt | None, RESOLVED] = None
    optimizer: Annotated[Optimizer | None, RESOLVED] = None  # by default training.optimizer
    batch_norm: Literal["train", "frozen_statistics", "frozen"] = "train"  # frozen: scale and shift are frozen too
    select_by: Annotated[SelectBy | None, RESOLVED] = None  # by default training.select_by
    dfr: Dfr | None = None  # fit the last layer by DFR instead of epochs

    @model_validator(mode="after")
    def _consistent(self) -> Stage:
        risk = self.objective.risk
        needs_reference = self.sampling == "errors" or risk.needs_reference
        if needs_reference != (self.reference is not None):
            verb = "need" if needs_reference else "do not take"
            raise ValueError(f"sampling {self.sampling!r} with risk {risk.name!r} {verb} a `reference` stage")
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
        """Views that this stage uses, by key: those it trains on, and those that a selective mask compares."""
        mask = self.trainable
        if not isinstance(mask, Selective):
            return {"data": self.data}
        return {"data": self.data, "trainable.similar": mask.similar, "trainable.different": mask.different}

    @property
    def plain(self) -> bool:
        """True for plain training: mean cross-entropy over all images, sampled uniformly."""
        return all(
            getattr(self, key) == type(self).model_fields[key].default
            for key in ("mixture", "objective", "sampling", "trainable", "mix", "dfr")
        )

    @property
    def group_aware(self) -> bool:
        """True if training (not selection) uses the groups of its images."""
        by_group = self.sampling == "group_balanced" or self.objective.risk.group_aware
        return by_group or self.mixture.subsample == "cell" or self.dfr is not None


class Training(Section, decides="weights"):
    """Settings that all stages share."""

    backbone: str = "small_cnn"  # small_cnn, or a torchvision classification model by name
    head: Literal["linear", "cosine"] = "linear"  # cosine: angles to class directions, for arcface and adaface
    pretrained: bool = False  # start from torchvision's default weights
    image_size: Annotated[PositiveInt, Decides("weights", "pixels")] = 32  # pixels per side that images are resized to
    epochs: Annotated[PositiveInt | None, RESOLVED] = None  # per stage; 20 unless `steps` is given
    # per stage, instead of epochs: the same for few images and for many
    steps: Annotated[PositiveInt | None, RESOLVED] = None
    batch_size: PositiveInt = 128  # over all workers
    optimizer: Annotated[Optimizer, RESOLVED] = Optimizer()
    augmentation: Annotated[list[Transform], RESOLVED] = []
    select_by: Annotated[SelectBy, RESOLVED] = "worst_group_accuracy"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # precision of forward passes; auto: bfloat16 on a GPU
    # torch.compile: a minute per stage to start, then faster steps
    compile: Annotated[bool, Decides("runtime")] = False
    num_workers: Annotated[PositiveInt, Decides("runtime")] = 1  # Ray Train workers of one fit
    resources: ActorResources = ActorResources(num_cpus=1.0)  # per worker; resources.workers: fits in parallel
    max_failures: Annotated[NonNegativeInt, Decides("runtime")] = 2  # restarts of a fit after a worker dies

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
