"""Experiments from files and overrides, and what wrong ones are told."""

from pathlib import Path

import pytest
import yaml

from counterpoise.cli.arguments import method_names, seed_numbers
from counterpoise.config.compose import CONFIGS, load
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


UNLIKE = """
name: trial
data: {adapter: testbed}
generator: {model: m}
stages: [{name: taught, data: [real]}]
methods:
  - erm
  - {method: plain, plans: {even: {strategy: balanced}}, feedback: null}
  - method: guided
    generator: {condition: {dropout: 0.5}}
    feedback: {stage: taught}
    plans: {late: {strategy: balanced}}
    stages: [{name: taught, data: [real]}, {name: last, data: [late]}]
"""


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("feedback.scale=0.2", lambda e: e.feedback and e.feedback.scale == 0.2),
        ("generator.condition.dropout=0.1", lambda e: e.generator.condition and e.generator.condition.dropout == 0.1),
        ("plans.late.budget=30", lambda e: "late" in e.plans and e.plans["late"].budget == 30),
        ("stages.1.epochs=7", lambda e: len(e.stages) > 1 and e.stages[1].epochs == 7),
    ],
)
def test_an_override_counts_for_the_methods_that_have_what_it_leads_into(write, override, found):
    experiments = load(write(UNLIKE), [override])
    assert [experiment.method for experiment in experiments if found(experiment)] == ["guided"]
    before = load(write(UNLIKE))
    assert experiments[:2] == before[:2]
    assert load(write(UNLIKE), [override], only_method="guided") == experiments[2:]


@pytest.mark.parametrize(
    ("override", "found"),
    [
        ("training.batch_size=8", lambda e: e.training.batch_size == 8),
        ("pool.sampling.workers=3", lambda e: e.pool.sampling.workers == 3),
        ("prompts.labels.star=sun", lambda e: e.prompts.labels == {"star": "sun"}),
        ("stages.0.epochs=4", lambda e: e.stages[0].epochs == 4),
        ("feedback=null", lambda e: e.feedback is None),
    ],
)
def test_what_every_method_has_is_overridden_in_every_method(write, override, found):
    """Written or not: of `training` one method writes a part, of `pool` nobody anything."""
    experiments = load(write(UNLIKE + "    training: {epochs: 2}"), [override])
    assert [experiment.method for experiment in experiments if found(experiment)] == ["erm", "plain", "guided"]


VARIANTS = """
name: trial
data: {adapter: testbed}
methods:
  - {method: plain, stages: [{name: only, data: [real]}]}
  - {method: word, stages: [{name: only, data: [real], objective: {loss: focal}}]}
  - {method: full, stages: [{name: only, data: [real], objective: {loss: {name: focal, gamma: 1}, risk: mean}}]}
"""


def test_an_override_counts_for_the_methods_whose_variant_takes_it(write):
    def losses(*overrides):
        return [e.stages[0].objective.loss.model_dump() for e in load(write(VARIANTS), overrides)]

    plain, word, full = losses()
    assert (plain, word["gamma"], full["gamma"]) == ({"name": "cross_entropy"}, 2, 1)
    assert losses("stages.0.objective.loss.gamma=3") == [plain, word | {"gamma": 3}, word | {"gamma": 3}]
    assert losses("stages.only.objective.loss.gamma=3") == losses("stages.0.objective.loss.gamma=3")
    assert losses("stages.0.objective.loss=focal") == [word, word, word]
    assert losses("stages.0.objective.loss={name: focal, gamma: 1}") == [full, full, full]
    assert losses("stages.0.objective.loss.name=focal") == [word, word, full]


@pytest.mark.parametrize("only_method", [None, "erm"])
def test_a_section_that_nobody_has_is_made_of_the_override(write, only_method):
    body = UNLIKE if only_method else UNLIKE.replace("feedback: {stage: taught}", "training: {epochs: 2}")
    with pytest.raises(ConfigError, match="either `stage` or `checkpoint`") as caught:
        load(write(body), ["feedback.scale=0.2"], only_method=only_method)
    assert "the command line: feedback" in str(caught.value)
    experiments = load(write(body), ["feedback.stage=taught", "feedback.scale=0.2"], only_method=only_method)
    assert {experiment.feedback.scale for experiment in experiments} == {0.2}


SHARED = "name: t\ndata: {adapter: testbed}\ntraining: {epochs: 3}\ngenerator: {model: m}\nseeds: [4]\n"


def test_named_methods_and_seeds_replace_the_files(write, tmp_path):
    write("method: neighbour\nstages: [{name: beside, data: [real]}]", "neighbour.yaml")
    path = write("method: far\nstages: [{name: by path, data: [real]}]", "elsewhere.yaml")
    file = write(SHARED + "methods: [usb, {extends: erm, method: short, training: {epochs: 1}}]")

    def found(methods=None, seeds=None, *overrides):
        return [(e.method, e.seed, e.training.epochs) for e in load(file, overrides, methods=methods, seeds=seeds)]

    assert found() == [("usb", 4, 3), ("short", 4, 1)]
    assert found(["short", "ffr"], [0, 1]) == [("short", 0, 1), ("short", 1, 1), ("ffr", 0, 3), ("ffr", 1, 3)]
    assert found(["erm"], None, "training.epochs=7", "seeds=[8]") == [("erm", 8, 7)]
    assert found(["neighbour", path]) == [("neighbour", 4, 3), ("far", 4, 3)]
    assert found(["other"], None, "methods=[{extends: usb, method: other}]") == [("other", 4, 3)]
    assert load(write(BODY), methods=["erm"])[0].stages[0].name == "only"  # the file's own, not configs/methods/erm


@pytest.mark.parametrize(
    ("body", "methods", "message", "hint"),
    [
        (SHARED, ["ferm"], "unknown method", "did you mean 'erm'?"),
        (SHARED + "methods: [{extends: usb, method: half}]", ["hafl"], "unknown method", "did you mean 'half'?"),
        (SHARED, ["nowhere/erm.yaml"], "unknown method", "usb"),
        (BODY, ["erm", "usb"], "this file describes one method, erm", "--methods usb"),
        (SHARED, ["erm", "double.yaml"], "two methods have the same name", "another name"),
    ],
)
def test_a_wrong_method_is_told(write, monkeypatch, tmp_path, body, methods, message, hint):
    write("method: erm\nstages: [{name: s, data: [real]}]", "double.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message) as caught:
        load(write(body), methods=methods)
    assert hint in str(caught.value)


@pytest.mark.parametrize("own", ["data: {imbalance: {rate: 0.9}}", "evaluation: {bootstrap: 3}", "store: elsewhere"])
def test_methods_of_one_file_share_what_they_are_compared_on(write, own):
    key = own.partition(":")[0]
    shared = BODY.replace("method: erm", f"methods: [erm, {{extends: erm, method: other, {own}}}]")
    with pytest.raises(ConfigError, match=rf"share `{key}`[\s\S]*different `{key}` for other and erm"):
        load(write(shared))


def test_two_methods_of_one_name_are_told(write):
    with pytest.raises(ConfigError, match=r"two methods have the same name[\s\S]*erm"):
        load(write(SHARED + "methods: [erm, {extends: erm, training: {epochs: 1}}]"))


def test_seeds_and_methods_as_they_are_typed():
    assert seed_numbers("5") == [0, 1, 2, 3, 4]
    assert seed_numbers("0,3, 7") == [0, 3, 7]
    assert seed_numbers("3,") == [3]
    assert method_names("ffr, erm,") == ["ffr", "erm"]


@pytest.mark.parametrize("text", ["0", "", ",", "-1", "1,1", "1,,2", "1.5", "two", "1,b", "²"])
def test_wrong_seeds_are_told(text):
    with pytest.raises(ConfigError, match=r"invalid --seeds value[\s\S]*--seeds"):
        seed_numbers(text)


@pytest.mark.parametrize("text", ["", ",", "erm,erm"])
def test_wrong_methods_are_told(text):
    with pytest.raises(ConfigError, match="--methods"):
        method_names(text)


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
    "tested on an unknown plan": (["evaluation.test=fake"], "trial.yaml", "neither the test split nor a plan"),
    "epochs and steps": (["training.epochs=3", "training.steps=9"], "training", "`epochs: null`"),
    "epochs and steps of a stage": (["stages.0.epochs=3", "stages.0.steps=9"], "stages.0", "not both"),
    "zero epochs": (["training.epochs=0"], "training.epochs", "greater than 0"),
    "misspelt loss": (["stages.0.objective.loss=focall"], "stages.0.objective.loss\n", "did you mean 'focal'?"),
    "misspelt loss in full": (
        ["stages.0.objective.loss={name: focall}"],
        "stages.0.objective.loss.name",
        "did you mean 'focal'?",
    ),
    "loss without a name": (["stages.0.objective.loss={gamma: 1}"], "stages.0.objective.loss.name", "arcface"),
    "loss that is no name": (["stages.0.objective.loss=3"], "stages.0.objective.loss", "whose `name` is"),
    "setting of a loss beside it": (
        ["stages.0.objective={loss: focal, gamma: 3}"],
        "stages.0.objective.gamma",
        "write loss: {name: focal, gamma: 3}",
    ),
    "setting that two losses have": (
        ["stages.0.objective={loss: adaface, risk: group_dro, margin: 0.3}"],
        "stages.0.objective.margin",
        "write loss: {name: adaface, margin: 0.3}",
    ),
    "setting of another loss": (
        ["stages.0.objective.loss={name: ldam, gamma: 3}"],
        "stages.0.objective.loss.gamma",
        "'ldam' does not take `gamma`",
    ),
    "misspelt setting of a loss": (
        ["stages.0.objective.loss={name: focal, gama: 3}"],
        "stages.0.objective.loss.gama",
        "did you mean 'gamma'?",
    ),
    "setting of a risk out of range": (
        ["stages.0.objective.risk={name: cvar_dro, worst_share: 3}"],
        "stages.0.objective.risk.worst_share",
        "less than or equal to 1",
    ),
    "setting of another than the default": (
        ["stages.0.objective.loss.gamma=3"],
        "the command line: stages.0.objective.loss.gamma",
        "'cross_entropy' does not take `gamma`",
    ),
    "misspelt setting of another than the default": (
        ["stages.only.trainable.topk=3"],
        "the command line: stages.0.trainable.topk",
        "did you mean 'top_k'?",
    ),
    "stage without its blocks": (["stages.0.trainable=blocks"], "stages.0.trainable.blocks", "`blocks` is required"),
    "stage with a setting of another": (
        ["stages.0.trainable={name: blocks, blocks: [layer4], rank: 2}"],
        "stages.0.trainable.rank",
        "that is for lora",
    ),
    "one view where two are compared": (
        ["stages.0.trainable={name: selective, top_k: 3, similar: [real]}"],
        "stages.0.trainable.similar",
        "at least 2 items",
    ),
    "schedule without milestones": (
        ["training.optimizer.schedule=step"],
        "training.optimizer.schedule.milestones",
        "`milestones` is required",
    ),
    "milestones beside the schedule": (
        ["training.optimizer.milestones=[3]"],
        "training.optimizer.milestones",
        "write schedule: {name: step, milestones: [3]}",
    ),
    "misspelt choice": (["training.optimizer.name=addam"], "training.optimizer.name", "did you mean 'adam'?"),
    "negative count": (
        ["data.imbalance={kind: counts, counts: {a: -1}}"],
        "data.imbalance.counts.a",
        "greater than or equal to 0",
    ),
    "stage on an unknown view": (["stages.0.data=[fake]"], "stages.0.data", "there are: real"),
    "stage from a later stage": (["stages.0.start=last"], "stages.0.start", "scratch"),
    "no stages": (["stages=[]"], "stages", "at least 1"),
    "two stages of one name": (
        ["stages=[{name: a, data: [real]}, {name: a, data: [real]}]"],
        "stages.1.name",
        "already in use",
    ),
    "override out of range": (["stages.3.data=1"], "stages.3", "a list of 1"),
    "override below a number": (["seed=1", "seed.x=2"], "seed", "its parent is 1"),
    "override without a value": (["training.epochs"], "the command line", "key.path=value"),
    "override that is not YAML": (["name=[a"], "name", "YAML"),
    "method left empty": (["method="], "method", "a valid string"),
    "plan without a generator": (["plans={p: {strategy: usb}}"], "trial.yaml", "need a `generator`"),
    "plan called real": (["plans={real: {strategy: usb}}", "generator={model: m}"], "trial.yaml", "real"),
    "biased plan without a rate": (
        ["plans={p: {strategy: biased}}", "generator={model: m}"],
        "plans.p.rate",
        "`rate` is required",
    ),
    "usb plan with a rate": (
        ["plans={p: {strategy: usb, rate: 0.9}}", "generator={model: m}"],
        "plans.p.rate",
        "'usb' does not take `rate`",
    ),
    "plan named as a strategy is": (
        ["plans={biased: {strategy: biased, rate: 2}}", "generator={model: m}"],
        "plans.biased.rate",
        "less than 1",
    ),
    "plan without a strategy": (["plans={p: {skip: 2}}", "generator={model: m}"], "plans.p.strategy", "uniformize"),
    "plan of an unknown strategy": (
        ["plans={p: {strategy: biassed}}", "generator={model: m}"],
        "plans.p.strategy",
        "did you mean 'biased'?",
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
    with pytest.raises(ConfigError, match="2 mistakes"):
        load(write(BODY), ["training.epochs=0", "pool.shard_size=0"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not a YAML file"),
        ("- a", "a mapping"),
        (BODY + "name: again", "duplicate key 'name'"),
        ("extends: trial.yaml", "cycle"),
        ("extends: {a: 1}", "list of them"),
        ("extends: nowhere.yaml", "file not found"),
    ],
)
def test_a_wrong_file_is_named(write, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load(write(text))
    assert "trial.yaml" in str(caught.value) or "nowhere.yaml" in str(caught.value)


def test_an_experiment_that_does_not_exist():
    with pytest.raises(ConfigError, match="file not found"):
        load("experiments/nothing.yaml")
