"""The door: ``counterpoise COMMAND CONFIG [key.path=value …]``.

What people read goes to standard output as tables, progress to standard error. With ``--json`` the last line of
standard output is one JSON object. A mistake of the user ends in a few lines and exit status 2. Nothing heavy is
imported until a command runs.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from counterpoise import __version__
from counterpoise.errors import CounterpoiseError

if TYPE_CHECKING:
    from counterpoise.experiment import Job


class _Commands(click.Group):
    """Commands in the order of the work, and errors without tracebacks."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CounterpoiseError as error:
            click.secho("error: ", fg="red", bold=True, nl=False, err=True)
            click.echo(str(error), err=True)
            sys.exit(2)
        except KeyboardInterrupt:
            click.echo("stopped: what is done is kept, the same command goes on from there", err=True)
            sys.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="counterpoise")
def main() -> None:
    """Repair an imbalanced or biased image dataset with synthetic images, and prove that it helped.

    CONFIG is an experiment file (YAML), or the name of a shipped one such as `demo`. Any of its values can be
    given on the command line as key.path=value. Every command does what it needs of the steps before it, and
    reuses what is already in the store.

    \b
    Try it:   counterpoise run demo --out demo
    """


def _command(name: str, short_help: str, *options: Callable) -> Callable:
    """A command over experiments: reads CONFIG and overrides, hands a job to the body, prints what it returns."""

    def decorate(body: Callable[..., tuple[dict, Any]]) -> click.Command:
        @main.command(name, short_help=short_help)
        @click.argument("config")
        @click.argument("overrides", nargs=-1, metavar="[KEY.PATH=VALUE]...")
        @click.option("--method", help="Only this method of the file.")
        @click.option("--json", "as_json", is_flag=True, help="End standard output with one JSON object.")
        @functools.wraps(body)
        def command(config: str, overrides: tuple[str, ...], method: str | None, as_json: bool, **rest: Any) -> None:
            from counterpoise.compose import load

            experiments = load(config, overrides, only_method=method)
            from counterpoise.experiment import Job

            with Job(experiments, command=_typed(), step=name) as job:
                result, tables = body(job, **rest)
            if as_json:
                click.echo(json.dumps(result, allow_nan=False))
            else:
                _show(tables)
            if not result.get("ok", True):
                sys.exit(1)

        for option in options:
            command = option(command)
        return command

    return decorate


def _typed() -> str:
    """The command as it was typed, for the report."""
    import shlex

    return shlex.join(["counterpoise", *sys.argv[1:]])


def _show(tables: Any) -> None:
    from rich.console import Console

    console = Console()
    for table in tables:
        console.print(table)


@_command("audit", "Count what each class × group cell has.")
def audit(job: Job) -> tuple[dict, Any]:
    """Count what each class × group cell has, and say what that may do to a classifier.

    \b
    Example:  counterpoise audit demo
              counterpoise audit demo data.imbalance.rate=0.999 --json
    """
    from counterpoise import terminal

    found = job.audit()
    return found.to_json(), terminal.audit(found)


@_command("plan", "Show what each cell will get, and what is held.")
def plan(job: Job) -> tuple[dict, Any]:
    """Show how many synthetic images each cell will get, what the pool holds, and how long the rest will take.

    \b
    Example:  counterpoise plan demo --method usb
    """
    from counterpoise import terminal

    planned = job.plan()
    return planned, terminal.plan(planned, job.names)


@_command("synthesize", "Sample, score and commit what the plans lack.")
def synthesize(job: Job) -> tuple[dict, Any]:
    """Sample, score and commit the images that the plans lack. Go on after any interruption by running it again.

    \b
    Example:  counterpoise synthesize demo pool.sampling.workers=2
              counterpoise synthesize demo store=s3://bucket/prefix
    """
    from counterpoise import terminal

    done = job.synthesize()
    return done, terminal.synthesis(done)


@_command("train", "Train each method for each seed.")
def train(job: Job) -> tuple[dict, Any]:
    """Train each method's stages for each seed; `metrics` and `cells` are of the validation split.

    With several methods, `metrics` and `cells` speak of the last one; `rows` has them all.

    \b
    Example:  counterpoise train demo --method ffr training.epochs=5
    """
    from counterpoise import terminal

    trained = job.train()
    return trained, terminal.rows(trained)


@_command("evaluate", "Measure each method on the test split.")
def evaluate(job: Job) -> tuple[dict, Any]:
    """Measure each method on the test split: per cell, worst group, fairness, with intervals.

    With several methods, `metrics` and `cells` speak of the last one; `rows` has them all.

    \b
    Example:  counterpoise evaluate demo --method ffr --json
    """
    from counterpoise import terminal

    scored = job.evaluate()
    return scored, terminal.rows(scored)


_OUT = click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for report.html and results.json [reports/NAME].",
)


@_command("run", "All of it: from audit to report.", _OUT)
def run(job: Job, out: Path | None) -> tuple[dict, Any]:
    """Do it all: audit, plan, synthesize, train, evaluate, report.

    \b
    Example:  counterpoise run demo --out demo
              counterpoise run fashion_ffr data.root=path/to/fashion_mnist
    """
    from counterpoise import story, terminal

    done = story.run(job, out)
    return done, terminal.run(done)


@_command("report", "Write the report from what is in the store.", _OUT)
def report(job: Job, out: Path | None) -> tuple[dict, Any]:
    """Write report.html and results.json from what is in the store; what is missing is computed first.

    \b
    Example:  counterpoise report demo --out report
    """
    from counterpoise import story, terminal

    written = story.write(job, out)
    return written, terminal.files(written["files"])


@_command(
    "preview",
    "Draw a few images of each cell, in seconds.",
    click.option("--per-cell", type=click.IntRange(1, 64), default=4, help="Images of each cell [4]."),
    click.option("--cells", type=click.IntRange(1, 400), default=24, help="Most cells to show, spread over all [24]."),
    click.option("--sweep", metavar="KEY=V1,V2,…", help="The same seeds for each value of a key, side by side."),
    click.option(
        "--out", type=click.Path(dir_okay=False, path_type=Path), default="preview.png", help="PNG [preview.png]."
    ),
)
def preview(job: Job, per_cell: int, cells: int, sweep: str | None, out: Path) -> tuple[dict, Any]:
    """Sample a few images of each cell in this process and draw them: a look before the long run.

    They are the first images of the pool's cells, but for the last bits; nothing is put into the pool.

    \b
    Example:  counterpoise preview demo --out look.png
              counterpoise preview demo --method ffr --per-cell 3 --sweep generator.guidance_scale=1,3,5
    """
    from counterpoise import compose, terminal
    from counterpoise.preview import preview

    typed = click.get_current_context().params

    def load(override: str) -> list:
        return compose.load(typed["config"], (*typed["overrides"], override), only_method=typed["method"])

    drawn = preview(job, load, out, per_cell, cells, sweep)
    return drawn, terminal.preview(drawn)


@_command(
    "export",
    "Write a method's images as a dataset for others.",
    click.option(
        "--format",
        "form",
        type=click.Choice(["imagefolder", "parquet", "webdataset", "huggingface"]),
        required=True,
        help="What the folder is to be.",
    ),
    click.option("--out", type=click.Path(path_type=Path), required=True, help="A folder that is empty or not there."),
    click.option("--plan", "plans", multiple=True, help="Only this plan of the method; may be repeated."),
    click.option("--with-real", is_flag=True, help="Put the real training images beside the synthetic ones."),
    click.option(
        "--per-file", type=click.IntRange(1), default=1000, help="Images per Parquet, tar or Arrow file [1000]."
    ),
)
def export(job: Job, form: str, out: Path, plans: tuple[str, ...], with_real: bool, per_file: int) -> tuple[dict, Any]:
    """Write the images that a method's plans take, with labels, prompts, seeds and a card, for other tools to read.

    What the pool lacks is sampled first. The folder is there whole at the end, or not at all.

    \b
    Example:  counterpoise export demo --method ffr --format parquet --out ffr_images
              counterpoise export demo --method usb --format imagefolder --with-real --out repaired
    """
    from counterpoise import terminal
    from counterpoise.export.write import export

    written = export(job, form, out, plans, with_real, per_file)
    return written, terminal.export(written)


@_command(
    "verify",
    "Check the pool's files; sample some images anew.",
    click.option("--regenerate", type=click.IntRange(0), default=0, help="Images to sample anew and compare [0]."),
)
def verify(job: Job, regenerate: int) -> tuple[dict, Any]:
    """Check every shard of the pools: hash, rows, seeds, pixels that decode. Exit with status 1 if one is bad.

    With --regenerate, images are sampled anew, in this process, and must come out as they are in the pool. The seed of
    the first method chooses them: seeds=[1] chooses others.

    \b
    Example:  counterpoise verify demo
              counterpoise verify demo --method ffr --regenerate 64 --json
    """
    from counterpoise import terminal

    found = job.verify(regenerate)
    return found, terminal.verify(found)


@main.command("doctor", short_help="Check this machine, and an experiment on it.")
@click.argument("config", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY.PATH=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="End standard output with one JSON object.")
def doctor(config: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check this machine: libraries, memory, devices, Ray, MLflow; and with CONFIG also its data, store and models.

    Exits with status 1 if a check fails.

    \b
    Example:  counterpoise doctor
              counterpoise doctor demo store=s3://bucket/prefix
    """
    from counterpoise.doctor import examine

    checks = examine(config, overrides)
    failed = [check for check in checks if check.state == "fail"]
    if as_json:
        click.echo(json.dumps({"ok": not failed, "checks": [vars(check) for check in checks]}))
    else:
        from counterpoise import terminal

        _show(terminal.checks(checks))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
