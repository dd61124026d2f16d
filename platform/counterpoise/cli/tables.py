"""Human-readable output of the commands, as rich tables and lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from counterpoise.data.audit import Audit, render
from counterpoise.evaluation.catalogue import IN_SHORT, metric
from counterpoise.report.format import MISSING, bounds, count, duration, number, percent, points
from counterpoise.storage.schema import LabelSpace

_STATES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def counts(title: str, grid: Sequence[Sequence[int]], names: LabelSpace) -> Table:
    """Return a class × group table of counts; empty cells are highlighted."""
    table = _table(title, "class", *(names.groups or ("images",)), *(("all",) if names.groups else ()))
    for name, row in zip(names.classes, grid, strict=True):
        cells = [Text(count(images), style="bold red" if images == 0 else "") for images in row]
        table.add_row(name, *cells, *((f"{sum(row):,}",) if names.groups else ()))
    return table


def audit(found: Audit) -> Iterator[RenderableType]:
    """Yield the counts of each cell, their imbalance measures, and suggestions."""
    yield render(found)
    factor, v = number(found.imbalance_factor), number(found.cramers_v)
    yield f"imbalance factor {factor}" + (
        f" · Cramér's V {v} (1: the group determines the class)" if found.groups else ""
    )
    yield from (f"• {suggestion}" for suggestion in found.suggestions)


def plan(planned: Mapping[str, Any], names: LabelSpace) -> Iterator[RenderableType]:
    """Yield each plan's counts, the prompts, and the images still to sample."""
    if not planned["wanted"]:
        yield "No synthetic images are planned: the method trains on real images only."
    for key, grid in planned["wanted"].items():
        yield counts(f"{key}: synthetic images wanted", grid, names)
        yield ""
    sets = {prompts["digest"]: prompts for prompts in planned["prompts"].values()}
    for digest, prompts in sets.items():
        yield f"{sum(map(sum, prompts['counts'])):,} prompts from {prompts['origin']} ({digest})"
    seconds = planned["seconds"]
    time = (
        "time unknown before the first shard"
        if seconds is None
        else f"about {duration(seconds)} at the last measured rate"
    )
    yield f"{planned['held']:,} held in the pool, {planned['to_sample']:,} to sample: {time}"
    for method, keys in planned.get("explain", {}).items():
        yield from explanation(method, keys)


def explanation(method: str, keys: Mapping[str, Mapping[str, Any]]) -> Iterator[RenderableType]:
    """Yield what changing each key recomputes; the keys of a section with the same consequence share a line."""
    grouped: dict[str, dict[str, list[str]]] = {}
    for path, consequence in keys.items():
        parts = path.split(".")
        depth = min(2 if parts[0] in ("plans", "stages") else 1, len(parts) - 1)
        names = grouped.setdefault(consequence["text"], {}).setdefault(".".join(parts[:depth]), [])
        names.append(".".join(parts[depth:]))
    yield Text(f"\n{method}: changing a key recomputes", style="bold")
    for text, sections in sorted(grouped.items(), key=lambda group: group[0] == "nothing"):
        yield Text(text, style="italic")
        for section, names in sections.items():
            yield Padding(Text(f"{section}: {', '.join(names)}" if section else ", ".join(names)), (0, 0, 0, 2))


def synthesis(done: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the images sampled, reused and rejected, their purity, and cells that are short."""
    yield (
        f"{done['images']:,} images selected: {done['sampled']:,} sampled now, {done['reused']:,} reused, "
        f"{done['quarantined']:,} quarantined; {done['shards']:,} shards, {number(done['images_per_second'])} images/s"
    )
    if done["rejected"]:
        yield "rejected: " + ", ".join(f"{images:,} by {name}" for name, images in done["rejected"].items())
    if done["purity"] is not None:
        yield f"purity: CLIP assigns {percent(done['purity'])} % of the images to the cell they were sampled for"
    for short in done["short_cells"]:
        yield Text(f"short: {short['cell']} has {short['got']:,} of {short['wanted']:,}", style="yellow")


def rows(scored: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the metrics of every method and seed, and the stages that were trained."""
    table = _table("", "method", "seed", *(name.replace("_", " ") for name in IN_SHORT))
    for row in scored["rows"]:
        table.add_row(row["method"], str(row["seed"]), *(percent(row["metrics"].get(name)) for name in IN_SHORT))
    yield table
    yield stages(scored["stages"])


def stages(counted: Mapping[str, int]) -> str:
    """Return the number of stages trained now and found in the store."""
    return f"{counted['fitted']:,} stages trained now, {counted['found']:,} found in the store"


def comparison(summary: Mapping[str, Mapping[str, Sequence[float | None]]], confidence: float) -> Table:
    """Return a table of methods × metrics: mean over seeds with its interval."""
    title = f"mean over seeds [{confidence:.0%} t-interval]"
    table = _table(title, "method", *(name.replace("_", " ") for name in IN_SHORT))
    for method, metrics in summary.items():
        table.add_row(method, *(_interval(metrics.get(name, (None, None, None))) for name in IN_SHORT))
    return table


def run(done: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the results of all steps and the paths of the files written."""
    yield from synthesis(done["synthesize"])
    yield stages(done["stages"])
    yield ""
    yield comparison(done["summary"], done["confidence"])
    yield ""
    yield from realism(done["realism"])
    yield from done["verdict"]
    yield from files(done["files"])


def leaderboard(board: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the ranking in two tables, as one would be too wide, then the differences in words."""
    there = dict.fromkeys(name for row in board["methods"] for name in row["metrics"])
    both = ([n for n in there if metric(n).unit == "rate"], [n for n in there if metric(n).unit != "rate"])
    over = f"mean [{board['confidence']:.0%} interval over {board['intervals_over']}]"
    for title, names in zip((f"ranked by {board['by'].replace('_', ' ')}; {over}", ""), both, strict=True):
        table = _table(title, "", "method", "selected by", *map(_head, names))
        for row in board["methods"]:
            values = (_measured(name, row["metrics"].get(name)) for name in names)
            table.add_row(str(row["place"] or MISSING), row["method"], row["regime"], *values)
        yield table
        yield ""
    yield from (f"{row['method']}: {row['about']}" for row in board["methods"] if row["about"])
    yield ""
    yield from board["verdict"]
    yield ""
    yield stages(board["stages"])
    yield from files(board["files"])


def _head(name: str) -> str:
    """Return a column's title; seconds are printed as plain numbers, so the title gives the unit."""
    entry = metric(name)
    return entry.title.replace("time", "s") if entry.unit == "seconds" else entry.title


def _measured(name: str, value: Mapping[str, float | None] | None) -> str:
    if value is None or value["mean"] is None:
        return MISSING
    if metric(name).is_cost:
        return count(value["mean"])
    ends = "" if value["low"] is None else f"\n{percent(value['low'])}–{percent(value['high'])}"
    return percent(value["mean"]) + ends


def realism(measured: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """Yield the realism of each set of synthetic images, over all classes."""
    for found in measured:
        all_classes, extractor = found["rows"][0], found["extractor"]
        values = " · ".join(f"{name} {number(all_classes[name])}" for name in ("fid", "density", "coverage", "probe"))
        yield (
            f"realism of {', '.join(found['methods'])}: {values} ({all_classes['n_synthetic']:,} images against "
            f"{all_classes['n_real']:,} real ones; {extractor['name']}, {extractor['resizer']})"
        )


def files(written: Mapping[str, str]) -> Iterator[RenderableType]:
    """Yield the paths of files that were written."""
    for kind, path in written.items():
        yield f"{kind}: {path}"


def preview(drawn: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the number of images sampled, their rate, and the file."""
    left = f" ({len(drawn['left_out']):,} cells left out: raise --cells)" if drawn["left_out"] else ""
    yield (
        f"{drawn['images']:,} images of {drawn['cells']:,} cells{left} in {duration(drawn['seconds'])}, "
        f"{number(drawn['images_per_second'])} images/s"
    )
    if drawn["defects"]:
        yield Text(f"{drawn['defects']:,} of them are unusable, shown as grey squares", style="yellow")
    yield str(drawn["file"])


def export(written: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the size and the folder of an exported dataset."""
    size = f"{written['files']:,} files, {written['bytes'] / 1e6:,.1f} MB"
    yield f"{written['images']:,} images as {written['format']}: {size}"
    yield str(written["out"])


def verify(found: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the artifacts checked by kind, the damaged ones, what was repaired, and how many images are equal."""
    table = _table("", "", "checked", "damaged", "not yet made")
    for kind, counted in found["kinds"].items():
        if any(counted.values()):
            damaged = Text(count(counted["damaged"]), style=_STATES["fail"] if counted["damaged"] else "")
            table.add_row(kind, count(counted["checked"]), damaged, count(counted["missing"]))
    yield table
    for damage in found["damaged"]:
        yield Text.assemble(("damaged ", _STATES["fail"]), f"{damage['key']}: {damage['wrong']}")
    yield from found.get("repaired", ())
    if found["damaged"]:
        repaired = "repaired" in found
        yield "The next run makes it again." if repaired else "To repair, add --repair: it removes what is damaged."
    for reason in dict.fromkeys(found["not_checked"].values()):
        methods = [method for method, why in found["not_checked"].items() if why == reason]
        yield f"{len(methods):,} methods not checked ({', '.join(methods)}): {reason}"
    if found["regenerated"]:
        equal = f"{found['equal']:,} of {found['regenerated']:,} regenerated images are equal"
        difference = found["largest_difference"]
        yield equal + ("" if difference is None else f"; the largest difference is {difference} of 255")


def reproduction(done: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the verdict on each claim, and the files."""
    table = _table("Claims", "the paper says", "ours, points", "")
    for claim in done["claims"]:
        difference = points(claim["difference"]) or MISSING
        ends = bounds(claim["interval"], points)
        state = {"holds": "ok", "reversed": "fail"}.get(claim["verdict"], "warn")
        statement = f"{claim['better']} is ahead of {claim['than']} in {claim['metric']}"
        table.add_row(statement, difference + ends, Text(claim["verdict"], style=_STATES[state]))
    if done["claims"]:
        yield table
    yield from files(done["files"])


def checks(found: Sequence[Any]) -> Iterator[RenderableType]:
    """Yield a table of check results."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in found:
        table.add_row(Text(check.state, style=_STATES[check.state]), check.name, check.detail)
    yield table


def _interval(value: Sequence[float | None]) -> str:
    mean, *ends = value
    return percent(mean) + bounds(ends)
