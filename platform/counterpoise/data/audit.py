"""Audit of a dataset: rare and empty cells, class imbalance, and association of group and class."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from counterpoise import config
from counterpoise.errors import one_of
from counterpoise.storage.schema import SPLITS, LabelSpace
from counterpoise.storage.view import ImageView

if TYPE_CHECKING:
    from rich.table import Table

_STRONG = 0.3  # Cramér's V from which a suggestion is made
_LONG = 10.0  # imbalance factor from which a suggestion is made
_RARE_TEST = 10  # below this many test images, an accuracy moves in steps of more than ten points


@dataclass(frozen=True)
class Audit:
    """Counts and imbalance measures of a dataset, of its training split unless stated otherwise.

    Attributes:
        labels: Class names.
        groups: Group names; empty for a dataset without groups.
        counts: Images of each class × group; one column without groups. Images of unknown group are not counted.
        split_counts: The same for each split.
        class_counts: Images of each class, including those of unknown group.
        imbalance_factor: Largest over smallest class, of the classes that have images; None if there is none.
        cramers_v: Association of class and group in [0, 1], without correction for bias, over the classes and groups
            that have images; None if there are not two of each.
        majority_group: Class -> its most frequent group (the first of equals); None for a class without images.
        majority_rate: Class -> that group's share of the class's images of known group.
        shots: Class -> many, medium or few, by ``evaluation.many`` and ``evaluation.few``.
        unknown_group: Number of images of unknown group, in a dataset with groups.
        empty_cells: Cells without an image, as [class, group].
        suggestions: Sentences on findings and remedies.
    """

    labels: list[str]
    groups: list[str]
    counts: list[list[int]]
    split_counts: dict[str, list[list[int]]]
    class_counts: list[int]
    imbalance_factor: float | None
    cramers_v: float | None
    majority_group: dict[str, str | None]
    majority_rate: dict[str, float | None]
    shots: dict[str, str]
    unknown_group: int
    empty_cells: list[list[str]]
    suggestions: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return all attributes as a JSON-serializable dictionary."""
        return asdict(self)


def audit(view: ImageView, evaluation: config.Evaluation) -> Audit:
    """Audit a dataset with all its splits."""
    names = view.names
    splits = {split: view.where(split=split) for split in SPLITS}
    counts = {split: part.counts for split, part in splits.items()}
    train = splits["train"]
    of_class = np.bincount(train.labels, minlength=len(names.classes))
    groups, rates = _majorities(counts["train"], names)
    facts: dict[str, Any] = {
        "labels": list(names.classes),
        "groups": list(names.groups),
        "counts": counts["train"].tolist(),
        "split_counts": {split: table.tolist() for split, table in counts.items()},
        "class_counts": of_class.tolist(),
        "imbalance_factor": imbalance_factor(of_class),
        "cramers_v": cramers_v(counts["train"]),
        "majority_group": groups,
        "majority_rate": rates,
        "shots": {name: evaluation.shot(images) for name, images in zip(names.classes, of_class.tolist(), strict=True)},
        "unknown_group": int(np.sum(train.groups < 0)) if names.groups else 0,
        "empty_cells": [
            [names.classes[label], *names.groups[group : group + 1]]
            for label, group in np.argwhere(counts["train"] == 0)
        ],
    }
    return Audit(**facts, suggestions=_suggestions(facts, counts, names))


def imbalance_factor(counts: Int[np.ndarray, " classes"]) -> float | None:
    """Return largest over smallest count (Cui et al. 2019) without empty classes; None if all are empty."""
    present = counts[counts > 0]
    return float(present.max() / present.min()) if len(present) else None


def cramers_v(counts: Int[np.ndarray, "classes groups"]) -> float | None:
    """Compute Cramér's V = √(χ² / (n · (min(rows, columns) - 1))), without correction for bias.

    Empty rows and columns are left out; None if less than 2 × 2 remains.
    """
    observed = counts[counts.sum(1) > 0][:, counts.sum(0) > 0]
    if min(observed.shape) < 2:
        return None
    expected = np.outer(observed.sum(1), observed.sum(0)) / observed.sum()
    chi2 = ((observed - expected) ** 2 / expected).sum()
    return float(np.sqrt(chi2 / observed.sum() / (min(observed.shape) - 1)))


def _majorities(
    counts: Int[np.ndarray, "classes groups"], names: LabelSpace
) -> tuple[dict[str, str | None], dict[str, float | None]]:
    groups: dict[str, str | None] = {}
    rates: dict[str, float | None] = {}
    for label, row in zip(names.classes, counts, strict=True):
        known = bool(names.groups) and row.sum() > 0
        groups[label] = names.groups[int(row.argmax())] if known else None
        rates[label] = float(row.max() / row.sum()) if known else None
    return groups, rates


def _suggestions(
    facts: dict[str, Any], counts: dict[str, Int[np.ndarray, "classes groups"]], names: LabelSpace
) -> list[str]:
    suggestions = []
    if empty := [" × ".join(cell) for cell in facts["empty_cells"]]:
        suggestions.append(f"no training image in {_cells(empty)}: only synthetic images can fill it")
    v, factor = facts["cramers_v"], facts["imbalance_factor"]
    if v is not None and v >= _STRONG:
        rates = [rate for rate in facts["majority_rate"].values() if rate is not None]
        suggestions.append(
            f"the group predicts the class: Cramér's V = {v:.2f}, and on average {np.mean(rates):.1%} of a class are "
            "in one group; try the method ffr (plan asb), or usb"
        )
    if factor is not None and factor >= _LONG:
        suggestions.append(
            f"long tail: the largest class has {factor:.0f} times the images of the smallest; "
            "try the plan uniformize by class"
        )
    if few := [label for label, shot in facts["shots"].items() if shot == "few"]:
        suggestions.append(f"few-shot classes: {', '.join(few)}")
    if facts["unknown_group"]:
        suggestions.append(f"{facts['unknown_group']} training images are of unknown group and counted in no cell")
    for split, why in (("validation", "model selection ignores"), ("test", "accuracy cannot be measured in")):
        if lacking := [names.cell(*map(int, cell)) for cell in np.argwhere(counts[split] == 0)]:
            suggestions.append(
                f"the {split} split lacks {_cells(lacking)}: {why} {'it' if len(lacking) == 1 else 'them'}"
            )
    rare = np.argwhere((counts["test"] > 0) & (counts["test"] < _RARE_TEST))
    if coarse := [names.cell(*map(int, cell)) for cell in rare]:
        suggestions.append(f"fewer than {_RARE_TEST} test images in {_cells(coarse)}: accuracy there is coarse")
    return suggestions


def _cells(cells: list[str]) -> str:
    return f"cell {cells[0]}" if len(cells) == 1 else f"{len(cells)} cells ({one_of(cells, 6)})"


def render(result: Audit) -> Table:
    """Render the counts as a table for the terminal, with empty cells marked."""
    from rich.table import Table

    table = Table(title="training images", title_justify="left")
    table.add_column("class")
    columns = result.groups or []
    for name in [*columns, "all"]:
        table.add_column(name, justify="right")
    for name in (["majority"] if columns else []) + ["shots"]:
        table.add_column(name)
    for label, row, total in zip(result.labels, result.counts, result.class_counts, strict=True):
        cells = [f"[bold red]{n}[/]" if n == 0 else str(n) for n in row] if columns else []
        rate = result.majority_rate[label]
        majority = ["–" if rate is None else f"{rate:.1%} {result.majority_group[label]}"] if columns else []
        table.add_row(label, *cells, str(total), *majority, result.shots[label])
    return table
