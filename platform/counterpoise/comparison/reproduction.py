"""Reproductions: a paper's comparison repeated on other data, under several settings, with its claims tested.

A reproduction is an experiment file with one more key:

.. code-block:: yaml

    reproduction:
      title: …
      paper: the section, figure or table
      setup: similarities and differences
      settings: {name: [key.path=value, …]}      # one run of all methods and seeds for each
      metrics: [worst_group_accuracy, …]
      claims: [{better: ffr, than: usb, metric: worst_group_accuracy}]  # the paper's claims
      theirs: the paper's numbers, as Markdown
      reading: our interpretation, as Markdown
"""

from __future__ import annotations

import io
import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError

from counterpoise.config import Experiment, Section, compose, files
from counterpoise.core.files import write_files
from counterpoise.errors import ConfigError, did_you_mean, one_of
from counterpoise.evaluation import catalogue
from counterpoise.evaluation.compare import differences
from counterpoise.evaluation.estimate import Estimate
from counterpoise.evaluation.scores import summarize
from counterpoise.report.format import MISSING, bounds, count, duration, percent, points
from counterpoise.report.markdown import table
from counterpoise.workflow.planning import Dataset
from counterpoise.workflow.run import Run

ROOM = "reproductions"


class Claim(Section):
    """Claim that one method is ahead of another in a metric, whose direction the metric catalogue gives."""

    better: str
    than: str
    metric: str


class Reproduction(Section):
    """Section ``reproduction`` of a reproduction file."""

    title: str
    paper: str
    setup: str = ""
    settings: dict[str, list[str]] = Field({"": []}, min_length=1)
    metrics: list[str] = Field(list(catalogue.PRIMARY), min_length=1)
    claims: list[Claim] = Field([])
    theirs: str = ""
    reading: str = ""


@dataclass(frozen=True)
class ClaimResult:
    """Result of testing a claim.

    Attributes:
        claim: The claim.
        difference: Mean over seeds, positive in the claim's direction; None if the metric is not defined.
        interval: Student's t interval of the difference; None for one seed.
        verdict: ``holds``, ``reversed`` or ``not shown``.
    """

    claim: Claim
    difference: float | None
    interval: tuple[float, float] | None
    verdict: str


def reproduce(name: str, overrides: Sequence[str], out: Path) -> dict[str, Any]:
    """Run every setting and write ``NAME.md`` and ``NAME.json`` into ``out``. Results in the store are reused.

    Raises:
        ConfigError: There is no such reproduction, or a claim names a method that it does not have.
        CounterpoiseError: See :class:`counterpoise.workflow.run.Run`.
    """
    started = time.monotonic()
    spec, load = read(name, overrides)
    shown = [override for override in overrides if not override.startswith(("store=", "tracking."))]
    command = shlex.join(["counterpoise", "reproduce", name, *shown])
    name = Path(name).stem
    by_setting = {setting: load(changes) for setting, changes in spec.settings.items()}
    _check(spec, name, [experiment for experiments in by_setting.values() for experiment in experiments])
    rows: list[dict[str, Any]] = []
    counts: Counts = {}
    for setting, experiments in by_setting.items():
        with Run(experiments, command=command, step="reproduce") as run:
            rows += [{"setting": setting, **outcome.result_row()} for outcome in run.outcomes]
            counts[setting] = cell_sizes(run.dataset)
    judged = [judge(claim, rows) for claim in spec.claims]
    claims = [{**one.claim.model_dump(), **{key: vars(one)[key] for key in _JUDGED}} for one in judged]
    seconds = max(round(time.monotonic() - started, 1), _seconds_before(out / f"{name}.json", rows))
    result = {"name": name, "rows": rows, "counts": counts, "claims": claims, "seconds": seconds}
    written: dict[str, str | bytes] = {
        f"{name}.md": page(spec, name, rows, counts, judged, command, seconds),
        f"{name}.json": json.dumps(result, indent=1) + "\n",
    }
    if len(spec.settings) > 1:
        written[f"{name}.png"] = _picture(spec, rows)
    return result | {"files": write_files(out, written, what="the reproduction")}


Counts = dict[str, dict[str, list[int]]]  # setting -> split -> the different numbers of images of its cells
ONE_DRAW = (
    "Each verdict is of *one draw of the data* and of the pool: seeds vary training alone, so the intervals leave out "
    "what another draw would change."
)


def cell_sizes(dataset: Dataset) -> dict[str, list[int]]:
    """Return for each split the different numbers of real images that its cells have, largest first."""
    return {split: sorted(set(view.counts.flatten().tolist()), reverse=True) for split, view in dataset.splits.items()}


_JUDGED = ("difference", "interval", "verdict")


def _seconds_before(file: Path, rows: list[dict[str, Any]]) -> float:
    """Return the seconds that a file records for the same results; 0 if it holds others."""
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        same = [_result(row) for row in before["rows"]] == [_result(row) for row in rows]
        return float(before["seconds"]) if same else 0.0
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # there is none, or it is no such file
        return 0.0


def _result(row: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value for key, value in row.items() if not key.startswith("images_")
    }  # these depend on the order of runs


def read(name: str, overrides: Sequence[str]) -> tuple[Reproduction, Callable[[Sequence[str]], list[Experiment]]]:
    """Return a file's ``reproduction`` section, and a function that loads its experiments under a setting.

    Raises:
        ConfigError: There is no such file, or its ``reproduction`` is missing or invalid.
    """
    file, section = files.read_section(name, ROOM, "reproduction")
    try:
        spec = Reproduction.model_validate(section)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"{file}: reproduction.{'.'.join(map(str, first['loc']))}"
        raise ConfigError(first["msg"], where=where, found=first.get("input")) from None

    def load(changes: Sequence[str]) -> list[Experiment]:
        return compose.load(str(file), (*changes, *overrides))

    return spec, load


def titles() -> dict[str, str]:
    """Return the shipped reproductions, name -> title and paper."""
    files = sorted((compose.CONFIGS / ROOM).glob("[!_]*.yaml"))
    return {file.stem: f"{spec.title} ({spec.paper})" for file in files for spec, _ in [read(str(file), ())]}


def _check(spec: Reproduction, name: str, experiments: Sequence[Experiment]) -> None:
    methods = list(dict.fromkeys(experiment.method for experiment in experiments))
    known = [metric for metric in catalogue.METRICS if metric not in catalogue.COSTS]
    for number, claim in enumerate(spec.claims):
        if claim.metric not in known:
            raise ConfigError(
                "there is no such metric",
                where=f"{name}: reproduction.claims.{number}",
                found=claim.metric,
                allowed=one_of(known, 20),
                remedy=did_you_mean(claim.metric, known),
            )
        for method in (claim.better, claim.than):
            if method not in methods:
                raise ConfigError(
                    "this claim names a method that the experiment does not have",
                    where=f"{name}: reproduction.claims.{number}",
                    found=method,
                    allowed=", ".join(methods),
                )


def judge(claim: Claim, rows: Sequence[dict[str, Any]], confidence: float = 0.95) -> ClaimResult:
    """Test a claim by paired differences over seeds, each the mean over settings."""
    metric, sign = claim.metric, 1 if catalogue.metric(claim.metric).higher_is_better else -1
    values: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        if row.get(metric) is not None:
            values.setdefault((row["method"], row["seed"]), []).append(row[metric])
    means = [
        {"method": method, "seed": seed, metric: float(np.mean(measured))}
        for (method, seed), measured in values.items()
    ]
    compared = differences(means, [claim.better], claim.than, metric, confidence)
    if not compared:
        return ClaimResult(claim, None, None, "not shown")
    (paired,) = compared
    interval = None
    if paired.low is not None and paired.high is not None:
        interval = (min(sign * paired.low, sign * paired.high), max(sign * paired.low, sign * paired.high))
    verdict = {"better": "holds", "worse": "reversed"}.get(paired.outcome, "not shown")
    return ClaimResult(claim, sign * paired.mean, interval, verdict)


# -- Markdown ----------------------------------------------------------------------------------------------------------


def page(
    spec: Reproduction,
    name: str,
    rows: Sequence[dict[str, Any]],
    counts: Counts,
    judged: Sequence[ClaimResult],
    command: str,
    seconds: float,
) -> str:
    """Return the reproduction's page as Markdown."""
    seeds = len({row["seed"] for row in rows})
    parts = [
        f"# {spec.title}",
        f"{spec.paper}. Ours: `{command}`, {seeds} seeds, {duration(seconds)} (less what was in the store), "
        "means and 95 % Student t-intervals.",
        spec.setup,
        _counts(counts),
        "## Ours",
        *_tables(spec, rows),
        f"![{spec.title}]({name}.png)" if len(spec.settings) > 1 else "",
    ]
    if judged:
        parts += ["## Claims", _claims(judged), ONE_DRAW]
    if spec.theirs:
        parts += ["## The paper", spec.theirs]
    if spec.reading:
        parts += ["## Reading", spec.reading]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


def _summaries(spec: Reproduction, rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Return setting → method → metric → mean and interval over seeds."""
    return {
        setting: summarize([row for row in rows if row["setting"] == setting], spec.metrics)
        for setting in spec.settings
    }


def _picture(spec: Reproduction, rows: Sequence[dict[str, Any]]) -> bytes:
    from counterpoise.report.trend import trend  # matplotlib

    buffer = io.BytesIO()
    trend(_summaries(spec, rows), spec.metrics).savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def _tables(spec: Reproduction, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return one table of methods × metrics or, for several settings, one of methods × settings for each metric."""
    summaries = _summaries(spec, rows)
    methods = list(dict.fromkeys(row["method"] for row in rows))

    def cell(setting: str, method: str, metric: str) -> str:
        estimate = summaries[setting].get(method, {}).get(metric)
        if estimate is None:
            return ""
        half_width = "" if estimate.half_width is None else f" ± {percent(estimate.half_width)}"
        return percent(estimate.mean) + half_width

    if len(spec.settings) == 1:
        (only,) = spec.settings
        body = [[method, *(cell(only, method, metric) for metric in spec.metrics)] for method in methods]
        return [table(["method", *map(_title, spec.metrics)], body)]
    tables = []
    for metric in spec.metrics:
        body = [[method, *(cell(setting, method, metric) for setting in spec.settings)] for method in methods]
        tables += [f"**{_title(metric)}**, %", table(["method", *spec.settings], body)]
    return tables


def _counts(counts: Counts) -> str:
    """Return a table of cell sizes by split; ``data.imbalance`` thins training and validation images alike."""
    if not counts:
        return ""
    splits = list(next(iter(counts.values())))
    head = ["real images of a cell", *splits]
    body = [
        [setting or "all methods", *(_sizes(sizes[split]) for split in splits)] for setting, sizes in counts.items()
    ]
    return table(head, body)


def _sizes(sizes: Sequence[int]) -> str:
    return f"{count(sizes[0])} … {count(sizes[-1])}" if len(sizes) > 4 else ", ".join(map(count, sizes))


def _claims(judged: Sequence[ClaimResult]) -> str:
    body = []
    for one in judged:
        difference = points(one.difference) or MISSING
        ends = bounds(one.interval, points)
        claim = f"{one.claim.better} is ahead of {one.claim.than} in {_title(one.claim.metric)}"
        body.append([claim, difference + ends, f"**{one.verdict}**"])
    return table(["the paper says", "our difference over seeds, points", ""], body)


def _title(metric: str) -> str:
    return catalogue.metric(metric).title
