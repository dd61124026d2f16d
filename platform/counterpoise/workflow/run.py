"""Lazily evaluated runs: audit, plan, synthesize, train, evaluate; each step runs when its result is first read."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any

from counterpoise.config import Experiment
from counterpoise.data import audit as auditing
from counterpoise.storage.view import ImageView
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.prompts.prompt_set import PromptSet
from counterpoise.synthesis.selection.request import Counts, PlanKey, PlanRequest
from counterpoise.synthesis.selection.selected_images import summary
from counterpoise.workflow import planning, synthesis
from counterpoise.workflow.run_log import RunLog
from counterpoise.workflow.session import Session
from counterpoise.workflow.suite import Suite

# torch, diffusers and Ray take seconds to import. Modules that need them are imported where they are used, so that
# audit and plan start at once; tests/test_layers.py checks it.
if TYPE_CHECKING:
    from counterpoise.workflow import outcomes
    from counterpoise.workflow.equal_compute import EqualComputeBaseline


class Run:
    """Lazily evaluated run of a suite. Use as a context manager; an MLflow run is open inside it.

    Every step is a function from values to values that is called once. Artifacts that the store holds are not computed
    again. Reading a result logs nothing: :meth:`log` logs the results computed so far, and so does leaving the context.

    Args:
        experiments: Methods × seeds, such as those of :func:`counterpoise.config.compose.load`.
        command: The command line, for the report.
        step: The command's name.
        with_control: Add plain training for as many gradient steps as the costliest method takes, if any has plans.

    Raises:
        CounterpoiseError: See :class:`counterpoise.workflow.session.Session`.
    """

    def __init__(
        self, experiments: Sequence[Experiment], command: str = "", step: str = "run", with_control: bool = False
    ) -> None:
        self.suite, self.command, self.with_control = Suite.of(experiments), command, with_control
        self.session = Session(self.suite, command, step)
        self.store = self.session.store
        self._log = RunLog()

    def __enter__(self) -> Run:
        self.session.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.log()
        finally:
            self.session.__exit__(kind, error, trace)

    def log(self) -> None:
        """Log the results that were computed since the last call."""
        self._log.update(self.session, vars(self))

    @property
    def run_ids(self) -> list[str | None]:
        """The MLflow run of each result; results not logged before are logged now."""
        assert self.outcomes is not None
        self.log()
        return self._log.run_ids

    @cached_property
    def dataset(self) -> planning.Dataset:
        """The real images."""
        with self.session.timed("load"):
            return planning.load_dataset(self.suite, self.store)

    @cached_property
    def audit(self) -> auditing.Audit:
        """The counts of each cell, and how they may affect a classifier."""
        return auditing.audit(self.dataset.loaded.view, self.suite.shared.evaluation)

    @cached_property
    def wanted(self) -> dict[PlanKey, Counts]:
        """Synthetic images wanted of each cell, by method and plan."""
        return planning.wanted_images(self.suite, self.dataset)

    @cached_property
    def requests(self) -> list[PlanRequest]:
        """The requests of each method's plans to its pool."""
        return planning.plan_requests(self.suite, self.wanted)

    @cached_property
    def factory(self) -> planning.PoolFactory:
        """Pools of experiments on this dataset."""
        return planning.PoolFactory(self.dataset, self.store)

    @cached_property
    def prompts(self) -> dict[str, PromptSet]:
        """The prompts of each method with plans."""
        return {method: self.factory.prompts(experiment) for method, experiment in self.suite.planned.items()}

    @cached_property
    def pools(self) -> dict[str, Pool]:
        """Each method's pool of the first round."""
        return planning.shared_pools(self.suite, self.factory)

    @cached_property
    def plan(self) -> dict[str, Any]:
        """Images wanted, held and left to sample; see :func:`counterpoise.workflow.planning.forecast`."""
        return planning.forecast(self.requests, self.pools, self.prompts)

    @cached_property
    def synthesized(self) -> synthesis.Synthesized:
        """The images of all plans, sampled as needed, in every round of feedback."""
        feedback = {method: one for method, one in self.suite.planned.items() if one.feedback}
        guides = {method: self.factory.guide_training(experiment) for method, experiment in feedback.items()}
        return synthesis.synthesize(self.pools, guides, self.requests, self.factory.pool, self.session.timed)

    @property
    def synthesis(self) -> dict[str, Any]:
        """The totals of sampling over all pools, as a JSON-able value."""
        return summary(self.synthesized.realized)

    def views(self, method: str) -> dict[str, ImageView]:
        """Return the images that a method's stages train on: the real ones, and those of its plans."""
        return {"real": self.dataset.train, **self.synthesized.views(method)}

    @cached_property
    def control(self) -> EqualComputeBaseline | None:
        """The equal-compute control; None if it is not requested or not needed."""
        from counterpoise.workflow import equal_compute

        if not self.with_control:
            return None
        views = {method: self.views(method) | {"validation": self.dataset.validation} for method in self.suite.methods}
        return equal_compute.control(self.suite, views)

    @cached_property
    def entries(self) -> Suite:
        """The suite that is trained: with the control, if there is one."""
        return self.suite if self.control is None else self.suite.with_methods(self.control.experiments)

    @cached_property
    def method_runs(self) -> list[outcomes.MethodRun]:
        """Every method with every seed, and the images that it trains on and is measured on."""
        from counterpoise.workflow import outcomes

        views = {method: self.views(method) for method in self.entries.methods}
        return [
            outcomes.method_run(experiment, views[experiment.method], self.dataset, self.store)
            for experiment in self.entries.experiments
        ]

    @cached_property
    def training(self) -> outcomes.TrainingSummary:
        """The results of training and measuring all methods."""
        from counterpoise.workflow import outcomes

        with self.session.timed("train"):
            return outcomes.run_all(self.method_runs, self.synthesized)

    @property
    def outcomes(self) -> list[outcomes.MethodResult]:
        """The result of each of :attr:`method_runs`."""
        return self.training.outcomes

    @cached_property
    def realism(self) -> list[dict[str, Any]]:
        """FID, density, coverage and domain probe of each method's synthetic images, in all and per class."""
        from counterpoise.workflow import realism

        with self.session.timed("realism"):
            return realism.of_suite(self.suite, self.dataset.train, self.synthesized, self.store, lambda: self.training)
