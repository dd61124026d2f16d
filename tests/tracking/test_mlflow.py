"""Tracking against a real MLflow on SQLite, and against servers that are not there."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from counterpoise import config
from counterpoise.errors import TrackingError
from counterpoise.storage.local import LocalStore
from counterpoise.storage.schema import LabelSpace
from counterpoise.tracking import mlflow as tracking
from counterpoise.tracking.mlflow import Tracker
from counterpoise.training.models import build_model
from image_table import store_images

# What the tests ask MLflow itself; tracking.py silences the same for what it asks.
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")


def experiment(**tracking_section: object) -> config.Experiment:
    return config.Experiment.model_validate(
        {
            "name": "stars",
            "method": "erm",
            "data": {"adapter": "testbed"},
            "stages": [{"name": "only", "data": ["real"]}],
            "tracking": tracking_section,
        }
    )


@pytest.fixture(scope="session")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for all tests here: setting up a fresh database takes seconds."""
    return tmp_path_factory.mktemp("tracked store")


@pytest.fixture
def tracker(store_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Tracker:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Tracker(experiment(), str(store_folder))


@pytest.fixture
def client(store_folder: Path):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{store_folder}/mlflow.db")


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_run_and_its_children(tracker, client, store_folder, tmp_path, capfd):
    with tracker.run("run", {"method": "usb"}) as run:
        run.config(experiment(experiment="a name of its own"))
        run.params({"long": "x" * 2000, "nested": {"lr": 0.1}, "list": ["a", "b"]})
        run.file("report.html", "<p>report</p>")
        run.json("audit.json", {"counts": [[1, 0]]})
        with run.child("erm seed 0") as fit:
            fit.metrics({"accuracy": 0.5, "no images": None, "cell/star × red": 0.25, "cell/star + red": 0.75})
            fit.history([{"epoch": epoch, "loss": 1 / epoch} for epoch in range(1, 1501)])

    stored = client.get_run(run.id)
    assert stored.info.status == "FINISHED"
    assert stored.data.tags["method"] == "usb"
    assert stored.data.params["training.optimizer.lr"] == "0.001"
    assert stored.data.params["nested.lr"] == "0.1"
    assert len(stored.data.params["long"]) == 500
    artifacts = store_folder / "mlruns" / run.id / "artifacts"
    assert yaml.safe_load((artifacts / "config.yaml").read_text())["tracking"]["experiment"] == "a name of its own"
    assert json.loads((artifacts / "audit.json").read_text()) == {"counts": [[1, 0]]}
    assert (artifacts / "report.html").read_text() == "<p>report</p>"

    nested = client.get_run(fit.id)
    assert nested.data.tags["mlflow.parentRunId"] == run.id
    metrics = nested.data.metrics
    assert metrics["accuracy"] == 0.5
    assert "no images" not in metrics
    assert sorted(value for key, value in metrics.items() if key.startswith("cell/star _ red")) == [0.25, 0.75]
    history = client.get_metric_history(fit.id, "loss")
    assert [(point.step, point.value) for point in history] == [(n, 1 / n) for n in range(1, 1501)]
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")


def test_figures_images_and_inputs(tracker, client, store_folder, tmp_path):
    from matplotlib.figure import Figure

    store = LocalStore(tmp_path)
    view = store_images(store, "stars", [b""], [1], [-1], LabelSpace(("moon", "star")))
    figure = Figure()
    figure.subplots().plot([0, 1])
    with tracker.run("inputs") as run:
        run.figure("figures/line.svg", figure)
        run.file("samples/star.png", b"\x89PNG")
        run.dataset("stars", view, "training")

    artifacts = store_folder / "mlruns" / run.id / "artifacts"
    assert b"<svg" in (artifacts / "figures/line.svg").read_bytes()
    assert (artifacts / "samples/star.png").read_bytes() == b"\x89PNG"
    (used,) = client.get_run(run.id).inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("stars", view.digest)
    assert json.loads(used.dataset.profile) == {"num_rows": 1, "cells": {"star": 1}}
    assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": "training"}


@pytest.mark.parametrize("backbone", ["small_cnn", "resnet18"])
def test_the_model_comes_back_and_predicts_the_same(backbone, tracker, client, store_folder, tmp_path, monkeypatch):
    import mlflow.pytorch

    monkeypatch.chdir(tmp_path)
    module = build_model(config.Training(backbone=backbone), 2, seed=0).train()
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    with tracker.run("model") as run:
        uri = run.model("classifier", module, images[:2])
    assert uri is not None
    assert module.training, "logging must not change the module's mode"
    assert list(tmp_path.iterdir()) == [], "nothing belongs into the working directory"
    assert (store_folder / "mlruns/models" / uri.removeprefix("models:/") / "artifacts/MLmodel").is_file()
    assert (
        client.get_logged_model(uri.removeprefix("models:/")).experiment_id == client.get_run(run.id).info.experiment_id
    )

    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    loaded = mlflow.pytorch.load_model(uri)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(images))
        torch.testing.assert_close(loaded(torch.from_numpy(images)), expected)
    signature = mlflow.models.get_model_info(uri).signature
    assert [spec.shape for spec in signature.inputs] == [(-1, 3, 32, 32)]
    assert [spec.shape for spec in signature.outputs] == [(-1, 2)]
    assert client.get_run(run.id).outputs.model_outputs[0].model_id == uri.removeprefix("models:/")


class Unexportable(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if float(x.sum()) > 0 else -x


def test_a_model_that_cannot_be_exported_does_not_stop_tracking(tracker, client, capsys):
    with tracker.run("unexportable") as run:
        assert run.model("classifier", Unexportable(), np.ones((2, 3), np.float32)) is None
        run.metrics({"accuracy": 1.0})
    assert "warning: the model 'classifier' is not logged" in capsys.readouterr().err
    assert client.get_run(run.id).data.metrics == {"accuracy": 1.0}


def test_how_a_run_ended(tracker, client):
    with pytest.raises(ZeroDivisionError), tracker.run("fails") as failed, failed.child("inner") as inner:
        1 / 0  # noqa: B018
    with pytest.raises(KeyboardInterrupt), tracker.run("interrupted") as killed:
        raise KeyboardInterrupt
    assert [client.get_run(run.id).info.status for run in (failed, inner, killed)] == ["FAILED", "FAILED", "KILLED"]


def test_a_server_that_is_not_there_is_found_out_first(closed_port, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}")
    started = time.monotonic()
    with pytest.raises(TrackingError, match="cannot be used") as caught:
        Tracker(experiment(), str(tmp_path)).check()
    assert time.monotonic() - started < 5
    assert str(closed_port) in str(caught.value.where)
    assert "tracking.enabled=false" in str(caught.value.remedy)


def test_a_server_that_does_not_answer(monkeypatch, tmp_path):
    monkeypatch.setattr(tracking, "CHECK_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(TrackingError):
            Tracker(experiment(), str(tmp_path)).check()
        assert time.monotonic() - started < 10


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError):
        Tracker(experiment(), str(tmp_path / "file")).check()


def test_a_server_lost_midway_costs_one_warning(tracker, client, store_folder, capsys, monkeypatch):
    """The database disappears under the run: work goes on, and nothing more is tried."""
    with tracker.run("lost") as run:
        run.metrics({"before": 1.0})
        database, hidden = store_folder / "mlflow.db", store_folder / "hidden"
        run._link.client._tracking_client.store.engine.dispose()
        database.rename(hidden)
        database.mkdir()
        try:
            with run.child("child") as child:
                child.metrics({"after": 1.0})
                child.history([{"loss": 1.0}])
                child.file("a.txt", "a")
                assert child.model("m", torch.nn.Identity(), np.ones((2, 1), np.float32)) is None
            run.params({"after": 1})
        finally:
            database.rmdir()
            hidden.rename(database)
    (warning,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:"))
    assert warning.startswith("warning: tracking stopped at ")
    assert child.id is None
    assert client.get_run(run.id).data.metrics == {"before": 1.0}


@pytest.mark.parametrize("name", ["my store #1", "what?x=1", "pc 100%41", "ü@b:c", "a://b"])
def test_a_store_with_odd_characters_in_its_name(name, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(experiment(), str(tmp_path / name))
    with tracker.run("run") as run:
        run.file("note.txt", "kept")
    folder = Path(tmp_path / name)
    assert {path.name for path in folder.iterdir()} == {"mlflow.db", "mlflow.db.lock", "mlruns"}
    assert (folder / "mlruns" / run.id / "artifacts/note.txt").read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == [name.partition("/")[0]]


@pytest.mark.parametrize("kind", ["text", "folder"])
def test_a_database_that_cannot_be_opened_is_told_at_once(kind, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if kind == "text":
        (tmp_path / "mlflow.db").write_text("this is no database, and long enough to be read as the header of one" * 9)
    else:
        (tmp_path / "mlflow.db").mkdir()
    started = time.monotonic()
    with pytest.raises(TrackingError, match="database"):
        Tracker(experiment(), str(tmp_path)).check()
    assert time.monotonic() - started < 10


def test_passwords_are_not_printed(closed_port, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:hunter2@127.0.0.1:{closed_port}")
    with pytest.raises(TrackingError) as caught:
        Tracker(experiment(), str(tmp_path)).check()
    assert "***@127.0.0.1" in str(caught.value)
    output = capfd.readouterr()
    assert "hunter2" not in str(caught.value) + output.out + output.err


def test_switched_off_leaves_no_trace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracker = Tracker(experiment(enabled=False), str(tmp_path / "store"))
    tracker.check()
    with tracker.run("run") as run, run.child("child") as child:
        child.config(experiment())
        child.metrics({"accuracy": 1.0})
        assert child.model("m", torch.nn.Identity(), np.ones((2, 1), np.float32)) is None
    assert tracker.uri is run.id is child.id is None
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_no_folder_is_tracked_in_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert Tracker(experiment(), "s3://bucket/prefix").uri == f"sqlite:///{tmp_path}/mlflow.db"


def test_the_import_is_lazy_and_writes_nothing_into_home(tmp_path):
    """A fresh process: mlflow is imported by check() only, quietly, and HOME stays empty."""
    home, store = tmp_path / "home", tmp_path / "store"
    home.mkdir()
    code = f"""
import sys
from counterpoise import config
from counterpoise.tracking import mlflow as tracking
assert not {{"mlflow", "torch", "ray", "matplotlib"}} & set(sys.modules)
tracker = tracking.Tracker(config.Experiment.model_validate({experiment().model_dump()!r}), {str(store)!r})
with tracker.run("run") as run:
    run.metrics({{"a": 1}})
"""
    command = [sys.executable, "-W", "error", "-c", code]
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
    twins = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]  # two at once on a fresh database: without the lock one of them dies in the migrations
    for process in twins:
        output, _ = process.communicate(timeout=120)
        assert (process.returncode, output) == (0, "")
    assert list(home.rglob("*")) == []


def test_an_experiment_made_by_somebody_else_meanwhile(tracker, client, store_folder):
    """Several trackers that meet a new experiment name at once all use the one that was made."""
    trackers = [Tracker(experiment(experiment="shared"), str(store_folder)) for _ in range(4)]
    threads = [threading.Thread(target=tracker.check) for tracker in trackers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tracker._experiment_id for tracker in trackers} - {""}) == 1
