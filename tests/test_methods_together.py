"""Methods of one file and methods on their own: the same pools, images, stages and results.

Two methods that differ in one key, whichever it is, are put together into one job and each into a job of its own.
What they come to must be equal, and the difference must show where the key decides something. So no part of a method's
config can be taken from another method that happens to share its pool, stage or measurement. What the keys themselves
say that they decide (:mod:`counterpoise.config.identity`), and what is said to follow from another value
(:mod:`counterpoise.config.consequences`), is held against what really comes of them.

Shards are filled without Ray and without models (see synthesis/filler.py); classifiers that guide are trained.
"""

import types
import typing
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pytest
from pydantic import BaseModel

from chat_server import Server, obedient
from counterpoise.config import Experiment, compose, identity
from counterpoise.config.consequences import Consequence, consequences
from counterpoise.errors import ConfigError, SynthesisError
from counterpoise.synthesis.pool import sampling
from counterpoise.synthesis.prompts import llm
from counterpoise.synthesis.prompts.contextual import CellPrompts
from counterpoise.training import stages
from counterpoise.workflow import outcomes
from counterpoise.workflow.run import Run
from filler import Filler

AXES = {"method", "seed"}  # what tells experiments of a file apart
DATA = {
    "adapter": "testbed",
    "classes": ["circle", "ring"],
    "groups": ["red", "blue"],
    "per_cell": {"train": 12, "validation": 4, "test": 4},
    "imbalance": {"kind": "biased", "rate": 0.75},
}
REAL, MIXED = {"name": "real", "data": ["real"]}, {"name": "mixed", "data": ["real", "even"]}
METHOD = {
    "name": "together",
    "data": DATA,
    "tracking": {"enabled": False},
    "pool": {"shard_size": 4, "max_quarantined": 0.5},
    "plans": {"even": {"strategy": "usb"}},
    "training": {"image_size": 16, "batch_size": 8, "epochs": 1},
    "stages": [REAL, MIXED],
}


class Case(NamedTuple):
    """Two methods that differ in ``path``, and what this decides.

    - ``pixels``: each has a pool of its own.
    - ``selection``: they share the pool and take other images, or as many of them.
    - ``rounds``: they share the first pool, and have others after it.
    - ``weights``: they share the images and have stages of their own.
    - ``nothing``: they share everything.
    - ``refused``: sharing a pool, they cannot differ in this.
    """

    path: str
    one: object
    other: object
    decides: str
    shared: Mapping[str, object] = MappingProxyType({})  # path -> value, for both


# Values in braces stand for what the fixture `there` has.
GUIDED = {"feedback": {"stage": "real", "scale": 0.1, "every": 1}}
FILE = {"feedback": {"checkpoint": "{weights}"}}
SEEN = {"generator": {"model": "{unclip}", "condition": {}}}
ADAPTER = {"model": "{adapter}", "weights": "adapter.safetensors", "encoder": "image_encoder"}
ADAPTED = {"generator": {"model": "{diffusion}", "condition": {"adapter": ADAPTER}}}
GRAMMAR = {"prompts": {"template": "a {group} {label} {place}", "contextual": {"attributes": {"place": ["here"]}}}}
ASKED = {"prompts": {"contextual": {"number": 3, "llm": {"model": "gpt", "endpoint": "{endpoint}"}}}}
LOCAL = {"prompts": {"contextual": {"number": 3, "llm": {"model": "{local}"}}}}


def plan(**keys):
    return {"plans": {"even": keys}}


def stage(**keys):
    return {"stages": [REAL, MIXED | keys]}


def loss(name):
    return stage(objective={"loss": {"name": name}})


def trainable(name, **keys):
    return stage(trainable={"name": name, **keys})


MIRRORED = {"strategy": "biased", "rate": 0.75}
BIASED = {"plans": {"even": {"strategy": "usb"}, "biased": MIRRORED, "balanced": {"strategy": "asb"}}}
STEPWISE = {"schedule": {"name": "step", "milestones": [1]}}
ON_CPU = {"generator.dtype": "float32"}
SELECTIVE = BIASED | trainable("selective", top_k=3)
DFR = {"stages": [REAL, MIXED, {"name": "last", "data": ["validation"], "dfr": {}}]}
REFERENCE = stage(sampling="errors", reference="real")
COSINE = {"training": METHOD["training"] | {"head": "cosine"}}

CASES = [
    # prompts
    Case("prompts.template", "a {label} in {group}", "the {group} {label}", "pixels"),
    Case("prompts.labels", {}, {"ring": "hoop"}, "pixels"),
    Case("prompts.groups", {}, {"red": "crimson"}, "pixels"),
    Case(
        "prompts.descriptions",
        {"ring": "round", "circle": "full"},
        {"ring": "flat", "circle": "full"},
        "pixels",
        {"prompts": {"template": "a {group} {label}, {description}"}},
    ),
    Case("prompts.modifiers", [], ["small", "large"], "pixels"),
    Case("prompts.file", None, "{prompts}", "pixels"),
    Case("prompts.negative", "", "blurred", "pixels"),
    Case("prompts.contextual.number", 1, 2, "pixels", GRAMMAR | {"prompts.contextual.attributes.place": ["a", "b"]}),
    Case("prompts.contextual.attributes", {"place": ["here"]}, {"place": ["there"]}, "pixels", GRAMMAR),
    Case("prompts.contextual.save_to", None, "{saved}", "nothing", GRAMMAR),
    Case("prompts.contextual.task", "photographs", "drawings", "pixels", ASKED),
    Case("prompts.contextual.details", [], ["Say where it is."], "pixels", ASKED),
    Case("prompts.contextual.format", "A photo of a", "A picture of a", "pixels", ASKED),
    Case("prompts.contextual.llm.model", "gpt", "other", "pixels", ASKED),
    Case("prompts.contextual.llm.endpoint", "{endpoint}", "{second}", "pixels", ASKED),
    Case("prompts.contextual.llm.api_key_env", None, "SOME_KEY", "nothing", ASKED),
    Case("prompts.contextual.llm.timeout", 120.0, 60.0, "nothing", ASKED),
    Case("prompts.contextual.llm.temperature", 1.0, 0.5, "pixels", ASKED),
    Case("prompts.contextual.llm.seed", 0, 1, "pixels", ASKED),
    Case("prompts.contextual.llm.revision", None, "main", "nothing", LOCAL),  # of the hub: a folder has none
    Case("prompts.contextual.llm.num_gpus", 0.0, 1.0, "nothing", LOCAL),
    # the generator
    Case("generator.model", "{diffusion}", "{second diffusion}", "pixels"),
    Case("generator.revision", None, "main", "nothing"),  # also
    Case("generator.dtype", "float32", "bfloat16", "pixels"),
    Case("generator.device", "cpu", "mps", "refused"),
    Case("generator.scheduler", None, "EulerDiscreteScheduler", "pixels"),
    Case("generator.num_inference_steps", 3, 4, "pixels"),
    Case("generator.guidance_scale", 7.5, 1.0, "pixels"),
    Case("generator.height", None, 32, "pixels"),
    Case("generator.width", None, 32, "pixels"),
    Case("generator.channels_last", False, True, "pixels"),
    Case("generator.compile", False, True, "pixels"),
    Case("generator.seed", 0, 1, "pixels"),
    Case("generator.condition.dropout", 0.0, 0.5, "pixels", SEEN),
    Case("generator.condition.dropout_of", "element", "embedding", "pixels", SEEN),
    Case("generator.condition.rescale", False, True, "pixels", SEEN),
    Case("generator.condition.noise_level", 0, 9, "pixels", SEEN),
    Case("generator.condition.adapter.model", "{adapter}", "{second adapter}", "pixels", ADAPTED),
    Case("generator.condition.adapter.revision", None, "main", "nothing", ADAPTED),
    Case("generator.condition.adapter.weights", "adapter.safetensors", "other.safetensors", "pixels", ADAPTED),
    Case("generator.condition.adapter.encoder", "image_encoder", "other_encoder", "pixels", ADAPTED),
    Case("generator.condition.adapter.scale", 1.0, 0.5, "pixels", ADAPTED),
    # feedback
    Case("feedback.criterion", "entropy", {"entropy": 1.0, "loss": 0.5}, "pixels", GUIDED),
    Case(
        "feedback.stage",
        "real",
        "longer",
        "pixels",
        GUIDED | {"stages": [REAL, {"name": "longer", "data": ["real"]}, MIXED]},
    ),
    Case("feedback.checkpoint", "{weights}", "{second weights}", "pixels", FILE),
    Case("feedback.scale", 0.1, 0.2, "pixels", GUIDED),
    Case("feedback.every", 1, 2, "pixels", GUIDED),
    Case("feedback.start", 0.0, 0.5, "pixels", GUIDED),
    Case("feedback.stop", 1.0, 0.5, "pixels", GUIDED),
    Case("feedback.predicted", "blend", "plain", "pixels", GUIDED),
    Case("feedback.decoder", None, "{decoder}", "pixels", GUIDED),
    Case("feedback.checkpoint_decoder", False, True, "refused", GUIDED),
    Case("feedback.rounds", 1, 2, "rounds", GUIDED),
    Case("feedback.seed", 0, 1, "pixels", GUIDED),
    # what scores
    Case("scorer.model", "{clip}", "{second clip}", "pixels"),
    Case("scorer.pretrained", "one", "other", "pixels", {"scorer.model": "ViT-B-32"}),
    Case("scorer.device", "cpu", "mps", "refused"),
    # which images
    Case("selection.clip_similarity", None, 0.5, "selection"),
    Case("selection.clip_margin", None, 0.5, "selection"),
    Case("selection.zero_shot", None, "cell", "selection"),
    Case("selection.near_duplicate", None, 0.5, "selection"),
    Case("selection.grey", None, 40.0, "selection"),
    Case("selection.custom", {}, {"filters_of_two_methods:odd": None}, "selection"),
    Case("selection.max_draw", 1.0, 3.0, "selection", {"selection.clip_margin": 0.5}),
    # how the pool is filled
    Case("pool.shard_size", 4, 8, "pixels"),
    Case("pool.max_attempts", 3, 2, "pixels"),
    Case("pool.codec", "webp", "jpeg:90", "pixels"),
    *(Case(f"pool.{who}.workers", 1, 2, "refused") for who in ("sampling", "scoring")),
    *(Case(f"pool.{who}.num_cpus", 1.0, 2.0, "refused") for who in ("sampling", "scoring")),
    *(Case(f"pool.{who}.num_gpus", 0.0, 1.0, "refused", ON_CPU) for who in ("sampling", "scoring")),
    Case("pool.max_quarantined", 0.5, 0.6, "nothing"),  # see test_each_method_has_its_own_limit_of_quarantined_images
    # how many
    Case("plans.even.strategy", "usb", "asb", "selection"),
    Case("plans.even.by", "cell", "class", "selection", plan(strategy="fill", target=20)),
    Case("plans.even.budget", 8, 12, "selection", plan(strategy="balanced")),
    Case("plans.even.rate", 0.6, 0.8, "selection", plan(strategy="biased", budget=20)),
    Case("plans.even.target", 14, 16, "selection", plan(strategy="fill", target=14)),
    Case("plans.even.counts", {"ring": 4}, {"ring": 6}, "selection", plan(strategy="custom", counts={"ring": 4})),
    Case("plans.even.skip", 0, 2, "selection"),
    # training
    Case("training.backbone", "small_cnn", "resnet18", "weights"),
    Case("training.head", "linear", "cosine", "weights"),
    Case("training.pretrained", False, True, "weights", {"training.backbone": "resnet18"}),
    Case("training.image_size", 16, 32, "weights"),
    Case("training.epochs", 1, 2, "weights"),
    Case("training.steps", 4, 40, "weights", {"training": {"image_size": 16, "batch_size": 8}}),
    Case("training.batch_size", 8, 4, "weights"),
    Case("training.optimizer.name", "adam", "sgd", "weights"),
    Case("training.optimizer.lr", 1e-3, 1e-4, "weights"),
    Case("training.optimizer.weight_decay", 0.0, 0.1, "weights"),
    Case("training.optimizer.momentum", 0.9, 0.5, "weights", {"training.optimizer.name": "sgd"}),
    Case("training.optimizer.schedule.name", "constant", "cosine", "weights"),
    Case(
        "training.optimizer.schedule.milestones",
        [1],
        [2],
        "weights",
        {"training.optimizer": STEPWISE},
    ),
    Case("training.optimizer.schedule.decay", 0.1, 0.2, "weights", {"training.optimizer": STEPWISE}),
    Case("training.augmentation", [], ["flip"], "weights"),
    Case("training.select_by", "accuracy", "last", "weights"),
    Case("training.precision", "float32", "bfloat16", "weights"),
    Case("training.compile", False, True, "nothing"),
    Case("training.num_workers", 1, 2, "nothing"),
    Case("training.resources.workers", None, 1, "nothing"),
    Case("training.resources.num_cpus", 1.0, 2.0, "nothing"),
    Case("training.resources.num_gpus", 0.0, 1.0, "nothing"),
    Case("training.max_failures", 2, 0, "nothing"),
    # stages
    Case("stages.1.name", "mixed", "blended", "nothing"),
    Case("stages.1.data", ["real", "even"], ["even"], "weights"),
    Case("stages.1.mixture.real_share", None, 0.5, "weights"),
    Case("stages.1.mixture.subsample", None, "class", "weights"),
    Case("stages.1.start", None, "scratch", "weights"),
    Case("stages.1.head", "kept", "fresh", "weights"),
    Case("stages.1.objective.loss.name", "cross_entropy", "balanced_softmax", "weights"),
    Case("stages.1.objective.risk.name", "mean", "group_dro", "weights"),
    Case("stages.1.objective.loss.tau", 1.0, 2.0, "weights", loss("logit_adjustment")),
    Case("stages.1.objective.loss.gamma", 2.0, 1.0, "weights", loss("focal")),
    Case("stages.1.objective.loss.q", 0.7, 0.5, "weights", loss("generalized_cross_entropy")),
    Case("stages.1.objective.loss.max_margin", 0.5, 0.4, "weights", loss("ldam")),
    Case("stages.1.objective.loss.margin", 0.5, 0.4, "weights", COSINE | loss("arcface")),
    Case("stages.1.objective.loss.concentration", 0.333, 0.5, "weights", COSINE | loss("adaface")),
    Case("stages.1.objective.loss.scale", 30.0, 20.0, "weights", loss("ldam")),
    Case("stages.1.objective.risk.step_size", 0.01, 0.1, "weights", stage(objective={"risk": {"name": "group_dro"}})),
    Case("stages.1.objective.risk.adjustment", 0.0, 1.0, "weights", stage(objective={"risk": {"name": "group_dro"}})),
    Case("stages.1.objective.risk.worst_share", 0.2, 0.5, "weights", stage(objective={"risk": {"name": "cvar_dro"}})),
    Case("stages.1.sampling", "uniform", "class_balanced", "weights"),
    Case(
        "stages.2.reference",
        "real",
        "mixed",
        "weights",
        {"stages": [REAL, MIXED, {"name": "last", "data": ["real"], "sampling": "errors", "reference": "real"}]},
    ),
    Case("stages.1.upweight", 20.0, 5.0, "weights", REFERENCE),
    Case("stages.1.groups", "cell", "cell_source", "weights"),
    Case("stages.1.trainable.name", "all", "last_layer", "weights"),
    Case("stages.1.trainable.blocks", ["layer1"], ["layer2"], "weights", trainable("blocks", blocks=["layer1"])),
    Case("stages.1.trainable.share", 0.5, 0.6, "weights", trainable("random", share=0.5)),
    Case("stages.1.trainable.rank", 4, 2, "weights", trainable("lora")),
    Case("stages.1.trainable.alpha", 8.0, 4.0, "weights", trainable("lora")),
    Case("stages.1.trainable.top_k", 3, 4, "weights", SELECTIVE),
    Case("stages.1.trainable.similar", ["real", "biased"], ["real", "even"], "weights", SELECTIVE),
    Case("stages.1.trainable.different", ["biased", "balanced"], ["biased", "even"], "weights", SELECTIVE),
    Case("stages.1.trainable.distance", "absolute", "cosine", "weights", SELECTIVE),
    Case("stages.1.augmentation", None, ["flip"], "weights"),
    Case("stages.1.mix.name", "mixup", "cutmix", "weights", stage(mix={})),
    Case("stages.1.mix.alpha", 1.0, 0.5, "weights", stage(mix={})),
    Case("stages.1.mix.pairs", "any", "real_synthetic", "weights", stage(mix={})),
    Case("stages.1.epochs", None, 3, "weights"),
    Case("stages.1.steps", None, 40, "weights"),
    Case("stages.1.optimizer.name", "adam", "sgd", "weights", stage(optimizer={})),
    Case("stages.1.optimizer.lr", 1e-3, 1e-4, "weights", stage(optimizer={})),
    Case("stages.1.optimizer.weight_decay", 0.0, 0.1, "weights", stage(optimizer={})),
    Case("stages.1.optimizer.momentum", 0.9, 0.5, "weights", stage(optimizer={"name": "sgd"})),
    Case("stages.1.optimizer.schedule.name", "constant", "cosine", "weights", stage(optimizer={})),
    Case("stages.1.optimizer.schedule.milestones", [1], [2], "weights", stage(optimizer=STEPWISE)),
    Case("stages.1.optimizer.schedule.decay", 0.1, 0.2, "weights", stage(optimizer=STEPWISE)),
    Case("stages.1.batch_norm", "train", "frozen", "weights"),
    Case("stages.1.select_by", None, "last", "weights"),
    Case("stages.2.dfr.strengths", [1.0], [0.1], "weights", DFR),
    Case("stages.2.dfr.refits", 20, 5, "weights", DFR),
    Case("stages.2.dfr.normalize", False, True, "weights", DFR),
]

# Keys in other surroundings, where more or less follows from them
ROUNDS = {"feedback": GUIDED["feedback"] | {"rounds": 2}}
ALONE = {
    "stages": [REAL, {"name": "apart", "data": ["even"], "start": "scratch", "epochs": 2}, MIXED | {"start": "real"}]
}
ELSEWHERE = [
    Case("seed", 0, 1, "weights", GUIDED),
    Case("stages.0.objective.loss.name", "cross_entropy", "balanced_softmax", "pixels", GUIDED),
    Case("stages.1.objective.loss.name", "cross_entropy", "balanced_softmax", "weights", GUIDED),
    Case("training.batch_size", 8, 4, "pixels", GUIDED),
    Case("training.image_size", 16, 32, "pixels", FILE),
    Case("training.batch_size", 8, 4, "weights", FILE),
    Case("selection.grey", None, 40.0, "selection", ROUNDS),
    Case("stages.1.objective.loss.name", "cross_entropy", "balanced_softmax", "rounds", ROUNDS),
    Case("training.epochs", 1, 3, "weights", ALONE),
    Case("stages.0.batch_norm", "train", "frozen", "weights", ALONE),
    Case("stages.1.batch_norm", "train", "frozen", "weights", ALONE),
    Case("plans.biased.rate", 0.75, 0.9, "selection", SELECTIVE),
    Case("generator.guidance_scale", 7.5, 1.0, "pixels", BIASED),
]

# Keys that all methods of a file share: held against each other in files of their own
SHARED = [
    Case("name", "together", "renamed", "nothing"),
    Case("store", "{store}/one", "{store}/other", "nothing"),
    Case("tracking.experiment", None, "other", "nothing"),
    Case("data.max_quarantined", 0.01, 0.5, "nothing"),
    Case("evaluation.bootstrap", 10, 20, "metrics"),
    Case("evaluation.many", 100, 50, "metrics"),
    Case("data.imbalance.rate", 0.75, 0.9, "selection"),
    Case(
        "data.per_cell",
        {"train": 12, "validation": 4, "test": 4},
        {"train": 16, "validation": 4, "test": 4},
        "selection",
    ),
    Case("data.classes", ["circle", "ring"], ["circle", "star"], "pixels"),
    Case("data.groups", ["red", "blue"], ["red", "white"], "pixels"),
    Case("data.imbalance.rate", 0.75, 0.9, "pixels", GUIDED),
    Case("data.imbalance.rate", 0.75, 0.9, "pixels", SEEN),
]


# -- every key ---------------------------------------------------------------------------------------------------------


def members(annotation):
    """What an annotation may stand for, and the pattern's part between a container and its content."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [found for part in typing.get_args(annotation) for found in members(part)]
    if origin is typing.Annotated:
        return members(typing.get_args(annotation)[0])
    if origin in (list, dict):
        return [("*.", kind) for _, kind in members(typing.get_args(annotation)[-1])]
    return [("", annotation)]


def leaves(model, prefix=""):
    """The key paths below a section, with ``*`` for a stage's number and a plan's name."""
    for name, field in model.model_fields.items():
        sections = [
            (part, m) for part, m in members(field.annotation) if isinstance(m, type) and issubclass(m, BaseModel)
        ]
        if not sections:
            yield prefix + name
        for part, section in sections:
            yield from leaves(section, f"{prefix}{name}.{part}")


def pattern(path):
    """The leaf that a case's path stands for."""
    parts = path.split(".")
    if parts[0] in ("plans", "stages"):
        parts[1] = "*"
    return ".".join(parts)


def test_every_key_that_a_method_may_set_has_a_case():
    own = {leaf for leaf in leaves(Experiment) if leaf.split(".")[0] not in {*compose._SHARED, *AXES}}
    assert own == {pattern(case.path) for case in CASES}
    assert len(own) > 140


def test_no_key_is_forgotten_where_keys_say_what_they_decide():
    assert {leaf.path for leaf in identity.leaves()} == set(leaves(Experiment))


@pytest.mark.parametrize("case", CASES, ids=[case.path for case in CASES])
def test_keys_decide_what_they_say(case):
    said = identity.decisions()[pattern(case.path)]
    if case.decides in ("nothing", "refused"):
        resolved = {leaf.path for leaf in identity.leaves() if leaf.resolved}
        assert set(said) <= {"place", "runtime"} or pattern(case.path) in resolved
    else:
        assert {"rounds": "pixels"}.get(case.decides, case.decides) in said


# -- a case ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def there(tiny_models, tmp_path_factory):
    """Models, files and servers that cases name."""
    from safetensors.torch import save_file

    import tiny
    from counterpoise.config import Training
    from counterpoise.training.models import build_model
    from tiny_families import save, save_adapter

    folder = tmp_path_factory.mktemp("there")
    tiny.make_diffusion(folder / "diffusion", seed=1)
    tiny.make_clip(folder / "clip", seed=1)
    save("unclip", folder / "unclip")
    adapters = [save_adapter("sd-epsilon", folder / name) for name in ("adapter", "adapter2")]
    for adapter in adapters:
        (adapter / "other.safetensors").write_bytes((adapter / "adapter.safetensors").read_bytes() + b" ")
        (adapter / "other_encoder").mkdir()
        for file in (adapter / "image_encoder").iterdir():
            (adapter / "other_encoder" / file.name).write_bytes(file.read_bytes() + b" ")
    with (adapters[1] / "adapter.safetensors").open("ab") as file:
        file.write(b" ")
    for number in (0, 1):
        model = build_model(Training(image_size=16), 2, seed=number)
        save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / f"weights{number}.safetensors")
    (folder / "decoder").mkdir()
    (folder / "decoder" / "config.json").write_text("{}")
    (folder / "local").mkdir()
    (folder / "local" / "config.json").write_text("{}")
    rows = [f"- {{label: {c}, group: {g}, prompt: one {g} {c}}}" for c in ("circle", "ring") for g in ("red", "blue")]
    (folder / "prompts.yaml").write_text("\n".join(rows))
    (folder / "filters_of_two_methods.py").write_text(
        "def odd(candidates, settings):\n"
        "    return ['odd' if row['index'] % 2 else None for row in candidates.rows.to_pylist()]\n"
    )
    servers = [Server(obedient), Server(lambda payload, number: obedient(payload, number + 1000))]  # never the same
    yield {
        "folder": str(folder),
        "diffusion": str(tiny_models / "diffusion"),
        "second diffusion": str(folder / "diffusion"),
        "clip": str(tiny_models / "clip"),
        "second clip": str(folder / "clip"),
        "unclip": str(folder / "unclip"),
        "adapter": str(adapters[0]),
        "second adapter": str(adapters[1]),
        "weights": str(folder / "weights0.safetensors"),
        "second weights": str(folder / "weights1.safetensors"),
        "decoder": str(folder / "decoder"),
        "local": str(folder / "local"),
        "prompts": str(folder / "prompts.yaml"),
        "saved": str(folder / "saved.yaml"),
        "endpoint": servers[0].url,
        "second": servers[1].url,
    }
    for server in servers:
        server.close()


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One store for all cases, so that the real images are imported once."""
    return str(tmp_path_factory.mktemp("store"))


def scores(label, group, index):
    random = np.random.default_rng([label, group, index])
    return {
        "clip_similarity": float(random.uniform()),
        "clip_label": int(random.integers(2)),
        "clip_group": int(random.integers(2)),
        "embedding": random.normal(size=2).astype(np.float16).tobytes(),
    }


@pytest.fixture(autouse=True)
def filled(monkeypatch, there):
    """Pools are filled at once; every fifth image of a cell is useless."""
    margin = lambda label, group, index: float(np.random.default_rng([index, label, group]).uniform())  # noqa: E731
    filler = Filler(margin, lambda label, group, index: index % 5 == 2, scores)
    monkeypatch.setattr(sampling, "sample", filler)
    monkeypatch.setattr(llm, "_from_ray", written)
    monkeypatch.syspath_prepend(there["folder"])
    monkeypatch.setenv("SOME_KEY", "abc")
    return filler


def written(requests, settings):
    """The answers of a local language model, without the model."""
    for number, request in enumerate(requests):
        words = f"{request.protected} {request.target}"
        yield number, CellPrompts([f"A photo of a {words} no. {n}" for n in range(request.number)], [])


def put(tree, path, value):
    *parents, last = path.split(".")
    for key in parents:
        tree = tree[int(key)] if isinstance(tree, list) else tree.setdefault(key, {})
    tree[int(last) if isinstance(tree, list) else last] = value


def replaced(value, there):
    """The value with what stands in braces, if that is something that is there."""
    if isinstance(value, dict):
        return {key: replaced(one, there) for key, one in value.items()}
    if isinstance(value, list):
        return [replaced(one, there) for one in value]
    return there.get(value[1:-1], value) if isinstance(value, str) and value.startswith("{") else value


def experiment(case, value, method, there, store):
    generator = {"model": "{diffusion}", "num_inference_steps": 3}
    tree = METHOD | {"generator": generator, "scorer": {"model": "{clip}"}, "method": method, "store": store}
    tree = replaced(tree, there)
    for path, shared in case.shared.items():
        put(tree, path, replaced(shared, there))
    put(tree, case.path, replaced(value, there))
    return Experiment.model_validate(tree)


def facts(job, method):
    """All that a method comes to before its own training, which follows from the addresses."""
    (one,) = (task for task in job.method_runs if task.experiment.method == method)
    return {
        "dataset": job.dataset.loaded.view.digest,
        "prompts": job.prompts[method].to_json(),
        "rounds": [
            {
                "pool": found.pool.digest,
                "runtime": found.pool.runtime,
                **taken(found.images.methods[method], found.pool.index),
            }
            for found in job.synthesized.rounds[method]
        ],
        "stages": stages.digests(one.experiment, one.views, one.validation),
        "result": one.key,
        "regime": outcomes.selection_regime(one.experiment, grouped=True),
    }


def taken(images, index):
    return {
        "views": {plan: view.digest for plan, view in images.views.items()},
        "short": [(one.plan[1], one.cell, one.wanted, one.got) for one in images.short],
        "looked into": sorted(index.shard_at(rank) for rank in images.shards.tolist()),
        "quarantined": images.quarantined,
        "rejected": images.rejected,
        "reasons": images.rejects.index["reason"].to_pylist(),
        "purity": images.purity.tolist(),
    }


def run(experiments):
    with Run(experiments, step="plan") as job:  # no look at backbones' weights, which nothing here loads
        return {experiment.method: facts(job, experiment.method) for experiment in experiments}


def differs(one, other):
    """What two methods do not have in common."""
    first, second = one["rounds"][0], other["rounds"][0]
    if first["pool"] != second["pool"]:
        return "pixels"
    images = [{key: value for key, value in found.items() if key != "runtime"} for found in (first, second)]
    if images[0] != images[1]:
        return "selection"
    if [found["pool"] for found in one["rounds"]] != [found["pool"] for found in other["rounds"]]:
        return "rounds"
    return "nothing" if one["stages"] == other["stages"] else "weights"


def changed(one, other, first):
    """What two methods do not have in common, as far as facts tell; ``first`` is the experiment of the one."""
    before, after = one["rounds"][-1]["views"], other["rounds"][-1]["views"]
    digests = zip(first.stages, one["stages"], other["stages"], strict=True)
    return Consequence(
        dataset=one["dataset"] != other["dataset"],
        pool=[found["pool"] for found in one["rounds"]] != [found["pool"] for found in other["rounds"]],
        plans=tuple(plan for plan in before if before[plan] != after[plan]),
        stages=tuple(stage.name for stage, old, new in digests if old != new),
        realism=before != after or one["dataset"] != other["dataset"],
        metrics=one["result"] != other["result"],
    )


@pytest.mark.parametrize("case", [*CASES, *ELSEWHERE], ids=lambda case: case.path)
def test_together_as_alone(case, there, store):
    store = f"{store}/{'llm' if case.shared is LOCAL else 'all'}"
    pair = [experiment(case, value, method, there, store) for method, value in (("a", case.one), ("b", case.other))]
    if case.decides == "refused":
        with pytest.raises(ConfigError, match="share a pool") as caught:
            run(pair)
        assert case.path.startswith(caught.value.where)
        assert consequences(pair[0], case.path) == Consequence()
        return
    together = run(pair)
    for one in pair:
        assert run([one])[one.method] == together[one.method]
    assert run(pair[::-1]) == together
    assert differs(together["a"], together["b"]) == case.decides
    assert (together["a"]["result"] == together["b"]["result"]) == (case.decides == "nothing")
    found = changed(together["a"], together["b"], pair[0])
    (leaf,) = (leaf for leaf in identity.present_leaves(pair[0]) if leaf.path == case.path)
    if found != Consequence() or not leaf.resolved:  # a value may come to the same, as a folder's revision does
        assert found == consequences(pair[0], case.path)


@pytest.mark.parametrize("case", SHARED, ids=lambda case: case.path)
def test_what_follows_from_keys_that_methods_share(case, there, store):
    there = there | {"store": store}
    pair = [
        experiment(case, value.format(**there) if case.path == "store" else value, "alone", there, f"{store}/all")
        for value in (case.one, case.other)
    ]
    one, other = (run([found])["alone"] for found in pair)
    found = changed(one, other, pair[0])
    assert found == consequences(pair[0], case.path)
    metrics_alone = found == Consequence(metrics=True)
    assert ("metrics" if metrics_alone else differs(one, other)) == case.decides


def test_each_method_has_its_own_limit_of_quarantined_images(there, store):
    """A fifth of all images is useless here. The stricter method fails with others as it fails alone."""
    patient, strict = (
        experiment(Case("pool.max_quarantined", None, None, ""), share, method, there, store)
        for method, share in (("patient", 0.5), ("strict", 0.01))
    )
    alone = run([patient])["patient"]
    for methods in ([strict], [patient, strict], [strict, patient]):
        with pytest.raises(SynthesisError, match=r"a share of 0\.01 \(pool\.max_quarantined\)"):
            run(methods)
    assert run([patient])["patient"] == alone
