"""Dataset card of an export: a README.md in Hugging Face's format, with the provenance of the images."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc
import yaml

from counterpoise import __version__
from counterpoise.config.identity import without
from counterpoise.export.content import Content
from counterpoise.report.markdown import table
from counterpoise.storage.schema import LabelSpace

_PROMPTS = 60  # listed at most; all are in the rows
_SIZES = {1e3: "n<1K", 1e4: "1K<n<10K", 1e5: "10K<n<100K", 1e6: "100K<n<1M", 1e7: "1M<n<10M"}
_FILES = {"imagefolder": ["train/**", "metadata.csv"], "parquet": "data/*.parquet", "webdataset": "data/*.tar"}
_SPLITS = {"train": 0.8, "validation": 0.1, "test": 0.1}
_MEANING = {
    "id": "address in the pool; of a real image, its id in the source",
    "label": "class",
    "group": "group",
    "split": "`train`",
    "source": "`real` or `synthetic`",
    "plans": "plans that contain the image",
    "index": "index within the cell of the pool",
    "prompt": "prompt of the generator",
    "seed": "seed of the noise",
    "attempt": "number of defective samples before this one",
    "clip_similarity": "CLIP's cosine between the image and its prompt",
    "clip_margin": "CLIP's cosine with the cell's plain prompt minus the largest with another cell's",
}


def card(content: Content, form: str, dataset_digest: str) -> str:
    """Render the card as Markdown with YAML front matter. It names no store, no user and no time.

    Args:
        content: Content of the export.
        form: Format of the export.
        dataset_digest: Digest of the real dataset that the plans are for.
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
    summary = f"{made:,} synthetic training images" + (f" and {len(real):,} real ones" if len(real) else "")
    grids = {name: view.counts for name, view in content.plans.items()} | ({"real": real.counts} if len(real) else {})
    shared = sum(int(grid.sum()) for name, grid in grids.items() if name != "real") > made
    overlap = "\n\nAn image in several plans is exported once; the column `plans` names them." if shared else ""
    if not names.groups:
        rows = [[name, *(f"{grid[code, 0]:,}" for grid in grids.values())] for code, name in enumerate(names.classes)]
        return f"{summary}.\n\n{table(['class', *grids], rows)}{overlap}"
    parts = [f"{name}:\n\n{_cells(grid, names)}" for name, grid in grids.items()]
    return "\n\n".join([f"{summary}.", *parts]) + overlap


def _cells(grid: np.ndarray, names: LabelSpace) -> str:
    rows = [[name, *(f"{count:,}" for count in grid[code])] for code, name in enumerate(names.classes)]
    return table(["class", *names.groups], rows)


def _generator(content: Content, dataset_digest: str) -> str:
    made = content.pool.generation
    model = content.experiment.generator.model if content.experiment.generator else ""
    facts = {"model": model, **made["generator"], "scorer": made["scorer"], "shard_size": made["shard_size"]}
    facts |= {"pool": content.pool.digest, "view": content.view.digest, "dataset": dataset_digest}
    rows = [[name, f"`{value}`"] for name, value in facts.items() if value is not None]
    licence = (
        "The licence of the generator's weights, and its terms for sampled images, is **unknown** to the program that "
        "wrote this card: read the model's card before redistributing these images"
        + (", and the real dataset's licence" if "real" in content.view.index["source"].to_pylist() else "")
    )
    return f"Sampled by Counterpoise {__version__}.\n\n{table(['', ''], rows)}\n\n{licence}."


def _prompts(content: Content) -> str:
    counted = pc.value_counts(content.view.where(source="synthetic").index["prompt"]).to_pylist()
    lines = [f"- {prompt['values']} ({prompt['counts']:,})" for prompt in counted[:_PROMPTS]]
    if len(counted) > _PROMPTS:
        lines.append(f"- … and {len(counted) - _PROMPTS} more, in the column `prompt`")
    negative = content.pool.generation["negative"]
    return "\n".join(lines) + (f"\n\nNegative prompt: {negative}" if negative else "")


def _columns(content: Content) -> str:
    return "\n".join(
        f"- `{name}`" + (f": {_MEANING[name]}" if name in _MEANING else "") for name in content.schema.names
    )


def _loading(names: LabelSpace, form: str) -> str:
    """Write snippets for Python and, if there is an adapter, the `data` section of an experiment."""
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
    text = f"With DIR in place of the path of this folder:\n\n```python\n{python}\n```"
    style: dict[str, Any] = {"default_flow_style": True, "sort_keys": False, "width": 1000}
    lines = [yaml.safe_dump({"data": {**data, "splits": _SPLITS}}, **style) for data in sections[form]]
    if lines:
        text += (
            "\n\nAll of these are training images. An experiment of Counterpoise draws the other splits from them, "
            "synthetic images included; prefer to evaluate on real images:\n\n"
            "```yaml\n" + "# or\n".join(lines) + "```"
        )
    return text


def _config(content: Content) -> str:
    """Dump the experiment without its store, seed and runtime settings, which mean nothing elsewhere."""
    tree = without(content.experiment, "runtime")
    shown = {key: value for key, value in tree.items() if key not in ("store", "seed")}
    return yaml.safe_dump(shown, sort_keys=False, allow_unicode=True)
