"""Reports: the page and the result rows of a run whose steps are done."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from counterpoise import __version__
from counterpoise.core.files import write_files
from counterpoise.evaluation.catalogue import judge
from counterpoise.evaluation.compare import table
from counterpoise.evaluation.estimate import Estimate, table_to_json
from counterpoise.report.content import (
    CellPrompts,
    CellSamples,
    FilterExamples,
    PlanTable,
    PromptTable,
    Report,
    ResultRow,
)
from counterpoise.report.verdict import verdict
from counterpoise.storage.view import ImageView
from counterpoise.synthesis.selection.verdicts import QUARANTINED
from counterpoise.workflow import equal_compute, run_log
from counterpoise.workflow.outcomes import MethodResult
from counterpoise.workflow.run import Run

_REAL, _ACCEPTED, _REJECTED = 6, 12, 6  # images shown of each cell
_FILTERED = 12  # images shown of each filter
_PROMPTS, _REFUSALS = 5, 20  # shown of each cell, and of each set
_LIBRARIES = ("torch", "diffusers", "open_clip_torch", "ray", "mlflow")


def run_all(run: Run, out: Path | None) -> dict[str, Any]:
    """Take every step, log each as it ends, and write the report.

    Returns:
        The steps' JSON-able results: ``audit``, ``plan``, ``synthesize``, ``realism``, those of :func:`results` and of
        :func:`write`, and ``seconds``.
    """
    started = time.monotonic()
    steps: dict[str, Callable[[], Any]] = {
        "audit": lambda: run.audit.to_json(),
        "plan": lambda: run.plan,
        "synthesize": lambda: run.synthesis,
        "realism": lambda: run.realism,
    }
    done = {}
    for name, step in steps.items():
        done[name] = step()
        run.log()
    done |= results(run, "test") | write(run, out)
    return done | {"seconds": round(time.monotonic() - started, 1)}


def results(run: Run, split: str) -> dict[str, Any]:
    """Return the training results on a split.

    Returns:
        ``summary`` (method -> metric -> mean and bounds over seeds), ``confidence``, ``rows`` (one for each method and
        seed: metrics, cells, the MLflow run), ``stages`` (fitted now, found in the store) and ``run_id``.
    """
    rows = [outcome.table_row(split) for outcome in run.outcomes]
    return {
        "run_id": run.session.tracked.id,
        "summary": table_to_json(summary(run, split)),
        "confidence": run.suite.shared.evaluation.confidence,
        "rows": [{**row, "run_id": run_id} for row, run_id in zip(rows, run.run_ids, strict=True)],
        "stages": {"fitted": run.training.fitted, "found": run.training.found},
    }


def write(run: Run, out: Path | None) -> dict[str, Any]:
    """Write report.html and results.json into ``out`` (by default ``reports/NAME``).

    Raises:
        ConfigError: The folder cannot be written.
    """
    from counterpoise.report.page import render  # matplotlib

    report = build_report(run)
    page, rows = render(report), [outcome.result_row() for outcome in run.outcomes]
    texts = {"report.html": page, "results.json": run_log.to_text(rows)}
    files = write_files(folder(run, out), texts, what="the report")
    run.log()
    run_log.report(run.session.tracked, page, rows, report)
    conclusion = verdict(report)
    return {
        "files": files,
        "summary": table_to_json(report.summary),
        "confidence": report.confidence,
        "verdict": [conclusion.headline, *conclusion.lines],
    }


def folder(run: Run, out: Path | None) -> Path:
    """Return the output folder: ``out``, or ``reports/NAME``."""
    return out or Path("reports") / run.suite.shared.name


def build_report(run: Run) -> Report:
    """Return the report of a run whose steps are done. It judges by a metric that is defined for every method."""
    means = summary(run)
    return Report(
        **common_fields(run),
        dataset=_dataset(run),
        audit=run.audit.to_json(),
        rows=[result_row(outcome) for outcome in run.outcomes],
        summary=means,
        by=judge(set.intersection(*map(set, means.values()))),
        plans=_plans(run),
        prompts=_prompts(run),
        synthesis=run.synthesis if run.wanted else None,
        realism=run.realism,
        filtered=_filtered(run) if run.wanted else [],
        samples=_samples(run),
        seconds=run.session.seconds,
    )


def common_fields(run: Run) -> dict[str, Any]:
    """Return the fields that all pages share: see :class:`counterpoise.report.content.Results`."""
    pools = {f"pool of {method}": run.synthesized.pool(method).digest for method in run.synthesized.rounds}
    return {
        "title": run.suite.shared.name,
        "command": run.command,
        "created": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "config_yaml": run.entries.to_yaml(),
        "classes": list(run.dataset.names.classes),
        "groups": list(run.dataset.names.groups),
        "baseline": run.suite.baseline,
        "digests": {"dataset": run.dataset.loaded.view.digest} | pools,
        "versions": {"counterpoise": __version__, **{name: version(name) for name in _LIBRARIES}},
        "control": equal_compute.NAME if equal_compute.NAME in run.entries.methods else None,
        "control_of": run.control.describe() if run.control else None,
        "confidence": run.suite.shared.evaluation.confidence,
        **_tested_on(run.suite.shared.evaluation.test),
    }


def _tested_on(plan: str) -> dict[str, str]:
    return {} if plan == "test" else {"tested_on": f"synthetic images of the plan {plan}, held out from training"}


def result_row(outcome: MethodResult) -> ResultRow:
    """Return a result on the test split, as pages show it."""
    return ResultRow(
        outcome.method,
        outcome.seed,
        outcome.test["metrics"],
        outcome.test["intervals"],
        outcome.test["cells"],
        outcome.synthetic_images,
        outcome.images_drawn,
        outcome.seconds,
        outcome.regime,
        next((stage["moved"] for stage in reversed(outcome.stages) if stage.get("moved")), {}),
    )


def summary(run: Run, split: str = "test") -> dict[str, dict[str, Estimate]]:
    """Return method → metric → mean and interval over seeds on a split; no interval for one seed."""
    rows = [{"method": outcome.method, **outcome.table_row(split)["metrics"]} for outcome in run.outcomes]
    metrics = list(dict.fromkeys(name for row in rows for name in row if name != "method"))
    return table(rows, metrics, run.suite.shared.evaluation.confidence)


def _dataset(run: Run) -> str:
    names, view = run.dataset.names, run.dataset.train
    groups = f" × {len(names.groups)} groups" if names.groups else ""
    return f"{len(view):,} training images, {len(names.classes)} classes{groups} ({run.suite.shared.data.adapter})"


def _plans(run: Run) -> list[PlanTable]:
    plans = []
    for (method, name), counts in run.wanted.items():
        chosen = run.synthesized.views(method)[name].counts
        plans.append(PlanTable(name, [method], counts.tolist(), chosen.tolist()))
    return plans


def _prompts(run: Run) -> list[PromptTable]:
    """Return the prompt sets in use, each with its methods."""
    names = run.dataset.names
    sets: dict[tuple[str, str], list[str]] = {}
    for method, prompts in run.prompts.items():
        sets.setdefault((prompts.digest, prompts.origin), []).append(method)
    return [
        PromptTable(
            methods=methods,
            digest=prompts.digest,
            origin=prompts.origin,
            cells=[
                CellPrompts(
                    names.cell(label, group),
                    len(prompts.prompts[label][group]),
                    prompts.prompts[label][group][:_PROMPTS],
                )
                for label, group in np.ndindex(names.shape)
            ],
            refused=len(prompts.refused),
            refusals=[(one["prompt"], f"{one['cell']}: {one['reason']}") for one in prompts.refused[:_REFUSALS]],
        )
        for methods in sets.values()
        for prompts in [run.prompts[methods[0]]]
    ]


def _samples(run: Run) -> list[CellSamples]:
    names, train = run.dataset.names, run.dataset.train
    rejects = _rejects(run) if run.wanted else None
    chosen = [entry for result in run.synthesized.realized for entry in result.views.items()]
    samples = []
    for label, group in np.ndindex(names.shape):
        cell: dict[str, Any] = {"label": names.classes[label], "group": names.groups[group] if names.groups else None}
        where = {"label": label} | ({"group": group} if names.groups else {})
        cell["real"] = _images(train.where(**where), _REAL)
        if rejects is not None:
            views = [(method, view.where(**where)) for (method, _), view in chosen]
            method, largest = max(views, key=lambda entry: len(entry[1]))
            prompt = run.prompts[method].prompts[label][group][0]
            cell |= {"prompt": prompt, "accepted": _images(largest, _ACCEPTED)}
            cell["rejected"] = _with_reasons(rejects.where(**where), np.arange(_REJECTED))
        samples.append(CellSamples(**cell))
    return samples


def _images(view: ImageView, count: int) -> list[bytes]:
    first = view.take(np.arange(min(count, len(view))))
    return [data for _, data in sorted(first.images()) if data is not None]


def _rejects(run: Run) -> ImageView:
    """Return the rejected images of all pools."""
    first, *others = (result.rejects for result in run.synthesized.realized)
    return sum(others, first)


def _filtered(run: Run) -> list[FilterExamples]:
    """Return the rejects of each filter, with examples spread over the cells."""
    rejects, filtered = _rejects(run), []
    done = run.synthesis
    for name in (*done["rejected"], *([QUARANTINED] if done["quarantined"] else [])):
        view = rejects.where(filter=name)
        spread = np.unique(np.linspace(0, max(len(view) - 1, 0), _FILTERED).round().astype(int))
        filtered.append(FilterExamples(name, len(view), _with_reasons(view, spread)))
    return filtered


def _with_reasons(view: ImageView, positions: np.ndarray) -> list[tuple[bytes | None, str]]:
    """Return the images at those positions that exist, with the reasons why they were rejected."""
    shown = view.take(positions[positions < len(view)])
    reasons = shown.column("reason").tolist()
    return [(data, reasons[position]) for position, data in sorted(shown.images(), key=lambda found: found[0])]
