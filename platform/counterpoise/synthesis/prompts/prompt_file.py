"""Prompt files: one row of label, group and prompt for each prompt, as YAML or JSONL, to read and to edit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from counterpoise.core.files import write_files
from counterpoise.errors import ConfigError, did_you_mean, one_of
from counterpoise.storage.schema import LabelSpace

_SUFFIXES = (".yaml", ".yml", ".jsonl")
_COLUMNS = ("label", "group", "prompt")


def read_prompts(path: str, names: LabelSpace, where: str = "prompts.file") -> list[list[list[str]]]:
    """Return the prompts of a file, ``[label][group]``, in the order of its rows.

    Args:
        path: A ``.yaml`` file with a list of mappings, or a ``.jsonl`` file with a mapping in each line. Each has
            ``label`` and ``group`` (names; no group in a dataset without groups) and ``prompt``.
        names: Names of classes and groups.
        where: The key path, for errors.

    Raises:
        ConfigError: The file cannot be read, a row is not as above, a prompt occurs twice, or a cell has none.
    """
    cells: dict[tuple[int, int], list[str]] = {(i, j): [] for i in range(names.shape[0]) for j in range(names.shape[1])}
    for place, row in _rows(path, where):
        label, group, prompt = _checked(row, names, place)
        if prompt in cells[label, group]:
            raise ConfigError("this prompt occurs twice", where=place, found=prompt, remedy="remove one of them")
        cells[label, group].append(prompt)
    if empty := [names.cell(*cell) for cell, prompts in cells.items() if not prompts]:
        remedy = "write at least one prompt for every class and group"
        found = f"none for {one_of(empty, 6)}"
        raise ConfigError("some cells have no prompts", where=f"{where}: {path}", found=found, remedy=remedy)
    return [[cells[i, j] for j in range(names.shape[1])] for i in range(names.shape[0])]


def write_prompts(path: str, prompts: Sequence[Sequence[Sequence[str]]], names: LabelSpace, where: str) -> bool:
    """Write the file that :func:`read_prompts` reads, unless it exists: it may have been edited.

    Returns:
        True if the file now holds ``prompts``.

    Raises:
        ConfigError: The file cannot be written, or its name does not end in .yaml or .jsonl.
    """
    text = dumps(prompts, names, _suffix(path, where))
    file = Path(path).expanduser()
    try:
        if file.exists():
            return file.read_text(encoding="utf-8") == text
    except (OSError, UnicodeDecodeError) as error:
        remedy = "name another file"
        raise ConfigError(
            "the prompts cannot be compared with this file", where=where, found=error, remedy=remedy
        ) from error
    write_files(file.parent, {file.name: text}, what="the prompt file", where=where)
    return True


def dumps(prompts: Sequence[Sequence[Sequence[str]]], names: LabelSpace, suffix: str) -> str:
    """Return the text of a prompt file."""
    rows = [
        {"label": names.classes[i], **({"group": names.groups[j]} if names.groups else {}), "prompt": prompt}
        for i, row in enumerate(prompts)
        for j, cell in enumerate(row)
        for prompt in cell
    ]
    if suffix == ".jsonl":
        return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    return yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, width=1000)


def _suffix(path: str, where: str) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise ConfigError("a prompt file must be YAML or JSONL", where=where, found=path, allowed=one_of(_SUFFIXES))
    return suffix


def _rows(path: str, where: str) -> Iterable[tuple[str, Any]]:
    """Return the file's rows, each with its place."""
    suffix = _suffix(path, where)
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
        if suffix == ".jsonl":
            lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
            return [(f"{path}: line {number}", _json(line, f"{path}: line {number}")) for number, line in lines]
        rows = yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ConfigError("the prompt file is not UTF-8 text", where=f"{where}: {path}", found=error) from error
    except OSError as error:
        raise ConfigError(
            "the prompt file cannot be read", where=where, found=error, remedy="check the path"
        ) from error
    except yaml.YAMLError as error:
        found = " ".join(str(error).split())
        raise ConfigError("the prompt file is not YAML", where=f"{where}: {path}", found=found) from error
    if not isinstance(rows, list):
        allowed = "a list of mappings: - {label: …, group: …, prompt: …}"
        raise ConfigError(
            "the prompt file is not a list", where=f"{where}: {path}", found=type(rows).__name__, allowed=allowed
        )
    return [(f"{path}: row {number}", row) for number, row in enumerate(rows, 1)]


def _json(line: str, place: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ConfigError("this line is not JSON", where=place, found=error) from error


def _checked(row: Any, names: LabelSpace, place: str) -> tuple[int, int, str]:
    """Return (label, group, prompt) of a row."""
    columns = _COLUMNS if names.groups else ("label", "prompt")
    if not isinstance(row, dict):
        raise ConfigError("this row is not a mapping", where=place, found=row, allowed=f"{', '.join(columns)}")
    for key in row:
        if key not in columns and not (key == "group" and row[key] is None):
            remedy = did_you_mean(str(key), columns)
            raise ConfigError("unknown column", where=place, found=key, allowed=one_of(columns), remedy=remedy)
    for key in columns:
        if row.get(key) is None:
            raise ConfigError(f"this row has no {key}", where=place, found=one_of(row), allowed=one_of(columns))
    prompt = row["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise ConfigError("a prompt must be a non-empty text", where=place, found=repr(prompt))
    label = _code(row["label"], names.classes, "class", place)
    return label, _code(row["group"], names.groups, "group", place) if names.groups else 0, " ".join(prompt.split())


def _code(found: Any, names: tuple[str, ...], kind: str, place: str) -> int:
    name = str(found)  # YAML reads a class called 7 as a number
    if isinstance(found, bool) or name not in names:
        quoted = " (write it in quotes)" if isinstance(found, bool) else ""
        raise ConfigError(
            f"unknown {kind}",
            where=place,
            found=f"{found}{quoted}",
            allowed=one_of(names),
            remedy=did_you_mean(name, names),
        )
    return names.index(name)
