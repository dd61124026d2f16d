"""The steps of an experiment, in their order, and all of them at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from counterpoise.cli.command import FOLDER, command

if TYPE_CHECKING:
    from counterpoise.workflow.run import Run


@command("audit", "Count what each class × group cell has.")
def audit(run: Run) -> tuple[dict, Any]:
    """Count what each class × group cell has, and say what that may do to a classifier.

    \b
    Example:  counterpoise audit demo
              counterpoise audit demo data.imbalance.rate=0.999 --json
    """
    from counterpoise.cli import tables

    found = run.audit
    return found.to_json(), tables.audit(found)


_EXPLAIN = click.option("--explain", is_flag=True, help="Also show what another value of each key would make anew.")


@command("plan", "Show what each cell will get, and what is held.", _EXPLAIN)
def plan(run: Run, explain: bool) -> tuple[dict, Any]:
    """Show how many synthetic images each cell will get, what the pool holds, and how long the rest will take.

    \b
    Example:  counterpoise plan demo --method usb
              counterpoise plan demo --method usb --explain
    """
    from counterpoise.cli import tables
    from counterpoise.config import consequences

    planned = run.plan
    if explain:
        planned = planned | {"explain": {name: consequences.explain(one) for name, one in run.suite.methods.items()}}
    return planned, tables.plan(planned, run.dataset.names)


@command("synthesize", "Sample, score and commit what the plans lack.")
def synthesize(run: Run) -> tuple[dict, Any]:
    """Sample, score and commit the images that the plans lack. Go on after any interruption by running it again.

    \b
    Example:  counterpoise synthesize demo pool.sampling.workers=2
              counterpoise synthesize demo store=s3://bucket/prefix
    """
    from counterpoise.cli import tables

    done = run.synthesis
    return done, tables.synthesis(done)


@command("train", "Train each method for each seed.")
def train(run: Run) -> tuple[dict, Any]:
    """Train each method's stages for each seed, and measure them on the validation split.

    With --json, `summary` has each method's means over seeds with intervals, `rows` every method and seed.

    \b
    Example:  counterpoise train demo --method ffr training.epochs=5
    """
    from counterpoise.cli import tables
    from counterpoise.workflow import reporting

    trained = reporting.results(run, "validation")
    return trained, tables.rows(trained)


@command("evaluate", "Measure each method on the test split.")
def evaluate(run: Run) -> tuple[dict, Any]:
    """Measure each method on the test split: per cell, worst group, fairness, with intervals.

    With --json, `summary` has each method's means over seeds with intervals, `rows` every method and seed.

    \b
    Example:  counterpoise evaluate demo --method ffr --json
    """
    from counterpoise.cli import tables
    from counterpoise.workflow import reporting

    scored = reporting.results(run, "test")
    return scored, tables.rows(scored)


_OUT = click.option("--out", type=FOLDER, help="Folder for report.html and results.json [reports/NAME].")


@command("run", "All of it: from audit to report.", _OUT, control=True)
def run(run: Run, out: Path | None) -> tuple[dict, Any]:
    """Do it all: audit, plan, synthesize, train, evaluate, report.

    If a method uses synthetic images, a control is added: the baseline trained on real images for as many gradient
    steps as the costliest method. Gains are stated against the best rival without synthesis.

    \b
    Example:  counterpoise run demo --out demo
              counterpoise run fashion_ffr data.root=path/to/fashion_mnist
    """
    from counterpoise.cli import tables
    from counterpoise.workflow import reporting

    done = reporting.run_all(run, out)
    return done, tables.run(done)


@command("report", "Write the report from what is in the store.", _OUT, control=True)
def report(run: Run, out: Path | None) -> tuple[dict, Any]:
    """Write report.html and results.json from what is in the store; what is missing is computed first.

    \b
    Example:  counterpoise report demo --out report
    """
    from counterpoise.cli import tables
    from counterpoise.workflow import reporting

    written = reporting.write(run, out)
    return written, tables.files(written["files"])
