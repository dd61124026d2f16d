"""The equal-compute control: as many images shown as by the costliest method, all of them real."""

import pytest

from counterpoise.config import Experiment
from counterpoise.storage.uri import open_store
from counterpoise.workflow import equal_compute, suite
from toy_bias import make_view

REAL = {"name": "real", "data": ["real"]}


def experiment(*stages, method="erm", seed=0, plans=("extra",), **training):
    return Experiment.model_validate(
        {
            "name": "toy",
            "method": method,
            "seed": seed,
            "data": {"adapter": "testbed"},
            "generator": {"model": "none"},
            "plans": {plan: {"strategy": "usb"} for plan in plans},
            "training": {"epochs": 10, **training},
            "stages": list(stages),
        }
    )


@pytest.fixture
def views(tmp_path):
    store = open_store(tmp_path)
    return {
        "real": make_view(store, "real", [[9, 2], [0, 5]]),  # 16; by class 11 and 5
        "extra": make_view(store, "extra", [[1, 8], [9, 6]], synthetic=True),  # 24
        "validation": make_view(store, "validation", [[2, 2], [2, 2]]),
    }


@pytest.mark.parametrize(
    ("stages", "shown"),
    [
        ([REAL], 10 * 16),
        ([{"name": "both", "data": ["real", "extra"], "epochs": 3}], 3 * 40),
        ([{"name": "fake", "data": ["extra"], "epochs": 2}, REAL], 2 * 24 + 10 * 16),
        ([{**REAL, "mixture": {"subsample": "class"}}], 10 * 2 * 5),
        ([{**REAL, "mixture": {"subsample": "cell"}}], 10 * 3 * 2),  # the empty cell counts for nothing
        ([{"name": "all", "data": ["real", "extra"], "mixture": {"subsample": "cell"}}], 10 * 4 * 9),
        ([REAL, {"name": "dfr", "data": ["extra"], "dfr": {}}], 10 * 16),
    ],
)
def test_images_shown_by_hand(views, stages, shown):
    assert equal_compute.images_shown(experiment(*stages), views) == shown


def test_the_control_shows_as_many_images_as_the_costliest_method(views):
    methods = [
        *(experiment(REAL, seed=seed, plans=()) for seed in (3, 4)),
        experiment({"name": "both", "data": ["real", "extra"]}, method="usb"),
        experiment({"name": "fake", "data": ["extra"], "epochs": 7}, {**REAL, "epochs": 16}, method="ffr"),
    ]
    shown = {one.method: equal_compute.images_shown(one, views) for one in methods}
    assert shown == {"erm": 160, "usb": 400, "ffr": 424}
    found = equal_compute.equal_compute(methods, "erm", shown, views)
    assert (found.of, found.shown, found.base, found.epochs) == ("ffr", 424, "erm", 27)  # 26.5 rounded up
    assert [(one.method, one.seed) for one in found.experiments] == [("control", 3), ("control", 4)]
    assert 424 <= equal_compute.images_shown(found.experiments[0], views) < 424 + 16
    longer = found.experiments[0]
    assert longer.plans == {}
    assert longer.model_copy(update={"method": "erm", "stages": methods[0].stages}) == methods[0]
    Experiment.model_validate(longer.model_dump())


def test_several_stages_and_milestones_are_stretched_alike(views):
    schedule = {"schedule": {"name": "step", "milestones": [4, 9]}, "lr": 0.1}
    base = experiment(REAL, {"name": "more", "data": ["real"], "epochs": 5}, plans=(), optimizer=schedule)
    found = equal_compute.equal_compute([base], "erm", {"erm": 240, "usb": 600}, views)
    assert [stage.epochs for stage in found.experiments[0].stages] == [25, 13]
    assert found.epochs == 38
    assert [stage.optimizer.schedule.milestones for stage in found.experiments[0].stages] == [[10, 23]] * 2
    assert found.experiments[0].stages[0].optimizer.lr == 0.1


def test_no_control_is_needed_where_nobody_shows_more(views):
    assert equal_compute.equal_compute([experiment(REAL, plans=())], "erm", {"erm": 160, "small": 160}, views) is None


def test_methods_of_as_many_steps_show_about_as_many_images(views):
    steps = {"epochs": None, "steps": 30, "batch_size": 8}
    real, both = (experiment({"name": "s", "data": data}, **steps) for data in (["real"], ["real", "extra"]))
    assert equal_compute.images_shown(real, views) == 15 * 16  # 2 batches an epoch
    assert equal_compute.images_shown(both, views) == 6 * 40  # 5 batches
    few = experiment({"name": "s", "data": ["real"], "mixture": {"subsample": "cell"}, "steps": 4}, **steps)
    assert equal_compute.images_shown(few, views) == 4 * 6  # 1 batch


def test_the_baseline_is_plain_if_there_is_one():
    weighted = experiment({**REAL, "sampling": "group_balanced"}, method="resample", plans=())
    focal = experiment({**REAL, "objective": {"loss": "focal"}}, method="focal", plans=())
    plain, synthetic = experiment(REAL, plans=()), experiment(REAL, method="usb")
    assert suite.Suite.of([synthetic, weighted, focal, plain]).baseline == "erm"
    assert suite.Suite.of([synthetic, focal, weighted]).baseline == "focal"
    assert suite.Suite.of([synthetic]).baseline is None
    assert [suite.is_plain(one) for one in (plain, weighted, focal)] == [True, False, False]
