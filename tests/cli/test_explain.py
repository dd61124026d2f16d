"""``plan --explain``: the consequences of changing each key, as text and as JSON."""

import json

import pytest
from click.testing import CliRunner

from counterpoise.cli import main

SMALL = ["data.per_cell={train: 20, validation: 2, test: 2}", "tracking.enabled=false", "methods=[erm, ffr]"]


@pytest.fixture(scope="module")
def call(tmp_path_factory):
    store = tmp_path_factory.mktemp("store")

    def call(*arguments):
        done = CliRunner().invoke(main, ["plan", "demo", f"store={store}", *SMALL, *arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        return done.stdout

    return call


def test_as_json(call):
    told = json.loads(call("--explain", "--json").splitlines()[-1])["explain"]
    assert list(told) == ["erm", "ffr"]
    assert told["erm"]["generator.guidance_scale"]["text"] == "nothing"  # it has no plans
    pool = told["ffr"]["generator.guidance_scale"]
    assert (pool["decides"], pool["pool"], pool["metrics"]) == (["pixels"], True, True)
    assert len(pool["stages"]) == 2
    assert pool["text"].startswith("samples a pool for each value; trains all stages")


def test_only_if_asked_for(call):
    assert "explain" not in json.loads(call("--json").splitlines()[-1])
    assert "recomputes" not in call()


def test_for_people(call):
    lines = [" ".join(line.split()) for line in call("--explain").splitlines()]
    assert lines.index("erm: changing a key recomputes") < lines.index("ffr: changing a key recomputes")
    own = lines[lines.index("ffr: changing a key recomputes") :]
    last = own.index("trains only the last stage; measures the classifier")
    assert own[last + 1].startswith("stages.1: data, mixture.real_share")
    nothing = own[own.index("nothing") :]
    assert nothing[1] == "name, store, method"
    assert any(line.startswith("pool: sampling.workers, ") for line in nothing)
    assert not any(line.startswith("prompts:") for line in nothing)
