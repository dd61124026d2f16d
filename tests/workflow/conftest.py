"""Fixtures of the tests of outcomes: a store, and tasks on the toy dataset of toy_bias.py in it."""

import pytest

from counterpoise.storage.uri import open_store
from counterpoise.workflow import outcomes
from toy_bias import make_experiment, make_view


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("COUNTERPOISE_CACHE", str(tmp_path / "cache"))
    return open_store(tmp_path / "store")


@pytest.fixture
def task(store):
    """Makes the task of a method with these stages."""
    real = make_view(store, "real", [[30, 4], [4, 30]])
    views = {"real": real, "extra": make_view(store, "extra", [[12, 12], [12, 12]], seed=1, synthetic=True)}
    validation, test = (make_view(store, name, [[8, 8], [8, 8]], seed=n) for n, name in enumerate(("val", "test"), 2))

    def task(*stages, seed=0, method="toy", **training):
        experiment = make_experiment(store, stages, seed, **training).model_copy(update={"method": method})
        return outcomes.MethodRun(experiment, views, validation, test, store)

    return task
