"""The way through the house: audit → plan → synthesize → train → evaluate → report, the steps in order.

A :class:`Run` takes experiments that share a dataset and a store (the methods × seeds of one file) through the
steps. Each step asks for what it needs of the steps before it, and what has an address in the store is not computed
again: a step that finds everything there costs next to nothing.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from counterpoise.config import Experiment
from counterpoise.data import audit as auditing
from counterpoise.data import dataset
from counterpoise.errors import DataError
from counterpoise.generators.identity import check_pipeline_folder
from counterpoise.scoring.identity import identify_scorer
from counterpoise.storage.schema import SPLITS, LabelSpace
from counterpoise.storage.uri import open_store
from counterpoise.storage.view import ImageView
from counterpoise.synthesis.pool import verify as verifying
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.prompts.prompt_set import PromptSet
from counterpoise.synthesis.prompts.resolve import resolve
from counterpoise.synthesis.selection import filters, select
from counterpoise.synthesis.selection.request import Counts, PlanKey, PlanRequest
from counterpoise.synthesis.selection.selected_images import summary
from counterpoise.synthesis.selection.strategies import check_held_out, target_counts
from counterpoise.tracking.mlflow import Tracker
from counterpoise.workflow import run_log, synthesis

# torch, diffusers and Ray take seconds to import. What needs them is imported where it is used, so that audit and plan
# answer at once; tests/test_layers.py holds them to it.
if TYPE_CHECKING:
    from counterpoise.synthesis.feedback.classifier import GuideClassifier
    from counterpoise.workflow import outcomes as fitting
    from counterpoise.workflow import realism


class Run:
    """Experiments on their way. A context, inside which an MLflow run is open.

    Args:
        experiments: They share everything but method, plans, stages, seed and what a method may say of prompts,
            generator and training.
        command: What the user typed, for the report.
        step: The step asked for; names the MLflow run.

    Raises:
        CounterpoiseError: The store, the tracking server, a model's path or a backbone's name is wrong. All of these
            are looked at before any work begins; what only training needs, not for ``audit`` and ``plan``.
    """

    def __init__(self, experiments: Sequence[Experiment], command: str = "", step: str = "run") -> None:
        self.experiments, self.command, self.step = list(experiments), command, step
        self.first = self.experiments[0]
        self.store = open_store(self.first.store)
        self.seconds: dict[str, float] = {}
        self._resolved: dict[str, PromptSet] = {}  # by the prompts section
        self._check()

    def _check(self) -> None:
        self.store.check()
        for experiment in self.experiments:
            if experiment.plans and experiment.generator:
                check_pipeline_folder(experiment.generator)
                filters.active_filters(experiment.selection)
                if experiment.scorer:
                    identify_scorer(experiment.scorer)
        if self.step not in ("audit", "plan"):
            self._check_training()
        self.tracker = Tracker(self.first, self.store.uri)
        self.tracker.check()

    def _check_training(self) -> None:
        from counterpoise.synthesis.feedback.criteria import weighted_criterion
        from counterpoise.training.models import check_backbone
        from counterpoise.workflow import realism

        for experiment in self.experiments:
            check_backbone(experiment.training)
            if experiment.plans and experiment.feedback:
                weighted_criterion(experiment.feedback.weights)
        if self._planned:
            realism.compared_by(list(self._planned.values()))

    def __enter__(self) -> Run:
        self._context = self.tracker.run(f"{self.first.name} {self.step}", {"step": self.step})
        self.tracked = self._context.__enter__()
        self.tracked.file("config.yaml", run_log.effective_config(self.experiments))
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._context.__exit__(kind, error, trace)

    # -- the dataset ---------------------------------------------------------------------------------------------------

    @cached_property
    def loaded(self) -> dataset.Loaded:
        with self._timed("load"):
            loaded = dataset.load(self.first.data, self.store)
        for split in SPLITS:
            if not len(loaded.view.where(split=split)):
                remedy = "give data.splits, or a dataset that has this split"
                raise DataError(f"the {split} split is empty", where="data", found="0 images", remedy=remedy)
        return loaded

    @property
    def names(self) -> LabelSpace:
        return self.loaded.view.names

    @cached_property
    def splits(self) -> dict[str, ImageView]:
        return {split: self.loaded.view.where(split=split) for split in SPLITS}

    @property
    def train_view(self) -> ImageView:
        return self.splits["train"]

    # -- audit and plan ------------------------------------------------------------------------------------------------

    @cached_property
    def audited(self) -> auditing.Audit:
        found = auditing.audit(self.loaded.view, self.first.evaluation)
        run_log.audit(self.tracked, found, self.splits, self.loaded.quarantined)
        return found

    def audit(self) -> auditing.Audit:
        """What the dataset holds."""
        return self.audited

    @property
    def methods(self) -> dict[str, Experiment]:
        """Each method's experiment of the first seed."""
        return {experiment.method: experiment for experiment in reversed(self.experiments)}

    @cached_property
    def wanted(self) -> dict[PlanKey, Counts]:
        """Synthetic images wanted per cell, for each method's plans."""
        counts, methods = self.train_view.counts, self._planned
        found = {
            (method, name): target_counts(plan, counts, self.names, where=f"plans.{name}")
            for method, experiment in methods.items()
            for name, plan in experiment.plans.items()
        }
        for method, experiment in methods.items():
            check_held_out(experiment, {name: found[method, name] for name in experiment.plans})
        return found

    @cached_property
    def requests(self) -> list[PlanRequest]:
        """The requests of each method's plans to its pool."""
        return [
            PlanRequest(method, name, counts, one.plans[name].skip, one.selection, one.pool.max_quarantined)
            for (method, name), counts in self.wanted.items()
            for one in [self._planned[method]]
        ]

    @cached_property
    def _planned(self) -> dict[str, Experiment]:
        """The methods with plans, in order."""
        order = dict.fromkeys(experiment.method for experiment in self.experiments)
        return {method: self.methods[method] for method in order if self.methods[method].plans}

    @cached_property
    def prompts(self) -> dict[str, PromptSet]:
        """The prompts of each method with plans."""
        return {method: self.prompts_of(experiment) for method, experiment in self._planned.items()}

    @cached_property
    def pools(self) -> dict[str, Pool]:
        """Each method's pool, of the first round; methods that ask the same of the generator share one."""
        pools = {method: self.pool_of(experiment) for method, experiment in self._planned.items()}
        return {method: pool for pool, methods in synthesis.sharing(pools) for method in methods}

    def prompts_of(self, experiment: Experiment) -> PromptSet:
        """Resolve an experiment's prompts, once for each prompts section."""
        section = experiment.prompts.model_dump_json()
        if section not in self._resolved:
            self._resolved[section] = resolve(experiment.prompts, self.names, self.store)
        return self._resolved[section]

    def pool_of(self, experiment: Experiment, teacher: GuideClassifier | None = None) -> Pool:
        """The pool of an experiment on this dataset, of the first round of feedback unless a teacher is given."""
        if teacher is None and experiment.feedback is not None:
            teacher = self._lesson(experiment).teacher()
        return Pool.of(experiment, self.names, self.store, self.prompts_of(experiment), self.train_view, teacher)

    def _lesson(self, experiment: Experiment) -> synthesis.GuideTraining:
        """The training of the classifier of the first round of feedback, on real images alone."""
        assert experiment.feedback is not None
        return synthesis.GuideTraining(experiment, self._real, self.splits["validation"], experiment.feedback.stage)

    @property
    def _real(self) -> dict[str, ImageView]:
        return {"real": self.train_view}

    def plan(self) -> dict[str, Any]:
        """What each plan wants, what the pools hold, what is left to sample and how long that will take."""
        held, missing, seconds = 0, 0, 0.0
        for pool, methods in synthesis.sharing(self.pools):
            here, lacking = select.forecast(pool, [one for one in self.requests if one.method in methods])
            held, missing = held + int(here.sum()), missing + int(lacking.sum())
            rate = pool.rate()
            seconds = seconds + lacking.sum() / rate if rate else float("nan")
        planned = {
            "wanted": {f"{method}/{name}": counts.tolist() for (method, name), counts in self.wanted.items()},
            "held": held,
            "to_sample": missing,
            "seconds": None if np.isnan(seconds) else round(seconds, 1),
            "pools": {method: pool.digest for method, pool in self.pools.items()},
            "prompts": {method: prompts.to_json() for method, prompts in self.prompts.items()},
        }
        run_log.plan(self.tracked, planned)
        return planned

    # -- synthesis -----------------------------------------------------------------------------------------------------

    @cached_property
    def synthesized(self) -> synthesis.Synthesized:
        """The images of all plans, sampled as needed, in every round of feedback."""
        lessons = {method: self._lesson(one) for method, one in self._planned.items() if one.feedback}
        made = synthesis.synthesize(self.pools, lessons, self.requests, self.pool_of, self._timed)
        run_log.synthesis(self.tracked, summary(made.realized), self.seconds.get("synthesize", 0.0))
        return made

    def teach(self, pool: Pool, experiment: Experiment) -> None:
        """Trains the classifier that guides an experiment's pool, if one does, and takes the statistics it needs."""
        if pool.teacher is not None:
            with self._timed("teach"):
                self._lesson(experiment).teach(pool.teacher)

    def synthesize(self) -> dict[str, Any]:
        """Fills the pools until every plan is met or its bound is reached."""
        return summary(self.synthesized.realized)

    def verify(self, regenerate: int) -> dict[str, Any]:
        """What is wrong with the pools' shards, and whether that many images of each pool come out again."""
        pools = [pool for pool, _ in synthesis.sharing(self.pools)]
        found = verifying.summary([verifying.verify(pool, regenerate, self.first.seed) for pool in pools])
        self.tracked.json("verify.json", found)
        return found

    # -- realism -------------------------------------------------------------------------------------------------------

    @cached_property
    def likenesses(self) -> list[dict[str, Any]]:
        """How like the real training images each method's synthetic ones are; see :func:`realism.measure`."""
        from counterpoise.workflow import realism

        if not self._planned:
            return []
        compared_by = realism.compared_by(list(self._planned.values()))
        kind = realism.resolve_extractor(compared_by)
        if kind == "none":
            return []
        made = {method: list(self.synthesized.views(method).values()) for method in self._planned}
        judge = self._judge() if kind == "model" else None
        scorers = {method: self.synthesized.pool(method).generation["scorer"] for method in made}
        with self._timed("realism"):
            measured = realism.measure(compared_by, self.train_view, made, self.store, judge, scorers)
        run_log.realism(self.tracked, measured, self.seconds["realism"])
        return measured

    def _judge(self) -> realism.FeatureClassifier:
        """The first classifier that saw no synthetic images; the first of all if there is none."""
        from counterpoise.training import stages
        from counterpoise.workflow import realism

        number = next((n for n, experiment in enumerate(self.experiments) if not experiment.plans), 0)
        return realism.FeatureClassifier(self.experiments[number], stages.Fitted(**self.outcomes[number].stages[-1]))

    def realism(self) -> list[dict[str, Any]]:
        """FID, density, coverage and domain probe of each method's synthetic images, in all and per class."""
        return self.likenesses

    # -- training and evaluation ---------------------------------------------------------------------------------------

    def views_of(self, experiment: Experiment) -> dict[str, ImageView]:
        """What an experiment's stages train on: the real images, and those of its plans."""
        return {**self._real, **self.synthesized.views(experiment.method)}

    def join(self, experiments: Sequence[Experiment]) -> None:
        """More experiments, of a method without plans. Before anything is trained."""
        self.experiments += experiments
        self.tracked.file("config.yaml", run_log.effective_config(self.experiments))

    def _task(self, experiment: Experiment) -> fitting.MethodRun:
        from counterpoise.workflow import outcomes as fitting

        views, splits = self.views_of(experiment), self.splits
        return fitting.MethodRun(
            experiment, views, splits["validation"], (splits | views)[experiment.evaluation.test], self.store
        )

    @cached_property
    def tasks(self) -> list[fitting.MethodRun]:
        return [self._task(experiment) for experiment in self.experiments]

    def _with_earlier_rounds(self, task: fitting.MethodRun) -> fitting.MethodRun:
        """The task with the images of earlier rounds of feedback as well, which were sampled for it, too."""
        views = dict(task.views)
        for number, made in enumerate(self.synthesized.earlier(task.experiment.method), start=1):
            views |= {f"{name} of round {number}": view for name, view in made.items()}
        return replace(task, views=views)

    @cached_property
    def outcomes(self) -> list[fitting.MethodResult]:
        """Every experiment trained and measured."""
        from counterpoise.workflow import outcomes as fitting

        tasks = self.tasks
        with self._timed("train"):
            done = fitting.run_all(tasks)
        self.stages = {"fitted": done.fitted, "found": done.found}
        with_rounds = [self._with_earlier_rounds(task) for task in tasks]
        outcomes = fitting.attribute_samples(done.outcomes, with_rounds, self.synthesized.fresh)
        with self._timed("track"):
            self.runs = [
                run_log.outcome(self.tracked, outcome, task) for outcome, task in zip(outcomes, tasks, strict=True)
            ]
        return outcomes

    def train(self) -> dict[str, Any]:
        """Stages trained; metrics on the validation split."""
        return self._table("validation")

    def evaluate(self) -> dict[str, Any]:
        """Metrics on the test split."""
        return self._table("test")

    def _table(self, split: str) -> dict[str, Any]:
        rows = [outcome.table_row(split) for outcome in self.outcomes]
        rows = [{**row, "run_id": run} for row, run in zip(rows, self.runs, strict=True)]
        last = {key: rows[-1][key] for key in ("method", "seed", "metrics", "cells")}
        return {"run_id": self.tracked.id, **last, "rows": rows, "stages": self.stages}

    def _timed(self, step: str) -> _Timed:
        return _Timed(self.seconds, step)


class _Timed:
    """Adds the seconds spent inside to an account."""

    def __init__(self, account: dict[str, float], step: str) -> None:
        self.account, self.step = account, step

    def __enter__(self) -> None:
        self.start = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self.account[self.step] = self.account.get(self.step, 0.0) + time.monotonic() - self.start
