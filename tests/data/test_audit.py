"""The audit's numbers against hand-worked tables and other computations."""

import io
import json

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import chi2_contingency

from counterpoise.config import Evaluation
from counterpoise.data.audit import audit, cramers_v, imbalance_factor, render
from counterpoise.storage.schema import LabelSpace
from counterpoise.storage.view import ImageView

NAMES = LabelSpace(("star", "ring", "heart"), ("red", "blue"))


def view(store, names: LabelSpace = NAMES, unknown: int = 0, **counts) -> ImageView:
    """A dataset with the given cells in each split; it has no images, and the audit must not want any."""
    rows = [
        (label, group if names.groups else -1, split)
        for split, table in counts.items()
        for label, row in enumerate(table)
        for group, count in enumerate(row)
        for _ in range(count)
    ] + [(0, -1, "train")] * unknown
    columns = {
        "id": [str(n) for n in range(len(rows))],
        "label": pa.array([row[0] for row in rows], pa.int32()),
        "group": pa.array([row[1] for row in rows], pa.int32()),
        "split": [row[2] for row in rows],
        "source": ["real"] * len(rows),
        "key": [""] * len(rows),
        "row": pa.array(np.arange(len(rows))),
    }
    return ImageView(store, names, pa.table(columns))


@pytest.fixture
def result(store):
    tables = {"train": [[196, 4], [0, 150], [10, 5]], "validation": [[20, 20], [0, 20], [20, 20]]}
    return audit(view(store, unknown=7, **tables, test=[[50, 50], [50, 0], [50, 3]]), Evaluation())


def test_counts(result):
    assert result.counts == [[196, 4], [0, 150], [10, 5]]
    assert result.split_counts["test"] == [[50, 50], [50, 0], [50, 3]]
    assert result.class_counts == [207, 150, 15]  # a row of unknown group has a class
    assert result.unknown_group == 7
    assert result.empty_cells == [["ring", "red"]]
    assert result.imbalance_factor == 207 / 15


def test_majorities(result):
    assert result.majority_group == {"star": "red", "ring": "blue", "heart": "red"}
    assert result.majority_rate == {"star": 0.98, "ring": 1.0, "heart": 10 / 15}
    assert result.shots == {"star": "many", "ring": "many", "heart": "few"}


def test_association_is_cramers(result):
    table = np.array(result.counts)
    chi2 = chi2_contingency(table, correction=False).statistic
    assert result.cramers_v == pytest.approx(np.sqrt(chi2 / table.sum()))  # min(3, 2) - 1 = 1


@pytest.mark.parametrize(
    ("table", "v"),
    [
        ([[50, 50], [50, 50]], 0.0),
        ([[70, 0], [0, 30]], 1.0),
        ([[98, 2], [2, 98]], 0.96),  # |ad - bc| / sqrt of the margins' product
        ([[98, 2, 0], [2, 98, 0], [0, 0, 0]], 0.96),  # empty rows and columns do not count
        ([[5, 0], [7, 0]], None),
        ([[5], [7]], None),
    ],
)
def test_association_by_hand(table, v):
    assert cramers_v(np.array(table)) == (None if v is None else pytest.approx(v))


def test_imbalance_factor_leaves_empty_classes_out():
    assert imbalance_factor(np.array([500, 50, 0])) == 10.0
    assert imbalance_factor(np.array([0, 0])) is None


def test_shots_are_synaugs():
    assert [Evaluation().shot(images) for images in (101, 100, 20, 19, 0)] == ["many", "medium", "medium", "few", "few"]


def test_suggestions_name_cells_and_plans(result):
    said = "\n".join(result.suggestions)
    assert "no training image in cell ring × red" in said
    assert "Cramér's V = 0.9" in said
    assert "ffr" in said
    assert "long tail: the largest class has 14 times" in said
    assert "few-shot classes: heart" in said
    assert "7 training images are of unknown group" in said
    assert "the test split lacks cell ring × blue" in said
    assert "fewer than 10 test images in cell heart × blue" in said


def test_a_balanced_dataset_needs_no_suggestion(store):
    even = [[120, 120]] * 3
    assert audit(view(store, train=even, validation=even, test=even), Evaluation()).suggestions == []


def test_json_and_table(result):
    tree = json.loads(json.dumps(result.to_json()))
    assert {"labels", "groups", "counts", "imbalance_factor", "cramers_v", "majority_rate"} <= set(tree)
    from rich.console import Console

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render(result))
    text = console.export_text()
    assert "98.0% red" in text
    assert "207" in text


def test_without_groups(store):
    names = LabelSpace(("a", "b"))
    result = audit(view(store, names, train=[[30], [3]], validation=[[5], [5]], test=[[20], [20]]), Evaluation())
    assert (result.groups, result.counts, result.cramers_v) == ([], [[30], [3]], None)
    assert result.majority_rate == {"a": None, "b": None}
    assert result.unknown_group == 0
    assert result.imbalance_factor == 10
    assert render(result).row_count == 2
