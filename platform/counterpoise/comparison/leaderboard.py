"""Leaderboards: methods trained on the same seeds, ranked by a metric, with costs, and compared with plain training.

Results in the store are reused, and a stage that several methods share is trained once. An interrupted comparison
resumes, and one with more methods or seeds trains only the new ones.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from counterpoise.config import Experiment, compose
from counterpoise.core.files import make_folder, write_files
from counterpoise.errors import ConfigError, did_you_mean, one_of
from counterpoise.evaluation import catalogue
from counterpoise.evaluation.catalogue import COSTS, DEVICE_TIME, IMAGES_DRAWN
from counterpoise.evaluation.compare import ranks, table
from counterpoise.evaluation.scores import evaluate
from counterpoise.report.leaderboard import Leaderboard
from counterpoise.report.page import render_leaderboard
from counterpoise.workflow import reporting, run_log, suite
from counterpoise.workflow.outcomes import MethodResult
from counterpoise.workflow.run import Run

_REFERENCE = "erm"


def load_entries(
    config: str, overrides: Sequence[str], methods: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> list[Experiment]:
    """Load the experiments to compare: every method with every seed, of the file or of the arguments.

    Plain training on the real images is the reference of all comparisons: ``erm`` is added if the methods lack it.

    Args:
        config: An experiment file, as for :func:`counterpoise.config.compose.load`.
        overrides: Values ``key.path=value``, as there.
        methods: Methods instead of the file's: names of its methods, or names or paths of method files.
        seeds: Seeds instead of the file's.
    """
    experiments = compose.load(config, overrides, methods=methods, seeds=seeds)
    present = list(dict.fromkeys(experiment.method for experiment in experiments))
    if _REFERENCE in present or any(map(suite.is_plain, experiments)):
        return experiments
    return compose.load(config, overrides, methods=[_REFERENCE, *(methods or present)], seeds=seeds)


def compare(run: Run, by: str | None, out: Path | None) -> dict[str, Any]:
    """Train and measure all methods, and write leaderboard.html and leaderboard.json into ``out``.

    Args:
        run: A run of the experiments of :func:`load_entries`.
        by: The metric to rank and to judge by; by default the first of
            :data:`counterpoise.evaluation.catalogue.JUDGES` that is defined for the test images.
        out: The output folder; by default ``reports/NAME``.

    Raises:
        ConfigError: ``by`` is no metric of this dataset, or the folder cannot be written. Both are checked before
            sampling.
    """
    by = _judge(run, by)
    folder = reporting.folder(run, out)
    make_folder(folder, what="the leaderboard")
    board = build_leaderboard(run, by)
    page, content = render_leaderboard(board), board.to_json()
    texts = {"leaderboard.html": page, "leaderboard.json": run_log.to_text(content)}
    files = write_files(folder, texts, what="the leaderboard")
    run.log()
    run_log.leaderboard(run.session.tracked, page, board)
    return {"run_id": run.session.tracked.id, **content, "files": files}


def _judge(run: Run, by: str | None) -> str:
    """Return the metric to rank by: ``by`` if it is defined, or by default the first defined of those that judge."""
    defined = _defined(run)
    if by is None:
        return catalogue.judge(defined)
    if by not in defined:
        known = catalogue.METRICS.get(by)
        raise ConfigError(
            "there is no such metric"
            if known is None or known.is_cost
            else "this dataset has no such metric: its test images lack the groups or classes",
            where="--by",
            found=by,
            allowed=one_of(defined, 20),
            remedy=did_you_mean(by, defined),
        )
    return by


def _defined(run: Run) -> Collection[str]:
    """Return the metrics that are defined for the test images, from an evaluation of a perfect classifier.

    They depend only on the test images' labels and groups. These are known before sampling, even if a plan's images
    are the test images.
    """
    evaluation, names = run.suite.shared.evaluation, run.dataset.names
    test = run.dataset.splits["test"]
    labels, groups = test.labels, test.groups
    if evaluation.test != "test":
        cells = np.argwhere(run.wanted[run.suite.shared.method, evaluation.test])
        labels, groups = cells[:, 0], cells[:, 1]
    perfect = np.eye(len(names.classes))[labels]
    settings = evaluation.model_copy(update={"bootstrap": 0})
    return evaluate(labels, groups, perfect, names, run.dataset.train.counts, settings).metrics


def build_leaderboard(run: Run, by: str) -> Leaderboard:
    """Return the leaderboard of a run; missing results are computed first."""
    rows = []
    for outcome, experiment in zip(run.outcomes, run.entries.experiments, strict=True):
        row = reporting.result_row(outcome)
        rows.append(replace(row, metrics={**row.metrics, **costs(run, outcome, experiment)}))
    metrics = list(dict.fromkeys(name for row in rows for name, value in row.metrics.items() if value is not None))
    flat = [{"method": r.method, "seed": r.seed, "intervals": r.intervals, **r.metrics} for r in rows]
    summary = table(flat, metrics, run.suite.shared.evaluation.confidence)
    places = ranks(summary, by)
    order = list(places)
    return Leaderboard(
        **reporting.common_fields(run),
        rows=sorted(rows, key=lambda row: order.index(row.method)),
        summary=summary,
        by=by,
        of_images=len({row.seed for row in rows}) == 1,
        places=places,
        regimes={row.method: row.regime for row in rows},
        synthetic=[name for name in order if name in run.suite.planned],
        stages={"fitted": run.training.fitted, "found": run.training.found},
        results=[
            {**outcome.result_row(), **{name: row.metrics[name] for name in COSTS}, "config": digest, "run_id": run}
            for outcome, row, digest, run in zip(
                run.outcomes, rows, map(run_log.config_digest, run.entries.experiments), run.run_ids, strict=True
            )
        ],
    )


def costs(run: Run, outcome: MethodResult, experiment: Experiment) -> dict[str, int | float | None]:
    """Return the costs of a method with one seed, counted as if the store were empty.

    They do not depend on the order in which methods that share images or stages were run.

    Returns:
        Images drawn: images in the pool's shards that its plans took images from, in every round of feedback.
        Device time: seconds of its stages × the devices that each was fitted on, and of one sampler for these
        images × its GPUs (1 if it has none); None if the pool has no record of the sampling rate.
    """
    sampling, total = outcome.sampling_seconds, None
    if sampling is not None:
        total = round(outcome.device_seconds + sampling * (experiment.pool.sampling.num_gpus or 1.0), 2)
    return {IMAGES_DRAWN.name: outcome.images_drawn, DEVICE_TIME.name: total}
