"""The experiment: one validated tree. What each key means, what it may be, and what it is if left out.

:mod:`counterpoise.compose` builds these from YAML files and command-line overrides. Every model here forbids keys it
does not know. Wrong values are found here, before anything is read or loaded.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator, model_validator

Share = Annotated[float, Field(gt=0, lt=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A part of the tree: unknown keys are errors, values do not change, defaults are validated too."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


# -- data --------------------------------------------------------------------------------------------------------------


class Splits(Section):
    """Shares of the splits that a dataset lacks, drawn from its training rows by seed within each cell. They sum to 1.

    A dataset without splits gets all three. One with train and test gets ``validation`` from train, also (a tenth)
    without this section. One without test gets it only if this section is there. See
    :func:`counterpoise.data.splits.draw_splits`.
    """

    train: Share = 0.8
    validation: Share = 0.1
    test: Share = 0.1

    @model_validator(mode="after")
    def _sum(self) -> Splits:
        total = self.train + self.validation + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the shares of train, validation and test must sum to 1, not {total:g}")
        return self


class Biased(Section):
    """FFR's rule: of each class's images the share ``rate`` is in its majority group, the rest in the others."""

    kind: Literal["biased"]
    rate: Annotated[float, Field(ge=0.5, lt=1)]
    majority: dict[str, str] | None = None  # class -> its majority group; by default the i-th class has the i-th group
    per_class: PositiveInt | None = None  # size of each class's majority cell; by default all there are


class LongTailed(Section):
    """CIFAR-LT's rule: n_i = n_max · factor^(-i / (classes - 1)), classes in the order of ``data.classes``."""

    kind: Literal["long_tailed"]
    factor: Annotated[float, Field(gt=1)]
    largest: PositiveInt | None = None  # n_max; by default the smallest class's size before


class Counts(Section):
    """Images to keep, per class or per class and group."""

    kind: Literal["counts"]
    counts: dict[str, NonNegativeInt | dict[str, NonNegativeInt]]


Imbalance = Annotated[Biased | LongTailed | Counts, Field(discriminator="kind")]


class Tint(Section):
    """A nuisance colour on grey images: the group of an image is the colour it is tinted with."""

    colors: list[str] = Field(min_length=2)

    @field_validator("colors")
    @classmethod
    def _different(cls, colors: list[str]) -> list[str]:
        if len(set(colors)) < len(colors):
            raise ValueError(f"the colors must differ; found {colors}")
        return colors


class Dataset(Section):
    """What all adapters share."""

    classes: list[str] | None = None  # which classes, in which order; by default all, in the dataset's order or sorted
    groups: list[str] | None = None
    rows: str | None = Field(default=None, pattern=r"^(-?\d+)?:(-?\d+)?(:[1-9]\d*)?$")  # of the training rows: "1::2"
    splits: Splits | None = None  # for what the dataset's own splits lack
    seed: NonNegativeInt = 0  # draws splits, tints and imbalance
    imbalance: Imbalance | None = None  # made on purpose; train and validation, never test
    tint: Tint | None = None
    max_quarantined: Annotated[float, Field(ge=0, le=1)] = 0.01  # share of unreadable rows that is an error

    @field_validator("classes", "groups")
    @classmethod
    def _different(cls, names: list[str] | None) -> list[str] | None:
        if names is not None and (not names or len(set(names)) < len(names)):
            raise ValueError(f"a list of different names, at least one; found {names}")
        return names

    @model_validator(mode="after")
    def _one_source_of_groups(self) -> Dataset:
        if self.tint is not None and self.groups is not None:
            raise ValueError("the groups of a tinted dataset are `tint.colors`; leave out `groups`")
        return self


class Columns(Section):
    """Names of a table's columns."""

    image: str = "image"
    label: str = "label"
    group: str | None = None
    split: str | None = None
    id: str | None = None


class CsvFolder(Dataset):
    """A folder of image files and a CSV file; ``columns.image`` holds paths relative to ``root``."""

    adapter: Literal["csv"]
    root: str
    table: str = "labels.csv"
    columns: Columns = Columns()


class ParquetTable(Dataset):
    """Parquet files with encoded images: a file, a folder or a pattern, or one of these for each split."""

    adapter: Literal["parquet"]
    path: str | dict[Literal["train", "validation", "test"], str]
    columns: Columns = Columns()


class ImageFolder(Dataset):
    """A tree of folders whose names say ``layout``: ``{label}``, ``{split}/{label}/{group}`` and the like."""

    adapter: Literal["imagefolder"]
    root: str
    layout: str = "{label}"

    @field_validator("layout")
    @classmethod
    def _placeholders(cls, layout: str) -> str:
        found = re.findall(r"\{(.*?)\}", layout)
        if "label" not in found or len(set(found)) < len(found) or not set(found) <= {"label", "group", "split"}:
            raise ValueError(
                f"a layout has {{label}}, and may have {{group}} and {{split}}, once each; found {layout!r}"
            )
        return layout


class Torchvision(Dataset):
    """A dataset class of torchvision by name, downloaded into ``root`` if ``download`` is true.

    For MNIST and its kin ``root`` may also be a plain folder with the four idx files.
    """

    adapter: Literal["torchvision"]
    dataset: str
    root: str
    download: bool = False


class HuggingFace(Dataset):
    """A Hugging Face dataset by name, or a folder written by ``save_to_disk``."""

    adapter: Literal["huggingface"]
    path: str
    name: str | None = None
    revision: str | None = None
    columns: Columns = Columns()


class Testbed(Dataset):
    """The procedural world; ``label`` and ``group`` choose which of its factors play these parts."""

    __test__ = False  # not a test class, whatever pytest thinks of the name

    adapter: Literal["testbed"]
    label: Literal["shape", "color", "background"] = "shape"
    group: Literal["shape", "color", "background"] | None = "color"
    rendering: Literal["real", "web"] = "real"
    per_cell: dict[Literal["train", "validation", "test"], PositiveInt] = {"train": 500, "validation": 50, "test": 100}


Data = Annotated[
    CsvFolder | ParquetTable | ImageFolder | Torchvision | HuggingFace | Testbed, Field(discriminator="adapter")
]


# -- synthesis ---------------------------------------------------------------------------------------------------------


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


class Prompts(Section):
    """What is asked of the generator. ``{label}`` and ``{group}`` stand for the cell's names, or the words given."""

    template: str = "a photo of a {group} {label}"
    labels: dict[str, str] = {}  # class -> the words to use for it
    groups: dict[str, str] = {}
    negative: str = ""


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

    clip_margin: float | None = None  # least cosine margin of the own prompt over every rival cell's; null: take all
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


# -- training ----------------------------------------------------------------------------------------------------------


class Objective(Section):
    """What is minimised."""

    name: Literal["erm", "group_dro"] = "erm"
    step_size: PositiveFloat = 0.01  # group_dro


class Optimizer(Section):
    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: PositiveFloat = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-5
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # sgd
    schedule: Literal["constant", "cosine"] = "constant"


class Stage(Section):
    """One fit: on which data, with which objective, for how long, from where."""

    name: str
    data: list[str] = Field(min_length=1)  # views to concatenate: "real", or names of plans
    start: str | None = None  # an earlier stage's name, or "scratch"; by default the stage before
    objective: Objective = Objective()
    sampling: Literal["uniform", "group_balanced"] = "uniform"
    groups: Literal["cell", "cell_source"] = "cell"  # what objective and sampling call a group
    epochs: PositiveInt | None = None  # by default training.epochs
    optimizer: Optimizer | None = None  # by default training.optimizer
    batch_norm: Literal["train", "frozen"] = "train"


class Training(Section):
    """What all stages share."""

    backbone: str = "small_cnn"  # small_cnn, or a torchvision classification model by name
    pretrained: bool = False  # torchvision's default weights
    image_size: PositiveInt = 32  # images are resized to this many pixels a side
    epochs: PositiveInt = 20
    batch_size: PositiveInt = 128  # over all workers
    optimizer: Optimizer = Optimizer()
    augmentation: list[Literal["flip", "crop"]] = []
    select_by: Literal["worst_group_accuracy", "balanced_accuracy", "accuracy", "last"] = "worst_group_accuracy"
    num_workers: PositiveInt = 1  # Ray Train workers of one fit
    resources: Workers = Workers(num_cpus=1.0)  # of each worker; resources.workers: fits at once
    max_failures: NonNegativeInt = 2


class Evaluation(Section):
    bootstrap: NonNegativeInt = 1000  # resamples for the intervals
    confidence: Share = 0.95
    many: PositiveInt = 100  # a class is "many" above this many training images,
    few: PositiveInt = 20  # and "few" below this many


class Tracking(Section):
    """MLflow. The server is MLFLOW_TRACKING_URI's, or a SQLite file in the store's folder."""

    enabled: bool = True
    experiment: str | None = None  # by default the experiment's name


class Experiment(Section):
    """One method on one dataset with one training seed."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    store: str = "counterpoise-store"  # a folder, or s3://bucket/prefix
    method: str
    seed: NonNegativeInt = 0  # of training; the dataset and the pool have their own
    data: Data
    prompts: Prompts = Prompts()
    generator: Generator | None = None
    scorer: Scorer | None = None  # null: nothing is scored
    selection: Selection = Selection()
    pool: Pool = Pool()
    plans: dict[str, Plan] = {}
    training: Training = Training()
    stages: list[Stage] = Field(min_length=1)
    evaluation: Evaluation = Evaluation()
    tracking: Tracking = Tracking()

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        if "real" in self.plans:
            raise ValueError('a plan cannot be called "real": that is the name of the dataset')
        if self.plans and self.generator is None:
            raise ValueError("there are plans for synthetic images but no `generator` to sample them")
        if self.selection.clip_margin is not None and self.scorer is None:
            raise ValueError("`selection.clip_margin` needs a `scorer`")
        earlier: list[str] = []
        for number, stage in enumerate(self.stages):
            views = ["real", *self.plans]
            for name in stage.data:
                if name not in views:
                    raise ValueError(f"stages.{number}.data: {name!r} is not a view; there are: {', '.join(views)}")
            if stage.start not in (None, "scratch", *earlier):
                raise ValueError(
                    f"stages.{number}.start: {stage.start!r} is not an earlier stage; there are: "
                    + ", ".join(["scratch", *earlier])
                )
            if stage.name in (*earlier, "scratch"):
                raise ValueError(f"stages.{number}.name: {stage.name!r} is taken")
            earlier.append(stage.name)
        return self
