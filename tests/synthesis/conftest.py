"""Fixtures of the synthesis tests: tiny experiments and their pools."""

import pytest

from chat_server import Server
from counterpoise.storage.schema import LabelSpace
from counterpoise.storage.uri import open_store
from counterpoise.synthesis.pool import sampling
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.prompts.resolve import resolve


@pytest.fixture
def names():
    return LabelSpace(("star", "disc"), ("red", "blue"))


@pytest.fixture
def make_pool(tiny_models, tmp_path, names):
    """Makes the pool of an experiment on the tiny models; keyword arguments replace sections of it."""
    from tiny import make_experiment

    def make(*, store=tmp_path / "store", names=names, **changes):
        experiment = make_experiment(tiny_models, store, **changes)
        store = open_store(experiment.store)
        return Pool.of(experiment, names, store, resolve(experiment.prompts, names, store))

    return make


@pytest.fixture
def fill(monkeypatch):
    """Has a Filler sample in place of Ray."""

    def use(filler):
        monkeypatch.setattr(sampling, "sample", filler)
        return filler

    return use


@pytest.fixture
def serve():
    """Starts a :class:`chat_server.Server`."""
    servers = []

    def serve(reply, key=None):
        servers.append(Server(reply, key))
        return servers[-1]

    yield serve
    for server in servers:
        server.close()
