"""Training and measurement of methods: a graph in which each stage is fitted once, then metrics on validation and test.

Methods with the same first stages share these fits, also when they are trained at the same time. The result of a fit
is stored under the digest of all its inputs, and so are the metrics of a method with one seed. What a fit cost is in
its own record, so a method's costs do not depend on who trained its stages first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from counterpoise import config
from counterpoise.config import Experiment
from counterpoise.config.identity import identity
from counterpoise.config.training import GROUP_METRICS
from counterpoise.core.digest import digest
from counterpoise.core.progress import Progress
from counterpoise.evaluation import catalogue
from counterpoise.evaluation.scores import evaluate
from counterpoise.execution import graph
from counterpoise.storage.records import create_record, read_record
from counterpoise.storage.store import Store
from counterpoise.storage.view import ImageView, image_ids
from counterpoise.training import stages
from counterpoise.training.stages import StageFit
from counterpoise.workflow.planning import Dataset
from counterpoise.workflow.synthesis import Synthesized

_FORMAT = 2
_NOTHING = Synthesized({})


@dataclass(frozen=True)
class MethodRun:
    """An experiment and the images that it trains on and is measured on."""

    experiment: Experiment
    views: Mapping[str, ImageView]
    validation: ImageView
    test: ImageView
    store: Store

    @cached_property
    def fits(self) -> list[StageFit]:
        """The fits of its stages, with their addresses."""
        return stages.tasks(self.experiment, self.views, self.validation)

    @cached_property
    def key(self) -> str:
        """Store key of the result."""
        experiment = self.experiment
        address = {
            "format": _FORMAT,
            "stages": [fit.digest for fit in self.fits],
            "seed": experiment.seed,
            "validation": self.validation.digest,
            "test": self.test.digest,
            "training": self.views["real"].digest,
            "evaluation": identity(experiment.evaluation, "metrics"),
        }
        return f"results/{digest(address)}.json"


@dataclass(frozen=True)
class MethodResult:
    """Result of a method with one seed.

    Attributes:
        stages: The fitted stages, as of :class:`counterpoise.training.stages.Fitted`.
        validation: ``metrics``, ``intervals`` and ``cells`` on the validation split.
        test: The same on the test split.
        regime: The validation labels used for model selection; see :func:`selection_regime`.
        synthetic_images: Synthetic images that its stages, or those of its guide classifiers, train on.
        images_drawn: Images that were sampled for these, rejected ones included, by whichever run.
        sampling_seconds: Seconds that one sampler takes for them; None if unknown.
    """

    method: str
    seed: int
    stages: list[dict[str, Any]]
    validation: dict[str, Any]
    test: dict[str, Any]
    regime: str = field(default="")
    synthetic_images: int = field(default=0)
    images_drawn: int = field(default=0)
    sampling_seconds: float | None = field(default=0.0)

    @property
    def seconds(self) -> float:
        """Training time of the stages, measured when they were fitted."""
        return sum(stage["cost"]["seconds"] for stage in self.stages)

    @property
    def device_seconds(self) -> float:
        """The same times the accelerators, or the workers without one, that each stage was fitted on."""
        return sum(stage["cost"]["seconds"] * stage["cost"]["devices"] for stage in self.stages)

    def table_row(self, split: str) -> dict[str, Any]:
        """Return method, seed, metrics and cells on a split."""
        measured = getattr(self, split)
        return {"method": self.method, "seed": self.seed, "metrics": measured["metrics"], "cells": measured["cells"]}

    def result_row(self) -> dict[str, Any]:
        """Return a flat row of results.json."""
        cost = {
            "synthetic_images": self.synthetic_images,
            catalogue.IMAGES_DRAWN.name: self.images_drawn,
            "sampling_seconds": self.sampling_seconds,
        }
        metrics = self.test["metrics"]
        identifiers = {"method": self.method, "seed": self.seed, "regime": self.regime}
        return {**identifiers, **metrics, **cost, "seconds": round(self.seconds, 2)}


@dataclass(frozen=True)
class TrainingSummary:
    """Results of all runs, with counts of fitted and cached stages.

    Attributes:
        outcomes: The results, in the order of the runs.
        fitted: Stages fitted now; a stage that several runs share counts once.
        found: The other stages, which were in the store.
    """

    outcomes: list[MethodResult]
    fitted: int
    found: int


def method_run(experiment: Experiment, views: Mapping[str, ImageView], dataset: Dataset, store: Store) -> MethodRun:
    """Return an experiment with the images that it trains on and, by ``evaluation.test``, is measured on."""
    test = {**dataset.splits, **views}[experiment.evaluation.test]
    return MethodRun(experiment, views, dataset.validation, test, store)


def run_all(tasks: Sequence[MethodRun], synthesized: Synthesized = _NOTHING) -> TrainingSummary:
    """Train and measure all runs; results in the store are read instead.

    Measurements and stages of one worker run in parallel as Ray tasks, or in this process if there is never more than
    one to run. Stages of several workers are Ray Train jobs and run one at a time.
    """
    goals = [_Measurement(task) for task in tasks]
    all_stages = {fit.digest for task in tasks for fit in task.fits}
    todo = graph.needed(goals)
    total = len(all_stages | todo.keys() | {goal.digest for goal in goals})
    with Progress("training", total, "stages and measurements") as progress:
        progress.advance(total - len(todo))
        for node in graph.run(todo):
            progress.advance(note=node.note())
    fitted = len(all_stages & todo.keys())
    outcomes = [_with_costs(_outcome(task), task, synthesized) for task in tasks]
    return TrainingSummary(outcomes, fitted, len(all_stages) - fitted)


def selection_regime(experiment: Experiment, grouped: bool) -> str:
    """Return the validation labels that model selection needs: for the epochs and, with DFR, for the last layer.

    Methods are comparable within a regime: selection by validation groups is an advantage on group metrics.

    Args:
        experiment: The method.
        grouped: True if the dataset has groups; without them the worst "group" is a class.

    Returns:
        ``groups``, ``labels`` (no groups), or ``none``; of several stages, the most that any of them needs.
    """
    chosen_by = {stage.select_by or experiment.training.select_by for stage in experiment.stages}
    if grouped and (chosen_by & set(GROUP_METRICS) or any(stage.dfr for stage in experiment.stages)):
        return "groups"
    return "none" if chosen_by == {"last"} else "labels"


def _with_costs(outcome: MethodResult, task: MethodRun, synthesized: Synthesized) -> MethodResult:
    """Return the result with the synthetic images of its method, of every round of feedback, and their cost."""
    method = task.experiment.method
    rounds = [task.views, *synthesized.earlier(method)]
    ids = image_ids([view.where(source="synthetic") for views in rounds for view in views.values()])
    cost = synthesized.cost(method)
    return replace(
        outcome,
        synthetic_images=len(np.unique(np.concatenate(ids))),
        images_drawn=cost.images,
        sampling_seconds=cost.seconds,
    )


# -- the graph ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measurement:
    """Graph node that measures a method once its stages are fitted: a :class:`counterpoise.execution.graph.Node`."""

    task: MethodRun
    num_workers = 1

    @property
    def parents(self) -> tuple[Any, ...]:
        return tuple(stages.with_gradients(self.task.fits))

    @property
    def digest(self) -> str:
        return self.task.key

    @property
    def resources(self) -> config.ActorResources:
        return self.task.experiment.training.resources

    def note(self) -> str:
        outcome = _outcome(self.task)
        metrics = outcome.test["metrics"]
        by = catalogue.metric(catalogue.judge(metrics), bool(self.task.test.names.groups))
        value = f"{metrics[by.name]:.1%}" if by.name in metrics else "–"
        return f"{outcome.method} seed {outcome.seed}: {by.title} {value}"

    def done(self) -> bool:
        """Return True if the store has the metrics, and all that they rest on: what is lost is made again."""
        return self.task.store.exists(self.task.key) and all(parent.done() for parent in self.parents)

    def run(self) -> None:
        if not self.task.store.exists(self.task.key):
            _measure(self.task)


def _measure(task: MethodRun) -> None:
    experiment = task.experiment
    fitted = [stages.fitted(fit, True) for fit in task.fits]
    train_counts = task.views["real"].counts
    measured: dict[str, Any] = {}
    for name, view in (("validation", task.validation), ("test", task.test)):
        probabilities = stages.predict(experiment, fitted[-1], view)
        scores = evaluate(
            view.labels, view.groups, probabilities, view.names, train_counts, experiment.evaluation, experiment.seed
        )
        measured[name] = {"metrics": scores.metrics, "intervals": scores.intervals, "cells": scores.cells}
    create_record(task.store, task.key, measured)


def _outcome(task: MethodRun) -> MethodResult:
    """Return the stored result under this run's names.

    Methods with the same stages on the same images share a result. The names of the methods and of their stages may
    differ.
    """
    experiment, measured = task.experiment, read_record(task.store, task.key)
    fitted = [asdict(stages.fitted(fit, True)) for fit in task.fits]
    regime = selection_regime(experiment, bool(task.test.names.groups))
    return MethodResult(experiment.method, experiment.seed, fitted, **measured, regime=regime)
