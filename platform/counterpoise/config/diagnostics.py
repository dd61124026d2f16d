"""Validation errors of an experiment, with pydantic's findings mapped to the user's files.

Each error names the file or the command line that set the key, the key path, the value found, the values allowed and
the nearest valid spelling.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from counterpoise.config import Experiment
from counterpoise.config.trees import KeyPath, Sources, Tree, dotted
from counterpoise.errors import ConfigError, did_you_mean, one_of


def validate(tree: Tree, sources: Sources, file: Path) -> Experiment:
    """Validate a merged tree as an experiment. Raises ConfigError with every mistake in it."""
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        # the first problem per key path: each member of a union reports its own
        first = {_place(problem["loc"], tree)[0]: problem for problem in reversed(error.errors())}
        problems = [_explain(problem, tree, sources, file) for problem in reversed(first.values())]
        raise problems[0] if len(problems) == 1 else _bundle(problems, file) from None


def _bundle(problems: list[ConfigError], file: Path, shown: int = 5) -> ConfigError:
    more = [f"… and {len(problems) - shown} more"] if len(problems) > shown else []
    return ConfigError("\n".join([f"{len(problems)} mistakes in {file}", *map(str, problems[:shown]), *more]))


def _explain(problem: Any, tree: Tree, sources: Sources, file: Path) -> ConfigError:
    path, found = _place(problem["loc"], tree)
    where, kind, context = _source(path, sources, file), problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        keys = _keys_at(problem["loc"][:-1])
        return ConfigError(
            "unknown key",
            where=where,
            found=path[-1],
            allowed=one_of(keys, 30),
            remedy=did_you_mean(str(path[-1]), keys),
        )
    if kind in ("missing", "union_tag_not_found"):
        key = str(path[-1]) if kind == "missing" else context["discriminator"].strip("'")
        allowed = None if kind == "missing" else one_of(_tags_at(problem["loc"], key))
        where = where if kind == "missing" else f"{where}.{key}"
        example = f", for example on the command line: {where.split(': ')[-1]}=…"
        return ConfigError(
            f"`{key}` is required", where=where, found="nothing", allowed=allowed, remedy=f"set it{example}"
        )
    if kind == "union_tag_invalid":
        key = context["discriminator"].strip("'")
        tags = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        remedy = did_you_mean(context["tag"], tags)
        return ConfigError(
            "unknown kind", where=f"{where}.{key}", found=context["tag"], allowed=one_of(tags), remedy=remedy
        )
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if kind == "value_error":
        return ConfigError(message, where=where)
    remedy = (
        did_you_mean(str(found), context["expected"].replace("'", "").split(", ")) if kind == "literal_error" else None
    )
    return ConfigError("invalid value", where=where, found=repr(found), allowed=message, remedy=remedy)


def _source(path: KeyPath, sources: Sources, file: Path) -> str:
    """Return the source (file or command line) of a key path, else of the nearest path above or first below it."""
    above = (sources[path[:n]] for n in range(len(path), 0, -1) if path[:n] in sources)
    below = (source for keys, source in sources.items() if path and keys[: len(path)] == path)
    return f"{next(above, next(below, file))}: {dotted(path)}" if path else str(file)


def _place(location: Sequence[str | int], tree: Tree) -> tuple[KeyPath, Any]:
    """Map a pydantic location to the user's key path, without the names of union members, and the value there."""
    node: Any = tree
    path: list[str | int] = []
    for number, key in enumerate(location):
        if (isinstance(node, dict) and key in node) or (isinstance(node, list) and isinstance(key, int)):
            path.append(key)
            node = node[key]  # type: ignore[index]
        elif number == len(location) - 1 and isinstance(node, dict):  # a missing key
            path.append(key)
    return tuple(path), node


def _members(annotation: Any) -> list[Any]:
    """Return the types that an annotation allows: Annotated and unions are opened, containers give their content."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return [member for part in typing.get_args(annotation) for member in _members(part)]
    if origin is typing.Annotated:
        return _members(typing.get_args(annotation)[0])
    if origin in (list, dict):
        return _members(typing.get_args(annotation)[-1])
    return [annotation]


def _models_at(location: Sequence[str | int]) -> list[type[BaseModel]]:
    models: list[Any] = [Experiment]
    for key in location:
        deeper = [
            m for model in models if key in model.model_fields for m in _members(model.model_fields[key].annotation)
        ]
        tagged = [model for model in models if any(_is_tag(field, key) for field in model.model_fields.values())]
        models = [
            model for model in deeper or tagged or models if isinstance(model, type) and issubclass(model, BaseModel)
        ]
    return models


def is_always_there(location: Sequence[str | int]) -> bool:
    """Return True if an experiment has a section (or mapping) at this key path by default."""
    fields = (model.model_fields.get(str(location[-1])) for model in _models_at(location[:-1]))
    return any(field and isinstance(field.default, (BaseModel, dict)) for field in fields)


def _is_tag(field: Any, key: str | int) -> bool:
    return (
        field.is_required()
        and typing.get_origin(field.annotation) is typing.Literal
        and key in typing.get_args(field.annotation)
    )


def _keys_at(location: Sequence[str | int]) -> list[str]:
    return list(dict.fromkeys(key for model in _models_at(location) for key in model.model_fields))


def _tags_at(location: Sequence[str | int], key: str) -> list[str]:
    return [typing.get_args(model.model_fields[key].annotation)[0] for model in _models_at(location)]
