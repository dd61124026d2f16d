"""Logging of results to MLflow: a nested run for every step, and for every fit that no command has logged before."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from counterpoise.config import Experiment
from counterpoise.config.identity import without
from counterpoise.core.digest import digest
from counterpoise.data.audit import Audit
from counterpoise.evaluation import catalogue
from counterpoise.report.content import Report, Results
from counterpoise.scoring.realism import METRICS
from counterpoise.storage.store import Store
from counterpoise.synthesis.selection.selected_images import summary
from counterpoise.tracking.logbook import Logbook
from counterpoise.tracking.mlflow import TrackedRun

if TYPE_CHECKING:  # imported where used, as it needs torch: audit and plan start at once
    from counterpoise.report.leaderboard import Leaderboard
    from counterpoise.workflow.outcomes import MethodResult, MethodRun
    from counterpoise.workflow.planning import Dataset
    from counterpoise.workflow.session import Session

_EXAMPLES = 8  # images that a logged model's signature is taken from


class RunLog:
    """Log of a run's results, each logged once.

    Attributes:
        run_ids: The MLflow run that holds each outcome, this command's or an earlier one's; empty before logging.
    """

    def __init__(self) -> None:
        self.run_ids: list[str | None] = []
        self._logged: set[str] = set()

    def update(self, session: Session, results: Mapping[str, Any]) -> None:
        """Log the results that were not logged before.

        Args:
            session: The MLflow run to log to, and the seconds of each step.
            results: Step -> result, as of :class:`counterpoise.workflow.run.Run`.
        """
        run, seconds = session.tracked, session.seconds
        steps: dict[str, Callable[[Any], None]] = {
            "suite": lambda suite: run.file("config.yaml", suite.to_yaml()),
            "entries": lambda suite: run.file("config.yaml", suite.to_yaml()),
            "audit": lambda counted: audit(run, counted, results["dataset"]),
            "plan": lambda planned: plan(run, planned),
            "synthesized": lambda made: synthesis(run, summary(made.realized), seconds.get("synthesize", 0.0)),
            "realism": lambda measured: realism(run, measured, seconds["realism"]),
            "training": lambda trained: self._fits(session, trained.outcomes, results["method_runs"]),
        }
        for step, log in steps.items():
            if step in results and step not in self._logged:
                self._logged.add(step)
                log(results[step])

    def _fits(self, session: Session, outcomes: Sequence[MethodResult], tasks: Sequence[MethodRun]) -> None:
        with session.timed("track"):
            self.run_ids = fits(session.tracked, outcomes, tasks, session.store)


def audit(parent: TrackedRun, counted: Audit, dataset: Dataset) -> None:
    """Log the counts per cell, and the splits as inputs."""
    with parent.child("audit", {"step": "audit"}) as run:
        numbers = {"imbalance_factor": counted.imbalance_factor, "cramers_v": counted.cramers_v}
        run.metrics({**numbers, "quarantined": dataset.loaded.quarantined, "empty_cells": len(counted.empty_cells)})
        run.json("audit.json", counted.to_json())
        for split, view in dataset.splits.items():
            run.dataset(split, view, split)


def plan(parent: TrackedRun, planned: Mapping[str, Any]) -> None:
    """Log the images wanted, held and left to sample."""
    with parent.child("plan", {"step": "plan"}) as run:
        run.metrics({"held": planned["held"], "to_sample": planned["to_sample"]})
        run.json("plan.json", planned)


def synthesis(parent: TrackedRun, done: Mapping[str, Any], seconds: float) -> None:
    """Log the images sampled, reused and rejected, their rate, and the seconds of each step."""
    with parent.child("synthesize", {"step": "synthesize"}) as run:
        names = ("images", "shards", "sampled", "reused", "quarantined", "purity", "images_per_second")
        run.metrics({name: done[name] for name in names} | {"seconds": seconds})
        run.metrics({f"rejected_{name}": count for name, count in done["rejected"].items()})
        run.metrics({f"seconds_{step}": value for step, value in done["cost"].items()})
        run.json("synthesis.json", done)


def realism(parent: TrackedRun, measured: Sequence[Mapping[str, Any]], seconds: float) -> None:
    """Log each method's measures overall (``usb/fid``) and per class (``usb/fid/circle``), with the extractor."""
    if not measured:
        return
    with parent.child("realism", {"step": "realism"}) as run:
        for found in measured:
            for method in found["methods"]:
                run.params({method: {**found["extractor"], "k": found["k"]}})
                for number, row in enumerate(found["rows"]):
                    place = f"/{row['class']}" if number else ""
                    names = (*METRICS, "n_real", "n_synthetic")
                    run.metrics({f"{method}/{name}{place}": row[name] for name in names})
        run.metrics({"seconds": seconds})
        run.json("realism.json", list(measured))


def fits(
    parent: TrackedRun, outcomes: Sequence[MethodResult], tasks: Sequence[MethodRun], store: Store
) -> list[str | None]:
    """Log the fits that no run of this experiment holds yet, and in ``fits.json`` the run that holds each.

    Returns:
        The MLflow run of each fit; None if tracking is switched off or lost.
    """
    logbook = Logbook(store, parent)
    described = [_described(task) for task in tasks]
    run_ids = logbook.find(described)
    for number, run_id in enumerate(run_ids):
        if run_id is None:
            run_ids[number] = outcome(parent, outcomes[number], tasks[number])
            logbook.enter(described[number], run_ids[number])
    pairs = zip(outcomes, run_ids, strict=True)
    parent.json("fits.json", [{"method": one.method, "seed": one.seed, "run_id": run_id} for one, run_id in pairs])
    return run_ids


def _described(task: MethodRun) -> dict[str, Any]:
    """Return what decides the content of a fit's run: its result, and the names and settings it is logged with."""
    experiment = task.experiment
    names = {"method": experiment.method, "seed": experiment.seed}
    return {**names, "result": task.key, "config": config_digest(experiment)}


def outcome(parent: TrackedRun, result: MethodResult, task: MethodRun) -> str | None:
    """Log a fit: config, inputs, epochs, metrics overall and per cell, and the model. Return the MLflow run's id."""
    name, experiment = f"{result.method} seed {result.seed}", task.experiment
    tags = {"method": result.method, "seed": str(result.seed), "regime": result.regime}
    with parent.child(name, {"step": "fit", **tags, "config": config_digest(experiment)}) as run:
        run.config(experiment)
        for view_name, view in task.views.items():
            run.dataset(view_name, view, "training")
        run.dataset("test", task.test, "test")
        for stage in result.stages:
            run.params({f"stage.{stage['name']}": stage["digest"]})
            prefixed = (
                {k if k == "epoch" else f"{stage['name']}/{k}": v for k, v in row.items()} for row in stage["history"]
            )
            run.history(list(prefixed))
        for split in ("validation", "test"):
            run.metrics({f"{split}/{key}": value for key, value in getattr(result, split)["metrics"].items()})
        cells = {
            f"cell/{'/'.join(filter(None, (c['label'], c['group'])))}": c["accuracy"] for c in result.test["cells"]
        }
        run.metrics(cells)
        cost = {
            "synthetic_images": result.synthetic_images,
            catalogue.IMAGES_DRAWN.name: result.images_drawn,
            "sampling_seconds": result.sampling_seconds,
            "seconds": result.seconds,
        }
        run.metrics(cost)
        run.json("cells.json", result.test["cells"])
        if run.id:
            _model(run, result, task)
    return run.id


def _model(run: TrackedRun, result: MethodResult, task: MethodRun) -> None:
    from counterpoise.training import stages
    from counterpoise.training.loading.pixel_cache import PixelCache

    stage = stages.Fitted(**result.stages[-1])
    module = stages.load(task.experiment, stage, task.test.names)
    some = task.test.take(np.arange(min(_EXAMPLES, len(task.test))))
    pixels = PixelCache([some], task.experiment.training.image_size)[np.arange(len(some))]
    run.model("model", module, np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def report(run: TrackedRun, page: str, results: list[dict[str, Any]], content: Report) -> None:
    """Log the page, the rows, the figures, and each method's mean metrics, in the parent run."""
    from counterpoise.report import figures

    run.file("report.html", page)
    run.json("results.json", results)
    _means(run, content)
    drawn = figures.all_figures(content) if run.id else {}
    for name, figure in drawn.items():
        run.figure(f"figures/{name}.png", figure)


def leaderboard(run: TrackedRun, page: str, board: Leaderboard) -> None:
    """Log the page, the table, its figures, and each method's mean metrics, in the parent run."""
    from counterpoise.report import figures

    run.file("leaderboard.html", page)
    run.json("leaderboard.json", board.to_json())
    _means(run, board)
    if run.id:
        if (drawn := figures.tradeoff(board)) is not None:
            run.figure("figures/tradeoff.png", drawn)
        run.figure("figures/cells.png", figures.cells(board))


def _means(run: TrackedRun, results: Results) -> None:
    for method, metrics in results.summary.items():
        run.metrics({f"{method}/{name}": estimate.mean for name, estimate in metrics.items()})


def to_text(value: object) -> str:
    """Return the text of a JSON file."""
    return json.dumps(value, indent=1, allow_nan=False) + "\n"


def config_digest(experiment: Experiment) -> str:
    """Return the digest of a method's config without its seed, its places and its runtime settings."""
    settings = without(experiment, "place", "runtime")
    return digest({key: value for key, value in settings.items() if key != "seed"})
