"""Training processes killed with SIGKILL: a fit goes on after its last whole epoch, as if nothing had been."""

import io
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch

import toy_bias
from counterpoise.errors import ConfigError
from counterpoise.storage.store import read
from counterpoise.storage.uri import open_store
from counterpoise.training import models, stages
from toy_bias import make_experiment, make_view


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("COUNTERPOISE_CACHE", str(tmp_path / "cache"))
    return open_store(tmp_path / "store")


@pytest.fixture
def views(store):
    return {"real": make_view(store, "real", [[100, 12], [12, 100]])}


@pytest.fixture
def validation(store):
    return make_view(store, "validation", [[12, 12], [12, 12]], seed=2)


def test_a_killed_process_goes_on_and_ends_with_the_same_bytes(store, views, validation, tmp_path):
    experiment = make_experiment(store, epochs=40, select_by="last")
    expected = stages.run(experiment, views, validation)[0]
    other = open_store(tmp_path / "killed")
    experiment = experiment.model_copy(update={"store": other.uri})
    (tmp_path / "fit").write_bytes(pickle.dumps((experiment, views, validation)))
    command = [sys.executable, toy_bias.__file__, str(tmp_path / "fit")]
    checkpoint = f"stages/{expected.digest}/checkpoint"

    process = subprocess.Popen(command)
    while not other.exists(checkpoint):
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)  # some epochs later, anywhere within one
    process.send_signal(signal.SIGKILL)
    process.wait()
    saved = torch.load(io.BytesIO(read(other, checkpoint)[64:]), weights_only=True)  # after its SHA-256
    assert 1 <= saved["progress"]["epoch"] < 40
    assert not other.exists(expected.key)

    seen = []
    fitted = stages.run(experiment, views, validation, lambda _, row: seen.append(row["epoch"]))[0]
    assert seen == list(range(saved["progress"]["epoch"] + 1, 41))
    assert fitted.history == expected.history
    assert read(other, fitted.key) == read(store, expected.key)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.timeout(600)  # Ray Train starts two groups of workers
def test_a_killed_ray_train_worker_is_replaced_and_two_workers_end_where_one_does(store, views, validation, tmp_path):
    stage = {"name": "dro", "data": ["real"], "objective": {"risk": {"name": "group_dro", "step_size": 0.1}}}
    alone = make_experiment(store, [stage], epochs=4, optimizer={"name": "sgd", "lr": 0.05}, select_by="last")
    expected = stages.run(alone, views, validation)[0]

    log = tmp_path / "epochs"

    def kill_once(_, row):  # in worker 0
        with log.open("a") as file:
            file.write(f"{row['epoch']} {os.getpid()}\n")
        if row["epoch"] == 2 and len(log.read_text().splitlines()) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    together = alone.model_copy(
        update={
            "store": (tmp_path / "together").as_posix(),
            "training": alone.training.model_copy(update={"num_workers": 2, "max_failures": 1}),
        }
    )
    fitted = stages.run(together, views, validation, kill_once)[0]
    # without a check, Ray Train would wait for ever
    crowd = together.model_copy(update={"training": together.training.model_copy(update={"num_workers": 32})})
    with pytest.raises(ConfigError, match=r"too small for the workers[\s\S]*training\.num_workers"):
        stages.run(crowd.model_copy(update={"seed": 1}), views, validation)
    epochs, processes = zip(*(line.split() for line in log.read_text().splitlines()), strict=True)
    assert epochs == ("1", "2", "3", "4")  # nothing was trained twice
    assert processes[0] == processes[1] != processes[2] == processes[3]
    assert fitted.digest == expected.digest
    assert fitted.epoch == expected.epoch
    assert [row["loss"] for row in fitted.history] == pytest.approx([row["loss"] for row in expected.history], abs=1e-5)
    mine, theirs = models.load_weights(open_store(together.store), fitted.key), models.load_weights(store, expected.key)
    for name in theirs:
        torch.testing.assert_close(mine[name], theirs[name], atol=1e-5, rtol=1e-4)
