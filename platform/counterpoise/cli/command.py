"""Parts that all commands share: loading an experiment, printing results, reporting errors."""

from __future__ import annotations

import atexit
import functools
import gc
import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from counterpoise import __version__
from counterpoise.errors import CounterpoiseError

if TYPE_CHECKING:
    from counterpoise.config import Experiment

_COLLECT_EVERY = 50_000  # new objects, instead of 700


class _Commands(click.Group):
    """Commands listed in the order of a workflow; user errors are printed without a traceback."""

    def main(self, *args: Any, **options: Any) -> Any:
        _spare_the_collector()
        return super().main(*args, **options)

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
            click.echo("interrupted: finished work is kept, run the same command again to resume", err=True)
            sys.exit(130)


def _spare_the_collector() -> None:
    """Let the garbage collector pass less often over the objects of torch and MLflow, which all live until the end.

    It would go through them a hundred times while they are imported and once more at the exit: a third of the CPU time
    of a command that finds everything in the store. At the exit the operating system takes all memory back anyway.
    """
    gc.set_threshold(_COLLECT_EVERY)
    atexit.register(_skip_last_collection)


def _skip_last_collection() -> None:
    if "triton" not in sys.modules:  # it would print a page about each object that is not freed
        gc.freeze()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="counterpoise")
def main() -> None:
    """Repair an imbalanced or biased image dataset with synthetic images, and prove that it helped.

    CONFIG is an experiment file (YAML), or the name of a shipped one such as `demo`. Any of its values can be
    overridden on the command line as key.path=value. Every command first runs the steps that it depends on, and
    reuses the results that are already in the store.

    \b
    Try it:   counterpoise run demo --out demo
    """


def one_method(config: str, overrides: tuple[str, ...], method: str | None) -> list[Experiment]:
    """Load a config's experiments, all of them or those of one method."""
    from counterpoise.config.compose import load

    return load(config, overrides, only_method=method)


FOLDER = click.Path(file_okay=False, path_type=Path)
METHOD = click.option("--method", help="Use only this method of the file.")
_NO_CONTROL = click.option(
    "--no-control", is_flag=True, help="Do not add the equal-compute control (baseline, as many gradient steps)."
)


def command(
    name: str,
    short_help: str,
    *options: Callable,
    choose: Callable = one_method,
    choices: tuple = (METHOD,),
    control: bool = False,
) -> Callable:
    """Make a command of a function: load CONFIG with its overrides, pass a run to the function, print its result.

    Args:
        name: The command's name.
        short_help: One line for the list of commands.
        options: The function's own options.
        choose: Takes config, overrides and ``choices``, and returns the experiments.
        choices: Options that choose the experiments.
        control: Add the equal-compute control unless ``--no-control`` is given, for commands that compare methods.
    """
    options += (_NO_CONTROL,) if control else ()

    def decorate(body: Callable[..., tuple[dict, Any]]) -> click.Command:
        @main.command(name, short_help=short_help)
        @click.argument("config")
        @click.argument("overrides", nargs=-1, metavar="[KEY.PATH=VALUE]...")
        @click.option("--json", "as_json", is_flag=True, help="End standard output with one JSON object.")
        @functools.wraps(body)
        def command(config: str, overrides: tuple[str, ...], as_json: bool, **rest: Any) -> None:
            chosen = {key: rest.pop(key) for key in inspect.signature(choose).parameters if key in rest}
            experiments = choose(config, overrides, **chosen)
            with_control = control and not rest.pop("no_control")
            from counterpoise.workflow.run import Run

            with Run(experiments, command=typed(), step=name, with_control=with_control) as run:
                result, tables = body(run, **rest)
            if as_json:
                click.echo(json.dumps(result, allow_nan=False))
            else:
                show(tables)
            if not result.get("ok", True):
                sys.exit(1)

        for option in (*choices, *options):
            command = option(command)
        return command

    return decorate


def typed() -> str:
    """Return the command line as it was typed, for the report."""
    import shlex

    return shlex.join(["counterpoise", *sys.argv[1:]])


def show(tables: Any) -> None:
    """Print tables and lines to standard output."""
    from rich.console import Console

    console = Console()
    for table in tables:
        console.print(table)
