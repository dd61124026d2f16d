"""Damage of everything in a store but the pool's shards and the dataset's table: no wrong number, found, repaired."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from safetensors.torch import load, save, save_file

from chat_server import Server, obedient
from counterpoise.cli import main
from counterpoise.config import compose
from counterpoise.storage.records import DamagedError, to_record
from counterpoise.training.models import build_model
from counterpoise.workflow import findings, verification
from counterpoise.workflow.run import Run
from damage import DAMAGES

FILE = """
extends: datasets/shapes.yaml
name: tiny
methods:
  - {{method: tuned, stages: [{{name: only, data: [real], start: {weights}}}]}}
  - extends: aim_fair
    prompts: {{contextual: {{number: 2, llm: {{model: gpt, endpoint: "{endpoint}"}}}}}}
  - {{extends: feedback_hardness, plans: {{uniform: {{by: cell}}}}, feedback: {{every: 1}}}}
store: {store}
data:
  classes: [circle, ring]
  per_cell: {{train: 12, validation: 6, test: 4}}
  imbalance: {{kind: biased, rate: 0.75}}
generator: {{model: package:counterpoise/testbed/models/shapes/diffusion, num_inference_steps: 2}}
pool: {{shard_size: 8, sampling: {{workers: 0}}}}
training: {{epochs: 1, batch_size: 16}}
evaluation: {{bootstrap: 0}}
realism: {{extractor: clip, max_images: 8}}
tracking: {{enabled: false}}
"""


# kind -> the artifact of a method, and what is taken away so that the next run reads it
ARTIFACTS = {
    "stage": ("aim_fair", "stages/{fair}/stage.json", ()),
    "weights": ("tuned", "stages/{only}/weights.safetensors", ("{tuned}",)),
    "mask": ("aim_fair", "masks/*", ("stages/{fair}/stage.json", "stages/{fair}/weights.safetensors")),
    "statistics": ("feedback_hardness", "statistics/*.safetensors", ("pool/{guided}/0-1/000000.parquet",)),
    "record of statistics": ("feedback_hardness", "statistics/*.json", ("pool/{guided}/0-1/000000.parquet",)),
    "result": ("tuned", "{tuned}", ()),
    "realism": ("feedback_hardness", "realism/*", ()),
    "prompts": ("aim_fair", "prompts/*", ()),
    "start weights": ("tuned", "weights/*", ("stages/{only}/stage.json", "stages/{only}/weights.safetensors")),
}
MADE_AGAIN = {"stage", "mask", "record of statistics", "result", "realism", "prompts", "start weights"}  # if deleted
WEIGHTS = "weights.safetensors"
FACTS = {"cost", "sha256"}  # in a stage's record, where they differ from run to run


class Made:
    """An experiment whose methods were run once, the names of its artifacts, and what came out."""

    def __init__(self, folder, endpoint):
        self.folder, self.names = folder, {}
        (folder / "tiny.yaml").write_text(
            FILE.format(weights=folder / "start.safetensors", endpoint=endpoint, store=folder / "store")
        )
        self.experiments = compose.load(str(folder / "tiny.yaml"))
        weights = build_model(self.experiments[0].training, 2, seed=7).state_dict()
        save_file({name: value.contiguous() for name, value in weights.items()}, folder / "start.safetensors")
        self.numbers = self.run(folder / "store")
        with Run(self.experiments) as job:
            self.names = {one.experiment.method: one.key for one in job.method_runs}
            self.names |= {fit.stage.name: fit.digest for one in job.method_runs for fit in one.fits}
            self.names["guided"] = job.pools["feedback_hardness"].digest

    def of(self, store, method=None):
        """The experiments, all or one, on a copy of the store."""
        return [
            one.model_copy(update={"store": str(store)}) for one in self.experiments if method in (None, one.method)
        ]

    def run(self, store, method=None):
        """Run one method after the other, so that Ray is never needed; return the numbers of each."""
        numbers = {}
        for experiment in self.of(store, method):
            with Run([experiment]) as job:
                (outcome,), realism = job.outcomes, job.realism
                measured = [[one["rows"], one["extractor"]] for one in realism]
                numbers[experiment.method] = [outcome.test, outcome.validation, outcome.stages[-1]["history"], measured]
        return numbers

    def key(self, store, pattern, last=False):
        """The first key of a pattern, or the last."""
        return sorted(store.glob(pattern.format(**self.names)))[-1 if last else 0].relative_to(store).as_posix()

    def damage(self, store, kind, damage):
        """Damage an artifact; return its key."""
        _, pattern, _ = ARTIFACTS[kind]
        path = store / self.key(store, pattern)
        others = [other for other in sorted(path.parent.parent.rglob(f"*{path.suffix}")) if other != path]
        others = [other for other in others if other.name == path.name or other.parent == path.parent]
        other = others[0].read_bytes() if others else self._another(path)
        if damage == "deleted":
            path.unlink()
        else:
            path.write_bytes(DAMAGES[damage](path.read_bytes(), other))
        return path.relative_to(store).as_posix()

    def _another(self, path):
        """A valid artifact of the same kind, where the store has only one."""
        if path.suffix == ".safetensors":
            values = {name: value + 1 for name, value in load(path.read_bytes()).items()}
            return save(values)
        value = json.loads(path.read_text())
        del value["sha256"]
        return to_record({**value, "stored_at": f"{value['stored_at']} of another"})


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The experiment, made once."""
    server = Server(lambda payload, _: obedient(payload, 0))
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("made")
        patch.setenv("COUNTERPOISE_CACHE", str(folder / "cache"))
        patch.setenv("OPENAI_API_KEY", "none")
        yield Made(folder, server.url)
    server.close()


@pytest.fixture
def store(made, tmp_path):
    """A copy of the store, to damage."""
    return Path(shutil.copytree(made.folder / "store", tmp_path / "store"))


def verify(made, store):
    with Run(made.of(store)) as job:
        return verification.verify(job)


def content(store):
    """The bytes of every file that is the same after every run, by key; stage records without costs."""
    files = {path.relative_to(store).as_posix(): path for path in store.rglob("*") if path.is_file()}
    mere = {key for key in files if key.startswith(".tmp") or key.endswith("rate.json")}
    mere |= {key for key in files if key.split("/")[2:3] in (["index"], ["notes"])}  # which hold seconds
    return {key: _timeless(key, files[key].read_bytes()) for key in files.keys() - mere}


def _timeless(key, data):
    if not key.endswith("stage.json"):
        return data
    try:
        return {name: value for name, value in json.loads(data).items() if name not in FACTS}
    except ValueError:
        return data


@pytest.mark.parametrize("damage", [*DAMAGES, "deleted"])
@pytest.mark.parametrize("kind", ARTIFACTS)
def test_damage_ends_in_the_right_numbers_or_in_an_error(made, store, kind, damage):
    method, _, dependent = ARTIFACTS[kind]
    for pattern in dependent:
        (store / made.key(store, pattern)).unlink()
    made.damage(store, kind, damage)
    if damage == "deleted" and kind in MADE_AGAIN:
        assert made.run(store, method)[method] == made.numbers[method]
        assert content(store).items() <= content(made.folder / "store").items()
    else:
        with pytest.raises(DamagedError, match=r"where:[\s\S]*do:[\s\S]*--repair"):
            made.run(store, method)


@pytest.mark.parametrize("damage", [*DAMAGES, "deleted"])
def test_all_damage_is_found_and_repaired(made, store, damage):
    """Damage of several kinds at once, each in another artifact."""
    alone = {"prompts", "record of statistics"}  # without them others are not read
    damaged = {kind: made.damage(store, kind, damage) for kind in ARTIFACTS if kind not in alone}
    found, before = verify(made, store), content(store)
    files = {"weights", "statistics"}  # whose records imply them
    expected = {damaged[kind] for kind in damaged if damage != "deleted" or kind in files}
    expected.add(made.names["aim_fair"])  # as one of its stages is damaged
    assert {one.key for one in found.damages} == expected
    assert not found.unchecked

    lines = findings.repair(found)
    gone = before.keys() - content(store).keys()
    assert gone == {line.removeprefix("removed ") for line in lines}
    both = {f"stages/{made.names[stage]}/{name}" for stage in ("fair", "only") for name in ("stage.json", WEIGHTS)}
    both |= {key for key in content(made.folder / "store") if key.startswith("statistics/")}
    assert gone <= expected | both
    assert verify(made, store).to_json()["ok"]
    assert made.run(store) == made.numbers
    assert content(store) == content(made.folder / "store")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["prompts", "record of statistics"])
def test_a_damaged_record_is_found_and_repaired(made, store, kind, damage):
    key, method = made.damage(store, kind, damage), ARTIFACTS[kind][0]
    found = verify(made, store)
    assert [one.key for one in found.damages] == [key]
    assert list(found.unchecked) == (["aim_fair"] if kind == "prompts" else [])
    assert len(findings.repair(found)) == (1 if kind == "prompts" else 2)
    assert made.run(store, method) == {method: made.numbers[method]}
    assert content(store) == content(made.folder / "store")


def test_images_that_are_missing_leave_their_methods_unchecked(made, store):
    (store / made.key(store, "pool/{guided}/*/*.parquet")).unlink()
    told = verify(made, store).to_json()
    assert told["ok"]
    assert told["not_checked"] == {"feedback_hardness": "its images are damaged, or not all sampled"}
    assert (told["kinds"]["images"]["missing"], told["kinds"]["results"]["checked"]) == (1, 2)
    assert told["kinds"]["stages"] == {"checked": 4, "damaged": 0, "missing": 0}  # that of the guide is checked


def test_a_result_without_its_stage_is_found(made, store):
    (store / made.key(store, "stages/{only}/stage.json")).unlink()
    (damage,) = verify(made, store).damages
    assert (damage.key, damage.wrong) == (made.names["tuned"], "of its stages, only is missing")


def test_a_damaged_table_is_found_and_repaired(made, store):
    rows = store / made.key(store, "tables/*/rows.parquet")
    rows.write_bytes(rows.read_bytes()[:-100])
    found = verify(made, store)
    assert [one.kind for one in found.damages] == ["dataset"]
    assert len(found.unchecked) == 3
    assert len(findings.repair(found)) == 2  # with its record
    assert verify(made, store).to_json()["kinds"]["dataset"]["missing"] == 1
    assert made.run(store) == made.numbers
    assert content(store) == content(made.folder / "store")


def test_the_command(made, store):
    def call(command, *arguments):
        done = CliRunner().invoke(main, [command, str(made.folder / "tiny.yaml"), f"store={store}", *arguments])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    key = made.damage(store, "result", "one bit flipped")
    status, said = call("evaluate", "--method", "tuned")
    assert status == 2
    assert f"{key}" in said
    assert "verify --repair" in said
    assert "Traceback" not in said
    status, said = call("verify")
    assert status == 1
    assert "To repair, add --repair" in said
    status, said = call("verify", "--repair", "--json")
    assert status == 0
    told = json.loads(said.splitlines()[-1])
    assert told["repaired"] == [f"removed {key}"]
    assert told["kinds"]["results"] == {"checked": 3, "damaged": 1, "missing": 1}  # the control was never run
    assert call("evaluate", "--method", "tuned")[0] == 0
    assert content(store) == content(made.folder / "store")
