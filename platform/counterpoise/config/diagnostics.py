"""Validation errors of an experiment, with pydantic's findings mapped to the user's files.

Each error names the file or the command line that set the key, the key path, the value found, the values allowed and
the nearest valid spelling.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from counterpoise.config import Experiment
from counterpoise.config.schema import keys_of, sections_at, variants_below, variants_from
from counterpoise.config.trees import KeyPath, Sources, Tree, dotted
from counterpoise.errors import ConfigError, did_you_mean, one_of


def validate(tree: Tree, sources: Sources, file: Path) -> Experiment:
    """Validate a merged tree as an experiment. Raises ConfigError with every mistake in it."""
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        # the first problem per key path: each member of a union reports its own
        first = {_place(problem, tree)[0]: problem for problem in reversed(error.errors())}
        problems = [_explain(problem, tree, sources, file) for problem in reversed(first.values())]
        raise problems[0] if len(problems) == 1 else _bundle(problems, file) from None


def _bundle(problems: list[ConfigError], file: Path, shown: int = 5) -> ConfigError:
    more = [f"… and {len(problems) - shown} more"] if len(problems) > shown else []
    return ConfigError("\n".join([f"{len(problems)} mistakes in {file}", *map(str, problems[:shown]), *more]))


def _explain(problem: Any, tree: Tree, sources: Sources, file: Path) -> ConfigError:
    path, found = _place(problem, tree)
    where, kind, location = _source(path, sources, file), problem["type"], problem["loc"]
    if kind == "extra_forbidden":
        return _unknown_key(location, _at(tree, path[:-1]), where)
    if kind == "missing":
        return _required(str(path[-1]), where)
    if kind in ("union_tag_not_found", "union_tag_invalid", "model_attributes_type"):
        return _no_variant(problem, found, where)
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if kind == "value_error":
        return ConfigError(message, where=where)
    expected = problem["ctx"]["expected"].replace("'", "").split(", ") if kind == "literal_error" else []
    remedy = did_you_mean(str(found), expected) if expected else None
    return ConfigError("invalid value", where=where, found=repr(found), allowed=message, remedy=remedy)


def _required(key: str, where: str, allowed: str | None = None) -> ConfigError:
    remedy = f"set it, for example on the command line: {where.split(': ')[-1]}=…"
    return ConfigError(f"`{key}` is required", where=where, found="nothing", allowed=allowed, remedy=remedy)


def _unknown_key(location: Sequence[str | int], section: Tree, where: str) -> ConfigError:
    """Return the error for a key that its section does not have; another variant, or one in the section, may."""
    key, kinds, variants = str(location[-1]), sections_at(location[:-1]), variants_from(location[:-1])
    keys = list(dict.fromkeys(name for kind in kinds for name in kind.model_fields))
    near = variants.kinds.values() if variants else kinds
    remedy = did_you_mean(key, [name for kind in near for name in kind.model_fields])
    if variants and (takers := variants.that_take(key)):
        problem = f"{location[-2]!r} does not take `{key}`"
        return ConfigError(problem, where=where, allowed=one_of(keys, 30), remedy=f"that is for {one_of(takers)}")
    for name, inner in (pair for kind in kinds for pair in variants_below(kind).items()):
        if takers := inner.that_take(key):
            variant = section[name] if section.get(name) in takers else takers[0]
            settings = {k: v for k, v in section.items() if k not in keys and k in inner.kinds[variant].model_fields}
            written = ", ".join(f"{k}: {v}" for k, v in ({inner.key: variant} | settings).items())
            remedy = f"it is a setting of `{name}`: write {name}: {{{written}}}"
    return ConfigError("unknown key", where=where, found=key, allowed=one_of(keys, 30), remedy=remedy)


def _no_variant(problem: Any, found: Any, where: str) -> ConfigError:
    """Return the error for a section that names none of its variants."""
    variants = variants_from(problem["loc"])
    if variants is None:  # of another kind of union
        return ConfigError("invalid value", where=where, found=repr(found), allowed="a mapping")
    names = list(variants.kinds)
    if problem["type"] == "union_tag_not_found":
        return _required(variants.key, f"{where}.{variants.key}", one_of(names))
    if problem["type"] == "model_attributes_type":
        allowed = f"a mapping whose `{variants.key}` is {one_of(names)}"
        return ConfigError("invalid value", where=where, found=repr(found), allowed=allowed)
    tag = problem["ctx"]["tag"]
    where = where if isinstance(found, str) else f"{where}.{variants.key}"
    return ConfigError("unknown kind", where=where, found=tag, allowed=one_of(names), remedy=did_you_mean(tag, names))


def _at(tree: Tree, path: KeyPath) -> Any:
    node: Any = tree
    for key in path:
        node = node[key]
    return node


def _source(path: KeyPath, sources: Sources, file: Path) -> str:
    """Return the source (file or command line) of a key path, else of the nearest path above or first below it."""
    above = (sources[path[:n]] for n in range(len(path), 0, -1) if path[:n] in sources)
    below = (source for keys, source in sources.items() if path and keys[: len(path)] == path)
    return f"{next(above, next(below, file))}: {dotted(path)}" if path else str(file)


def _place(problem: Any, tree: Tree) -> tuple[KeyPath, Any]:
    """Map pydantic's location of a problem to the user's key path, and the value there."""
    node: Any = tree
    path: list[str | int] = []
    keys = keys_of(problem["loc"])
    for number, key in enumerate(keys):
        if (isinstance(node, dict) and key in node) or (isinstance(node, list) and isinstance(key, int)):
            path.append(key)
            node = node[key]  # type: ignore[index]
        elif number == len(keys) - 1 and (isinstance(node, dict) or problem["type"] == "missing"):
            path.append(key)
    return tuple(path), node
