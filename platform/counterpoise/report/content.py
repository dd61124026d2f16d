"""What the report says, as plain data. The experiment fills it in; the page and the figures only show it.

Grids are class × group lists of lists; a dataset without groups has one column and an empty ``groups``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from counterpoise.evaluation.catalogue import JUDGES, METRICS

if TYPE_CHECKING:  # scipy.stats, which audit and plan do without
    from counterpoise.evaluation.compare import Estimate

Grid = list[list[int]]
Rates = list[list[float | None]]

OPEN_CELLS, MOST_CELLS = 16, 64  # whose samples are shown at once, and on demand: a page must stay a page


@dataclass(frozen=True)
class PlanTable:
    """A plan for synthetic images.

    Attributes:
        name: The plan's name.
        methods: The methods that train on it.
        wanted: Images it asks for.
        chosen: Images it got.
    """

    name: str
    methods: list[str]
    wanted: Grid
    chosen: Grid


@dataclass(frozen=True)
class CellPrompts:
    """How many prompts a cell has, and some of them."""

    cell: str
    count: int
    examples: list[str]


@dataclass(frozen=True)
class PromptTable:
    """A prompt set.

    Attributes:
        methods: The methods whose images were asked for with it.
        digest: Its address.
        origin: Where it comes from: the template, a grammar, a file, a language model.
        cells: Its prompts, cell by cell.
        refused: How many answers of a language model could not be used.
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
        """How many prompts a cell has, in words."""
        counts = {cell.count for cell in self.cells}
        least, most = min(counts), max(counts)
        return f"{least} to {most} prompts" if least < most else f"{most} prompts" if most > 1 else "one prompt"


@dataclass(frozen=True)
class CellSamples:
    """Some images of a cell, as encoded files; the rejected ones with the reason; a prompt that was used."""

    label: str
    group: str | None
    prompt: str | None = None
    real: list[bytes] = field(default_factory=list)
    accepted: list[bytes] = field(default_factory=list)
    rejected: list[tuple[bytes | None, str]] = field(default_factory=list)  # None: there is no image to show


@dataclass(frozen=True)
class FilterExamples:
    """What a filter kept out: how many images, and some of them with the reason."""

    name: str
    count: int
    images: list[tuple[bytes | None, str]] = field(default_factory=list)  # None: there is no image to show


@dataclass(frozen=True)
class ResultRow:
    """One method trained with one seed, measured on the test images.

    Attributes:
        metrics: Name -> value, in [0, 1] but for costs; None or absent where it is not defined.
        intervals: Name -> (low, high), bootstrap over the test images.
        cells: For each cell ``label``, ``group`` (names; group None without groups), ``n``, ``accuracy``, ``low``,
            ``high``; the last three are None for a cell without test images.
        images_sampled: Synthetic images that were sampled for this fit.
        images_reused: Those that were in the pool before.
        seconds: What the fit took.
        regime: What choosing its epochs took: ``groups``, ``labels`` or ``none``.
        moved: Parameter tensor -> whether the last stage that holds some of them still moved it; empty if none does.
    """

    method: str
    seed: int
    metrics: Mapping[str, int | float | None]
    intervals: Mapping[str, Sequence[float]]
    cells: list[dict[str, Any]]
    images_sampled: int = 0
    images_reused: int = 0
    seconds: int | float = 0.0
    regime: str = ""
    moved: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Results:
    """What methods came to.

    Attributes:
        title: The experiment's name.
        command: What the user typed.
        created: When, as text.
        config_yaml: The effective configuration.
        classes, groups: Names, in the order of the grids.
        rows: The results; methods are shown in the order of their first row.
        summary: Method -> metric -> (mean, low, high) over seeds.
        baseline: The method that real images alone give; None if it was not run.
        control: The one that they give in as many steps as any other method takes.
        by: The metric that judges.
        digests: Name -> address of what the results follow from.
        versions: Library -> version.
        confidence: Of the intervals.
        tested_on: What the rows were measured on, in words.
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
    by: str = JUDGES[0]
    digests: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    confidence: float = 0.95
    of_images: bool = False
    tested_on: str = "real test images that no method has seen"

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(row.method for row in self.rows))

    @property
    def synthetic_methods(self) -> list[str]:
        """Methods that train on synthetic images."""
        raise NotImplementedError

    @property
    def seeds(self) -> int:
        """Seeds of the method with the fewest."""
        return min((sum(row.method == method for row in self.rows) for method in self.methods), default=0)

    @property
    def defined(self) -> list[str]:
        """The metrics that some method has, in reading order; those that the catalogue does not know come last."""
        there = dict.fromkeys(n for m in self.methods for n in self.summary.get(m, ()) if self.interval(m, n))
        return [*(name for name in METRICS if name in there), *(name for name in there if name not in METRICS)]

    @property
    def columns(self) -> list[str]:
        """Group names, or one empty name."""
        return self.groups or [""]

    def interval(self, method: str, metric: str) -> Estimate | None:
        """Mean and interval; None where the metric was not measured. Fewer than two seeds have no interval of seeds."""
        mean, low, high = self.summary.get(method, {}).get(metric, (None, None, None))
        if mean is None or math.isnan(mean):
            return None
        repeated = sum(row.method == method for row in self.rows) > 1
        if not (repeated or self.of_images) or low is None or high is None or math.isnan(low) or math.isnan(high):
            return mean, None, None
        return mean, low, high

    def values(self, method: str, metric: str) -> list[float]:
        """The metric's value of each seed."""
        found = (row.metrics.get(metric) for row in self.rows if row.method == method)
        return [value for value in found if value is not None and not math.isnan(value)]

    def moved(self, method: str) -> dict[str, int]:
        """Of a method that moves some parameter tensors only: with how many of its seeds each of them moves."""
        counts = Counter[str]()
        for row in self.rows:
            counts.update({name: int(moves) for name, moves in row.moved.items() if row.method == method})
        return dict(counts)

    def cell_accuracies(self, method: str) -> Rates:
        """Accuracy of each cell, mean over seeds; None for cells without test images."""
        seen: dict[tuple[str, str], list[float]] = {}
        for row in self.rows:
            for cell in row.cells if row.method == method else ():
                if cell["accuracy"] is not None:
                    seen.setdefault((cell["label"], cell["group"] or ""), []).append(cell["accuracy"])
        return [[mean(seen.get((label, group), ())) for group in self.columns] for label in self.classes]


@dataclass(frozen=True, kw_only=True)
class Report(Results):
    """Everything on the page of a run.

    Attributes:
        dataset: What was repaired, in a few words.
        audit: ``Audit.to_json()`` of the training images.
        plans: Without one, the page is about real images only.
        prompts: The prompt sets of the plans' images.
        synthesis: ``select.summary()``; None if nothing was asked of a generator.
        realism: Each set of synthetic images against the real ones: ``methods``, ``extractor``, ``k``, ``rows``; see
            :func:`counterpoise.scoring.realism.realism`.
        filtered: For each filter that is on, and for the quarantine, what it kept out.
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
        """How many training images the cell has."""
        return self.audit["counts"][self.classes.index(cell.label)][self.columns.index(cell.group or "")]

    def shown_samples(self) -> list[CellSamples]:
        """The samples that there is room for: all, in order, or those of the rarest cells."""
        few = len(self.samples) <= OPEN_CELLS
        return self.samples if few else sorted(self.samples, key=self.real_images)[:MOST_CELLS]

    def trained_on(self, plan: PlanTable) -> Grid:
        """Real and synthetic images together."""
        return add(self.audit["counts"], plan.chosen)


def add(one: Grid, other: Grid) -> Grid:
    return [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(one, other, strict=True)]


def gains(after: Rates, before: Rates) -> Rates:
    """Differences of accuracies, cell by cell; None where one is not known."""
    return [
        [None if a is None or b is None else a - b for a, b in zip(*rows, strict=True)]
        for rows in zip(after, before, strict=True)
    ]


def mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return fmean(values) if values else None
