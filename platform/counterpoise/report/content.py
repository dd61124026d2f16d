"""Content of a report, as plain data; the page and the figures only show it.

Grids are class × group lists of lists; a dataset without groups has one column and an empty ``groups``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from counterpoise.evaluation.catalogue import JUDGES, METRICS
from counterpoise.evaluation.estimate import Estimate

Grid = list[list[int]]
Rates = list[list[float | None]]

OPEN_CELLS, MOST_CELLS = 16, 64  # cells with samples shown at once, and on demand: bounds the size of the page


@dataclass(frozen=True)
class PlanTable:
    """A plan for synthetic images.

    Attributes:
        name: The plan's name.
        methods: The methods that train on it.
        wanted: Images that it asks for.
        chosen: Images that were selected for it.
    """

    name: str
    methods: list[str]
    wanted: Grid
    chosen: Grid


@dataclass(frozen=True)
class CellPrompts:
    """The number of a cell's prompts, and some of them."""

    cell: str
    count: int
    examples: list[str]


@dataclass(frozen=True)
class PromptTable:
    """A prompt set.

    Attributes:
        methods: The methods whose images have these prompts.
        digest: The set's address.
        origin: Source: the template, a grammar, a file, a language model.
        cells: The prompts, cell by cell.
        refused: Number of unusable answers of a language model.
        refusals: Some of them, each with the reason.
    """

    methods: list[str]
    digest: str
    origin: str
    cells: list[CellPrompts]
    refused: int = 0
    refusals: list[tuple[str, str]] = field(default_factory=list)

    @property
    def per_cell(self) -> str:
        """The number of prompts of a cell, in words."""
        counts = {cell.count for cell in self.cells}
        least, most = min(counts), max(counts)
        return f"{least} to {most} prompts" if least < most else f"{most} prompts" if most > 1 else "one prompt"


@dataclass(frozen=True)
class CellSamples:
    """Example images of a cell, as encoded files: rejected ones with the reason, and a prompt that was used."""

    label: str
    group: str | None
    prompt: str | None = None
    real: list[bytes] = field(default_factory=list)
    accepted: list[bytes] = field(default_factory=list)
    rejected: list[tuple[bytes | None, str]] = field(default_factory=list)  # None: no image to show


@dataclass(frozen=True)
class FilterExamples:
    """A filter's rejections: their number, and some of the images with the reason."""

    name: str
    count: int
    images: list[tuple[bytes | None, str]] = field(default_factory=list)  # None: no image to show


@dataclass(frozen=True)
class ResultRow:
    """The results of one method trained with one seed, measured on the test images.

    Attributes:
        metrics: Name -> value, in [0, 1] except for costs; None or absent if undefined.
        intervals: Name -> (low, high), bootstrap over the test images.
        cells: For each cell ``label``, ``group`` (names; group None without groups), ``n``, ``accuracy``, ``low``,
            ``high``; the last three are None for a cell without test images.
        synthetic_images: Synthetic images that the method's stages train on.
        images_drawn: Images that were sampled for these, rejected ones included.
        seconds: Duration of the fit.
        regime: Labels used to select its epochs: ``groups``, ``labels`` or ``none``.
        moved: Parameter tensor -> True if the last stage with frozen tensors moved it; empty without such a stage.
    """

    method: str
    seed: int
    metrics: Mapping[str, int | float | None]
    intervals: Mapping[str, Sequence[float]]
    cells: list[dict[str, Any]]
    synthetic_images: int = 0
    images_drawn: int = 0
    seconds: int | float = 0.0
    regime: str = ""
    moved: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Results:
    """Results of all methods.

    Attributes:
        title: The experiment's name.
        command: The user's command.
        created: Date, as text.
        config_yaml: The effective configuration.
        classes, groups: Names, in the order of the grids.
        rows: The results; methods are shown in the order of their first row.
        summary: Method -> metric -> mean and interval over seeds.
        baseline: The method with real images only; None if it was not run.
        control: The method with real images only and as many steps as the costliest method.
        control_of: Description of the equal-compute control: ``method`` (the costliest one, whose steps it takes),
            ``base``, ``epochs`` and ``images_shown``. None without a control, or if it is a listed method.
        by: The judging metric.
        digests: Name -> address of the artifacts behind the results.
        versions: Library -> version.
        confidence: Confidence level of the intervals.
        tested_on: Description of the test images.
        of_images: With one seed, the summary's intervals are of resampled test images.
    """

    title: str
    command: str
    created: str
    config_yaml: str
    classes: list[str]
    groups: list[str]
    rows: list[ResultRow]
    summary: Mapping[str, Mapping[str, Estimate]]
    baseline: str | None = None
    control: str | None = None
    control_of: Mapping[str, Any] | None = None
    by: str = JUDGES[0]
    digests: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    confidence: float = 0.95
    of_images: bool = False
    tested_on: str = "real test images that no method has seen"

    @property
    def methods(self) -> list[str]:
        """The methods, in the order of their first rows."""
        return list(dict.fromkeys(row.method for row in self.rows))

    @property
    def synthetic_methods(self) -> list[str]:
        """Methods that train on synthetic images."""
        raise NotImplementedError

    @property
    def control_in_words(self) -> str | None:
        """The length of the control's training, and its reason; None where it is not known."""
        if self.control_of is None:
            return None
        of, base, epochs = (self.control_of[key] for key in ("method", "base", "epochs"))
        return f"control of {of}: {base} for {epochs} epochs, as many steps"

    @property
    def seeds(self) -> int:
        """The number of seeds of the method with the fewest."""
        return min((sum(row.method == method for row in self.rows) for method in self.methods), default=0)

    @property
    def defined(self) -> list[str]:
        """The metrics that some method has, in reading order; metrics outside the catalogue come last."""
        names = dict.fromkeys(n for m in self.methods for n in self.summary.get(m, ()) if self.estimate(m, n))
        return [*(name for name in METRICS if name in names), *(name for name in names if name not in METRICS)]

    @property
    def columns(self) -> list[str]:
        """Group names, or one empty name."""
        return self.groups or [""]

    def estimate(self, method: str, metric: str) -> Estimate | None:
        """Return mean and interval; None if the metric was not measured. One seed has no interval of seeds."""
        estimate = self.summary.get(method, {}).get(metric)
        if estimate is None or math.isnan(estimate.mean):
            return None
        repeated = sum(row.method == method for row in self.rows) > 1
        if not (repeated or self.of_images) or any(map(math.isnan, estimate.bounds or ())):
            return replace(estimate, low=None, high=None)
        return estimate

    def values(self, method: str, metric: str) -> list[float]:
        """Return the metric's value of each seed."""
        values = (row.metrics.get(metric) for row in self.rows if row.method == method)
        return [value for value in values if value is not None and not math.isnan(value)]

    def moved(self, method: str) -> dict[str, int]:
        """Return for each parameter tensor the number of seeds that move it, for a method with frozen tensors."""
        counts = Counter[str]()
        for row in self.rows:
            counts.update({name: int(moves) for name, moves in row.moved.items() if row.method == method})
        return dict(counts)

    def cell_accuracies(self, method: str) -> Rates:
        """Return the accuracy of each cell, mean over seeds; None for cells without test images."""
        accuracies: dict[tuple[str, str], list[float]] = {}
        for row in self.rows:
            for cell in row.cells if row.method == method else ():
                if cell["accuracy"] is not None:
                    accuracies.setdefault((cell["label"], cell["group"] or ""), []).append(cell["accuracy"])
        return [[mean(accuracies.get((label, group), ())) for group in self.columns] for label in self.classes]


@dataclass(frozen=True, kw_only=True)
class Report(Results):
    """Everything on the page of a run.

    Attributes:
        dataset: Short description of the dataset.
        audit: ``Audit.to_json()`` of the training images.
        plans: The plans; without one, the page shows real images only.
        prompts: The prompt sets of the plans' images.
        synthesis: ``select.summary()``; None if no images were synthesised.
        realism: Each set of synthetic images against the real ones: ``methods``, ``extractor``, ``k``, ``rows``; see
            :func:`counterpoise.scoring.realism.realism`.
        filtered: For each active filter, and for the quarantine, the rejected images.
        samples: Images of cells; of very many cells, only the rarest are shown.
        seconds: Step -> seconds of wall clock.
    """

    dataset: str
    audit: Mapping[str, Any]
    plans: list[PlanTable] = field(default_factory=list)
    prompts: list[PromptTable] = field(default_factory=list)
    synthesis: Mapping[str, Any] | None = None
    realism: Sequence[Mapping[str, Any]] = ()
    filtered: list[FilterExamples] = field(default_factory=list)
    samples: list[CellSamples] = field(default_factory=list)
    seconds: Mapping[str, int | float] = field(default_factory=dict)

    @property
    def synthetic_methods(self) -> list[str]:
        """Methods that train on synthetic images."""
        using = {method for plan in self.plans for method in plan.methods}
        return [method for method in self.methods if method in using]

    def real_images(self, cell: CellSamples) -> int:
        """Return the number of training images of the cell."""
        return self.audit["counts"][self.classes.index(cell.label)][self.columns.index(cell.group or "")]

    def shown_samples(self) -> list[CellSamples]:
        """Return the samples to show: all, in order, or those of the rarest cells."""
        few = len(self.samples) <= OPEN_CELLS
        return self.samples if few else sorted(self.samples, key=self.real_images)[:MOST_CELLS]

    def trained_on(self, plan: PlanTable) -> Grid:
        """Return the counts of real and synthetic images together."""
        return add(self.audit["counts"], plan.chosen)


def add(first: Grid, second: Grid) -> Grid:
    """Return the sums of two grids, cell by cell."""
    return [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(first, second, strict=True)]


def gains(after: Rates, before: Rates) -> Rates:
    """Return differences of accuracies, cell by cell; None if one is unknown."""
    return [
        [None if a is None or b is None else a - b for a, b in zip(*rows, strict=True)]
        for rows in zip(after, before, strict=True)
    ]


def mean(values: Iterable[float]) -> float | None:
    """Return the mean of the values; None without any."""
    values = list(values)
    return fmean(values) if values else None
