"""The result as two files: every figure as JSON, and a table to read."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_COLUMNS = {
    "measurement", "title", "case", "images_per_second", "bare_images_per_second", "ratio", "pairs", "goal", "met",
    "peak_gib", "error", "skipped", "seconds",
}  # fmt: skip


def write(folder: Path, result: dict[str, Any]) -> None:
    """Write ``result.json`` and ``result.md``, each whole or not at all."""
    for name, text in (("result.json", json.dumps(result, indent=1) + "\n"), ("result.md", to_markdown(result))):
        draft = folder / f".{name}"
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, folder / name)


def to_markdown(result: dict[str, Any]) -> str:
    """Return a page with the circumstances and a table for each measurement."""
    memory = f", {result['memory_gib']:.0f} GiB" if result["memory_gib"] else ""
    libraries = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    lines = [
        f"# {result['device']}{memory}, {result['started'][:10]}",
        "",
        f"`{result['command'].strip()}`: {result['seconds']:.0f} s. Commit {result['commit']}, "
        f"driver {result['driver']}, CUDA {result['cuda']}, Python {result['python']}, {libraries}.",
    ]
    if result["tiny"]:
        lines += ["", "**Tiny models: this shows that every case runs. Its figures mean nothing.**"]
    for title in dict.fromkeys(row["title"] for row in result["rows"]):
        lines += ["", f"## {title}", "", *_table([row for row in result["rows"] if row["title"] == title])]
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["| case | images/s | bare images/s | ratio [quartiles] | goal | peak GiB | besides |", "|" + " --- |" * 7]
    return lines + [f"| {' | '.join(_cells(row))} |" for row in rows]


def _cells(row: dict[str, Any]) -> list[str]:
    if "error" in row or "skipped" in row:
        said = f"**failed**: {row['error']}" if "error" in row else f"not measured: {row['skipped']}"
        return [row["case"], "–", "–", "–", "–", "–", said.replace("|", "\\|")]
    besides = [f"{name.replace('_', ' ')} {_number(value)}" for name, value in row.items() if name not in _COLUMNS]
    return [
        row["case"],
        _number(row.get("images_per_second")),
        _number(row.get("bare_images_per_second")),
        _ratio(row.get("ratio"), row.get("pairs")),
        _goal(row.get("goal"), row.get("met")),
        _number(row.get("peak_gib")),
        "; ".join(besides),
    ]


def _ratio(ratio: list[float | None] | None, pairs: int | None) -> str:
    if ratio is None or ratio[1] is None:
        return "–"
    low, middle, high = ratio
    spread = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return f"{middle:.3f}{spread}, {pairs} pair{'' if pairs == 1 else 's'}"


def _goal(goal: float | None, met: bool | None) -> str:
    return "–" if goal is None else f"{goal:g}: {'met' if met else 'missed'}"


def _number(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_number, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
