"""The catalogue of metrics: complete, light, and of one mind with the config and with what is computed."""

import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from counterpoise import config
from counterpoise.config import Evaluation
from counterpoise.evaluation import catalogue
from counterpoise.evaluation.catalogue import COSTS, JUDGES, METRICS, judge, metric, selection_score
from counterpoise.evaluation.metrics import all_metrics, confusion_counts, selection_metrics
from counterpoise.storage.schema import LabelSpace

NAMES = LabelSpace(("cat", "dog", "cow"), ("day", "night"))
TRAIN = np.array([[500, 2], [30, 30], [5, 3]])  # many, medium and few
PACKAGE = Path(catalogue.__file__).parents[1]


def confusion(groups, classes=3, n=300, seed=0):
    """Counts of random predictions; ``groups`` of the images are drawn from these."""
    random = np.random.default_rng(seed)
    names = LabelSpace(tuple(map(str, range(classes))), NAMES.groups)
    labels, predicted = random.integers(0, classes, (2, n))
    return confusion_counts(labels, random.choice(groups, n), predicted, names)


def test_every_metric_that_is_computed_is_in_the_catalogue_and_the_other_way_round():
    assert all_metrics(confusion([0, 1]), TRAIN, Evaluation()).keys() == METRICS.keys() - set(COSTS)


def test_metrics_that_need_groups_are_those_that_unknown_groups_take_away():
    known, unknown = (all_metrics(confusion(groups), TRAIN, Evaluation()) for groups in ([0, 1], [-1]))
    assert known.keys() - unknown.keys() == {name for name, entry in METRICS.items() if entry.needs_groups}


def test_the_config_offers_the_selectable_metrics():
    offered = set(get_args(config.SelectBy))
    selectable = {name for name, entry in METRICS.items() if entry.selectable}
    assert offered == selectable | {"last"}
    assert set(config.GROUP_METRICS) == {name for name in selectable if METRICS[name].needs_groups}
    assert selection_metrics(confusion([0, 1])).keys() == selectable
    assert {entry.tie_breaker for entry in METRICS.values()} - {None} <= selectable
    assert config.Training().select_by == JUDGES[0]


def test_entries_are_whole():
    for name, entry in METRICS.items():
        assert entry.name == name
        assert entry.title
        assert entry.phrase
        assert entry.meaning
        assert isinstance(entry.higher_is_better, bool)
        assert entry.higher_is_better == (entry.unit == "rate")
    for names in (JUDGES, catalogue.PRIMARY, catalogue.AVERAGES, catalogue.IN_SHORT, catalogue.ON_LEADERBOARDS):
        assert len(set(names)) == len(names)
        assert set(names) <= METRICS.keys() - set(COSTS)
    assert len({entry.title for entry in METRICS.values()}) == len(METRICS)


@pytest.mark.parametrize(
    ("defined", "judges"),
    [
        (METRICS, "worst_group_accuracy"),
        (("accuracy", "balanced_accuracy", "few"), "balanced_accuracy"),
        (("accuracy", "class_balanced_accuracy"), "class_balanced_accuracy"),
        (("few", "accuracy"), "accuracy"),
        ((), "worst_group_accuracy"),
    ],
)
def test_the_first_defined_metric_judges(defined, judges):
    assert judge(defined) == judges


def test_without_groups_a_cell_is_a_class():
    assert metric("worst_group_accuracy", grouped=False).phrase == "worst-class accuracy"
    assert metric("worst_group_accuracy", grouped=False).title == "worst class"
    assert metric("worst_group_accuracy", grouped=False).meaning == "accuracy in the class where it is lowest"
    assert metric("group_std", grouped=False).phrase == "standard deviation of the classes' accuracies"
    unknown = metric("equal_error_rate")
    assert (unknown.title, unknown.phrase, unknown.higher_is_better) == ("equal error rate",) * 2 + (None,)


def test_a_tie_breaker_follows_the_metric():
    row = {"worst_group_accuracy": 0.1, "balanced_accuracy": 0.2, "accuracy": 0.3}
    assert selection_score(row, "worst_group_accuracy") == (0.1, 0.2)
    assert selection_score(row, "balanced_accuracy") == (0.2, 0.1)
    assert selection_score(row, "accuracy") == (0.3,)


@pytest.mark.parametrize("groups", [[0, 1], [0, 1, -1], [-1]], ids=["known", "some known", "unknown"])
@pytest.mark.parametrize("classes", [2, 3, 23])
@pytest.mark.parametrize("n", [60, 1000])
def test_what_epochs_are_selected_by_is_what_is_evaluated(groups, classes, n):
    counts = confusion(groups, classes, n, seed=classes + n)
    selected = selection_metrics(counts)
    evaluated = all_metrics(counts, np.full((classes, 2), 50), Evaluation())
    assert selected == pytest.approx({name: float(evaluated[name]) for name in selected}, abs=1e-15)
    assert selected.keys() == {name for name in evaluated if METRICS[name].selectable}
    blind = selection_metrics(counts, with_groups=False)
    assert blind == {name: value for name, value in selected.items() if not METRICS[name].needs_groups}


@pytest.mark.parametrize("seed", range(20))
def test_histories_of_stages_keep_every_bit(seed):
    """Against the formulas of the first release: counts per class and cell, without a confusion matrix."""
    random = np.random.default_rng(seed)
    classes, groups, n = int(random.integers(2, 40)), int(random.integers(1, 5)), int(random.integers(20, 900))
    names = LabelSpace(tuple(map(str, range(classes))), tuple(map(str, range(groups))))
    labels, predicted = random.integers(0, classes, (2, n))
    predicted = np.where(random.random(n) < 0.7, labels, predicted)
    group = random.integers(-1, groups, n)
    correct, known = predicted == labels, group >= 0
    by_class = np.bincount(labels)
    right = np.bincount(labels[correct], minlength=len(by_class))
    cells, hits = (np.zeros((classes, groups), np.int64) for _ in range(2))
    np.add.at(cells, (labels[known], group[known]), 1)
    np.add.at(hits, (labels[known & correct], group[known & correct]), 1)
    accuracies = hits[cells > 0] / cells[cells > 0]
    assert selection_metrics(confusion_counts(labels, group, predicted, names)) == {
        "accuracy": float(correct.mean()),
        "class_balanced_accuracy": float((right[by_class > 0] / by_class[by_class > 0]).mean()),
        "balanced_accuracy": float(accuracies.mean()),
        "worst_group_accuracy": float(accuracies.min()),
    }


def test_the_catalogue_is_light():
    code = (
        "import sys, counterpoise.evaluation.catalogue\n"
        "heavy = {'numpy', 'scipy', 'torch', 'ray', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_no_other_file_names_a_metric():
    """Names that are words of their own (accuracy, many, …) cannot be told from prose."""
    told = {name for name in METRICS if "_" in name}
    allowed = {"evaluation/catalogue.py", "evaluation/metrics.py", "config/training.py"}
    for path in sorted((*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.j2"))):
        file = path.relative_to(PACKAGE).as_posix()
        if file in allowed:
            continue
        text = path.read_text(encoding="utf-8")
        quoted = {name for name in told if f'"{name}"' in text or f"'{name}'" in text}
        assert not quoted, f"{file} names {quoted}"
