"""What a job has to tell: its report and rows, written from what the steps left behind."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from counterpoise import __version__
from counterpoise.errors import ConfigError
from counterpoise.evaluation.catalogue import judge
from counterpoise.evaluation.compare import Estimate, table
from counterpoise.report.content import (
    CellPrompts,
    CellSamples,
    FilterExamples,
    PlanTable,
    PromptTable,
    Report,
    ResultRow,
)
from counterpoise.report.page import render
from counterpoise.report.verdict import verdict
from counterpoise.storage.view import ImageView
from counterpoise.synthesis.selection.verdicts import QUARANTINED
from counterpoise.workflow import run_log, suite
from counterpoise.workflow.outcomes import MethodResult
from counterpoise.workflow.run import Run

_REAL, _ACCEPTED, _REJECTED = 6, 12, 6  # images shown of each cell
_FILTERED = 12  # images shown of each filter
_PROMPTS, _REFUSALS = 5, 20  # shown of each cell, and of each set
_LIBRARIES = ("torch", "diffusers", "open_clip_torch", "ray", "mlflow")


def run(job: Run, out: Path | None) -> dict[str, Any]:
    """All steps and the report."""
    started = time.monotonic()
    result: dict[str, Any] = {"audit": job.audit().to_json(), "plan": job.plan(), "synthesize": job.synthesize()}
    result |= {"realism": job.realism()} | job.evaluate() | write(job, out)
    return result | {"seconds": round(time.monotonic() - started, 1)}


def write(job: Run, out: Path | None) -> dict[str, Any]:
    """Writes report.html and results.json into ``out`` (by default ``reports/NAME``).

    Raises:
        ConfigError: The folder cannot be written.
    """
    told = build_report(job)
    page, results = render(told), [outcome.result_row() for outcome in job.outcomes]
    files = save(folder(job, out), {"report.html": page, "results.json": run_log.to_text(results)})
    run_log.report(job.tracked, page, results, told)
    said = verdict(told)
    return {
        "files": files,
        "summary": {method: dict(metrics) for method, metrics in told.summary.items()},
        "confidence": told.confidence,
        "verdict": [said.headline, *said.lines],
    }


def folder(job: Run, out: Path | None) -> Path:
    """Where files go: ``out``, or ``reports/NAME``."""
    return out or Path("reports") / job.first.name


def save(folder: Path, files: Mapping[str, str]) -> dict[str, str]:
    """Writes texts into a folder, which is made if it is not there. Returns the path of each.

    Raises:
        ConfigError: It cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        remedy = "name another folder"
        raise ConfigError("the report cannot be written", where="--out", found=error, remedy=remedy) from error
    return {name: str(folder / name) for name in files}


def build_report(job: Run) -> Report:
    """The report of a job whose steps are done; the metric that judges is one that every method has."""
    means = summary(job)
    return Report(
        **common_fields(job),
        dataset=_dataset(job),
        audit=job.audit().to_json(),
        rows=[result_row(outcome) for outcome in job.outcomes],
        summary=means,
        by=judge(set.intersection(*map(set, means.values()))),
        plans=_plans(job),
        prompts=_prompts(job),
        synthesis=job.synthesize() if job.wanted else None,
        realism=job.realism(),
        filtered=_filtered(job) if job.wanted else [],
        samples=_samples(job),
        seconds=job.seconds,
    )


def common_fields(job: Run) -> dict[str, Any]:
    """What every page says of a job whose images are there: see :class:`counterpoise.report.content.Results`."""
    pools = {f"pool of {method}": job.synthesized.pool(method).digest for method in job.synthesized.rounds}
    return {
        "title": job.first.name,
        "command": job.command,
        "created": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "config_yaml": run_log.effective_config(job.experiments),
        "classes": list(job.names.classes),
        "groups": list(job.names.groups),
        "baseline": suite.baseline(job.experiments),
        "digests": {"dataset": job.loaded.view.digest} | pools,
        "versions": {"counterpoise": __version__, **{name: version(name) for name in _LIBRARIES}},
        "confidence": job.first.evaluation.confidence,
        **_tested_on(job.first.evaluation.test),
    }


def _tested_on(plan: str) -> dict[str, str]:
    return {} if plan == "test" else {"tested_on": f"synthetic images of the plan {plan}, which no method has seen"}


def result_row(outcome: MethodResult) -> ResultRow:
    """An outcome on the test split, as pages show it."""
    return ResultRow(
        outcome.method,
        outcome.seed,
        outcome.test["metrics"],
        outcome.test["intervals"],
        outcome.test["cells"],
        outcome.images_sampled,
        outcome.images_reused,
        outcome.seconds,
        outcome.regime,
        next((stage["moved"] for stage in reversed(outcome.stages) if stage.get("moved")), {}),
    )


def summary(job: Run) -> dict[str, dict[str, Estimate]]:
    """Method → metric → (mean, low, high) over seeds; no bounds for one seed."""
    rows = [{"method": outcome.method, **outcome.test["metrics"]} for outcome in job.outcomes]
    metrics = list(dict.fromkeys(name for row in rows for name in row if name != "method"))
    return table(rows, metrics, job.first.evaluation.confidence)


def _dataset(job: Run) -> str:
    names, view = job.names, job.train_view
    groups = f" × {len(names.groups)} groups" if names.groups else ""
    return f"{len(view):,} training images, {len(names.classes)} classes{groups} ({job.first.data.adapter})"


def _plans(job: Run) -> list[PlanTable]:
    plans = []
    for (method, name), counts in job.wanted.items():
        chosen = job.synthesized.views(method)[name].counts
        plans.append(PlanTable(name, [method], counts.tolist(), chosen.tolist()))
    return plans


def _prompts(job: Run) -> list[PromptTable]:
    """The prompt sets in use, each with its methods."""
    names = job.names
    sets: dict[tuple[str, str], list[str]] = {}
    for method, prompts in job.prompts.items():
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
        for prompts in [job.prompts[methods[0]]]
    ]


def _samples(job: Run) -> list[CellSamples]:
    names, train = job.names, job.train_view
    rejects = _rejects(job) if job.wanted else None
    chosen = [entry for result in job.synthesized.realized for entry in result.views.items()]
    samples = []
    for label, group in np.ndindex(names.shape):
        cell: dict[str, Any] = {"label": names.classes[label], "group": names.groups[group] if names.groups else None}
        where = {"label": label} | ({"group": group} if names.groups else {})
        cell["real"] = _images(train.where(**where), _REAL)
        if rejects is not None:
            views = [(method, view.where(**where)) for (method, _), view in chosen]
            method, largest = max(views, key=lambda entry: len(entry[1]))
            prompt = job.prompts[method].prompts[label][group][0]
            cell |= {"prompt": prompt, "accepted": _images(largest, _ACCEPTED)}
            cell["rejected"] = _with_reasons(rejects.where(**where), np.arange(_REJECTED))
        samples.append(CellSamples(**cell))
    return samples


def _images(view: ImageView, count: int) -> list[bytes]:
    first = view.take(np.arange(min(count, len(view))))
    return [data for _, data in sorted(first.images())]


def _rejects(job: Run) -> ImageView:
    """The rejected images of all pools."""
    first, *others = (result.rejects for result in job.synthesized.realized)
    return sum(others, first)


def _filtered(job: Run) -> list[FilterExamples]:
    """What each filter kept out, with examples from all over the cells."""
    rejects, filtered = _rejects(job), []
    done = job.synthesize()
    for name in (*done["rejected"], *([QUARANTINED] if done["quarantined"] else [])):
        view = rejects.where(filter=name)
        spread = np.unique(np.linspace(0, max(len(view) - 1, 0), _FILTERED).round().astype(int))
        filtered.append(FilterExamples(name, len(view), _with_reasons(view, spread)))
    return filtered


def _with_reasons(view: ImageView, positions: np.ndarray) -> list[tuple[bytes | None, str]]:
    """The images at these positions, as far as there are so many, and why they were rejected."""
    shown = view.take(positions[positions < len(view)])
    reasons = shown.index["reason"].to_pylist()
    return [(data, reasons[position]) for position, data in sorted(shown.images(), key=lambda found: found[0])]
