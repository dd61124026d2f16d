"""Session of a command: its store, its MLflow run, and the seconds of its steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from counterpoise.config import Experiment
from counterpoise.generators.identity import check_pipeline_folder
from counterpoise.scoring.identity import identify_scorer
from counterpoise.storage.uri import open_store
from counterpoise.synthesis.selection import filters
from counterpoise.tracking.mlflow import TrackedRun, Tracker
from counterpoise.training.backbones import check_backbone
from counterpoise.workflow.suite import Suite

UNTRACKED = ("audit", "plan")  # commands that compute nothing: they log no MLflow run and do not import MLflow
_OF_POOLS = ("synthesize", "preview", "export", "verify")  # these train no method
_OF_REALISM = ("run", "report")  # these measure realism


class Session:
    """Store, MLflow run and timings of one command. Use as a context manager; the run is open inside it.

    Args:
        suite: The command's experiments.
        command: The command line, for the report.
        step: The command's name; it names the MLflow run.

    Attributes:
        store: The store of the suite.
        tracked: The MLflow run; exists inside the context.
        seconds: Wall-clock seconds of each step so far.

    Raises:
        CounterpoiseError: The store, the tracking server, a model's path or a backbone's name is wrong. What the
            command needs is checked before any work begins; ``audit`` and ``plan`` need neither training nor tracking.
    """

    tracked: TrackedRun

    def __init__(self, suite: Suite, command: str, step: str) -> None:
        self.suite, self.command, self.step = suite, command, step
        self.store = open_store(suite.shared.store)
        self.seconds: dict[str, float] = {}
        self.store.check()
        for experiment in suite.planned.values():
            _check_models(experiment)
        if step not in UNTRACKED:
            _check_training(suite, step)
        self._tracker = Tracker(_tracked(suite.shared, step), self.store.uri)
        self._tracker.check()

    def __enter__(self) -> Session:
        self._context = self._tracker.run(f"{self.suite.shared.name} {self.step}", {"step": self.step})
        self.tracked = self._context.__enter__()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._context.__exit__(kind, error, trace)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the seconds spent inside to those of a step."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[step] = self.seconds.get(step, 0.0) + time.monotonic() - start


def _tracked(experiment: Experiment, step: str) -> Experiment:
    if step not in UNTRACKED:
        return experiment
    return experiment.model_copy(update={"tracking": experiment.tracking.model_copy(update={"enabled": False})})


def _check_models(experiment: Experiment) -> None:
    if experiment.generator is not None:
        check_pipeline_folder(experiment.generator)
    filters.active_filters(experiment.selection)
    if experiment.scorer:
        identify_scorer(experiment.scorer)


def _check_training(suite: Suite, step: str) -> None:
    """Check the classifiers that the command trains: its methods', and those that guide the sampling of their images.

    Reading results needs no torch, which is imported only for what is checked with it.
    """
    guided = {method: experiment for method, experiment in suite.planned.items() if experiment.feedback}
    for experiment in (guided if step in _OF_POOLS else suite.methods).values():
        check_backbone(experiment.training)
    if guided:
        from counterpoise.synthesis.feedback.criteria import weighted_criterion

        for experiment in guided.values():
            assert experiment.feedback is not None
            weighted_criterion(experiment.feedback.weights)
    if suite.planned and step in _OF_REALISM:
        from counterpoise.workflow import realism

        realism.compared_by(list(suite.planned.values()))
