"""What keys decide: all of them say it, and what belongs into an address is read from there."""

from typing import Annotated

import pytest
from pydantic import Field

from counterpoise.config import (
    ActorResources,
    Dataset,
    Experiment,
    Generator,
    Objective,
    Optimizer,
    Section,
    Stage,
    Training,
)
from counterpoise.config.base import RESOLVED, Decides
from counterpoise.config.identity import Leaf, decisions, identity, leaves, present_leaves, without

KINDS = {"source", "pixels", "selection", "weights", "metrics", "place", "runtime"}
ADAPTER = {"model": "a/b", "weights": "c.safetensors", "encoder": "d"}
STAGES = [{"name": "first", "data": ["real"]}, {"name": "last", "data": ["real"], "optimizer": {"lr": 0.1}}]


def experiment(**sections):
    tree = {"name": "trial", "method": "erm", "data": {"adapter": "testbed"}, "stages": STAGES}
    return Experiment.model_validate(tree | sections)


def keys_of(tree):
    """The key paths of a dumped tree that lead to values."""
    for key, value in tree.items():
        yield from ([f"{key}.{below}" for below in keys_of(value)] if isinstance(value, dict) else [key])


def test_every_key_says_what_it_decides():
    found = list(leaves())
    assert len({leaf.path for leaf in found}) > 180
    assert {kind for leaf in found for kind in leaf.decides} == KINDS
    assert all(set(leaf.decides) <= KINDS and leaf.decides for leaf in found)


def test_what_decides_no_result_decides_nothing_else():
    for leaf in leaves():
        if {"place", "runtime"} & set(leaf.decides):
            assert len(leaf.decides) == 1
            assert not leaf.resolved


def test_a_key_that_does_not_say_it_is_an_error():
    class Silent(Section):
        size: int = 0

    class Above(Section, decides="weights"):
        below: Silent = Silent()

    with pytest.raises(TypeError, match=r"Silent\.size does not say what it decides"):
        list(leaves(Above))
    with pytest.raises(TypeError, match=r"Silent\.size"):
        identity(Above(), "weights")


class Inner(Section, decides="weights"):
    rate: float = 0.5
    cores: Annotated[int, Decides("runtime")] = 1


class Plain(Section, decides="pixels"):
    kind: str = "plain"
    path: Annotated[str, RESOLVED] = "here"


class Outer(Plain, decides="weights"):
    many: list[Inner] = Field([Inner(), Inner(rate=0.7)])
    named: dict[str, Inner] = Field({"one": Inner()})
    maybe: Inner | None = None
    hidden: Annotated[Inner, RESOLVED] = Inner()
    both: Annotated[int, Decides("weights", "pixels")] = 3


def test_sections_have_defaults_exceptions_and_heirs():
    assert set(leaves(Outer)) == {
        Leaf("kind", ("pixels",), False),  # a subclass speaks of its own keys
        Leaf("path", ("pixels",), True),
        Leaf("many.*.rate", ("weights",), False),
        Leaf("many.*.cores", ("runtime",), False),
        Leaf("named.*.rate", ("weights",), False),
        Leaf("named.*.cores", ("runtime",), False),
        Leaf("maybe.rate", ("weights",), False),
        Leaf("maybe.cores", ("runtime",), False),
        Leaf("hidden.rate", ("weights",), True),
        Leaf("hidden.cores", ("runtime",), False),
        Leaf("both", ("weights", "pixels"), False),
    }


def test_an_identity_has_what_decides_and_is_not_resolved():
    assert identity(Outer(), "pixels") == {"kind": "plain", "both": 3}
    assert identity(Outer(), "weights") == {
        "many": [{"rate": 0.5}, {"rate": 0.7}],
        "named": {"one": {"rate": 0.5}},
        "maybe": None,
        "both": 3,
    }
    assert identity(Outer(maybe=Inner()), "weights")["maybe"] == {"rate": 0.5}
    assert identity(Outer(), "runtime") == {
        "many": [{"cores": 1}, {"cores": 1}],
        "named": {"one": {"cores": 1}},
        "maybe": None,
        "hidden": {"cores": 1},
    }
    assert identity(Outer(), "metrics") == {}


def test_without_leaves_out_only_what_is_named():
    assert without(Outer()) == Outer().model_dump(mode="json")
    slim = without(Outer(), "runtime", "pixels")
    assert set(keys_of(slim)) == {"many", "named.one.rate", "maybe", "hidden.rate"}
    assert slim["many"] == [{"rate": 0.5}, {"rate": 0.7}]


def test_leaves_that_are_there():
    paths = {leaf.path: leaf for leaf in present_leaves(Outer(named={}))}
    assert set(paths) == {
        *("kind", "path", "many.0.rate", "many.0.cores", "many.1.rate", "many.1.cores"),
        *("named", "maybe", "hidden.rate", "hidden.cores", "both"),
    }
    assert paths["maybe"].decides == paths["named"].decides == ("weights", "runtime")
    assert paths["hidden.rate"].resolved
    assert not paths["maybe"].resolved


def test_what_belongs_into_addresses():
    """Lists that must change when a key is added: with it, or with what the address says in its place."""
    assert set(identity(Training(), "weights")) == {
        *("backbone", "head", "pretrained", "image_size", "batch_size", "precision")
    }
    (_, last) = experiment().stages
    assert set(Stage.model_fields) - set(identity(last, "weights")) == {
        *("name", "data", "start", "reference", "epochs", "steps", "optimizer", "augmentation", "select_by")
    }
    generator = Generator(model="e/f", condition={"adapter": ADAPTER})
    assert set(keys_of(identity(generator, "pixels"))) == {
        *("scheduler", "num_inference_steps", "guidance_scale", "height", "width", "channels_last", "compile", "seed"),
        *(f"condition.{key}" for key in ("dropout", "dropout_of", "rescale", "noise_level")),
    }
    assert identity(ActorResources(), "pixels") == {}


def test_keys_of_a_dataset_are_in_its_address_wherever_it_lies():
    trees = {
        "csv": {"root": "r"},
        "parquet": {"path": "p"},
        "imagefolder": {"root": "r"},
        "torchvision": {"dataset": "MNIST", "root": "r", "download": True},
        "huggingface": {"path": "p"},
        "testbed": {},
    }
    for adapter, tree in trees.items():
        data = experiment(data={"adapter": adapter, **tree}).data
        left_out = set(type(data).model_fields) - set(identity(data, "source"))
        assert left_out == ({"root", "path", "download"} & set(tree)) | {"imbalance", "max_quarantined"}
        assert set(Dataset.model_fields) <= set(type(data).model_fields)


def test_variants_are_taken_together():
    found = decisions()
    assert found["data.root"] == ("source", "pixels")
    assert found["stages.*.trainable.top_k"] == ("weights",)
    assert found["data.imbalance.factor"] == ("source",)


def test_addresses_have_the_keys_of_all_variants_side_by_side():
    """The form of today's storage format, in which a default of then is not the variant's own."""
    plain = {"loss": "cross_entropy", "tau": 1.0, "gamma": 2.0, "q": 0.7, "max_margin": 0.5, "margin": None}
    plain |= {"concentration": 0.333, "scale": None}
    plain |= {"risk": "mean", "step_size": 0.01, "adjustment": 0.0, "worst_share": 0.2}
    assert identity(Objective(), "weights") == plain
    for objective, changed in (
        ({"loss": "focal"}, {"loss": "focal"}),
        ({"loss": {"name": "focal", "gamma": 1}}, {"loss": "focal", "gamma": 1.0}),
        ({"loss": "arcface", "risk": "cvar_dro"}, {"loss": "arcface", "risk": "cvar_dro"}),
        ({"loss": {"name": "arcface", "margin": 0.4}}, {"loss": "arcface", "margin": 0.4}),
        ({"risk": {"name": "group_dro", "adjustment": 1}}, {"risk": "group_dro", "adjustment": 1.0}),
    ):
        assert identity(Objective(**objective), "weights") == plain | changed
        assert without(Objective(**objective)) == Objective(**objective).model_dump(mode="json")
    stage = Stage(name="s", data=["real"], trainable={"name": "lora", "rank": 2})
    assert identity(stage, "weights")["trainable"] == {
        "name": "lora",
        "blocks": [],
        "share": None,
        "rank": 2,
        "alpha": 8.0,
        "top_k": None,
        "similar": ["real", "biased"],
        "different": ["biased", "balanced"],
        "distance": "absolute",
    }
    common = {"name": "adam", "lr": 0.001, "weight_decay": 1e-5, "momentum": 0.9}
    assert identity(Optimizer(), "weights") == common | {"schedule": "constant", "milestones": [], "decay": 0.1}
    stepwise = Optimizer(schedule={"name": "step", "milestones": [4]})
    assert identity(stepwise, "weights") == common | {"schedule": "step", "milestones": [4], "decay": 0.1}
