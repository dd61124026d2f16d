"""Preview: a few images of each cell in seconds, to check that the generator follows the prompts before a long run.

They are the first images of each cell in the pool, with the same seeds and prompts. They are sampled in smaller
batches, which may change their pixels by rounding. Nothing is written to the pool.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from counterpoise.config import Experiment
from counterpoise.core.files import make_folder, write_files
from counterpoise.core.progress import Progress
from counterpoise.errors import ConfigError
from counterpoise.report import figures
from counterpoise.storage.schema import LabelSpace
from counterpoise.synthesis.pool.address import Shard
from counterpoise.synthesis.pool.in_process import sampler_here
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.pool.sampling_spec import SamplingSpec
from counterpoise.workflow.run import Run

Load = Callable[[str], list[Experiment]]
Cell = tuple[int, int]


@dataclass(frozen=True)
class Column:
    """One setting of the generator: the swept key's value (None without a sweep), and the pool at that setting."""

    value: str | None
    experiment: Experiment
    pool: Pool


def preview(run: Run, load: Load, out: Path, per_cell: int, cells: int, sweep: str | None) -> dict[str, Any]:
    """Sample ``per_cell`` images of up to ``cells`` cells in this process and draw them as a PNG.

    Args:
        run: The run; its first method with plans is shown, or its first method if none has plans.
        load: Loads the experiments of the same file and overrides with one more ``key.path=value``.
        out: The PNG file; an existing one is replaced.
        per_cell: Images of a cell.
        cells: Maximum number of cells, spread evenly over all.
        sweep: ``key.path=v1,v2,…``: the same seeds with each value, side by side.

    Raises:
        ConfigError: The file cannot be written, there is no generator, or the sweep is invalid.
        ModelError: The generator cannot be loaded.
    """
    _check_file(out)
    experiment = _shown(run.suite.experiments)
    base = run.factory.pool(experiment)
    columns = _columns(experiment, run, load, sweep) if sweep else [Column(None, experiment, base)]
    for column in columns:
        if column.pool.guide is not None:
            run.factory.guide_training(column.experiment).train(column.pool.guide)
    chosen = spread(run.dataset.names.shape, cells)
    images, criteria, seconds = _sample(columns, chosen, per_cell, base)
    names = run.dataset.names
    figure = figures.grid(*_laid_out(images, columns, chosen, names), _title(experiment, base, sweep, chosen))
    run.session.tracked.figure("preview.png", figure)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=100)
    write_files(out.parent, {out.name: data.getvalue()}, what="the preview", where=f"--out {out}")
    left_out = [names.cell(*cell) for cell in np.ndindex(names.shape) if cell not in chosen]
    count = len(columns) * len(chosen) * per_cell
    return {
        "file": str(out),
        "method": experiment.method,
        "pool": base.digest,
        "values": [column.value for column in columns if column.value is not None],
        "cells": len(chosen),
        "left_out": left_out,
        "images": count,
        "criterion": criteria,
        "defects": sum(image is None for column in images for cell in column.values() for image in cell),
        "seconds": round(seconds, 2),
        "images_per_second": round(count / max(seconds, 1e-9), 3),
    }


def spread(shape: tuple[int, int], cells: int) -> list[Cell]:
    """Return at most ``cells`` cells of a class × group table, evenly spread, in whole rows while they fit."""
    classes, groups = shape
    columns = _evenly(groups, cells)
    return [(label, group) for label in _evenly(classes, cells // len(columns)) for group in columns]


def _evenly(size: int, count: int) -> list[int]:
    return [int(number) for number in np.linspace(0, size - 1, min(size, max(count, 1))).round()]


def _shown(experiments: Sequence[Experiment]) -> Experiment:
    able = sorted((e for e in experiments if e.generator), key=lambda experiment: not experiment.plans)
    if not able:
        raise ConfigError("no generator is configured", where="generator", found="null")
    return able[0]


# -- the sweep ---------------------------------------------------------------------------------------------------------


def _columns(shown: Experiment, run: Run, load: Load, sweep: str) -> list[Column]:
    key, values = parse_sweep(sweep)
    columns = []
    for value in values:
        experiment = next(e for e in load(f"{key}={value}") if e.method == shown.method)
        if experiment.data != shown.data or experiment.generator is None:
            allowed = "keys that decide pixels, such as those of generator and prompts"
            raise ConfigError("this key cannot be swept", where="--sweep", found=key, allowed=allowed)
        columns.append(Column(value, experiment, run.factory.pool(experiment)))
    if len({column.pool.digest for column in columns}) < len(columns):
        found = f"{key}={','.join(values)}"
        remedy = "sweep a key that decides pixels, such as generator.guidance_scale=1,3,5"
        raise ConfigError("these values give the same images", where="--sweep", found=found, remedy=remedy)
    return columns


def parse_sweep(text: str) -> tuple[str, list[str]]:
    """Return the key and the values of ``key.path=v1,v2,…``. A value that contains a comma needs double quotes.

    Raises:
        ConfigError: There is no key or no value, or a value is repeated.
    """
    key, _, listed = text.partition("=")
    values = [value.strip() for value in next(csv.reader([listed], skipinitialspace=True), [])]
    if not key or not values or not all(values) or len(set(values)) < len(values):
        allowed = "KEY.PATH=V1,V2,… with distinct values, such as generator.guidance_scale=1,3,5"
        raise ConfigError("invalid --sweep value", where="--sweep", found=text, allowed=allowed)
    return key, values


# -- sampling ----------------------------------------------------------------------------------------------------------


def _sample(
    columns: Sequence[Column], chosen: Sequence[Cell], per_cell: int, base: Pool
) -> tuple[list[dict[Cell, list[bytes | None]]], list[float | None], float]:
    """Sample each column.

    Returns:
        For each column, the images of its cells (None for defects).
        For each column, the mean of the feedback criterion (None without feedback).
        The seconds spent, without loading models.
    """
    images: list[dict[Cell, list[bytes | None]]] = []
    criteria: list[float | None] = []
    seconds = 0.0
    with Progress("sampling", len(columns) * len(chosen) * per_cell, "images") as progress:
        for column in columns:
            sampled: dict[Cell, list[bytes | None]] = {}
            scores: list[float] = []
            with sampler_here(_work(column.pool, base, per_cell)) as sample:
                for cell in chosen:
                    start = time.monotonic()
                    table = sample(Shard(*cell, 0))
                    seconds += time.monotonic() - start
                    sampled[cell] = table["image"].to_pylist()
                    scores += table["criterion"].drop_null().to_pylist()
                    progress.advance(per_cell)
            images.append(sampled)
            criteria.append(float(np.mean(scores)) if scores else None)
    return images, criteria, seconds


def _work(pool: Pool, base: Pool, per_cell: int) -> SamplingSpec:
    """Return the pool's sampling in shards of ``per_cell``, with the seeds of ``base`` and PyTorch's thread count."""
    import torch

    work = SamplingSpec.of(pool)
    recipe = replace(work.recipe, digest=base.digest, shard_size=per_cell)
    return replace(work, recipe=recipe, cpus=(float(torch.get_num_threads()), work.cpus[1]))


# -- the picture -------------------------------------------------------------------------------------------------------


def _laid_out(
    images: Sequence[dict[Cell, list[bytes | None]]],
    columns: Sequence[Column],
    chosen: Sequence[Cell],
    names: LabelSpace,
) -> tuple[list[list[list[bytes | None]]], list[str], list[str]]:
    """Return the strips by row and column, and both labels: class × group, or cell × value for a sweep."""
    if columns[0].value is not None:
        strips = [[column[cell] for column in images] for cell in chosen]
        return strips, [names.cell(*cell) for cell in chosen], [column.value or "" for column in columns]
    labels, groups = (list(dict.fromkeys(cell[axis] for cell in chosen)) for axis in (0, 1))
    strips = [[images[0][label, group] for group in groups] for label in labels]
    return strips, [names.classes[label] for label in labels], [names.groups[g] if names.groups else "" for g in groups]


def _title(experiment: Experiment, base: Pool, sweep: str | None, chosen: Sequence[Cell]) -> str:
    generator = experiment.generator
    assert generator is not None
    swept = sweep.partition("=")[0] if sweep else None
    settings = {
        "generator.model": generator.model,
        "generator.num_inference_steps": f"{generator.num_inference_steps} steps",
        "generator.guidance_scale": f"guidance {generator.guidance_scale:g}",
    }
    shown = ", ".join(text for key, text in settings.items() if key != swept)
    total = base.names.shape[0] * base.names.shape[1]
    some = f"; {len(chosen)} of {total} cells" if len(chosen) < total else ""
    images = f"the first images of pool {base.digest}, up to rounding"
    seeds = f"columns: {swept}, with the seeds of pool {base.digest}"
    return f"{experiment.name}, {experiment.method}: {shown}\n{seeds if swept else images}{some}"


def _check_file(out: Path) -> None:
    if out.suffix.lower() != ".png":
        raise ConfigError("the preview must be a PNG file", where="--out", found=out, remedy=f"--out {out.stem}.png")
    make_folder(out.parent, what="the preview", where=f"--out {out}")
