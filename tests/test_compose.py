"""Experiments from files and overrides, and what wrong ones are told."""

from pathlib import Path

import pytest
import yaml

from counterpoise.compose import CONFIGS, load
from counterpoise.errors import ConfigError

BODY = """
name: trial
data: {adapter: testbed, imbalance: {kind: biased, rate: 0.98}}
method: erm
stages: [{name: only, data: [real]}]
"""


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str, name: str = "trial.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_a_file_is_merged_over_what_it_extends(write):
    write(BODY + "training: {epochs: 3, batch_size: 8}", "base.yaml")
    (experiment,) = load(write("extends: base.yaml\nname: mine\ntraining: {epochs: 5}"))
    assert (experiment.name, experiment.training.epochs, experiment.training.batch_size) == ("mine", 5, 8)


def test_the_command_line_has_the_last_word(write):
    (experiment,) = load(write(BODY), ["training.epochs=7", "stages.0.name=first", "data.per_cell={train: 4}"])
    assert (experiment.training.epochs, experiment.stages[0].name) == (7, "first")
    assert experiment.data.per_cell == {"train": 4}


def test_methods_and_seeds_stand_for_every_pair(write):
    body = BODY.replace("method: erm", "methods: [{method: a}, {method: b, training: {epochs: 2}}]\nseeds: [1, 2]")
    experiments = load(write(body), ["pool.shard_size=4"])
    assert [(e.method, e.seed, e.training.epochs) for e in experiments] == [
        ("a", 1, 20),
        ("a", 2, 20),
        ("b", 1, 2),
        ("b", 2, 2),
    ]
    assert {e.pool.shard_size for e in experiments} == {4}
    assert {e.method for e in load(write(body), only_method="b")} == {"b"}
    assert [(e.method, e.seed) for e in load(write(body), ["seeds=[7]", "methods=[{method: c}]"])] == [("c", 7)]


def test_a_variant_may_extend_a_method_file(write):
    write("method: base\nstages: [{name: one, data: [real], epochs: 1}]", "base_method.yaml")
    variant = "{extends: base_method, method: variant, stages: [{name: two, data: [real]}]}"
    body = f"name: t\ndata: {{adapter: testbed}}\nmethods: [base_method, {variant}]"
    assert [(e.method, e.stages[0].name) for e in load(write(body))] == [("base", "one"), ("variant", "two")]


@pytest.mark.parametrize("path", sorted((CONFIGS / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_experiment_is_valid(path):
    data = yaml.safe_load(path.read_text())
    assert load(str(path), ["data.root=somewhere"] if "fashion" in path.stem else []), data


WRONG = {
    "unknown key": (["data.imbalance.rat=0.9"], "data.imbalance.rat", "did you mean 'rate'?"),
    "bias above one": (["data.imbalance.rate=3"], "data.imbalance.rate", "less than 1"),
    "unknown adapter": (["data.adapter=tesbed"], "data.adapter", "did you mean 'testbed'?"),
    "unknown imbalance": (["data.imbalance.kind=x"], "data.imbalance.kind", "long_tailed"),
    "no adapter": (["data={}"], "data.adapter", "imagefolder"),
    "word for a number": (["training.epochs=two"], "training.epochs", "'two'"),
    "zero epochs": (["training.epochs=0"], "training.epochs", "greater than 0"),
    "misspelt choice": (["training.optimizer.name=addam"], "training.optimizer.name", "did you mean 'adam'?"),
    "negative count": (
        ["data.imbalance={kind: counts, counts: {a: -1}}"],
        "data.imbalance.counts.a",
        "greater than or equal to 0",
    ),
    "stage on an unknown view": (["stages.0.data=[fake]"], "stages.0.data", "there are: real"),
    "stage from a later stage": (["stages.0.start=last"], "stages.0.start", "scratch"),
    "no stages": (["stages=[]"], "stages", "at least 1"),
    "two stages of one name": (["stages=[{name: a, data: [real]}, {name: a, data: [real]}]"], "stages.1.name", "taken"),
    "override out of range": (["stages.3.data=1"], "stages.3", "a list of 1"),
    "override below a number": (["seed=1", "seed.x=2"], "seed", "its parent is 1"),
    "override without a value": (["training.epochs"], "the command line", "key.path=value"),
    "override that is not YAML": (["name=[a"], "name", "YAML"),
    "method left empty": (["method="], "method", "a valid string"),
    "plan without a generator": (["plans={p: {strategy: usb}}"], "trial.yaml", "no `generator`"),
    "plan called real": (["plans={real: {strategy: usb}}", "generator={model: m}"], "trial.yaml", "real"),
    "biased plan without a rate": (
        ["plans={p: {strategy: biased}}", "generator={model: m}"],
        "plans.p",
        "needs `rate`",
    ),
    "usb plan with a rate": (
        ["plans={p: {strategy: usb, rate: 0.9}}", "generator={model: m}"],
        "plans.p",
        "does not take",
    ),
    "generator without a model": (["generator={}"], "generator.model", "required"),
    "threshold without a scorer": (["selection.clip_margin=0.1"], "trial.yaml", "needs a `scorer`"),
    "zero-shot without a scorer": (["selection.zero_shot=cell"], "trial.yaml", "`selection.zero_shot` needs a"),
    "filter that is unknown": (["selection.blur=3"], "selection.blur", ""),
    "every image a duplicate": (["selection.near_duplicate=1"], "selection.near_duplicate", "less than 1"),
    "filter of no module": (["selection.custom={sharp: 3}"], "selection.custom", "module:function"),
    "shares beyond one": (["data.splits={train: 0.8, validation: 0.3, test: 0.1}"], "data.splits", "sum to 1"),
    "name with a slash": (["name=a/b"], "name", "match pattern"),
    "methods that are no list": (["methods=erm"], "methods", "a list of different values"),
    "seeds twice": (["seeds=[1, 1]"], "seeds", "different values"),
    "unknown method": (["methods=[ferm]"], "ferm", "did you mean 'erm'?"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_config_names_the_key_what_was_found_and_what_is_allowed(write, case):
    overrides, where, hint = WRONG[case]
    with pytest.raises(ConfigError) as caught:
        load(write(BODY), overrides)
    text = str(caught.value)
    assert where in text
    assert hint in text
    assert len(text.splitlines()) <= 6, text


def test_several_mistakes_are_told_together(write):
    with pytest.raises(ConfigError, match="2 things are wrong"):
        load(write(BODY), ["training.epochs=0", "pool.shard_size=0"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not a YAML file"),
        ("- a", "a mapping"),
        (BODY + "name: again", "stands twice"),
        ("extends: trial.yaml", "circle"),
        ("extends: {a: 1}", "list of them"),
        ("extends: nowhere.yaml", "no such file"),
    ],
)
def test_a_wrong_file_is_named(write, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(write(text))
    assert "trial.yaml" in str(caught.value) or "nowhere.yaml" in str(caught.value)


def test_an_experiment_that_does_not_exist():
    with pytest.raises(ConfigError, match="no such file"):
        load("experiments/nothing.yaml")
