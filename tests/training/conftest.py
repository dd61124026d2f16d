"""Fixtures of the training tests: a store, and the toy dataset of toy_bias.py in it."""

import pytest

from counterpoise.storage.uri import open_store
from toy_bias import make_view


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty store, with a pixel cache of its own."""
    monkeypatch.setenv("COUNTERPOISE_CACHE", str(tmp_path / "cache"))
    return open_store(tmp_path / "store")


@pytest.fixture
def views(store):
    """Small training views: "real" is biased, "extra" is balanced and synthetic."""
    return {
        "real": make_view(store, "real", [[60, 4], [4, 60]]),
        "extra": make_view(store, "extra", [[30, 30], [30, 30]], seed=1, synthetic=True),
    }


@pytest.fixture
def validation(store):
    return make_view(store, "validation", [[12, 12], [12, 12]], seed=2)
