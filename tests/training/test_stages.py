"""Stages: what is stored under which address, what starts from what, and what is told to the user."""

import json
import math

import numpy as np
import pytest
import torch

from counterpoise.errors import ConfigError, DataError, PlanError
from counterpoise.storage.schema import LabelSpace
from counterpoise.storage.store import read
from counterpoise.storage.uri import open_store
from counterpoise.storage.view import ImageView
from counterpoise.training import models, stages
from counterpoise.training.engine import loop
from toy_bias import make_experiment, make_view

FFR = ({"name": "fake", "data": ["extra"]}, {"name": "real", "data": ["real"]})


def weights(store, fitted):
    return models.load_weights(store, fitted.key)


def worst(experiment, fitted, view):
    predicted = stages.predict(experiment, fitted[-1], view).argmax(1)
    return loop.validation_metrics(view, predicted)["worst_group_accuracy"]


def test_a_fit_leaves_its_weights_and_its_record_and_is_reused(store, views, validation):
    experiment, seen = make_experiment(store, FFR, epochs=3), []
    first = stages.run(experiment, views, validation, lambda name, row: seen.append((name, row)))
    assert [name for name, _ in seen] == ["fake"] * 3 + ["real"] * 3
    assert [row for _, row in seen] == first[0].history + first[1].history
    assert [fitted.reused for fitted in first] == [False, False]
    keys = {f"stages/{fitted.digest}/{name}" for fitted in first for name in ("stage.json", "weights.safetensors")}
    assert set(store.list("stages/")) == keys  # and no checkpoint

    seen.clear()
    again = stages.run(experiment, views, validation, lambda name, row: seen.append(row))
    assert seen == []
    assert [fitted.reused for fitted in again] == [True, True]
    assert [(f.digest, f.history, f.epoch, f.cost) for f in again] == [
        (f.digest, f.history, f.epoch, f.cost) for f in first
    ]
    assert {key: value for key, value in first[1].cost.items() if key != "seconds"} == {
        "device": "cpu",
        "num_workers": 1,
        "devices": 1.0,
        "images": 3 * len(views["real"]),
    }
    assert stages.digests(experiment, views, validation) == [fitted.digest for fitted in first]
    record = json.loads(read(store, f"stages/{first[1].digest}/stage.json"))
    assert record["address"]["start"] == first[0].digest
    assert first[0].history[-1]["loss"] < first[0].history[0]["loss"]


def test_the_address_covers_what_decides_the_weights_and_nothing_else(store, views, validation):
    def address(stage=(), validation=validation, **training):
        options = {"name": "one", "data": ["real"]} | dict(stage)
        return stages.digests(make_experiment(store, [options], **training), views, validation)[0]

    base = address()
    same = [
        address({"name": "other"}),
        address({"epochs": 2}),  # what training.epochs says anyway
        address({"steps": 2 * math.ceil(len(views["real"]) / 32)}),  # as many
        address({"optimizer": {"lr": 3e-3}}),
        address(num_workers=2),
        address(max_failures=0),
    ]
    different = [
        address({"data": ["extra"]}),
        address({"data": ["real", "extra"]}),
        address({"data": ["extra", "real"]}),
        address({"epochs": 3}),
        address({"objective": {"risk": "group_dro"}}),
        address({"objective": {"risk": {"name": "group_dro", "step_size": 0.1}}}),
        address({"sampling": "group_balanced"}),
        address({"optimizer": {"lr": 1e-4}}),
        address({"batch_norm": "frozen"}),
        address(batch_size=16),
        address(augmentation=["flip"]),
        address(select_by="last"),
        address(backbone="small_resnet"),
        address(image_size=8),
        address(seed=1),
        address(validation=views["extra"]),
    ]
    assert set(same) == {base}
    assert len({base, *different}) == 1 + len(different)


def test_a_stage_starts_from_the_stage_before_unless_told_otherwise(store, views, validation):
    still = {"optimizer": {"lr": 1e-12}, "epochs": 1}
    experiment = make_experiment(
        store,
        [
            {"name": "first", "data": ["extra"]},
            {"name": "second", "data": ["real"], **still},
            {"name": "fresh", "data": ["real"], "start": "scratch", **still},
            {"name": "branch", "data": ["real"], "start": "first", "sampling": "group_balanced", **still},
        ],
    )
    first, second, fresh, branch = (weights(store, f) for f in stages.run(experiment, views, validation))
    for name in first:  # the whole state, head included
        torch.testing.assert_close(second[name], first[name], atol=1e-6, rtol=0)
        torch.testing.assert_close(branch[name], first[name], atol=1e-6, rtol=0)
    assert not torch.allclose(fresh["backbone.layer1.0.weight"], first["backbone.layer1.0.weight"], atol=1e-3)


@pytest.mark.parametrize(
    ("stage", "training"),
    [
        ({}, {"augmentation": ["flip", "crop"]}),
        ({"objective": {"risk": "group_dro"}}, {"optimizer": {"name": "sgd", "lr": 0.01, "schedule": "cosine"}}),
        ({"sampling": "group_balanced"}, {"backbone": "mobilenet_v3_small", "image_size": 32, "epochs": 2}),  # dropout
    ],
)
def test_a_fit_that_was_interrupted_ends_with_the_same_bytes(store, views, validation, tmp_path, stage, training):
    stage = {"name": "fit", "data": ["real"], **stage}
    whole = make_experiment(store, [stage], **{"epochs": 4, "select_by": "last", **training})
    expected = read(store, stages.run(whole, views, validation)[0].key)

    other = open_store(tmp_path / "other")
    broken = whole.model_copy(update={"store": other.uri})

    def stop(_, row):
        if row["epoch"] in (1, 2):
            raise KeyboardInterrupt

    for interruption in range(1 if whole.training.epochs == 2 else 2):
        torch.manual_seed(interruption)  # a new process would not have torch's global generator where it was
        with pytest.raises(KeyboardInterrupt):
            stages.run(broken, views, validation, stop)
    fitted = stages.run(broken, views, validation)[0]
    assert len(fitted.history) == whole.training.epochs
    assert read(other, fitted.key) == expected


def test_training_leaves_torchs_global_state_alone(store, views, validation):
    torch.manual_seed(5)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    stages.run(make_experiment(store, epochs=1), views, validation)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_frozen_batch_norm_keeps_its_statistics_and_trains_the_rest(store, views, validation):
    experiment = make_experiment(
        store,
        [
            {"name": "first", "data": ["extra"], "epochs": 1},
            {"name": "frozen", "data": ["real"], "epochs": 1, "batch_norm": "frozen_statistics"},
            {"name": "trained", "data": ["real"], "epochs": 1, "start": "first"},
        ],
        backbone="mobilenet_v3_small",
        image_size=32,
        select_by="last",
    )
    first, frozen, trained = (weights(store, f) for f in stages.run(experiment, views, validation))
    statistics = [name for name in first if "running_" in name]
    assert statistics
    assert all(torch.equal(first[name], frozen[name]) for name in statistics)
    assert not torch.equal(first["backbone.features.0.1.weight"], frozen["backbone.features.0.1.weight"])
    assert not any(torch.equal(first[name], trained[name]) for name in statistics)


def test_predictions_are_probabilities_in_the_views_order(store, views, validation):
    experiment = make_experiment(store, epochs=1)
    fitted = stages.run(experiment, views, validation)[0]
    order = np.random.default_rng(0).permutation(len(validation))
    found = stages.predict(experiment, fitted, validation)
    assert found.shape == (48, 2)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(stages.predict(experiment, fitted, validation.take(order)), found[order], atol=1e-5)
    assert stages.predict(experiment, fitted, ImageView.empty(store, validation.names)).shape == (0, 2)
    row = fitted.history[fitted.epoch - 1]
    assert row["accuracy"] == pytest.approx((found.argmax(1) == validation.labels).mean())


def test_validation_metrics_by_hand(validation):
    predicted = validation.labels.copy()
    wrong = np.flatnonzero((validation.labels == 1) & (validation.groups == 0))[:9]  # of 12
    predicted[wrong] = 0
    by_class = {"accuracy": 39 / 48, "class_balanced_accuracy": (1 + 15 / 24) / 2}
    by_cell = {"balanced_accuracy": 3.25 / 4, "worst_group_accuracy": 0.25}
    assert loop.validation_metrics(validation, predicted) == pytest.approx(by_class | by_cell)
    assert loop.validation_metrics(validation, predicted, with_groups=False) == pytest.approx(by_class)


def test_selection_breaks_ties_of_the_worst_group_by_balanced_accuracy():
    def row(epoch, worst, balanced, accuracy):
        names = ("epoch", "worst_group_accuracy", "balanced_accuracy", "accuracy")
        return dict(zip(names, (epoch, worst, balanced, accuracy), strict=True))

    rows = [row(1, 0.5, 0.7, 0.9), row(2, 0.6, 0.6, 0.7), row(3, 0.6, 0.8, 0.8), row(4, 0.6, 0.8, 0.95)]
    chosen = {
        by: max(rows, key=lambda r: (loop.score(r, by), -r["epoch"]))["epoch"]
        for by in ("worst_group_accuracy", "balanced_accuracy", "accuracy", "last")
    }
    assert chosen == {"worst_group_accuracy": 3, "balanced_accuracy": 3, "accuracy": 4, "last": 4}


def test_the_stored_weights_are_the_best_epochs(store, views, validation):
    fits = {}
    for by in ("worst_group_accuracy", "last"):
        experiment = make_experiment(store, epochs=6, select_by=by, optimizer={"lr": 0.01})
        fits[by] = stages.run(experiment, views, validation)[0]
        row = fits[by].history[fits[by].epoch - 1]
        predicted = stages.predict(experiment, fits[by], validation).argmax(1)
        assert {**row, **loop.validation_metrics(validation, predicted, with_groups=by != "last")} == row
    scores = [loop.score(row, "worst_group_accuracy") for row in fits["worst_group_accuracy"].history]
    assert fits["worst_group_accuracy"].epoch == scores.index(max(scores)) + 1
    assert fits["last"].epoch == 6


@pytest.mark.slow
def test_group_aware_methods_and_balanced_synthetic_images_help_the_minority(store):
    views = {
        "real": make_view(store, "biased", [[190, 8], [8, 190]]),
        "extra": make_view(store, "balanced", [[90, 90], [90, 90]], seed=3, synthetic=True, contrast=50),
    }
    validation, test = (make_view(store, key, [[50, 50]] * 2, seed=seed) for seed, key in ((1, "v"), (2, "t")))
    methods = {
        "erm": [{"name": "fit", "data": ["real"]}],
        "group_dro": [{"name": "fit", "data": ["real"], "objective": {"risk": "group_dro"}}],
        "usb": [{"name": "fit", "data": ["real", "extra"], "groups": "cell_source", "sampling": "group_balanced"}],
        "ffr": FFR,
    }
    found = {}
    for name, method in methods.items():
        experiment = make_experiment(store, method, epochs=8)
        found[name] = worst(experiment, stages.run(experiment, views, validation), test)
    assert found["erm"] < 0.5
    assert min(found["group_dro"], found["usb"], found["ffr"]) > 0.8, found


# -- what is told to the user ------------------------------------------------------------------------------------------


def test_a_stage_without_images_is_a_plan_error(store, views, validation):
    views["extra"] = ImageView.empty(store, validation.names)
    with pytest.raises(PlanError, match=r"'fake' has no images[\s\S]*stages\.0\.data[\s\S]*extra: 0 images"):
        stages.run(make_experiment(store, FFR), views, validation)
    mixed = make_experiment(store, [{"name": "usb", "data": ["real", "extra"]}])
    alone = make_experiment(store, [{"name": "erm", "data": ["real"]}])
    assert stages.digests(mixed, views, validation) == stages.digests(alone, views, validation)


def test_group_aware_stages_need_groups_and_others_do_not(store, views, validation):
    index = views["real"].index
    at = index.schema.get_field_index("group")
    groups = index["group"].to_numpy().copy()
    groups[:3] = -1
    column = index.schema.field("group")
    views["real"] = ImageView(store, views["real"].names, index.set_column(at, column, [groups]))
    for stage in ({"objective": {"risk": "group_dro"}}, {"sampling": "group_balanced"}):
        with pytest.raises(DataError, match="3 images of unknown group"):
            stages.run(make_experiment(store, [{"name": "s", "data": ["real"], **stage}]), views, validation)
    assert len(stages.run(make_experiment(store, epochs=1), views, validation)) == 1


def test_without_groups_a_cell_is_a_class(store):
    names = LabelSpace(("lying", "standing"))
    view = make_view(store, "plain", [[40], [8]], names=names)
    stage = {"name": "s", "data": ["real"], "objective": {"risk": "group_dro"}, "sampling": "group_balanced"}
    fitted = stages.run(make_experiment(store, [stage], epochs=1), {"real": view}, view)[0]
    assert set(fitted.history[0]) == {
        *("epoch", "loss", "accuracy", "class_balanced_accuracy", "balanced_accuracy", "worst_group_accuracy")
    }


def test_validation_images_are_needed(store, views, validation):
    with pytest.raises(DataError, match="no validation images"):
        stages.run(make_experiment(store), views, ImageView.empty(store, validation.names))


def test_every_worker_needs_an_image_of_each_batch(store, views, validation):
    with pytest.raises(ConfigError, match=r"training\.batch_size"):
        stages.run(make_experiment(store, batch_size=2, num_workers=4), views, validation)


def test_a_diverging_fit_says_so_and_leaves_no_result(store, views, validation):
    experiment = make_experiment(store, epochs=30, optimizer={"name": "sgd", "lr": 1e20})
    with pytest.raises(ConfigError, match=r"diverged[\s\S]*learning rate"):
        stages.run(experiment, views, validation)
    assert not [key for key in store.list("stages/") if key.endswith(("json", "safetensors"))]
