"""What is compared, that it is measured once, and on whose features."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from counterpoise.config import Experiment
from counterpoise.errors import ConfigError, ModelError
from counterpoise.scoring import features
from counterpoise.scoring.identity import identify_scorer
from counterpoise.storage import row_files
from counterpoise.storage.codec import decode_image
from counterpoise.storage.uri import open_store
from counterpoise.storage.view import ImageView
from counterpoise.training import stages
from counterpoise.workflow import realism as likeness
from toy_bias import make_experiment as make_trained
from toy_bias import make_view


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("COUNTERPOISE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return open_store(tmp_path / "store")


@pytest.fixture
def experiment(tiny_models, store):
    from tiny import make_experiment

    return make_experiment(tiny_models, store.uri)


def changed(experiment: Experiment, **realism) -> Experiment:
    return Experiment.model_validate(experiment.model_dump() | {"realism": realism})


@pytest.fixture
def real(store):
    return make_view(store, "real", [[30, 2], [2, 30]])


@pytest.fixture
def other(store):
    return make_view(store, "other", [[8, 20], [20, 8]], seed=1, synthetic=True)


def test_a_union_has_each_image_once_and_no_order(other):
    one, two = other.take(np.arange(30)), other.take(np.arange(20, 50)[::-1].copy())
    both = (one + two).distinct()
    assert len(both) == 50
    assert set(both.column("row")) == set(range(50))
    assert both.digest == (two + one).distinct().digest == other.take(np.arange(50)).distinct().digest


def test_images_are_drawn_by_seed_in_the_views_order(other):
    some = likeness.subsample_per_class(other, 10, seed=0)
    assert np.bincount(some.labels).tolist() == [10, 10]
    assert (np.diff(some.column("row")) > 0).all()
    assert some.digest == likeness.subsample_per_class(other, 10, seed=0).digest
    assert some.digest != likeness.subsample_per_class(other, 10, seed=1).digest
    assert likeness.subsample_per_class(other, 28, seed=0).digest == other.digest


def test_methods_are_compared_on_the_same_features(experiment, monkeypatch):
    def method(name, **sections):
        return Experiment.model_validate(experiment.model_dump() | {"method": name} | sections)

    monkeypatch.setattr(features, "has_inception", lambda: False)
    scorer = experiment.scorer.model_dump()
    one, alike = method("one"), method("alike", scorer=scorer | {"device": "cpu"})
    assert likeness.compared_by([one, alike]) is one
    for other in (method("other", scorer=scorer | {"pretrained": "else"}), method("other", scorer=None)):
        with pytest.raises(ConfigError, match="another for other than for one"):
            likeness.compared_by([one, alike, other])
        agreed = [method(m.method, scorer=m.scorer, realism={"extractor": "model"}) for m in (one, other)]
        assert likeness.compared_by(agreed) is agreed[0]


def test_methods_share_what_they_have_in_common(experiment, real, other, store, monkeypatch):
    made = {"usb": [other], "ffr": [other.take(np.arange(20)), other], "asb": [other.take(np.arange(40))], "no": []}
    made["no"] = [other.take(np.arange(0))]
    usb, asb = likeness.measure(experiment, real, made, store)
    assert (usb["methods"], asb["methods"]) == (["usb", "ffr"], ["asb"])
    assert [row["class"] for row in usb["rows"]] == ["all", "lying", "standing"]
    assert (usb["rows"][0]["n_real"], usb["rows"][0]["n_synthetic"]) == (64, 56)
    assert usb["extractor"]["dimension"] == 8
    assert usb["extractor"]["name"].startswith("CLIP ")
    assert not usb["reused"]
    assert 0 <= usb["rows"][0]["coverage"] <= 1

    monkeypatch.setattr(features, "features", None)  # whoever computes now fails
    again = likeness.measure(experiment, real, made, store)
    assert [found["reused"] for found in again] == [True, True]
    assert [found["rows"] for found in again] == [usb["rows"], asb["rows"]]
    for change in ({"k": 3}, {"seed": 1}, {"max_images": 9}):
        with pytest.raises(TypeError):
            likeness.measure(changed(experiment, **change), real, made, store)


def test_more_images_than_allowed_are_not_compared(experiment, real, other, store):
    (found,) = likeness.measure(changed(experiment, max_images=7), real, {"usb": [other]}, store)
    assert [(row["n_real"], row["n_synthetic"]) for row in found["rows"]] == [(14, 14), (7, 7), (7, 7)]


def with_vectors(view, key, vectors):
    """The same images with CLIP's vectors, None for an image that was not scored, as a pool holds them."""
    images = dict(view.images())
    bulky = {
        "image": [images[position] for position in range(len(view))],
        "embedding": [None if vector is None else np.asarray(vector, np.float16).tobytes() for vector in vectors],
    }
    table = pa.table({name: pa.array(values, pa.binary()) for name, values in bulky.items()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **row_files.writer_options(table.schema, list(bulky)))
    view.store.create(key, buffer.getvalue())
    columns = {name: view.index[name] for name in view.index.column_names}
    columns |= {"key": pa.array([key] * len(view)).dictionary_encode(), "row": pa.array(range(len(view)), pa.int32())}
    for name, values in bulky.items():
        sizes = row_files.lengths(table[name])
        columns[f"{name}_offset"] = pa.array(row_files.offsets(pq.read_metadata(buffer), name, sizes))
        columns[f"{name}_length"] = pa.array(sizes)
        columns[f"{name}_sha256"] = pa.array(row_files.hashes(values), pa.binary(16))
    return ImageView(view.store, view.names, pa.table(columns))


def test_what_the_pool_holds_is_not_embedded_again(experiment, real, other, store, monkeypatch):
    scorer = identify_scorer(experiment.scorer)
    images = [decode_image(data) for _, data in sorted(other.images())]
    vectors = list(features.clip(experiment.scorer, "cpu").embed(images).astype(np.float16))
    embedded, embed = [], features.features
    monkeypatch.setattr(features, "features", lambda view, *rest: embedded.append(len(view)) or embed(view, *rest))

    def rows(view, of_whom):
        embedded.clear()
        (found,) = likeness.measure(experiment, real, {"usb": [view]}, store, scorers={"usb": of_whom})
        return found["rows"]

    anew = rows(other, None)
    assert embedded == [64, 56]
    held = rows(with_vectors(other, "held", vectors), scorer)
    assert embedded == [64]
    for one, two in zip(held, anew, strict=True):
        assert one == {
            **two,
            "fid": pytest.approx(two["fid"], rel=5e-3),
            "density": pytest.approx(two["density"], rel=0.05),
            "coverage": pytest.approx(two["coverage"], abs=0.05),
            "probe": pytest.approx(two["probe"], abs=0.05),
        }
    assert rows(with_vectors(other, "another", vectors), {"sha256": "of another CLIP"}) == anew
    assert embedded == [64, 56]
    assert rows(with_vectors(other, "partly", [None, *vectors[1:]]), scorer) == anew
    assert embedded == [64, 56]


def test_auto_takes_the_best_that_is_there(experiment, store):
    assert likeness.resolve_extractor(experiment) == "clip"
    bare = experiment.model_copy(update={"scorer": None})
    assert likeness.resolve_extractor(bare) == "model"
    path = Path(torch.hub.get_dir(), "checkpoints", "inception_v3_google-0cc3c7bd.pth")
    with pytest.raises(ModelError, match="download them"):
        likeness.resolve_extractor(changed(experiment, extractor="inception"))
    path.parent.mkdir(parents=True)
    path.touch()
    assert likeness.resolve_extractor(experiment) == "inception"
    assert likeness.resolve_extractor(changed(experiment, extractor="model")) == "model"
    with pytest.raises(ValueError, match="needs a `scorer`"):
        Experiment.model_validate(experiment.model_dump() | {"scorer": None, "realism": {"extractor": "clip"}})


def test_the_trained_classifiers_features(real, other, store):
    experiment = make_trained(store, epochs=1)
    fitted = stages.run(experiment, {"real": real}, other)[-1]
    judge = likeness.FeatureClassifier(experiment, fitted)
    (found,) = likeness.measure(experiment, real, {"toy": [other]}, store, judge)
    assert found["extractor"] == {
        "name": "small_cnn of toy, stage fit, seed 0",
        "resizer": "bilinear antialias 16",
        "dimension": 96,
    }
    model = stages.load(experiment, fitted, real.names)
    some = np.stack([decode_image(data, 16) for _, data in sorted(other.images())])
    embedded = likeness._classifier(judge, real.names, "cpu").embed(list(some))
    with torch.no_grad():
        logits = model(torch.from_numpy(some).permute(0, 3, 1, 2))
        np.testing.assert_allclose(model.backbone[-1](torch.from_numpy(embedded)), logits, atol=1e-5)
