"""The way through the house: audit → plan → synthesize → train → evaluate → report, the steps in order.

A :class:`Job` takes experiments that share a dataset and a store (the methods × seeds of one file) through the
steps. Each step asks for what it needs of the steps before it, and what has an address in the store is not computed
again: a step that finds everything there costs next to nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from counterpoise import record
from counterpoise.config import Experiment
from counterpoise.data import audit as auditing
from counterpoise.data import dataset
from counterpoise.errors import DataError
from counterpoise.store import open_store
from counterpoise.synthesis import filters, select
from counterpoise.synthesis import verify as verifying
from counterpoise.synthesis.address import check_pipeline_folder, identify_scorer
from counterpoise.synthesis.plan import check_held_out, wanted
from counterpoise.synthesis.pool import Pool
from counterpoise.synthesis.resolve import resolve
from counterpoise.table import SPLITS, Names
from counterpoise.tracking import Tracker
from counterpoise.view import View

# torch, diffusers and Ray take seconds to import. What needs them is imported where it is used, so that audit and plan
# answer at once; tests/test_layers.py holds them to it.
if TYPE_CHECKING:
    from counterpoise import fitting, likeness
    from counterpoise.synthesis.feedback import Teacher

Counts = np.ndarray
PlanKey = tuple[str, str]  # method, plan


class Job:
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
        self._check()

    def _check(self) -> None:
        self.store.check()
        for experiment in self.experiments:
            if experiment.plans and experiment.generator:
                check_pipeline_folder(experiment.generator)
                filters.chosen(experiment.selection)
                if experiment.scorer:
                    identify_scorer(experiment.scorer)
            if self.step not in ("audit", "plan"):
                self._check_training(experiment)
        self.tracker = Tracker(self.first, self.store.uri)
        self.tracker.check()

    def _check_training(self, experiment: Experiment) -> None:
        from counterpoise import likeness
        from counterpoise.synthesis.criteria import mixture
        from counterpoise.training.models import check_backbone

        check_backbone(experiment.training)
        if experiment.plans and experiment.generator:
            if experiment.feedback:
                mixture(experiment.feedback.weights)
            likeness.extractor_of(experiment)

    def __enter__(self) -> Job:
        self._context = self.tracker.run(f"{self.first.name} {self.step}", {"step": self.step})
        self.tracked = self._context.__enter__()
        self.tracked.file("config.yaml", record.effective_config(self.experiments))
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
    def names(self) -> Names:
        return self.loaded.view.names

    @cached_property
    def splits(self) -> dict[str, View]:
        return {split: self.loaded.view.where(split=split) for split in SPLITS}

    @property
    def train_view(self) -> View:
        return self.splits["train"]

    # -- audit and plan ------------------------------------------------------------------------------------------------

    @cached_property
    def audited(self) -> auditing.Audit:
        found = auditing.audit(self.loaded.view, self.first.evaluation)
        record.audit(self.tracked, found, self.splits, self.loaded.quarantined)
        return found

    def audit(self) -> auditing.Audit:
        """What the dataset holds."""
        return self.audited

    @cached_property
    def wanted(self) -> dict[PlanKey, Counts]:
        """Synthetic images wanted per cell, for each method's plans."""
        counts = self.train_view.counts
        by_method = {experiment.method: experiment for experiment in self.experiments}
        found = {
            (method, name): wanted(plan, counts, self.names, where=f"plans.{name}")
            for method, experiment in by_method.items()
            for name, plan in experiment.plans.items()
        }
        for experiment in by_method.values():
            check_held_out(experiment, {name: found[experiment.method, name] for name in experiment.plans})
        return found

    @cached_property
    def skipped(self) -> dict[PlanKey, int]:
        """How many of each cell's images a plan leaves to others."""
        return {(one.method, name): plan.skip for one in self.experiments for name, plan in one.plans.items()}

    @cached_property
    def pools(self) -> dict[str, Pool]:
        """Each method's pool, of the first round; methods that ask the same of the generator share one."""
        shared: dict[str, Pool] = {}
        pools = {}
        for experiment in self.experiments:
            if experiment.plans and experiment.method not in pools:
                pool = self.pool_of(experiment)
                pools[experiment.method] = shared.setdefault(pool.digest, pool)
        return pools

    def pool_of(self, experiment: Experiment) -> Pool:
        """The pool of an experiment on this dataset, of the first round of feedback."""
        prompts = resolve(experiment.prompts, self.names, self.store)
        return Pool(experiment, self.names, self.store, prompts, self.train_view, self._first_teacher(experiment))

    def _first_teacher(self, experiment: Experiment) -> Teacher | None:
        """The classifier of the first round of feedback: it has seen real images alone."""
        if experiment.feedback is None:
            return None
        from counterpoise.synthesis import feedback

        if experiment.feedback.stage is None:
            return feedback.of_checkpoint(experiment, self.train_view)
        return feedback.of_stage(experiment, self._real, self.splits["validation"], experiment.feedback.stage)

    @property
    def _real(self) -> dict[str, View]:
        return {"real": self.train_view}

    def _by_pool(self) -> dict[str, tuple[Pool, dict[PlanKey, Counts]]]:
        grouped: dict[str, tuple[Pool, dict[PlanKey, Counts]]] = {}
        for key, counts in self.wanted.items():
            pool = self.pools[key[0]]
            grouped.setdefault(pool.digest, (pool, {}))[1][key] = counts
        return grouped

    def plan(self) -> dict[str, Any]:
        """What each plan wants, what the pools hold, what is left to sample and how long that will take."""
        held, missing, seconds = 0, 0, 0.0
        for pool, plans in self._by_pool().values():
            union = np.maximum.reduce([select.reach(counts, self.skipped[key]) for key, counts in plans.items()])
            here = np.minimum(union, pool.held())
            held, missing = held + int(here.sum()), missing + int((union - here).sum())
            rate = pool.rate()
            seconds = seconds + (union - here).sum() / rate if rate else float("nan")
        planned = {
            "wanted": {f"{method}/{name}": counts.tolist() for (method, name), counts in self.wanted.items()},
            "held": held,
            "to_sample": missing,
            "seconds": None if np.isnan(seconds) else round(seconds, 1),
            "pools": {method: pool.digest for method, pool in self.pools.items()},
            "prompts": {method: pool.prompts.to_json() for method, pool in self.pools.items()},
        }
        record.plan(self.tracked, planned)
        return planned

    # -- synthesis -----------------------------------------------------------------------------------------------------

    @cached_property
    def realized(self) -> dict[str, select.Realized]:
        """The views of all plans, sampled as needed; one entry for each pool, also of earlier rounds of feedback."""
        results: dict[str, select.Realized] = {}
        for digest, (pool, plans) in self._by_pool().items():
            self.teach(pool)
            with self._timed("synthesize"):
                results[digest] = select.realize(pool, plans, self.skipped)
        self.rounds = {method: [pool] for method, pool in self.pools.items()}
        for method, pools in self.rounds.items():
            for _ in range(1, pools[0].experiment.feedback.rounds if pools[0].experiment.feedback else 1):
                pools.append(self._next_round(pools[-1], method, results))
        self.last_pools = {method: pools[-1] for method, pools in self.rounds.items()}
        record.synthesis(self.tracked, select.summary(list(results.values())), self.seconds.get("synthesize", 0.0))
        return results

    def teach(self, pool: Pool, views: Mapping[str, View] | None = None, stage: str | None = None) -> None:
        """Trains the classifier that guides a pool, if one does, and takes the statistics it needs.

        Args:
            pool: Whose teacher is wanted.
            views: What the stages up to it train on; by default real images alone.
            stage: Which one it is; by default ``feedback.stage``.
        """
        if pool.teacher is None or pool.experiment.feedback is None:
            return
        from counterpoise.synthesis import feedback

        stage = stage or pool.experiment.feedback.stage
        with self._timed("teach"):
            if stage is not None:
                feedback.teach(pool.experiment, views or self._real, self.splits["validation"], stage)
            pool.teacher.compute_statistics(self.train_view)

    def _next_round(self, before: Pool, method: str, results: dict[str, select.Realized]) -> Pool:
        """Trains on the images of one round and samples those of the next, guided by what was trained."""
        from counterpoise.synthesis import feedback

        experiment, validation = before.experiment, self.splits["validation"]
        plans = {key: counts for key, counts in self.wanted.items() if key[0] == method}
        views = self._real | {name: results[before.digest].views[method, name] for _, name in plans}
        last = experiment.stages[-1].name
        teacher = feedback.of_stage(experiment, views, validation, last)
        pool = Pool(experiment, self.names, self.store, before.prompts, self.train_view, teacher)
        self.teach(pool, views, last)
        with self._timed("synthesize"):
            results[pool.digest] = select.realize(pool, plans, self.skipped)
        return pool

    def synthesize(self) -> dict[str, Any]:
        """Fills the pools until every plan is met or its bound is reached."""
        return select.summary(list(self.realized.values()))

    def verify(self, regenerate: int) -> dict[str, Any]:
        """What is wrong with the pools' shards, and whether that many images of each pool come out again."""
        pools = {pool.digest: pool for pool in self.pools.values()}.values()
        found = verifying.summary([verifying.verify(pool, regenerate, self.first.seed) for pool in pools])
        self.tracked.json("verify.json", found)
        return found

    # -- realism -------------------------------------------------------------------------------------------------------

    @cached_property
    def likenesses(self) -> list[dict[str, Any]]:
        """How like the real training images each method's synthetic ones are; see :func:`likeness.measure`."""
        from counterpoise import likeness

        kind = likeness.extractor_of(self.first) if self.wanted else "none"
        if kind == "none":
            return []
        results, made = self.realized, dict[str, list[View]]()
        for method, name in self.wanted:
            made.setdefault(method, []).append(results[self.last_pools[method].digest].views[method, name])
        judge = self._judge() if kind == "model" else None
        scorers = {method: pool.generation["scorer"] for method, pool in self.last_pools.items()}
        with self._timed("realism"):
            measured = likeness.measure(self.first, self.train_view, made, self.store, judge, scorers)
        record.realism(self.tracked, measured, self.seconds["realism"])
        return measured

    def _judge(self) -> likeness.Judge:
        """The first classifier that saw no synthetic images; the first of all if there is none."""
        from counterpoise import likeness
        from counterpoise.training import stages

        number = next((n for n, experiment in enumerate(self.experiments) if not experiment.plans), 0)
        return likeness.Judge(self.experiments[number], stages.Fitted(**self.outcomes[number].stages[-1]))

    def realism(self) -> list[dict[str, Any]]:
        """FID, density, coverage and domain probe of each method's synthetic images, in all and per class."""
        return self.likenesses

    # -- training and evaluation ---------------------------------------------------------------------------------------

    def views_of(self, experiment: Experiment) -> dict[str, View]:
        """What an experiment's stages train on: the real images, and those of its plans."""
        results, views = self.realized, dict(self._real)
        for name in experiment.plans:
            views[name] = results[self.last_pools[experiment.method].digest].views[experiment.method, name]
        return views

    def join(self, experiments: Sequence[Experiment]) -> None:
        """More experiments, of a method without plans. Before anything is trained."""
        self.experiments += experiments
        self.tracked.file("config.yaml", record.effective_config(self.experiments))

    def _task(self, experiment: Experiment) -> fitting.Task:
        from counterpoise import fitting

        views, splits = self.views_of(experiment), self.splits
        return fitting.Task(
            experiment, views, splits["validation"], (splits | views)[experiment.evaluation.test], self.store
        )

    @cached_property
    def tasks(self) -> list[fitting.Task]:
        return [self._task(experiment) for experiment in self.experiments]

    def _with_earlier_rounds(self, task: fitting.Task) -> fitting.Task:
        """The task with the images of earlier rounds of feedback as well, which were sampled for it, too."""
        experiment, views = task.experiment, dict(task.views)
        for number, pool in enumerate(self.rounds.get(experiment.method, [])[:-1], start=1):
            made = self.realized[pool.digest].views
            views |= {f"{name} of round {number}": made[experiment.method, name] for name in experiment.plans}
        return replace(task, views=views)

    @cached_property
    def outcomes(self) -> list[fitting.Outcome]:
        """Every experiment trained and measured."""
        from counterpoise import fitting

        tasks = self.tasks
        with self._timed("train"):
            done = fitting.run_all(tasks)
        self.stages = {"fitted": done.fitted, "found": done.found}
        fresh = {key for result in self.realized.values() for key in result.fresh}
        outcomes = fitting.charge(done.outcomes, [self._with_earlier_rounds(task) for task in tasks], fresh)
        with self._timed("track"):
            self.runs = [
                record.outcome(self.tracked, outcome, task) for outcome, task in zip(outcomes, tasks, strict=True)
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
