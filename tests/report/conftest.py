"""Reports with invented numbers, to look at and to test the page with."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import stats

from counterpoise.evaluation.compare import ranks, table
from counterpoise.evaluation.estimate import Estimate
from counterpoise.report.content import (
    CellPrompts,
    CellSamples,
    FilterExamples,
    PlanTable,
    PromptTable,
    Report,
    ResultRow,
)
from counterpoise.report.leaderboard import Leaderboard

COLORS = {"red": "#c0392b", "green": "#27ae60", "blue": "#2e6fbf", "yellow": "#e1b12c"}
SIDES = {"triangle": 3, "square": 4, "pentagon": 5, "hexagon": 6}
# method: share of its errors that is left in the worst cells, and whether it trains on synthetic images
METHODS = {"erm": (1.0, False), "group_dro": (0.85, False), "usb": (0.8, True), "asb": (0.55, True), "ffr": (0.4, True)}

ADVICE = "the group predicts the class: Cramér's V = 0.97; try the method ffr (plan asb), or usb"


def image(label: str, group: str, rng: np.random.Generator, size: int = 32) -> bytes:
    picture = Image.new("RGB", (size, size), tuple(rng.integers(150, 230, 3)))
    center, radius = size * rng.uniform(0.42, 0.58, 2), size * rng.uniform(0.25, 0.38)
    ImageDraw.Draw(picture).regular_polygon(
        (*center, radius), SIDES.get(label, 4), rotation=float(rng.uniform(0, 360)), fill=COLORS.get(group, "#777777")
    )
    noisy = np.asarray(picture) + rng.normal(0, 8, (size, size, 3))
    buffer = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def counts_of(classes: list[str], groups: list[str], rng: np.random.Generator) -> list[list[int]]:
    if not groups:
        return [[max(3, round(500 * 100 ** (-i / max(len(classes) - 1, 1))))] for i in range(len(classes))]
    grid = rng.integers(0, 9, (len(classes), len(groups)))
    for i in range(len(classes)):
        grid[i, i % len(groups)] = 490
    grid[0, -1] = 0
    return grid.tolist()


def rows_of(classes, groups, methods, seeds, counts, effect, rng) -> list[ResultRow]:
    rows = []
    for method in methods:
        left, synthetic = METHODS[method]
        left = 1 - (1 - left) * effect if synthetic else left
        for seed in range(seeds):
            cells = []
            for i, label in enumerate(classes):
                for j, group in enumerate(groups or [None]):
                    error = left * min(0.75, 0.9 / (1 + counts[i][j] / 20)) + rng.uniform(0.02, 0.1)
                    value = float(np.clip(1 - error + rng.normal(0, 0.015), 0, 1))
                    unknown = {"n": 0, "accuracy": None, "low": None, "high": None}
                    known = {"n": 100, "accuracy": value, "low": value - 0.05, "high": min(value + 0.05, 1.0)}
                    empty = (i, j) == (1, 1)
                    cells.append({"label": label, "group": group, **(unknown if empty else known)})
            accuracies = [cell["accuracy"] for cell in cells if cell["accuracy"] is not None]
            metrics = {
                "worst_group_accuracy": min(accuracies),
                "balanced_accuracy": float(np.mean(accuracies)),
                "accuracy": float(np.mean(accuracies)) + 0.02,
                "group_std": float(np.std(accuracies)),
                "few": min(accuracies) + 0.01,
                "many": None,
            }
            if groups:
                metrics |= {"demographic_parity": 0.2 * left, "equalized_odds_max": 0.5 * left}
            intervals = {name: (value - 0.02, value + 0.02) for name, value in metrics.items() if value is not None}
            sampled = 1400 if synthetic and seed == 0 else 0
            rows.append(ResultRow(method, seed, metrics, intervals, cells, sampled, 1400 - sampled, 12.3 + seed))
    return rows


def summary_of(rows: list[ResultRow]) -> dict:
    summary: dict = {}
    for method in dict.fromkeys(row.method for row in rows):
        for name in rows[0].metrics:
            values = [row.metrics[name] for row in rows if row.method == method and row.metrics[name] is not None]
            if values:
                mean, half = float(np.mean(values)), None
                if len(values) > 1:
                    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
                bounds = (None, None) if half is None else (float(mean - half), float(mean + half))
                summary.setdefault(method, {})[name] = Estimate(mean, *bounds, len(values))
    return summary


@pytest.fixture(scope="session")
def make_report() -> Callable[..., Report]:
    """A report of given classes, groups, methods and seeds. ``effect`` 1: synthetic images help, 0: they do not."""

    def make(
        classes=("triangle", "square", "pentagon", "hexagon"),
        groups=("red", "green", "blue", "yellow"),
        methods=tuple(METHODS),
        seeds=3,
        effect=1.0,
        shown=16,
        size=32,
        **changes,
    ) -> Report:
        rng = np.random.default_rng(0)
        classes, groups = list(classes), list(groups)
        counts = counts_of(classes, groups, rng)
        rows = rows_of(classes, groups, methods, seeds, counts, effect, rng)
        most = max(map(max, counts))
        level = [[most - n for n in row] for row in counts]
        budget = [[most * 3 // 4 for _ in row] for row in counts]
        short = [[n - 31 if (i, j) == (0, 1) else n for j, n in enumerate(row)] for i, row in enumerate(budget)]
        plans = [PlanTable("synthetic", ["usb"], level, level)] if "usb" in methods else []
        plans += [PlanTable("synthetic", [method], budget, short) for method in ("asb", "ffr") if method in methods]
        cells = [(label, group) for label in classes for group in groups or [None]]
        samples = [
            CellSamples(
                label,
                group,
                f"a photo of a {group or ''} {label}",
                [
                    image(label, group, rng, size)
                    for _ in range(min(counts[classes.index(label)][0 if group is None else groups.index(group)], 6))
                ],
                [image(label, group, rng, size) for _ in range(6)],
                [(image("square", group, rng, size), "margin −0.021"), (None, "black image")]
                if number % 3 == 0
                else [],
            )
            for number, (label, group) in enumerate(cells[:shown])
        ]
        filtered = [
            FilterExamples("clip_margin", 14, [(image("square", "red", rng, size), "clip_margin 0.012 < 0.02")]),
            FilterExamples("near_duplicate", 0),
            FilterExamples("quarantined", 3, [(None, "quarantined: one colour all over")] * 3),
        ]
        examples = [(f"{label} {group or ''}", f"a photo of a {group or ''} {label}") for label, group in cells]
        sets = [
            PromptTable(
                [method for plan in plans for method in plan.methods],
                "5d41402abc4b2a76",
                "a grammar",
                [
                    CellPrompts(cell, 50, [f"{text}, {light}" for light in ("at dawn", "at noon")])
                    for cell, text in examples
                ],
                refused=1,
                refusals=[("a photo of a moon", "it does not say 'triangle'")],
            )
        ]
        synthesis = {
            "pool": "0f3c9a2be1d47788",
            "shards": 184,
            "images": 5871,
            "sampled": 5888,
            "reused": 0,
            "quarantined": 3,
            "rejected": {"clip_margin": 14, "near_duplicate": 1},
            "purity": 0.931,
            "cell_purity": [
                [0.875 if (i, j) == (1, 0) else None if (i, j) == (0, 1) else 0.964 for j in range(len(groups or "-"))]
                for i in range(len(classes))
            ],
            "short_cells": [{"plan": "ffr/synthetic", "cell": "triangle × green", "wanted": 367, "got": 336}],
            "images_per_second": 41.3,
            "cost": {"startup": 6.1, "sample": 131.0, "encode": 1.9, "score": 11.4, "commit": 2.2},
        }
        empty = [
            [c, g]
            for c, row in zip(classes, counts, strict=True)
            for g, n in zip(groups or [""], row, strict=True)
            if n == 0
        ]
        audit = {
            "labels": classes, "groups": groups, "counts": counts, "class_counts": [sum(row) for row in counts],
            "imbalance_factor": 1.1, "cramers_v": 0.97 if groups else None, "unknown_group": 0, "empty_cells": empty,
            "majority_rate": {c: max(row) / sum(row) if groups else None for c, row in zip(classes, counts)},  # noqa: B905
            "suggestions": [*(f"cell {' × '.join(cell)} has no training image" for cell in empty), ADVICE],
        }  # fmt: skip
        rows_of_realism = [
            {"class": name, "n_real": 500, "n_synthetic": 480, "fid": 12.345 + n, "density": 0.874, "coverage": 0.731,
             "probe": 0.742, "missing": {}}
            for n, name in enumerate(["all", *classes])
        ]  # fmt: skip
        rows_of_realism[-1] |= {
            "fid": None,
            "n_synthetic": 1,
            "missing": {"fid": "needs 2 real and 2 synthetic images"},
        }
        realism = {
            "methods": sorted({method for plan in plans for method in plan.methods}), "k": 5, "max_images": 500,
            "extractor": {"name": "CLIP ViT-B-32", "resizer": "bicubic antialias 224", "dimension": 512},
            "rows": rows_of_realism,
        }  # fmt: skip
        given = {
            "title": "demo",
            "dataset": "testbed: shape by colour, bias 0.98",
            "command": "counterpoise run demo --out demo",
            "created": "2026-11-21 14:03 UTC",
            "config_yaml": "name: demo\nstore: demo/store\ndata:\n  adapter: testbed\n  imbalance: {rate: 0.98}\n",
            "classes": classes,
            "groups": groups,
            "audit": audit,
            "rows": rows,
            "summary": summary_of(rows),
            "baseline": "erm" if "erm" in methods else None,
            "plans": plans,
            "prompts": sets if plans else [],
            "synthesis": synthesis if plans else None,
            "realism": [realism] if plans else [],
            "filtered": filtered if plans else [],
            "samples": samples,
            "seconds": {"load": 1.2, "audit": 0.1, "synthesize": 148.2, "train": 131.9},
            "digests": {"dataset": "9d1b7f6a55cc0e21", "pool": "0f3c9a2be1d47788"},
            "versions": {"counterpoise": "0.1.0", "torch": "2.15.0", "ray": "2.60.0"},
        }
        return Report(**{**given, **changes})

    return make


@pytest.fixture(scope="session")
def make_board(make_report) -> Callable[..., Leaderboard]:
    """A leaderboard of the same results, with a control; ``changes`` are fields to replace."""

    def make(seeds=3, by="worst_group_accuracy", methods=("erm", "group_dro", "usb", "ffr"), report=None, **changes):
        told = make_report(seeds=seeds, methods=methods, **(report or {}))
        costs = {"erm": (0, 20.0), "group_dro": (0, 21.5), "usb": (1400, 65.25), "ffr": (1440, 125.0)}
        rows = []
        for row in told.rows:
            drawn, spent = costs[row.method]
            priced = dict(row.metrics) | {"images_drawn": drawn, "accelerator_seconds": spent + row.seed}
            rows.append(replace(row, metrics=priced, regime="groups"))
        if "erm" in methods:
            rows += [replace(row, method="control", regime="labels") for row in rows if row.method == "erm"]
        flat = [{"method": r.method, "seed": r.seed, "intervals": r.intervals, **r.metrics} for r in rows]
        summary = table(flat, list(rows[0].metrics), 0.95)
        places = ranks(summary, by)
        given = {
            "title": "demo",
            "command": "counterpoise compare demo --methods usb,ffr",
            "created": "2026-11-21 14:03 UTC",
            "config_yaml": told.config_yaml,
            "classes": told.classes,
            "groups": told.groups,
            "rows": sorted(rows, key=lambda row: list(places).index(row.method)),
            "summary": summary,
            "baseline": told.baseline,
            "control": "control" if "erm" in methods else None,
            "control_of": {"method": "ffr", "base": "erm", "epochs": 34, "images_shown": 20_400},
            "by": by,
            "of_images": seeds == 1,
            "places": places,
            "regimes": {row.method: row.regime for row in rows},
            "synthetic": [method for method in ("usb", "ffr") if method in methods],
            "stages": {"fitted": 4, "found": 12},
            "results": [{"method": row.method, "seed": row.seed} for row in rows],
            "digests": {"dataset": "9d1b7f6a55cc0e21"},
            "versions": {"counterpoise": "0.1.0"},
        }
        return Leaderboard(**{**given, **changes})

    return make
