"""Commands besides the steps: compare, preview, export, verify, reproduce, doctor."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from counterpoise.cli.arguments import method_names, seed_numbers
from counterpoise.cli.command import FOLDER, command, main, show
from counterpoise.evaluation.catalogue import JUDGES

if TYPE_CHECKING:
    from counterpoise.config import Experiment
    from counterpoise.workflow.run import Run


def _entries(config: str, overrides: tuple[str, ...], methods: str | None, seeds: str | None) -> list[Experiment]:
    from counterpoise.comparison.leaderboard import load_entries

    names = None if methods is None else method_names(methods)
    numbers = None if seeds is None else seed_numbers(seeds)
    return load_entries(config, overrides, names, numbers)


@command(
    "compare",
    "Rank methods over seeds in a leaderboard.",
    click.option("--by", metavar="METRIC", help=f"Rank by this metric [the first defined of {', '.join(JUDGES)}]."),
    click.option("--out", type=FOLDER, help="Folder for leaderboard.html and leaderboard.json [reports/NAME]."),
    choose=_entries,
    choices=(
        click.option("--methods", metavar="A,B,…", help="Methods of the file, names or paths of method files [all]."),
        click.option("--seeds", metavar="N|A,B,…", help="Number of seeds, from 0 on, or a list [the file's]."),
    ),
    control=True,
)
def compare(run: Run, by: str | None, out: Path | None) -> tuple[dict, Any]:
    """Train and measure methods on the same seeds, rank them, and test which differences are significant.

    Each method is compared with erm, which is added if the file lacks it. When a method uses synthetic images, an
    equal-compute control is added: erm for as many gradient steps. Results in the store are reused; a stage that
    several methods share is trained once.

    \b
    Example:  counterpoise compare demo --methods ffr,usb,resample --seeds 5
              counterpoise compare demo --by equalized_odds_max --out leaderboard
    """
    from counterpoise.cli import tables
    from counterpoise.comparison import leaderboard

    board = leaderboard.compare(run, by, out)
    return board, tables.leaderboard(board)


@command(
    "preview",
    "Sample a few images of each cell, in seconds.",
    click.option("--per-cell", type=click.IntRange(1, 64), default=4, help="Images per cell [4]."),
    click.option(
        "--cells", type=click.IntRange(1, 400), default=24, help="Show at most this many cells, spread evenly [24]."
    ),
    click.option("--sweep", metavar="KEY=V1,V2,…", help="Compare values of a key on the same seeds."),
    click.option(
        "--out", type=click.Path(dir_okay=False, path_type=Path), default="preview.png", help="PNG file [preview.png]."
    ),
)
def preview(run: Run, per_cell: int, cells: int, sweep: str | None, out: Path) -> tuple[dict, Any]:
    """Sample a few images of each cell in this process and save them as a PNG, to check the prompts before a long run.

    They are the first images of each cell in the pool, up to rounding differences. Nothing is added to the pool.

    \b
    Example:  counterpoise preview demo --out look.png
              counterpoise preview demo --method ffr --per-cell 3 --sweep generator.guidance_scale=1,3,5
    """
    from counterpoise.cli import tables
    from counterpoise.config import compose
    from counterpoise.workflow.preview import preview

    typed = click.get_current_context().params

    def load(override: str) -> list:
        return compose.load(typed["config"], (*typed["overrides"], override), only_method=typed["method"])

    drawn = preview(run, load, out, per_cell, cells, sweep)
    return drawn, tables.preview(drawn)


@command(
    "export",
    "Export a method's images as a dataset.",
    click.option(
        "--format",
        "form",
        type=click.Choice(["imagefolder", "parquet", "webdataset", "huggingface"]),
        required=True,
        help="Format of the dataset.",
    ),
    click.option("--out", type=click.Path(path_type=Path), required=True, help="Output folder, new or empty."),
    click.option("--plan", "plans", multiple=True, help="Export only this plan of the method; may be repeated."),
    click.option("--with-real", is_flag=True, help="Include the real training images."),
    click.option(
        "--per-file", type=click.IntRange(1), default=1000, help="Images per Parquet, tar or Arrow file [1000]."
    ),
)
def export(run: Run, form: str, out: Path, plans: tuple[str, ...], with_real: bool, per_file: int) -> tuple[dict, Any]:
    """Export the images that a method's plans select as a dataset, with labels, prompts, seeds and a dataset card.

    Missing images are sampled first. The folder is written atomically: it is complete, or it does not exist.

    \b
    Example:  counterpoise export demo --method ffr --format parquet --out ffr_images
              counterpoise export demo --method usb --format imagefolder --with-real --out repaired
    """
    from counterpoise.cli import tables
    from counterpoise.export.write import export

    written = export(run, form, out, plans, with_real, per_file)
    return written, tables.export(written)


@command(
    "verify",
    "Check stored artifacts against their hashes; repair.",
    click.option("--regenerate", type=click.IntRange(0), default=0, help="Images to sample again and compare [0]."),
    click.option("--repair", is_flag=True, help="Remove what is damaged, so that the next run makes it again."),
    control=True,
)
def verify(run: Run, regenerate: int, repair: bool) -> tuple[dict, Any]:
    """Check everything in the store that the methods use: that each file is what was stored, and that none is missing.

    These are the dataset's table, prompts of language models, images (hash, rows, seeds, and that pixels decode),
    classifiers, results, and measurements of realism. Exit with status 1 if one is damaged. With --repair, what is
    damaged is removed and nothing else; the next run makes it again.

    With --regenerate, images are sampled again in this process and must equal those in the pool. The first method's
    seed chooses them; for example, seeds=[1] chooses others.

    \b
    Example:  counterpoise verify demo
              counterpoise verify demo --method ffr --regenerate 64 --json
              counterpoise verify demo --repair && counterpoise run demo
    """
    from counterpoise.cli import tables
    from counterpoise.workflow import findings, verification

    found = verification.verify(run, regenerate)
    checked = found.to_json()
    if repair:
        checked["repaired"] = findings.repair(found)
        checked["ok"] = checked["equal"] == checked["regenerated"]
    run.session.tracked.json("verify.json", checked)
    return checked, tables.verify(checked)


@main.command("reproduce", short_help="Repeat a paper's comparison on the testbed.")
@click.argument("name", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY.PATH=VALUE]...")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default="reproductions",
    help="Output folder [reproductions].",
)
@click.option("--json", "as_json", is_flag=True, help="End standard output with one JSON object.")
def reproduction(name: str | None, overrides: tuple[str, ...], out: Path, as_json: bool) -> None:
    """Repeat a paper's comparison on the testbed, test its claims, and write NAME.md and NAME.json.

    Without NAME, list the available reproductions. Results in the store are reused, so running an interrupted
    reproduction again resumes it.

    \b
    Example:  counterpoise reproduce
              counterpoise reproduce ffr_figure3
              counterpoise reproduce ffr_tables seeds=[0] training.epochs=5 --out look
    """
    from counterpoise.cli import tables
    from counterpoise.comparison import reproduction

    if name is None:
        titles = reproduction.titles()
        click.echo(json.dumps(titles) if as_json else "\n".join(f"{key:22} {title}" for key, title in titles.items()))
        return
    done = reproduction.reproduce(name, overrides, out)
    if as_json:
        click.echo(json.dumps(done, allow_nan=False))
    else:
        show(tables.reproduction(done))


@main.command("doctor", short_help="Check this machine, and an experiment on it.")
@click.argument("config", required=False)
@click.argument("overrides", nargs=-1, metavar="[KEY.PATH=VALUE]...")
@click.option("--json", "as_json", is_flag=True, help="End standard output with one JSON object.")
def doctor(config: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Check this machine: libraries, memory, devices, Ray, MLflow. With CONFIG, also check its data, store and models.

    Exit with status 1 if a check fails.

    \b
    Example:  counterpoise doctor
              counterpoise doctor demo store=s3://bucket/prefix
    """
    from counterpoise.cli.doctor import examine

    checks = examine(config, overrides)
    failed = [check for check in checks if check.state == "fail"]
    if as_json:
        click.echo(json.dumps({"ok": not failed, "checks": [vars(check) for check in checks]}))
    else:
        from counterpoise.cli import tables

        show(tables.checks(checks))
    sys.exit(1 if failed else 0)
