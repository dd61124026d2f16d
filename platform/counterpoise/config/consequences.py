"""Consequences of changing a key: the artifacts that are recomputed, and those that are reused from the store.

They follow from the decisions of each key (:mod:`counterpoise.config.identity`) and from the structure of the
experiment: the plans that each stage trains on, the stage that each continues from, and the classifier that guides the
generator. No data is read, so a consequence is an upper bound: two values that resolve to the same thing, such as two
paths of one model, share all artifacts. Another ``store`` changes no address, but it may lack artifacts of this one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from counterpoise.config.experiment import Experiment
from counterpoise.config.identity import Leaf, present_leaves
from counterpoise.config.training import Stage
from counterpoise.errors import ConfigError, did_you_mean

_RESULTS = {"source", "pixels", "selection", "weights", "metrics"}


@dataclass(frozen=True)
class Consequence:
    """Artifacts that changing a key recomputes.

    Attributes:
        dataset: The real images change.
        pool: The synthetic images come from another pool, which is sampled for each value.
        plans: The plans that select again. In a pool that stays, only missing images are sampled.
        stages: The stages that are trained, in order.
        realism: The realism of the synthetic images is measured.
        metrics: The classifier is measured.
    """

    dataset: bool = False
    pool: bool = False
    plans: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    realism: bool = False
    metrics: bool = False

    @property
    def selection(self) -> bool:
        """True if images are selected again."""
        return bool(self.plans)


def consequences(experiment: Experiment, path: str) -> Consequence:
    """Return the artifacts that another value at a key path recomputes.

    Args:
        experiment: The experiment before the change.
        path: A key, or a section for the union over its keys. A stage is given by its number or its name.

    Raises:
        ConfigError: The experiment has no such key.
    """
    keys = path.split(".")
    numbers = {stage.name: str(number) for number, stage in enumerate(experiment.stages)}
    if keys[0] == "stages" and len(keys) > 1:
        keys[1] = numbers.get(keys[1], keys[1])
    leaves = list(present_leaves(experiment))
    changed = [leaf for leaf in leaves if _is_within(leaf.path.split("."), keys)]
    if not changed:
        remedy = did_you_mean(path, [leaf.path for leaf in leaves])
        raise ConfigError("the experiment has no such key", where=path, remedy=remedy)
    return _spread(experiment, changed)


def describe(experiment: Experiment, consequence: Consequence) -> str:
    """Return a consequence in words; ``nothing`` if there is none."""
    plans, stages = consequence.plans, consequence.stages
    parts = ["loads the dataset again"] if consequence.dataset else []
    if consequence.pool:
        parts.append("samples a pool for each value")
    elif plans:
        which = "" if set(plans) == set(experiment.plans) else f" for {', '.join(plans)}"
        parts.append(f"selects again{which}, samples only what is missing")
    if stages:
        parts.append(f"trains {_in_words(stages, [stage.name for stage in experiment.stages])}")
    measured = (["the classifier"] if consequence.metrics else []) + (["realism"] if consequence.realism else [])
    if measured:
        parts.append(f"measures {' and '.join(measured)}")
    return "; ".join(parts) or "nothing"


def explain(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """Return the consequence of each key of the experiment, as JSON-able values, with ``text`` in words.

    A section that is null or empty stands for its keys.
    """
    explained = {}
    for leaf in present_leaves(experiment):
        consequence = _spread(experiment, [leaf])
        explained[leaf.path] = {
            "decides": leaf.decides,
            **asdict(consequence),
            "text": describe(experiment, consequence),
        }
    return explained


# -- from keys to dependent artifacts ----------------------------------------------------------------------------------


def _in_words(stages: Sequence[str], all_stages: Sequence[str]) -> str:
    if len(stages) == len(all_stages):
        return "all stages" if len(stages) > 1 else "its only stage"
    return "only the last stage" if list(stages) == [all_stages[-1]] else f"the stages {', '.join(stages)}"


def _is_within(leaf: list[str], keys: list[str]) -> bool:
    """Return whether a leaf is at a key path, below it, or above it (the path leads into a value or a null section)."""
    length = min(len(leaf), len(keys))
    return leaf[:length] == keys[:length]


def _spread(experiment: Experiment, changed: Iterable[Leaf]) -> Consequence:
    """Return the consequence of changing these keys."""
    leaves = [leaf for leaf in changed if _RESULTS & set(leaf.decides)]
    decided = {decision for leaf in leaves for decision in leaf.decides}
    dataset = "source" in decided
    plans = {name for leaf in leaves for name in _plans(experiment, leaf)} | set(experiment.plans if dataset else ())
    direct = {name for leaf in leaves for name in _stages(experiment, leaf)}
    if dataset:
        direct |= {stage.name for stage in experiment.stages}  # epochs are chosen on the validation images
    stages = _trained(experiment, direct, plans)
    pool = any(_decides_pool(experiment, leaf) for leaf in leaves)
    if any(leaf.path != "seed" for leaf in leaves):  # the guide classifier has a seed of its own
        pool = pool or bool(stages & _guides(experiment))
    if pool := pool and bool(experiment.plans):
        plans = set(experiment.plans)
        stages = _trained(experiment, direct, plans)
    own = {leaf.path.split(".")[0] for leaf in leaves}
    return Consequence(
        dataset=dataset,
        pool=pool,
        plans=tuple(name for name in experiment.plans if name in plans),
        stages=tuple(stage.name for stage in experiment.stages if stage.name in stages),
        realism=_measures_realism(experiment)
        and bool(dataset or plans or "realism" in own or _compares_features_of(experiment, stages)),
        metrics=bool(stages) or "evaluation" in own or experiment.evaluation.test in plans,
    )


def _decides_pool(experiment: Experiment, leaf: Leaf) -> bool:
    generator, top = experiment.generator, leaf.path.split(".")[0]
    if "source" in leaf.decides:
        conditioned = generator is not None and generator.condition is not None
        return "pixels" in leaf.decides or conditioned or experiment.feedback is not None
    return "pixels" in leaf.decides and (top != "training" or experiment.feedback is not None)


def _plans(experiment: Experiment, leaf: Leaf) -> Iterable[str]:
    """Return the plans that a key belongs to, or that its filters select for."""
    top, *rest = leaf.path.split(".")
    if "selection" not in leaf.decides:
        return ()
    return rest[:1] if top == "plans" else experiment.plans


def _stages(experiment: Experiment, leaf: Leaf) -> Iterable[str]:
    """Return the stages whose own training a key decides."""
    if "weights" not in leaf.decides:
        return ()
    top, *rest = leaf.path.split(".")
    if top == "stages":
        return (experiment.stages[int(rest[0])].name,)
    shared = top == "training" and rest[0] in Stage.model_fields and leaf.resolved
    return (stage.name for stage in experiment.stages if not shared or _leaves_open(stage, rest[0]))


def _leaves_open(stage: Stage, key: str) -> bool:
    """Return whether a stage takes this key from ``training``."""
    if key in ("epochs", "steps"):
        return stage.epochs is None and stage.steps is None and stage.dfr is None
    return getattr(stage, key) is None and (stage.dfr is None or key == "augmentation")


def _trained(experiment: Experiment, direct: set[str], plans: set[str]) -> set[str]:
    """Return these stages, those that use these plans' images, and those that continue from any of them."""
    using = {stage.name for stage in experiment.stages for names in stage.views.values() if plans & set(names)}
    return {name for name, origins in _origins(experiment).items() if origins & (direct | using)}


def _origins(experiment: Experiment) -> dict[str, set[str]]:
    """Return for each stage the stages that it depends on, itself included."""
    origins: dict[str, set[str]] = {}
    for stage in experiment.stages:
        start = stage.start or next(reversed(origins), "scratch")
        before = [origins[name] for name in (start, stage.reference) if name in origins]
        origins[stage.name] = {stage.name}.union(*before)
    return origins


def _guides(experiment: Experiment) -> set[str]:
    """Return the stages that train the classifiers that guide the generator."""
    feedback, origins = experiment.feedback, _origins(experiment)
    if feedback is None or feedback.stage is None:
        return set()
    return origins[feedback.stage] | (origins[experiment.stages[-1].name] if feedback.rounds > 1 else set())


def _measures_realism(experiment: Experiment) -> bool:
    return bool(experiment.plans) and experiment.realism.extractor != "none"


def _compares_features_of(experiment: Experiment, stages: set[str]) -> bool:
    """Return whether realism may be measured on features of one of these stages."""
    extractor = experiment.realism.extractor
    return bool(stages) and (extractor == "model" or (extractor == "auto" and experiment.scorer is None))
