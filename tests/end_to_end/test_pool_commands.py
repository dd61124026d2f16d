"""preview, export and verify as users call them: what they print, their exit status, and how mistakes end."""

import json

import pytest
from click.testing import CliRunner

from counterpoise.cli import main

pytestmark = pytest.mark.usefixtures("ray_cluster")

SMALL = [
    "data.per_cell={train: 20, validation: 2, test: 2}",
    "data.imbalance={kind: biased, rate: 0.9}",
    "data.classes=[circle, ring]",
    "generator.num_inference_steps=2",
    "pool.shard_size=8",
    "pool.sampling.workers=0",
    "methods=[ffr]",
    "tracking.enabled=false",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def call(store):
    def call(command, *arguments, status=0):
        done = CliRunner().invoke(main, [command, "demo", f"store={store}", *SMALL, *arguments])
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == status, done.output
        return json.loads(done.stdout.splitlines()[-1]) if "--json" in arguments else done.stdout

    return call


@pytest.fixture(scope="module")
def sampled(store):
    done = CliRunner().invoke(main, ["synthesize", "demo", f"store={store}", *SMALL])
    assert done.exit_code == 0, done.output


def test_preview(call, tmp_path):
    out = tmp_path / "look.png"
    done = call("preview", "--per-cell", "2", "--cells", "2", "--out", str(out), "--json")
    assert (done["file"], done["images"], done["cells"]) == (str(out), 4, 2)
    assert len(done["left_out"]) == 2
    assert {"seconds", "images_per_second", "pool", "method"} <= done.keys()
    said = call("preview", "--per-cell", "1", "--sweep", "generator.guidance_scale=1,3", "--out", str(out))
    assert "8 images of 4 cells" in said


def test_export(call, sampled, tmp_path):
    done = call("export", "--format", "webdataset", "--with-real", "--out", str(tmp_path / "out"), "--json")
    assert done.keys() == {"format", "out", "images", "bytes", "files"}
    assert done["files"] == 2
    assert call("export", "--format", "parquet", "--out", str(tmp_path / "again")).startswith("32 images as parquet")


def test_verify_and_repair(call, sampled, store):
    done = call("verify", "--regenerate", "9", "--json")
    assert (done["ok"], done["damaged"], done["regenerated"], done["equal"]) == (True, [], 9, 9)
    shard = sorted(store.glob("pool/*/*/*.parquet"))[0]
    sound = shard.read_bytes()
    torn = bytearray(sound)
    torn[len(torn) // 3] ^= 1
    shard.write_bytes(torn)
    done = call("verify", "--json", status=1)
    key = shard.relative_to(store).as_posix()
    assert [damage["key"] for damage in done["damaged"]] == [key]
    assert "add --repair" in call("verify", status=1)
    assert call("verify", "--repair", "--json")["repaired"] == [f"removed {key}"]
    call("synthesize")
    assert shard.read_bytes() == sound
    assert call("verify", "--json")["ok"]


WRONG = {
    "format left out": (["export", "--out", "x"], "--format"),
    "unknown format": (["export", "--out", "x", "--format", "zip"], "imagefolder"),
    "folder left out": (["export", "--format", "parquet"], "--out"),
    "folder with something in it": (["export", "--format", "parquet", "--out", "."], "empty"),
    "no image per file": (["export", "--format", "parquet", "--out", "x", "--per-file", "0"], "--per-file"),
    "unknown plan": (["export", "--format", "parquet", "--out", "x", "--plan", "asp"], "did you mean 'asb'"),
    "fewer than no image": (["verify", "--regenerate", "-1"], "--regenerate"),
    "no number": (["verify", "--regenerate", "many"], "--regenerate"),
    "no cell": (["preview", "--cells", "0"], "--cells"),
    "no PNG": (["preview", "--out", "look.gif"], "look.png"),
    "a folder for a file": (["preview", "--out", "."], "--out"),
    "sweep of an unknown key": (["preview", "--sweep", "generator.guidance_scala=1,2"], "guidance_scale"),
    "sweep of an impossible value": (["preview", "--sweep", "generator.guidance_scale=-1,2"], "guidance_scale"),
    "sweep of nothing": (["preview", "--sweep", "generator.guidance_scale"], "V1,V2"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_ends_in_a_few_helpful_lines(case, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").write_text("")
    (command, *arguments), hint = WRONG[case]
    done = CliRunner().invoke(main, [command, "demo", f"store={store}", *SMALL, *arguments])
    assert done.exit_code == 2, (done.exception, done.output)
    assert done.stdout == ""
    assert hint in done.stderr
    assert "Traceback" not in done.stderr
    assert 2 <= len(done.stderr.splitlines()) <= 9, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["something"]


@pytest.mark.parametrize("command", ["preview", "export", "verify"])
def test_the_help_shows_an_example(command):
    done = CliRunner().invoke(main, [command, "--help"])
    assert f"counterpoise {command} demo" in done.stdout
