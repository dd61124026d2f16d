"""The card of an export: a README.md as Hugging Face's datasets have it, with all that is known of the images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.compute as pc
import yaml

from counterpoise import __version__
from counterpoise.config.identity import without
from counterpoise.export.content import Content
from counterpoise.storage.schema import LabelSpace

_PROMPTS = 60  # listed at most; all are in the rows
_SIZES = {1e3: "n<1K", 1e4: "1K<n<10K", 1e5: "10K<n<100K", 1e6: "100K<n<1M", 1e7: "1M<n<10M"}
_FILES = {"imagefolder": ["train/**", "metadata.csv"], "parquet": "data/*.parquet", "webdataset": "data/*.tar"}
_SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}
_MEANING = {
    "id": "its address in the pool; the source's own id of a real image",
    "label": "its class",
    "group": "its group",
    "split": "`train`",
    "source": "`real` or `synthetic`",
    "plans": "the plans that took it",
    "index": "its number within its cell of the pool",
    "prompt": "what the generator was asked for",
    "seed": "of its noise",
    "attempt": "how many samples before it were useless",
    "clip_similarity": "CLIP's cosine between the image and its prompt",
    "clip_margin": "that cosine minus the largest one with another cell's prompt",
}


def card(content: Content, form: str, dataset_digest: str) -> str:
    """The card as Markdown with YAML front matter. It names no store, no user and no time.

    Args:
        content: What is exported.
        form: In which format.
        dataset_digest: Of the real dataset that the plans were made for.
    """
    title = f"{content.experiment.name}: {', '.join(content.plans)} of {content.experiment.method}"
    sections = {
        "Images": _images(content),
        "Generator": _generator(content, dataset_digest),
        "Prompts": _prompts(content),
        "Columns": _columns(content),
        "How to load it": _loading(content.view.names, form),
        "Config": f"```yaml\n{_config(content)}```",
    }
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in sections.items())
    return f"---\n{_front_matter(content, form, title)}---\n\n# {title}\n\n{body}\n"


def _front_matter(content: Content, form: str, title: str) -> str:
    size = next((name for limit, name in _SIZES.items() if len(content) < limit), "n>10M")
    matter: dict[str, Any] = {
        "license": "unknown",
        "pretty_name": title,
        "task_categories": ["image-classification"],
        "tags": ["synthetic", "counterpoise"],
        "size_categories": [size],
    }
    if form in _FILES:
        files = [{"split": "train", "path": _FILES[form]}]
        matter["configs"] = [{"config_name": "default", "data_files": files}]
    return yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)


def _images(content: Content) -> str:
    names, real = content.view.names, content.view.where(source="real")
    made = len(content) - len(real)
    said = f"{made:,} synthetic training images" + (f" and {len(real):,} real ones" if len(real) else "")
    grids = {name: view.counts for name, view in content.plans.items()} | ({"real": real.counts} if len(real) else {})
    shared = sum(int(grid.sum()) for name, grid in grids.items() if name != "real") > made
    overlap = "\n\nAn image that several plans took is here once; the column `plans` names them." if shared else ""
    if not names.groups:
        rows = [[name, *(f"{grid[code, 0]:,}" for grid in grids.values())] for code, name in enumerate(names.classes)]
        return f"{said}.\n\n{_table(['class', *grids], rows)}{overlap}"
    parts = [f"{name}:\n\n{_cells(grid, names)}" for name, grid in grids.items()]
    return "\n\n".join([f"{said}.", *parts]) + overlap


def _cells(grid: np.ndarray, names: LabelSpace) -> str:
    rows = [[name, *(f"{count:,}" for count in grid[code])] for code, name in enumerate(names.classes)]
    return _table(["class", *names.groups], rows)


def _generator(content: Content, dataset_digest: str) -> str:
    made = content.pool.generation
    model = content.experiment.generator.model if content.experiment.generator else ""
    facts = {"model": model, **made["generator"], "scorer": made["scorer"], "shard_size": made["shard_size"]}
    facts |= {"pool": content.pool.digest, "view": content.view.digest, "dataset": dataset_digest}
    rows = [[name, f"`{value}`"] for name, value in facts.items() if value is not None]
    licence = (
        "The licence of the generator's weights, and what it asks of images made with them, is **unknown** to the "
        "program that wrote this card: look at the model's own card before passing these images on"
        + (", and at the real dataset's licence" if "real" in content.view.index["source"].to_pylist() else "")
    )
    return f"Sampled by Counterpoise {__version__}.\n\n{_table(['', ''], rows)}\n\n{licence}."


def _prompts(content: Content) -> str:
    counted = pc.value_counts(content.view.where(source="synthetic").index["prompt"]).to_pylist()
    lines = [f"- {found['values']} ({found['counts']:,})" for found in counted[:_PROMPTS]]
    if len(counted) > _PROMPTS:
        lines.append(f"- … and {len(counted) - _PROMPTS} more, in the column `prompt`")
    negative = content.pool.generation["negative"]
    return "\n".join(lines) + (f"\n\nNegative prompt: {negative}" if negative else "")


def _columns(content: Content) -> str:
    return "\n".join(
        f"- `{name}`" + (f": {_MEANING[name]}" if name in _MEANING else "") for name in content.schema.names
    )


def _loading(names: LabelSpace, form: str) -> str:
    """Snippets: for Python, and as the `data` section of an experiment where there is an adapter."""
    columns = {name: name for name in ("label", *(("group",) if names.groups else ()), "split", "id")}
    folders = "/".join(["{split}", "{label}", *(["{group}"] if names.groups else [])])
    python = {
        "imagefolder": 'from datasets import load_dataset\nimages = load_dataset("DIR", split="train")',
        "parquet": 'from datasets import load_dataset\nimages = load_dataset("DIR", split="train")',
        "webdataset": 'import glob, webdataset\nimages = webdataset.WebDataset(sorted(glob.glob("DIR/data/*.tar")))',
        "huggingface": 'from datasets import load_from_disk\nimages = load_from_disk("DIR")',
    }[form]
    sections: dict[str, list[dict[str, Any]]] = {
        "imagefolder": [
            {"adapter": "csv", "root": "DIR", "table": "metadata.csv", "columns": {"image": "file_name", **columns}},
            {"adapter": "imagefolder", "root": "DIR", "layout": folders},
        ],
        "parquet": [{"adapter": "parquet", "path": "DIR/data", "columns": columns}],
        "webdataset": [],
        "huggingface": [{"adapter": "huggingface", "path": "DIR", "columns": columns}],
    }
    said = f"With DIR in place of the path of this folder:\n\n```python\n{python}\n```"
    style: dict[str, Any] = {"default_flow_style": True, "sort_keys": False, "width": 1000}
    lines = [yaml.safe_dump({"data": {**data, "splits": _SPLITS}}, **style) for data in sections[form]]
    if lines:
        said += (
            "\n\nAll of these are training images. An experiment of Counterpoise draws the other splits from them "
            "(synthetic ones, too: measure on real images where you can):\n\n"
            "```yaml\n" + "# or\n".join(lines) + "```"
        )
    return said


def _config(content: Content) -> str:
    """The experiment as YAML, without the store, what it ran on, and the seed of training."""
    tree = without(content.experiment, "runtime")
    shown = {key: value for key, value in tree.items() if key not in ("store", "seed")}
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
