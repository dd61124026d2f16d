"""What the doctor says of torchvision's build, and of language models: one cheap question, a look at a folder."""

import json
import subprocess
import sys
import time

import pytest

from chat_server import Server
from counterpoise.cli import doctor
from counterpoise.config.compose import load
from counterpoise.errors import ModelError
from counterpoise.synthesis.prompts import llm as asking

LISTED = 200, json.dumps({"object": "list", "data": [{"id": "large"}, {"id": "small"}]}).encode()


@pytest.fixture
def serve():
    servers = []

    def start(models, key=None):
        servers.append(Server(lambda *_: (500, b"nobody asks for prompts"), key, models))
        return servers[-1].url

    yield start
    for server in servers:
        assert not server.payloads
        server.close()


def checks(*llms):
    """Of an experiment whose methods ask these."""
    methods = [
        {"extends": "usb", "method": f"m{n}", "prompts": {"contextual": {"llm": llm}}} for n, llm in enumerate(llms)
    ]
    return list(doctor.language_models(load("demo", [f"methods={json.dumps(methods)}"])))


def test_an_endpoint_that_is_there(serve):
    llm = {"model": "small", "endpoint": serve(lambda: LISTED)}
    (check,) = checks(llm, llm)  # the same for both methods: asked once
    assert (check.state, check.name) == ("ok", "language model")
    assert llm["endpoint"] in check.detail
    assert list(doctor.language_models(load("demo"))) == []


def test_a_model_that_it_does_not_list(serve):
    (check,) = checks({"model": "smal", "endpoint": serve(lambda: LISTED)})
    assert check.state == "warn"
    assert "large, small; did you mean 'small'?" in check.detail


@pytest.mark.parametrize("answer", [(404, b""), (405, b""), (200, b"<html>"), (200, b"[]"), (200, b'{"data": [1]}')])
def test_an_endpoint_without_a_list(serve, answer):
    (check,) = checks({"model": "small", "endpoint": serve(lambda: answer)})
    assert check.state == "warn"
    assert "does not list its models" in check.detail


def test_what_keeps_a_run_from_its_prompts(serve, monkeypatch, tmp_path):
    """Each with its place and a remedy."""
    monkeypatch.setattr(asking, "_GLANCE", 0.2)
    monkeypatch.setenv("SECRET", "abc")
    cases = [
        ({"endpoint": "http://127.0.0.1:9/v1"}, "start it, or correct the address"),
        ({"endpoint": serve(lambda: time.sleep(1.0) or LISTED)}, "no answer in 0.2 s"),
        ({"endpoint": serve(lambda: (503, b"loading"))}, "503"),
        ({"endpoint": serve(lambda: LISTED, key="xyz")}, "set api_key_env to the variable with the key"),
        ({"endpoint": serve(lambda: LISTED, key="xyz"), "api_key_env": "SECRET"}, "check the key in SECRET"),
        ({"endpoint": serve(lambda: LISTED), "api_key_env": "NOT_SET"}, "set NOT_SET"),
        ({"model": str(tmp_path / "nowhere")}, "nowhere"),
    ]
    found = checks(*({"model": "small", **llm} for llm, _ in cases))
    assert [check.state for check in found] == ["fail"] * len(cases)
    for check, (_, hint) in zip(found, cases, strict=True):
        assert hint in check.detail
        assert "prompts.contextual.llm" in check.detail
        assert "abc" not in check.detail


def test_with_its_key(serve, monkeypatch):
    monkeypatch.setenv("SECRET", "xyz")
    (check,) = checks({"model": "small", "endpoint": serve(lambda: LISTED, key="xyz"), "api_key_env": "SECRET"})
    assert check.state == "ok"


def test_it_is_part_of_the_examination(serve, tmp_path):
    llm = {"model": "small", "endpoint": "http://127.0.0.1:9/v1"}
    small = ["data.per_cell={train: 2, validation: 1, test: 1}", f"store={tmp_path}", "tracking.enabled=false"]
    found = doctor.examine("demo", [*small, f"prompts.contextual={json.dumps({'llm': llm})}"])
    assert [check.name for check in found if check.state == "fail"] == ["language model"]


def test_each_model_that_a_method_names_is_looked_at(tmp_path):
    """Once, however many methods name it; and not only those of the first."""
    shapes = "package:counterpoise/testbed/models/shapes"
    methods = [
        "erm",
        "usb",
        {"extends": "usb", "method": "other", "generator": {"model": f"{shapes}/unclip", "condition": {}}},
        {"extends": "usb", "method": "none", "generator": {"model": str(tmp_path / "nowhere")}},
    ]
    small = ["data.per_cell={train: 2, validation: 1, test: 1}", f"store={tmp_path}", "tracking.enabled=false"]
    found = doctor.examine("demo", [*small, f"methods={json.dumps(methods)}"])
    generators = [check for check in found if check.name == "generator"]
    assert [check.state for check in generators] == ["ok", "ok", "fail"]
    assert [check.name for check in found].count("scorer") == 1
    assert [check.state for check in found if check.name == "realism"] == ["ok"]


def test_a_torchvision_that_fits_torch_is_found_without_its_import():
    code = (
        "import sys; from counterpoise.cli import doctor\n"
        "(found,) = [check for check in doctor.examine(None) if check.name == 'operators']\n"
        "assert found.state == 'ok', found\n"
        "import torch; assert torch.ops.torchvision.nms, 'the operators are there'\n"
        "assert 'torchvision' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"_C_stable.so": b"not a library"}, "do not fit torch"),
        ({"_C.so": b""}, "do not fit torch"),  # as older versions name it
        ({"image.so": b""}, "no compiled operators"),
    ],
)
def test_a_torchvision_that_does_not_fit_torch(files, expected, tmp_path, monkeypatch):
    package = tmp_path / "torchvision"
    package.mkdir()
    for name, content in {"__init__.py": b"raise ImportError('nobody imports it')", **files}.items():
        (package / name).write_bytes(content)
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match=expected) as caught:
        doctor.operators()
    assert str(package) in str(caught.value.where)
    assert "install the torchvision that belongs to torch" in str(caught.value.remedy)
    found = {check.name: check.state for check in doctor.examine(None)}
    assert (found["devices"], found["operators"]) == ("ok", "fail")
