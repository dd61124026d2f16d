"""What commands log of fits: each once for a server and an experiment, again only when its run is gone."""

import json
from pathlib import Path

import pytest

from counterpoise.config import Tracking
from counterpoise.storage.store import read
from counterpoise.tracking.mlflow import TrackedRun, Tracker
from counterpoise.workflow import outcomes, run_log

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")

STAGE = {"name": "only", "data": ["real"]}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """One for all tests here: setting up a fresh database takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('tracking') / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def tracked(database, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.chdir(tmp_path)  # MLflow's folder of artifacts
    monkeypatch.setattr(run_log, "_model", lambda run, *_: run.params({"model": "logged"}))  # seconds


@pytest.fixture
def client(database):
    from mlflow import MlflowClient

    return MlflowClient(database)


@pytest.fixture
def log(store, tmp_path):
    """Logs the outcomes of tasks as a command does; returns the command's run, and those of the fits."""

    def log(*tasks, experiment=tmp_path.name):
        trained = outcomes.run_all(tasks)
        settings = tasks[0].experiment.model_copy(update={"tracking": Tracking(experiment=experiment)})
        with Tracker(settings, store.uri).run("command") as parent:
            return parent.id, run_log.fits(parent, trained.outcomes, tasks, store)

    return log


def children(client, parent):
    """The names of a run's children."""
    experiment = client.get_run(parent).info.experiment_id
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return sorted(run.info.run_name for run in found)


def table(client, parent):
    return json.loads(Path(client.download_artifacts(parent, "fits.json")).read_text())


def test_a_fit_is_logged_once_and_every_command_says_where(log, task, client):
    one = task(STAGE, method="one")
    first, (run_id,) = log(one)
    assert children(client, first) == ["one seed 0"]
    assert client.get_run(run_id).data.params["model"] == "logged"
    second, again = log(one)
    assert again == [run_id]
    assert children(client, second) == []
    assert table(client, second) == table(client, first) == [{"method": "one", "seed": 0, "run_id": run_id}]


def test_what_is_new_is_logged_beside_what_is_there(log, task, client):
    """The same result is another fit for another method, and so is another result of the method."""
    one, twin = task(STAGE, method="one"), task(STAGE, method="twin")
    assert one.key == twin.key
    _, (run_id,) = log(one)
    parent, run_ids = log(one, twin)
    assert run_ids[0] == run_id != run_ids[1]
    assert children(client, parent) == ["twin seed 0"]
    parent, (changed,) = log(task(STAGE, method="one", epochs=1))
    assert changed not in run_ids
    assert children(client, parent) == ["one seed 0"]


def test_a_fit_is_logged_again_when_its_run_was_deleted(log, task, client, store):
    one = task(STAGE)
    _, (run_id,) = log(one)
    client.delete_run(run_id)
    parent, (anew,) = log(one)
    assert anew != run_id
    assert children(client, parent) == ["toy seed 0"]
    assert log(one)[1] == [anew]
    (record,) = store.list("tracking/")
    assert json.loads(read(store, record))["run_id"] == anew


def test_every_experiment_and_every_server_has_its_own(log, task, tmp_path, monkeypatch):
    one = task(STAGE)
    _, first = log(one)
    assert log(one, experiment="another")[1] != first
    assert log(one)[1] == first
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    _, elsewhere = log(one)
    assert elsewhere != first
    (tmp_path / "other.db").unlink()
    assert log(one)[1] not in (first, elsewhere)  # the same address, an empty database


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError])
def test_a_run_that_was_not_finished_does_not_count(end, log, task, client, store, monkeypatch):
    one, two = task(STAGE, method="one"), task(STAGE, method="two")

    def stop(run, result, _):
        if result.method == "two":
            raise end

    with monkeypatch.context() as patch:
        patch.setattr(run_log, "_model", stop)
        with pytest.raises(end):
            log(one, two)
    (record,) = store.list("tracking/")
    parent, run_ids = log(one, two)
    assert run_ids[0] == json.loads(read(store, record))["run_id"]
    assert children(client, parent) == ["two seed 0"]


def test_a_server_lost_on_the_way_leaves_no_record(log, task, store, monkeypatch):
    def lose(run, *_):
        run._link.client = None

    with monkeypatch.context() as patch:
        patch.setattr(run_log, "_model", lose)
        log(task(STAGE))
    assert store.list("tracking/") == []


def test_untracked_commands_leave_no_record(task, store):
    one = task(STAGE)
    trained = outcomes.run_all([one])
    settings = one.experiment.model_copy(update={"tracking": Tracking(enabled=False)})
    with Tracker(settings, store.uri).run("command") as parent:
        assert run_log.fits(parent, trained.outcomes, [one], store) == [None]
    assert store.list("tracking/") == []


def test_the_server_is_asked_once_for_all_fits(log, task, monkeypatch):
    tasks = [task(STAGE, method=f"m{number}") for number in range(3)]
    log(*tasks)
    asked, active = [], TrackedRun.active
    monkeypatch.setattr(TrackedRun, "active", lambda run, ids: asked.append(ids) or active(run, ids))
    log(*tasks)
    assert [len(run_ids) for run_ids in asked] == [3]
