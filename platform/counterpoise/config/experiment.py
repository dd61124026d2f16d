"""The experiment: one validated tree of sections, with evaluation, realism and tracking."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from counterpoise.config.base import RESOLVED, Decides, NonNegativeInt, Section, Share
from counterpoise.config.data import Data
from counterpoise.config.plans import Plan
from counterpoise.config.prompts import Prompts
from counterpoise.config.synthesis import Feedback, Generator, Pool, Scorer, Selection
from counterpoise.config.training import Stage, Training


class Evaluation(Section, decides="metrics"):
    """Evaluation on held-out images, with bootstrap intervals."""

    test: str = "test"  # the test split, or a plan whose images no stage trains on
    bootstrap: NonNegativeInt = 1000  # resamples for the intervals
    confidence: Share = 0.95
    many: PositiveInt = 100  # a class with more training images than this is many-shot
    few: PositiveInt = 20  # a class with fewer training images than this is few-shot

    def shot(self, images: int) -> Literal["many", "medium", "few"]:
        """Return the kind of a class by its number of training images (Liu et al. 2019; SYNAuG, section 4)."""
        return "many" if images > self.many else "few" if images < self.few else "medium"


class Realism(Section, decides="metrics"):
    """Realism of the synthetic images against the real training images: FID, density, coverage, domain probe."""

    # features; auto: Inception's if its weights are available, else the scorer's, else the trained classifier's
    extractor: Annotated[Literal["auto", "inception", "clip", "model", "none"], RESOLVED] = "auto"
    k: PositiveInt = 5  # neighbours, for density and coverage
    max_images: Annotated[PositiveInt, RESOLVED] = 500  # largest number per class, of real and of synthetic images each
    seed: NonNegativeInt = 0  # seed of the drawn images and of the probe


class Tracking(Section, decides="runtime"):
    """MLflow tracking, to the server at MLFLOW_TRACKING_URI or a SQLite file in the store's folder."""

    enabled: bool = True
    experiment: str | None = None  # by default the experiment's name


class Experiment(Section):
    """One method on one dataset with one training seed."""

    name: Annotated[str, Decides("place")] = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    store: Annotated[str, Decides("place")] = "counterpoise-store"  # a folder, or s3://bucket/prefix
    method: Annotated[str, Decides("place")]
    # seed of training; dataset, generator and feedback have other seeds
    seed: Annotated[NonNegativeInt, Decides("weights")] = 0
    data: Data
    prompts: Prompts = Prompts()
    generator: Generator | None = None
    feedback: Feedback | None = None
    scorer: Scorer | None = None  # null: nothing is scored
    selection: Selection = Selection()
    pool: Pool = Pool()
    plans: dict[str, Plan] = {}
    training: Training = Training()
    stages: list[Stage] = Field(min_length=1)
    evaluation: Evaluation = Evaluation()
    realism: Realism = Realism()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        for name in {"real", "validation", "test"} & set(self.plans):
            raise ValueError(f"a plan cannot be named {name!r}: that is a split of the dataset")
        if self.plans and self.generator is None:
            raise ValueError("`plans` need a `generator` to sample their images")
        if self.scorer is None and self.selection.scored:
            raise ValueError(f"`selection.{self.selection.scored[0]}` needs a `scorer`")
        if self.realism.extractor == "clip" and self.scorer is None:
            raise ValueError("`realism.extractor: clip` needs a `scorer`")
        self._check_test()
        self._check_feedback()
        for index, stage in enumerate(self.stages):
            self._check_stage(stage, f"stages.{index}", [earlier.name for earlier in self.stages[:index]])
        return self

    def _check_stage(self, stage: Stage, where: str, earlier: list[str]) -> None:
        views = ["real", "validation", *self.plans]
        for key, names in stage.views.items():
            for name in names:
                if name not in views:
                    raise ValueError(f"{where}.{key}: {name!r} is not a view; there are: {', '.join(views)}")
        for key, other in (("start", stage.start), ("reference", stage.reference)):
            allowed = [*(["scratch"] if key == "start" else []), *earlier]
            if other is not None and other not in allowed and not (key == "start" and other.endswith(".safetensors")):
                raise ValueError(
                    f"{where}.{key}: {other!r} is not an earlier stage; there are: {', '.join(allowed) or 'none'}"
                )
        if stage.name in (*earlier, "scratch"):
            raise ValueError(f"{where}.name: {stage.name!r} is already in use")
        if stage.mixture.real_share is not None and not ("real" in stage.data and set(stage.data) & set(self.plans)):
            raise ValueError(f"{where}.mixture.real_share: `data` must name real and a plan; it is {stage.data}")
        if stage.objective.loss.angular and self.training.head != "cosine":
            raise ValueError(f"{where}.objective.loss: {stage.objective.loss.name!r} needs `training.head: cosine`")
        if stage.dfr and (stage.start == "scratch" or (not earlier and stage.start is None)):
            raise ValueError(f"{where}.dfr: an earlier stage must have trained the features")
        if stage.dfr and self.training.head == "cosine":
            raise ValueError(f"{where}.dfr: it fits a linear layer and needs `training.head: linear`")
        normalized = [
            other.name for other in self.stages if other.dfr and other.dfr.normalize and other.name in earlier
        ]
        if (stage.start or (earlier[-1] if earlier else None)) in normalized:
            raise ValueError(f"{where}.start: no stage can continue from a head on normalised features (dfr.normalize)")

    def _check_test(self) -> None:
        name = self.evaluation.test
        if name != "test" and name not in self.plans:
            views = ", ".join(["test", *self.plans])
            raise ValueError(f"evaluation.test: {name!r} is neither the test split nor a plan; there are: {views}")

    def _check_feedback(self) -> None:
        if self.feedback is None or self.feedback.stage is None:
            return
        names = [stage.name for stage in self.stages]
        if self.feedback.stage not in names:
            raise ValueError(f"feedback.stage: {self.feedback.stage!r} is not a stage; there are: {', '.join(names)}")
        for stage in self.stages[: names.index(self.feedback.stage) + 1]:
            if stage.data != ["real"]:
                raise ValueError(
                    f"feedback.stage: the classifier is trained before any image is sampled, but stage {stage.name!r} "
                    f"trains on {', '.join(stage.data)}; it must train on real images alone"
                )
