"""Commands for the steps of an experiment, each alone and all together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from counterpoise.cli.command import FOLDER, command

if TYPE_CHECKING:
    from counterpoise.workflow.run import Run


@command("audit", "Count the images of each class × group cell.")
def audit(run: Run) -> tuple[dict, Any]:
    """Count the images of each class × group cell, and say how the imbalance may affect a classifier.

    \b
    Example:  counterpoise audit demo
              counterpoise audit demo data.imbalance.rate=0.999 --json
    """
    from counterpoise.cli import tables

    audit = run.audit
    return audit.to_json(), tables.audit(audit)


_EXPLAIN = click.option("--explain", is_flag=True, help="Also show what changing each key would recompute.")


@command("plan", "Show the images each cell will get, and those in the pool.", _EXPLAIN)
def plan(run: Run, explain: bool) -> tuple[dict, Any]:
    """Show how many synthetic images each cell will get, how many the pool holds, and how long the rest will take.

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


@command("synthesize", "Sample and score the images that are missing.")
def synthesize(run: Run) -> tuple[dict, Any]:
    """Sample, score and commit the images that the plans still lack. After an interruption, run it again to resume.

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

    With --json, `summary` has each method's means over seeds with intervals; `rows` has every method and seed.

    \b
    Example:  counterpoise train demo --method ffr training.epochs=5
    """
    from counterpoise.cli import tables
    from counterpoise.workflow import reporting

    trained = reporting.results(run, "validation")
    return trained, tables.rows(trained)


@command("evaluate", "Measure each method on the test split.")
def evaluate(run: Run) -> tuple[dict, Any]:
    """Measure each method on the test split: per-cell, worst-group and fairness metrics, with confidence intervals.

    With --json, `summary` has each method's means over seeds with intervals; `rows` has every method and seed.

    \b
    Example:  counterpoise evaluate demo --method ffr --json
    """
    from counterpoise.cli import tables
    from counterpoise.workflow import reporting

    scored = reporting.results(run, "test")
    return scored, tables.rows(scored)


_OUT = click.option("--out", type=FOLDER, help="Folder for report.html and results.json [reports/NAME].")


@command("run", "Run all steps, from audit to report.", _OUT, control=True)
def run(run: Run, out: Path | None) -> tuple[dict, Any]:
    """Run all steps: audit, plan, synthesize, train, evaluate, report.

    When a method uses synthetic images, an equal-compute control is added: the baseline, trained on real images for
    as many gradient steps as the costliest method. Gains are stated against the best method without synthesis.

    \b
    Example:  counterpoise run demo --out demo
              counterpoise run fashion_ffr data.root=path/to/fashion_mnist
    """
    from counterpoise.cli import tables
    from counterpoise.workflow import reporting

    done = reporting.run_all(run, out)
    return done, tables.run(done)


@command("report", "Write the report from the results in the store.", _OUT, control=True)
def report(run: Run, out: Path | None) -> tuple[dict, Any]:
    """Write report.html and results.json from the results in the store; missing results are computed first.

    \b
    Example:  counterpoise report demo --out report
    """
    from counterpoise.cli import tables
    from counterpoise.workflow import reporting

    written = reporting.write(run, out)
    return written, tables.files(written["files"])
