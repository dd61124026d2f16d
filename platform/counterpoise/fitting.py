"""Methods trained and measured: each experiment's stages, then its numbers on validation and test, several at once.

Fits of one worker run side by side as Ray tasks, as many as the cluster has room for, or in this process if there is
only one to do. A fit of several workers is a Ray Train job of its own, one after the other. What a fit came to is
stored under the digest of all that led to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from counterpoise.config import Experiment
from counterpoise.evaluation import evaluate
from counterpoise.progress import Progress
from counterpoise.store import Store, read
from counterpoise.table import digest
from counterpoise.training import stages
from counterpoise.view import View

_FORMAT = 1


@dataclass(frozen=True)
class Task:
    """An experiment and the images that it trains on and is measured on."""

    experiment: Experiment
    views: Mapping[str, View]
    validation: View
    test: View
    store: Store

    @property
    def key(self) -> str:
        """Where the outcome is stored."""
        experiment = self.experiment
        address = {
            "format": _FORMAT,
            "stages": stages.digests(experiment, self.views, self.validation),
            "seed": experiment.seed,
            "validation": self.validation.digest,
            "test": self.test.digest,
            "training": self.views["real"].digest,
            "evaluation": experiment.evaluation.model_dump(),
        }
        return f"results/{digest(address)}.json"


@dataclass(frozen=True)
class Outcome:
    """What a method came to with one seed.

    Attributes:
        stages: The fitted stages: name, digest, key, epoch, history, seconds.
        validation: ``metrics``, ``intervals`` and ``cells`` on the validation split.
        test: The same on the test split.
        seconds: Of training, when it was done.
        images_sampled: Images of its views that this run sampled, and that no outcome before it had asked for.
        images_reused: The other synthetic images of its views.
    """

    method: str
    seed: int
    stages: list[dict[str, Any]]
    validation: dict[str, Any]
    test: dict[str, Any]
    seconds: float
    images_sampled: int = field(default=0)
    images_reused: int = field(default=0)

    def table_row(self, split: str) -> dict[str, Any]:
        """Method, seed, metrics and cells on a split."""
        measured = getattr(self, split)
        return {"method": self.method, "seed": self.seed, "metrics": measured["metrics"], "cells": measured["cells"]}

    def result_row(self) -> dict[str, Any]:
        """A flat row of results.json."""
        cost = {"images_sampled": self.images_sampled, "images_reused": self.images_reused}
        metrics = self.test["metrics"]
        return {"method": self.method, "seed": self.seed, **metrics, **cost, "seconds": round(self.seconds, 2)}


def run_all(tasks: Sequence[Task], progress: Progress) -> list[Outcome]:
    """The outcomes of all tasks, in their order; those that are stored are read."""
    outcomes: dict[int, Outcome] = {}
    waiting: list[int] = []
    for number, task in enumerate(tasks):
        stored = _stored(task)
        if stored is None:
            waiting.append(number)
        else:
            outcomes[number] = stored
            progress.advance(note=_note(stored))
    together = [n for n in waiting if len(waiting) > 1 and tasks[n].experiment.training.num_workers == 1]
    for number in waiting:
        if number not in together:
            outcomes[number] = _run(tasks[number])
            progress.advance(note=_note(outcomes[number]))
    for number, outcome in _run_together({n: tasks[n] for n in together}):
        outcomes[number] = outcome
        progress.advance(note=_note(outcome))
    return [outcomes[number] for number in range(len(tasks))]


def charge(outcomes: Sequence[Outcome], tasks: Sequence[Task], fresh: set[str]) -> list[Outcome]:
    """Says of each outcome how many of its synthetic images this run sampled for it.

    Args:
        fresh: Keys of the shards that this run committed. Each image is charged once, to the first that asked.
    """
    seen: set[tuple[str, int]] = set()
    charged = []
    for outcome, task in zip(outcomes, tasks, strict=True):
        used = {image for view in task.views.values() for image in _synthetic(view)}
        new = {image for image in used - seen if image[0] in fresh}
        seen |= used
        charged.append(replace(outcome, images_sampled=len(new), images_reused=len(used) - len(new)))
    return charged


def _synthetic(view: View) -> list[tuple[str, int]]:
    chosen = view.index.filter(view.synthetic)
    return list(zip(chosen["key"].to_pylist(), chosen["row"].to_pylist(), strict=True))


def _stored(task: Task) -> Outcome | None:
    return Outcome(**json.loads(read(task.store, task.key))) if task.store.exists(task.key) else None


def _run(task: Task) -> Outcome:
    experiment = task.experiment
    fitted = stages.run(experiment, dict(task.views), task.validation)
    train_counts = task.views["real"].counts
    measured: dict[str, Any] = {}
    for name, view in (("validation", task.validation), ("test", task.test)):
        probabilities = stages.predict(experiment, fitted[-1], view)
        scores = evaluate(
            view.labels, view.groups, probabilities, view.names, train_counts, experiment.evaluation, experiment.seed
        )
        measured[name] = {"metrics": scores.metrics, "intervals": scores.intervals, "cells": scores.cells}
    seconds = sum(stage.seconds for stage in fitted)
    outcome = Outcome(
        experiment.method, experiment.seed, [asdict(stage) for stage in fitted], seconds=seconds, **measured
    )
    task.store.create(task.key, json.dumps(asdict(outcome), indent=1).encode())
    return outcome


def _run_together(tasks: Mapping[int, Task]) -> Iterator[tuple[int, Outcome]]:
    """(number, outcome) of each task as it ends. One that fails ends the others and is raised as it was."""
    if not tasks:
        return
    import ray

    from counterpoise.cluster import connect

    connect()
    remote = ray.remote(max_retries=2)(_run)
    running = {}
    for number, task in tasks.items():
        resources = task.experiment.training.resources
        reference = remote.options(num_cpus=resources.num_cpus, num_gpus=resources.num_gpus).remote(task)
        running[reference] = number
    try:
        while running:
            (done, *_), _ = ray.wait(list(running), num_returns=1)
            yield running.pop(done), ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _note(outcome: Outcome) -> str:
    return f"{outcome.method} seed {outcome.seed}: worst group {outcome.test['metrics']['worst_group_accuracy']:.1%}"
