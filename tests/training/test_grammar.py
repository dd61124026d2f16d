"""What a stage can say, run: each key changes what it should, and stages use what other stages have made."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import toy_bias
from counterpoise.errors import ModelError, PlanError
from counterpoise.storage.store import read
from counterpoise.storage.uri import open_store
from counterpoise.storage.view import ImageView
from counterpoise.training import models, stages
from counterpoise.training.engine import fit
from counterpoise.training.loading.stage_dataset import StageImages
from toy_bias import make_experiment, make_view

STILL = {"optimizer": {"lr": 1e-12}, "epochs": 1}


def weights(store, fitted):
    return models.load_weights(store, fitted.key)


def moved(before, after):
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize(
    ("trainable", "expected"),
    [
        ({"name": "last_layer"}, {"backbone.fc.weight", "backbone.fc.bias"}),
        (
            {"name": "blocks", "blocks": ["layer4"]},
            {f"backbone.layer4.{n}" for n in ("0.weight", "1.weight", "1.bias")},
        ),
    ],
)
def test_only_the_trainable_parameters_move(store, views, validation, trainable, expected):
    experiment = make_experiment(
        store,
        [
            {"name": "a", "data": ["real"]},
            {"name": "b", "data": ["extra"], "trainable": trainable, "select_by": "last"},
        ],
        epochs=1,
    )
    fitted = stages.run(experiment, views, validation)
    first, second = (weights(store, one) for one in fitted)
    assert moved(first, second) == expected
    assert fitted[0].moved is None
    assert {name for name, moves in fitted[1].moved.items() if moves} == expected  # and the report says so
    assert fitted[1].moved.keys() <= first.keys()


def test_lora_is_merged_into_plain_weights(store, views, validation):
    lora = {"name": "lora", "rank": 2, "alpha": 4}
    experiment = make_experiment(
        store, [{"name": "a", "data": ["real"]}, {"name": "b", "data": ["extra"], "trainable": lora}], epochs=2
    )
    first, second = (weights(store, one) for one in stages.run(experiment, views, validation))
    assert set(first) == set(second)
    changed = moved(first, second)
    assert "backbone.layer2.0.weight" in changed
    assert not any(".1." in name for name in changed)  # GroupNorm has no adapters
    delta = (second["backbone.layer2.0.weight"] - first["backbone.layer2.0.weight"]).flatten(1)
    assert torch.linalg.matrix_rank(delta, rtol=1e-4) <= 2 * 9  # a rank-2 update of a 3 × 3 convolution


def test_a_fresh_head_forgets_and_the_rest_is_kept(store, views, validation):
    experiment = make_experiment(
        store, [{"name": "a", "data": ["real"]}, {"name": "b", "data": ["real"], "head": "fresh", **STILL}]
    )
    first, second = (weights(store, one) for one in stages.run(experiment, views, validation))
    torch.testing.assert_close(first["backbone.layer1.0.weight"], second["backbone.layer1.0.weight"])
    assert not torch.allclose(first["backbone.fc.weight"], second["backbone.fc.weight"], atol=1e-3)


def test_weights_from_a_file_start_a_stage_and_are_part_of_its_address(store, views, validation, tmp_path):
    made = stages.run(make_experiment(store, epochs=2), views, validation)[0]
    file = tmp_path / "mine.safetensors"
    file.write_bytes(read(store, made.key))

    def started(path):
        return make_experiment(store, [{"name": "b", "data": ["real"], "start": str(path), **STILL}])

    fitted = stages.run(started(file), views, validation)[0]
    torch.testing.assert_close(weights(store, fitted), weights(store, made))
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(file.read_bytes())
    assert stages.digests(started(copy), views, validation) == [fitted.digest]
    with pytest.raises(ModelError, match=r"stages\.0\.start[\s\S]*nothing\.safetensors"):
        stages.run(started(tmp_path / "nothing.safetensors"), views, validation)


def test_half_of_each_batch_is_real(store, views):
    stage = make_experiment(store, [{"name": "a", "data": ["real", "extra"], "mixture": {"real_share": 0.25}}]).stages[
        0
    ]
    images = StageImages(stage, [views["real"], views["extra"]], 16, seed=0)
    for batch in images.batches(32, epoch=0):
        assert round(len(batch) * 0.25) == (~images.synthetic[batch]).sum()


def test_a_subsample_has_as_many_of_each_cell_as_the_rarest(store, views):
    stage = make_experiment(store, [{"name": "a", "data": ["real"], "mixture": {"subsample": "cell"}}]).stages[0]
    images = StageImages(stage, [views["real"]], 16, seed=0)
    assert np.bincount(images.groups).tolist() == [4, 4, 4, 4]
    kept = views["real"].take(images.kept)
    assert kept.counts.tolist() == [[4, 4], [4, 4]]
    pixels = images.read(np.arange(len(images)))
    np.testing.assert_array_equal(
        pixels, np.stack([image for _, image in sorted(kept.decoded(16), key=lambda x: x[0])])
    )


def test_what_the_reference_gets_wrong_is_shown_more_often(store, views, validation):
    jtt = [
        {"name": "identify", "data": ["real"], "epochs": 3, "select_by": "last"},
        {"name": "final", "data": ["real"], "start": "scratch", "sampling": "errors", "reference": "identify"},
    ]
    experiment = make_experiment(store, jtt)
    identified = stages.run(experiment, views, validation)[0]
    wrong = stages.predict(experiment, identified, views["real"]).argmax(1) != views["real"].labels
    assert 0 < wrong.sum() < len(wrong)
    task = stages.tasks(experiment, views, validation)[1]
    images = fit.make_trainer(task, fit.Worker()).images
    assert set(images.weights[wrong] / images.weights[~wrong].max()) == {20.0}


def test_relative_difficulty_follows_the_reference(store, views, validation):
    lff = [
        {"name": "biased", "data": ["real"], "objective": {"loss": "generalized_cross_entropy"}, "select_by": "last"},
        {
            "name": "final",
            "data": ["real"],
            "start": "scratch",
            "reference": "biased",
            "objective": {"risk": "relative_difficulty"},
        },
    ]
    plain = [lff[0], {"name": "final", "data": ["real"], "start": "scratch"}]
    biased, final = stages.run(make_experiment(store, lff, epochs=3), views, validation)
    other = stages.run(make_experiment(store, plain, epochs=3), views, validation)[1]
    assert moved(weights(store, final), weights(store, other))
    task = stages.tasks(make_experiment(store, lff, epochs=3), views, validation)[1]
    reference = fit.make_trainer(task, fit.Worker()).reference.numpy()
    probabilities = stages.predict(make_experiment(store, lff, epochs=3), biased, views["real"])
    expected = -np.log(probabilities[np.arange(len(probabilities)), views["real"].labels])
    np.testing.assert_allclose(reference, expected, rtol=1e-3, atol=1e-5)


SELECTIVE = [
    {"name": "real", "data": ["real"]},
    {
        "name": "fair",
        "data": ["extra"],
        "epochs": 1,
        "select_by": "last",
        "trainable": {
            "name": "selective",
            "top_k": 11,
            "similar": ["real", "extra"],
            "different": ["real", "validation"],
        },
    },
]


def test_a_selective_mask_is_made_once_for_every_top_k(store, views, validation):
    experiment = make_experiment(store, SELECTIVE, epochs=1)
    first, second = stages.run(experiment, views, validation)
    (key,) = store.list("masks/")
    found = json.loads(read(store, key))
    names = list(found["similar"])
    assert len(names) == 14
    expected = set(sorted(names, key=lambda n: found["similar"][n])[:11])
    expected &= set(sorted(names, key=lambda n: -found["different"][n])[:11])
    assert 8 <= len(expected) <= 11
    assert moved(weights(store, first), weights(store, second)) == expected

    stage = json.loads(json.dumps(SELECTIVE))
    stage[1]["trainable"]["top_k"] = 13
    more = stages.run(make_experiment(store, stage, epochs=1), views, validation)
    assert store.list("masks/") == [key]
    assert more[0].reused
    assert len(moved(weights(store, first), weights(store, more[1]))) > len(expected)


def test_a_mask_needs_images(store, views, validation):
    views["extra"] = ImageView.empty(store, validation.names)
    stage = json.loads(json.dumps(SELECTIVE))
    stage[1]["data"] = ["real"]
    with pytest.raises(PlanError, match=r"compares gradients on 'extra'[\s\S]*stages\.1\.trainable"):
        stages.run(make_experiment(store, stage), views, validation)


@pytest.mark.parametrize("normalize", [False, True])
def test_dfr_fits_the_last_layer_on_balanced_draws(store, normalize):
    real = make_view(store, "biased", [[190, 8], [8, 190]])
    validation, test = (make_view(store, key, [[50, 50]] * 2, seed=seed) for seed, key in ((1, "v"), (2, "t")))
    dfr = [
        {"name": "real", "data": ["real"], "epochs": 8},
        {"name": "last", "data": ["validation"], "dfr": {"normalize": normalize}},
    ]
    experiment = make_experiment(store, dfr)
    views = {"real": real, "extra": ImageView.empty(store, real.names)}
    first, last = stages.run(experiment, views, validation)
    assert moved(weights(store, first), weights(store, last)) == {"backbone.fc.weight", "backbone.fc.bias"}
    worst = [
        min((stages.predict(experiment, one, test).argmax(1) == test.labels)[cell].mean() for cell in cells(test))
        for one in (first, last)
    ]
    assert worst[1] > worst[0]


def cells(view):
    return [(view.labels == y) & (view.groups == b) for y in (0, 1) for b in (0, 1)]


def test_training_without_groups_never_reads_them(store, views, validation, monkeypatch):
    blind = [
        {"name": "a", "data": ["real"], "select_by": "accuracy"},
        {
            "name": "b",
            "data": ["extra", "real"],
            "mixture": {"real_share": 0.5},
            "select_by": "class_balanced_accuracy",
        },
        {"name": "c", "data": ["real"], "sampling": "errors", "reference": "a", "select_by": "last"},
    ]
    aware = [{"name": "a", "data": ["real"]}]  # selected by its worst group

    def groups(view):
        raise AssertionError("the groups were read")

    monkeypatch.setattr(ImageView, "groups", property(groups))
    assert len(stages.run(make_experiment(store, blind, epochs=1), views, validation)) == 3
    with pytest.raises(AssertionError, match="groups were read"):
        stages.run(make_experiment(store, aware, epochs=1), views, validation)


def test_mixed_images_train(store, views, validation):
    for mix in ({"name": "mixup"}, {"name": "cutmix"}, {"name": "mixup", "pairs": "real_synthetic"}):
        stage = {"name": "a", "data": ["real", "extra"], "mix": mix}
        fitted = stages.run(make_experiment(store, [stage], epochs=6), views, validation)[0]
        assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]


def test_arcface_trains_on_a_cosine_head(store, views, validation):
    for loss in ("arcface", "adaface"):
        experiment = make_experiment(
            store, [{"name": "a", "data": ["extra"], "objective": {"loss": loss}}], epochs=8, head="cosine"
        )
        fitted = stages.run(experiment, views, validation)[0]
        assert fitted.history[-1]["accuracy"] > 0.6
        assert "backbone.fc.bias" not in weights(store, fitted)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_comes_to_the_same(store, views, validation, tmp_path):
    """In a process of its own: dynamo cannot look through the checks of shapes that are on in tests."""
    plain = stages.run(make_experiment(store, epochs=2), views, validation)[0]
    other = open_store(tmp_path / "other")
    given = tmp_path / "given.pickle"
    given.write_bytes(pickle.dumps((make_experiment(other, epochs=2, compile=True), views, validation)))
    script = Path(toy_bias.__file__)
    done = subprocess.run([sys.executable, script, given], capture_output=True, text=True, check=True, timeout=250)
    assert done.stdout.split()[-1] == plain.digest
    compiled = models.load_weights(other, plain.key)
    torch.testing.assert_close(compiled, weights(store, plain), rtol=1e-3, atol=1e-4)


def test_half_precision_trains_and_is_another_address(store, views, validation):
    plain, half = (make_experiment(store, epochs=3, precision=name) for name in ("float32", "bfloat16"))
    full, short = (stages.run(experiment, views, validation)[0] for experiment in (plain, half))
    assert full.digest != short.digest
    assert short.history[-1]["loss"] == pytest.approx(full.history[-1]["loss"], rel=0.05)
    assert {value.dtype for value in weights(store, short).values()} == {torch.float32}


def test_method_files_are_short():
    for file in Path(__file__).parents[2].joinpath("configs", "methods").glob("*.yaml"):
        assert len(file.read_text().splitlines()) <= 40, file.name
