"""Methods that begin alike, trained at the same time: each stage once, each outcome where it was."""

from pathlib import Path

import pytest

from counterpoise.config import Experiment
from counterpoise.execution import cluster
from counterpoise.training import stages
from counterpoise.workflow import outcomes

FIRST = {"name": "first", "data": ["real"]}
SECOND = {"name": "second", "data": ["extra"]}


def records(store):
    return {key: (Path(store.uri) / key).stat().st_mtime_ns for key in store.list("stages/") if key.endswith(".json")}


@pytest.mark.usefixtures("ray_cluster")
def test_a_shared_first_stage_is_fitted_once(task, store):
    """Three methods, two of which begin alike under different names; then one more that shares both stages of one."""
    methods = [
        task({"name": "real", "data": ["real"]}, method="erm"),
        task(FIRST, SECOND, method="tuned"),
        task(FIRST, {**SECOND, "name": "again", "start": "scratch"}, method="scratch"),
    ]
    done = outcomes.run_all(methods)
    assert (done.fitted, done.found) == (3, 0)  # real = first, second, again
    assert [outcome.method for outcome in done.outcomes] == ["erm", "tuned", "scratch"]
    shared = {outcome.stages[0]["digest"] for outcome in done.outcomes}
    assert len(shared) == 1
    before = records(store)
    assert len(before) == 3

    again = outcomes.run_all([*methods, task(FIRST, SECOND, {**FIRST, "name": "third"}, method="longer")])
    assert (again.fitted, again.found) == (1, 3)
    assert again.outcomes[:3] == done.outcomes
    assert before.items() <= records(store).items()


def test_what_methods_share_has_the_stage_names_of_each(task):
    """A stage's name is not in its address: the outcome that another method stored speaks of this one's stages."""
    one, other = (
        task(FIRST, SECOND, method="one"),
        task({**FIRST, "name": "a"}, {**SECOND, "name": "b"}, method="other"),
    )
    assert one.key == other.key
    for found, names in zip(outcomes.run_all([one, other]).outcomes, (["first", "second"], ["a", "b"]), strict=True):
        assert [stage["name"] for stage in found.stages] == names
    last = stages.Fitted(**found.stages[-1])
    assert stages.load(other.experiment, last, other.test.names) is not None


def test_one_method_is_trained_in_this_process(task, monkeypatch):
    monkeypatch.setattr(cluster, "connect", lambda: pytest.fail("Ray was started for one method"))
    done = outcomes.run_all([task(FIRST, SECOND)])
    assert (done.fitted, done.found) == (2, 0)
    (outcome,) = done.outcomes
    assert [stage["name"] for stage in outcome.stages] == ["first", "second"]
    assert outcome.result_row()["regime"] == outcome.regime == "groups"
    assert outcomes.run_all([task(FIRST, SECOND)]) == outcomes.TrainingSummary([outcome], 0, 2)


@pytest.mark.parametrize(
    ("select_by", "stages", "grouped", "expected"),
    [
        ("worst_group_accuracy", [{}], True, "groups"),
        ("worst_group_accuracy", [{}], False, "labels"),  # the worst class
        ("accuracy", [{}], True, "labels"),
        ("class_balanced_accuracy", [{}], True, "labels"),
        ("last", [{}], True, "none"),
        ("last", [{}, {"select_by": "balanced_accuracy"}], True, "groups"),
        ("worst_group_accuracy", [{"select_by": "last"}], True, "none"),
        ("last", [{"select_by": "worst_group_accuracy"}, {}], True, "groups"),  # the first stage has looked
        ("last", [{}, {"dfr": {}}], True, "groups"),
    ],
)
def test_the_regime_is_what_selection_had_to_know(select_by, stages, grouped, expected):
    tree = {
        "name": "toy",
        "method": "toy",
        "data": {"adapter": "testbed"},
        "training": {"select_by": select_by},
        "stages": [{"name": str(number), "data": ["real"], **stage} for number, stage in enumerate(stages)],
    }
    assert outcomes.selection_regime(Experiment.model_validate(tree), grouped) == expected


def test_costs_are_those_of_the_fit_whoever_shares_it(task):
    """A method that would train on four workers shares a stage that one worker trained."""
    (first,) = outcomes.run_all([task(FIRST, method="first")]).outcomes
    (other,) = outcomes.run_all([task(FIRST, method="other", num_workers=4)]).outcomes
    assert other.stages == first.stages
    assert other.seconds == other.device_seconds == first.device_seconds > 0
