"""What another value of a key makes anew. tests/test_methods_together.py holds it against what really changes."""

import pytest

from counterpoise.config import Experiment
from counterpoise.config.consequences import Consequence, consequences, describe, explain
from counterpoise.errors import ConfigError

STAGES = [
    {"name": "real", "data": ["real"]},
    {"name": "biased", "data": ["real", "biased"], "start": "real"},
    {"name": "plain", "data": ["real"], "start": "scratch", "optimizer": {"lr": 0.1}, "epochs": 3},
    {"name": "fair", "data": ["real"], "start": "biased", "trainable": {"name": "selective", "top_k": 3}},
]
TREE = {
    "name": "trial",
    "method": "mine",
    "data": {"adapter": "testbed", "imbalance": {"kind": "biased", "rate": 0.9}},
    "generator": {"model": "a/b"},
    "scorer": {"model": "ViT-B-32", "pretrained": "one"},
    "plans": {
        "biased": {"strategy": "biased", "rate": 0.9},
        "balanced": {"strategy": "balanced"},
        "outside": {"strategy": "fill", "target": 9},
    },
    "stages": STAGES,
}
ALL = ("real", "biased", "plain", "fair")
PLANS = ("biased", "balanced", "outside")
GUIDED = {"feedback": {"stage": "real"}}


def experiment(**sections):
    return Experiment.model_validate(TREE | sections)


POOL = Consequence(pool=True, plans=PLANS, stages=("biased", "fair"), realism=True, metrics=True)
SELECTION = Consequence(plans=PLANS, stages=("biased", "fair"), realism=True, metrics=True)


@pytest.mark.parametrize(
    ("path", "sections", "expected"),
    [
        ("pool.sampling.workers", {}, Consequence()),
        ("store", {}, Consequence()),
        ("stages.3.name", {}, Consequence()),
        ("generator.guidance_scale", {}, POOL),
        ("generator", {}, POOL),
        ("generator.condition.dropout", {}, POOL),  # of a section that is null
        ("prompts.labels.circle", {}, POOL),  # into a value
        ("generator.guidance_scale", {"plans": {}, "stages": STAGES[:1]}, Consequence()),
        ("selection.clip_margin", {}, SELECTION),
        ("plans.outside.target", {}, Consequence(plans=("outside",), realism=True)),
        ("plans.outside.target", {"evaluation": {"test": "outside"}}, Consequence(
            plans=("outside",), realism=True, metrics=True)),
        ("plans.balanced.budget", {}, Consequence(plans=("balanced",), stages=("fair",), realism=True, metrics=True)),
        ("plans.biased", {}, Consequence(plans=("biased",), stages=("biased", "fair"), realism=True, metrics=True)),
        ("stages.fair.trainable.top_k", {}, Consequence(stages=("fair",), metrics=True)),
        ("stages.real.objective.loss", {}, Consequence(stages=("real", "biased", "fair"), metrics=True)),
        ("stages.2.epochs", {}, Consequence(stages=("plain",), metrics=True)),
        ("training.epochs", {}, Consequence(stages=("real", "biased", "fair"), metrics=True)),
        ("training.optimizer.lr", {}, Consequence(stages=("real", "biased", "fair"), metrics=True)),
        ("training.batch_size", {}, Consequence(stages=ALL, metrics=True)),
        ("training.image_size", {}, Consequence(stages=ALL, metrics=True)),
        ("seed", GUIDED, Consequence(stages=ALL, metrics=True)),  # of the classifier that guides, there is another
        ("feedback.seed", GUIDED, POOL),
        ("stages.real.objective.loss", GUIDED, Consequence(
            pool=True, plans=PLANS, stages=("real", "biased", "fair"), realism=True, metrics=True)),
        ("stages.plain.objective.loss", GUIDED, Consequence(stages=("plain",), metrics=True)),
        ("selection.grey", GUIDED, SELECTION),
        ("selection.grey", {"feedback": {"stage": "real", "rounds": 2}}, POOL),
        ("training.image_size", {"feedback": {"checkpoint": "a"}}, Consequence(
            pool=True, plans=PLANS, stages=ALL, realism=True, metrics=True)),
        ("training.backbone", {"feedback": {"checkpoint": "a"}}, Consequence(stages=ALL, metrics=True)),
        ("data.imbalance.rate", {}, Consequence(
            dataset=True, plans=PLANS, stages=ALL, realism=True, metrics=True)),
        ("data.imbalance.rate", GUIDED, Consequence(
            dataset=True, pool=True, plans=PLANS, stages=ALL, realism=True, metrics=True)),
        ("data.imbalance.rate", {"generator": {"model": "a/b", "condition": {}}}, Consequence(
            dataset=True, pool=True, plans=PLANS, stages=ALL, realism=True, metrics=True)),
        ("data.classes", {}, Consequence(
            dataset=True, pool=True, plans=PLANS, stages=ALL, realism=True, metrics=True)),
        ("data.download", {"data": {"adapter": "torchvision", "dataset": "MNIST", "root": "a"}}, Consequence()),
        ("evaluation.bootstrap", {}, Consequence(metrics=True)),
        ("realism.k", {}, Consequence(realism=True)),
        ("training.backbone", {"realism": {"extractor": "model"}}, Consequence(
            stages=ALL, realism=True, metrics=True)),
        ("generator.seed", {"realism": {"extractor": "none"}}, Consequence(
            pool=True, plans=PLANS, stages=("biased", "fair"), metrics=True)),
    ],
)  # fmt: skip
def test_what_follows_from_another_value(path, sections, expected):
    assert consequences(experiment(**sections), path) == expected


def test_a_section_makes_anew_what_any_of_its_keys_does():
    mine = experiment()
    whole, parts = consequences(mine, "stages.1"), [k for k in explain(mine) if k.startswith("stages.1.")]
    assert whole.stages == ("biased", "fair")
    assert len(parts) > 20
    assert {consequences(mine, part).stages for part in parts} == {whole.stages, ()}  # () of its name


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("pool.sampling.workers", "nothing"),
        (
            "generator.guidance_scale",
            "samples a pool for each value; trains the stages biased, fair; measures the classifier and realism",
        ),
        (
            "selection.clip_margin",
            "selects again, samples only what is missing; trains the stages biased, fair; measures the classifier "
            "and realism",
        ),
        ("plans.outside.target", "selects again for outside, samples only what is missing; measures realism"),
        ("stages.fair.trainable.top_k", "trains only the last stage; measures the classifier"),
        ("training.batch_size", "trains all stages; measures the classifier"),
        ("evaluation.many", "measures the classifier"),
    ],
)
def test_in_words(path, words):
    mine = experiment()
    assert describe(mine, consequences(mine, path)) == words


@pytest.mark.parametrize("path", ["generator.guidance", "stages.9.name", "stages.unfair", "pools", "plans.none.rate"])
def test_no_such_key(path):
    with pytest.raises(ConfigError, match="no such key"):
        consequences(experiment(), path)


def test_all_keys_are_explained():
    told = explain(experiment())
    assert {"seed", "generator.condition", "plans.biased.rate", "stages.3.trainable.top_k", "feedback"} <= set(told)
    assert all(consequences(experiment(), path).pool == one["pool"] for path, one in told.items())
    assert told["generator.seed"]["text"].startswith("samples a pool")
    assert told["generator.seed"]["decides"] == ("pixels",)
