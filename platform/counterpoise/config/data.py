"""Configuration of the dataset: adapter, splits, imbalance and tint."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from counterpoise.config.base import RESOLVED, Decides, NonNegativeInt, Section, Share


class Splits(Section, decides="source"):
    """Shares of the splits that a dataset lacks, drawn from its training rows by seed within each cell. They sum to 1.

    A dataset without splits gets all three. A dataset with train and test gets ``validation`` from train: a tenth by
    default, even without this section. A dataset without test gets one only if this section is given. See
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


class Biased(Section, decides="source"):
    """FFR's rule: the share ``rate`` of each class's images is in its majority group, the rest in the other groups."""

    kind: Literal["biased"]
    rate: Annotated[float, Field(ge=0.5, lt=1)]
    majority: dict[str, str] | None = None  # class -> its majority group; by default group i for class i
    per_class: PositiveInt | None = None  # size of each class's majority cell; by default all its images


class LongTailed(Section, decides="source"):
    """CIFAR-LT's rule: n_i = n_max · factor^(-i / (classes - 1)), classes in the order of ``data.classes``."""

    kind: Literal["long_tailed"]
    factor: Annotated[float, Field(gt=1)]
    largest: PositiveInt | None = None  # n_max; by default the size of the smallest class


class Counts(Section, decides="source"):
    """Numbers of images to keep, per class or per class and group."""

    kind: Literal["counts"]
    counts: dict[str, NonNegativeInt | dict[str, NonNegativeInt]]


Imbalance = Annotated[Biased | LongTailed | Counts, Field(discriminator="kind")]


class Tint(Section, decides=("source", "pixels")):
    """Nuisance colour on grey images: the group of an image is the colour it is tinted with."""

    colors: list[str] = Field(min_length=2)

    @field_validator("colors")
    @classmethod
    def _different(cls, colors: list[str]) -> list[str]:
        if len(set(colors)) < len(colors):
            raise ValueError(f"the colors must differ; found {colors}")
        return colors


class Dataset(Section, decides="source"):
    """Settings that all adapters share."""

    # classes to use, in this order; by default all, in the dataset's order or sorted
    classes: Annotated[list[str] | None, Decides("source", "pixels")] = None
    groups: Annotated[list[str] | None, Decides("source", "pixels")] = None  # groups to use, in this order; likewise
    # slice of the training rows, such as "1::2"
    rows: str | None = Field(default=None, pattern=r"^(-?\d+)?:(-?\d+)?(:[1-9]\d*)?$")
    splits: Splits | None = None  # for the splits that the dataset lacks
    seed: NonNegativeInt = 0  # seed of the drawn splits, tints and imbalance
    # imbalance to impose on train and validation, never on test
    imbalance: Annotated[Imbalance | None, RESOLVED] = None
    tint: Tint | None = None
    # largest share of unusable rows; more is an error
    max_quarantined: Annotated[float, Field(ge=0, le=1), Decides("runtime")] = 0.01

    @field_validator("classes", "groups")
    @classmethod
    def _different(cls, names: list[str] | None) -> list[str] | None:
        if names is not None and (not names or len(set(names)) < len(names)):
            raise ValueError(f"must be a list of at least one name, all different; found {names}")
        return names

    @model_validator(mode="after")
    def _one_source_of_groups(self) -> Dataset:
        if self.tint is not None and self.groups is not None:
            raise ValueError("the groups of a tinted dataset are `tint.colors`; leave out `groups`")
        return self


class Columns(Section, decides="source"):
    """Column names of a table."""

    image: str = "image"
    label: Annotated[str, Decides("source", "pixels")] = "label"
    group: Annotated[str | None, Decides("source", "pixels")] = None
    split: str | None = None
    id: str | None = None


class CsvFolder(Dataset, decides=("source", "pixels")):
    """Folder of image files and a CSV file; ``columns.image`` holds paths relative to ``root``."""

    adapter: Literal["csv"]
    root: Annotated[str, RESOLVED]
    table: str = "labels.csv"
    columns: Columns = Columns()


class ParquetTable(Dataset, decides=("source", "pixels")):
    """Parquet files with encoded images: a file, a folder or a pattern, or one of these for each split."""

    adapter: Literal["parquet"]
    path: Annotated[str | dict[Literal["train", "validation", "test"], str], RESOLVED]
    columns: Columns = Columns()


class ImageFolder(Dataset, decides=("source", "pixels")):
    """Tree of folders named by ``layout``: ``{label}``, ``{split}/{label}/{group}`` and so on."""

    adapter: Literal["imagefolder"]
    root: Annotated[str, RESOLVED]
    layout: str = "{label}"

    @field_validator("layout")
    @classmethod
    def _placeholders(cls, layout: str) -> str:
        fields = re.findall(r"\{(.*?)\}", layout)
        if "label" not in fields or len(set(fields)) < len(fields) or not set(fields) <= {"label", "group", "split"}:
            raise ValueError(
                f"a layout needs {{label}} and may have {{group}} and {{split}}, each once; found {layout!r}"
            )
        return layout


class Torchvision(Dataset, decides=("source", "pixels")):
    """Dataset class of torchvision by name, downloaded into ``root`` if ``download`` is true.

    For MNIST and its variants ``root`` may also be a plain folder with the four idx files.
    """

    adapter: Literal["torchvision"]
    dataset: str
    root: Annotated[str, RESOLVED]
    download: Annotated[bool, Decides("runtime")] = False


class HuggingFace(Dataset, decides=("source", "pixels")):
    """A Hugging Face dataset by name, or a folder written by ``save_to_disk``."""

    adapter: Literal["huggingface"]
    path: Annotated[str, RESOLVED]
    name: str | None = None
    revision: str | None = None
    columns: Columns = Columns()


class Testbed(Dataset, decides=("source", "pixels")):
    """Procedural world; ``label`` and ``group`` name the factors used as class and group."""

    __test__ = False  # pytest must not collect this class by its name

    adapter: Literal["testbed"]
    label: Literal["shape", "color", "background"] = "shape"
    group: Literal["shape", "color", "background"] | None = "color"
    rendering: Annotated[Literal["real", "web"], Decides("source")] = "real"
    per_cell: Annotated[dict[Literal["train", "validation", "test"], PositiveInt], Decides("source")] = {
        "train": 500,
        "validation": 50,
        "test": 100,
    }


Data = Annotated[
    CsvFolder | ParquetTable | ImageFolder | Torchvision | HuggingFace | Testbed, Field(discriminator="adapter")
]
