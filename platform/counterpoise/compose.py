"""From YAML files and ``key.path=value`` overrides to validated experiments.

A file may name others in ``extends``; mappings are merged, everything else is replaced, and the later wins:
extended files, then a method file, then the file itself, then the command line. A file with ``methods`` and
``seeds`` stands for several experiments, one for each pair.

An override counts for the methods that have what it leads into: ``feedback.scale=0.1`` for those with a ``feedback``
section, ``plans.even.rate=0.9`` for those with a plan of this name. Where no method has it, all are given it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from counterpoise.config import Experiment
from counterpoise.errors import ConfigError, did_you_mean, one_of
from counterpoise.explain import KeyPath, Sources, Tree, dotted, is_always_there, validate

_SHARED = ("name", "store", "data", "evaluation", "realism", "tracking")
_AXES: dict[str, tuple[type, ...]] = {"methods": (str, dict), "seeds": (int,)}
CONFIGS = Path(__file__).parent / "configs"  # a link to the checkout's configs/, which a wheel holds as files


def load(
    path: str,
    overrides: Iterable[str] = (),
    *,
    only_method: str | None = None,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Experiment]:
    """The experiments that a file describes: its methods × its seeds, in that order.

    Args:
        path: A YAML file; if there is none here, the name of one in ``configs/experiments``.
        overrides: ``key.path=value`` each; the value is YAML.
        only_method: Keep only this one of the file's methods.
        methods: Instead of the file's: names of its own methods, names of method files, or paths of such.
        seeds: Instead of the file's.

    Raises:
        ConfigError: A file is missing or not YAML, an override has no ``=``, or a key or value is wrong.
    """
    file = _find(path, Path(), "experiments")
    body, sources = _read(file, ())
    body.pop("reproduction", None)  # what counterpoise.reproduce reads
    parsed = [_parse_override(override) for override in overrides]
    for keys, value in parsed:
        if keys[0] in _AXES:
            _set(body, keys, value, sources)
    axis, own_seeds = (_axis(body, name, kinds, file) for name, kinds in _AXES.items())
    chosen = axis if methods is None else _chosen(methods, axis, body, file)
    trees = [_with_method(body, sources, method, file) for method in chosen or [None]]
    for keys, value in parsed:  # the others come after the methods, since they have the last word over these, too
        if keys[0] not in _AXES:
            _override(trees, keys, value, only_method)
    experiments = []
    for tree, where in trees:
        numbers = own_seeds or [tree.get("seed", 0)] if seeds is None else seeds
        experiments.append([validate({**tree, "seed": seed}, where, file) for seed in numbers])
    _check_names([group[0].method for group in experiments], file)
    _check_shared([group[0] for group in experiments], file)
    return _only([experiment for group in experiments for experiment in group], only_method, file)


def beside(path: str, room: str, key: str) -> tuple[Path, Any]:
    """A file, here or in a room of ``configs/``, and what it says under a key that is no part of an experiment."""
    file = _find(path, Path(), room)
    return file, _read(file, ())[0].get(key, {})


def method_names(text: str) -> list[str]:
    """The methods in ``a,b,c``. Raises ConfigError if there is none, or one twice."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        allowed = "different methods, such as erm,ffr"
        raise ConfigError("these are no methods to compare", where="--methods", found=text, allowed=allowed)
    return names


def seed_numbers(text: str) -> list[int]:
    """The seeds in ``5`` (0 to 4) or ``0,3,7`` (these; ``3,`` is the seed 3). Raises ConfigError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    listed = parts[:-1] if len(parts) > 1 and not parts[-1] else parts
    if all(part.isascii() and part.isdigit() for part in listed):
        numbers = [int(part) for part in listed] if len(parts) > 1 else list(range(int(text)))
        if numbers and len(set(numbers)) == len(numbers):
            return numbers
    allowed = "how many there are, such as 5 (0 to 4), or different numbers, such as 0,3,7"
    raise ConfigError("these are no seeds", where="--seeds", found=text, allowed=allowed)


def _chosen(names: Sequence[str], axis: Sequence[str | Tree], body: Tree, file: Path) -> list[str | Tree | None]:
    """The named methods, as the file has them, or as method files."""
    own: dict[str, str | Tree | None] = {
        entry if isinstance(entry, str) else str(entry.get("method") or entry.get("extends")): entry for entry in axis
    }
    if not axis and isinstance(body.get("method"), str):
        own = {body["method"]: None}
        if other := next((name for name in names if name not in own), None):
            raise ConfigError(
                f"this file is one method, {body['method']}: its stages would replace those of another",
                where=file,
                found=f"{other} is asked for",
                remedy="put what the methods share into a file without `method`, `plans` and `stages`",
            )
    return [own[name] if name in own else _method_file(name, list(own), file) for name in names]


def _method_file(name: str, own: Sequence[str], file: Path) -> str:
    if Path(name).is_file():
        return str(Path(name).resolve())
    try:
        return str(_find(name, file.parent, "methods").resolve())
    except ConfigError:
        names = [*own, *sorted(path.stem for path in (CONFIGS / "methods").glob("*.yaml") if path.stem not in own)]
        raise ConfigError(
            "there is no such method",
            where="--methods",
            found=name,
            allowed=f"{one_of(names, 60)}, or a file",
            remedy=did_you_mean(name, names),
        ) from None


def _check_names(names: Sequence[str], file: Path) -> None:
    if twice := next((name for name in names if names.count(name) > 1), None):
        remedy = "give one of them another name: {extends: …, method: NAME}"
        raise ConfigError("two methods have one name", where=f"{file}: methods", found=twice, remedy=remedy)


def _check_shared(methods: Sequence[Experiment], file: Path) -> None:
    """Methods are compared: on the same data, measured alike."""
    for key in _SHARED:
        for experiment in methods[1:]:
            if getattr(experiment, key) != getattr(methods[0], key):
                raise ConfigError(
                    "a method cannot have this for itself: methods of a file share it",
                    where=f"{file}: methods",
                    found=f"another `{key}` for {experiment.method} than for {methods[0].method}",
                    remedy=f"write `{key}` for all of them, or a file for each",
                )


def _only(experiments: list[Experiment], only_method: str | None, file: Path) -> list[Experiment]:
    names = list(dict.fromkeys(experiment.method for experiment in experiments))
    if only_method is None:
        return experiments
    if only_method not in names:
        remedy = did_you_mean(only_method, names)
        raise ConfigError(
            "no such method here", where=f"{file}: methods", found=only_method, allowed=one_of(names), remedy=remedy
        )
    return [experiment for experiment in experiments if experiment.method == only_method]


# -- files -------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice is an error, not a silent loss of the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _find(name: str, beside: Path, room: str) -> Path:
    """The file called ``name`` beside another one, or in ``configs/``, with or without its suffix."""
    tried = []
    for folder in (beside, CONFIGS, CONFIGS / room):
        for candidate in (folder / name, folder / f"{name}.yaml"):
            if candidate.is_file():
                return candidate
            tried.append(candidate)
    near = did_you_mean(Path(name).stem, [path.stem for path in (CONFIGS / room).glob("*.yaml")])
    raise ConfigError(
        "there is no such file", where=name, found=f"nothing at {tried[0]}", remedy=near or "check the path"
    )


def _read(file: Path, chain: tuple[Path, ...]) -> tuple[Tree, Sources]:
    """A file merged over the files that it extends, and where each key came from."""
    if file.resolve() in chain:
        raise ConfigError("files extend each other in a circle", where=file, found=" → ".join(p.name for p in chain))
    try:
        own = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("this is not a YAML file", where=file, found=" ".join(str(error).split())) from error
    except OSError as error:
        raise ConfigError("this file cannot be read", where=file, found=error) from error
    if not isinstance(own, dict):
        raise ConfigError("an experiment file is a mapping of keys to values", where=file, found=type(own).__name__)
    extends = own.pop("extends", [])
    parents = [extends] if isinstance(extends, str) else extends
    if not isinstance(parents, list) or not all(isinstance(name, str) for name in parents):
        raise ConfigError("`extends` takes a file name or a list of them", where=f"{file}: extends", found=extends)
    tree: Tree = {}
    sources: Sources = {}
    for name in parents:
        parent, where = _read(_find(name, file.parent, ""), (*chain, file.resolve()))
        _merge(tree, parent, sources, where)
    _merge(tree, own, sources, dict.fromkeys(_paths(own), str(file)))
    return tree, sources


def _with_method(body: Tree, sources: Sources, method: str | Tree | None, file: Path) -> tuple[Tree, Sources]:
    """The file's own tree laid over a method's."""
    tree: Tree = {}
    where: Sources = {}
    if isinstance(method, str):
        method_tree, method_where = _read(_find(method, file.parent, "methods"), (file.resolve(),))
        _merge(tree, method_tree, where, method_where)
    _merge(tree, body, where, sources)
    if isinstance(method, dict):  # a variant written in place: laid over the file instead, since it is the narrower one
        method = dict(method)
        parent = method.pop("extends", None)
        if parent is not None:
            tree, where = _with_method(body, sources, parent, file)
        _merge(tree, method, where, dict.fromkeys(_paths(method), f"{file}: methods"))
    return tree, where


def _axis(body: Tree, key: str, kinds: tuple[type, ...], file: Path) -> list:
    values = body.pop(key, None)
    if values is None:
        return []
    good = isinstance(values, list) and values and all(isinstance(v, kinds) and not isinstance(v, bool) for v in values)
    if not good or len({str(value) for value in values}) < len(values):
        kind = " or ".join("an integer" if k is int else "a name" if k is str else "a mapping" for k in kinds)
        allowed = f"a list of different values, each {kind}"
        raise ConfigError(
            f"`{key}` is not a list that can be gone through", where=f"{file}: {key}", found=values, allowed=allowed
        )
    return values


# -- trees -------------------------------------------------------------------------------------------------------------


def _paths(node: object, prefix: KeyPath = ()) -> Iterable[KeyPath]:
    if prefix:
        yield prefix
    items: Iterable = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in items:
        yield from _paths(child, (*prefix, key))


def _merge(tree: Tree, other: Tree, sources: Sources, where: Sources, prefix: KeyPath = ()) -> None:
    """Lays ``other`` over ``tree`` in place: mappings key by key, anything else whole."""
    for key, value in other.items():
        path = (*prefix, key)
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            _merge(tree[key], value, sources, where, path)
        else:
            tree[key] = _copy(value)
        sources.update({p: where[p] for p in where if p[: len(path)] == path})


def _copy(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _copy(value) for key, value in node.items()}
    return [_copy(value) for value in node] if isinstance(node, list) else node


def _parse_override(text: str) -> tuple[KeyPath, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        remedy = "write key.path=value, for example training.epochs=5"
        raise ConfigError("this override has no value", where="the command line", found=text, remedy=remedy)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError("this override's value is not YAML", where=f"the command line: {key}", found=value) from error
    return tuple(int(part) if part.isdigit() else part for part in key.split(".")), parsed


def _override(trees: list[tuple[Tree, Sources]], keys: KeyPath, value: Any, only_method: str | None) -> None:
    """Sets a value in the methods that have what it leads into; in all of them if none that is asked for has it."""
    asked = [tree for tree, _ in trees if only_method in (None, tree.get("method"))]
    everywhere = not any(_leads_in(tree, keys) for tree in asked)
    for tree, where in trees:
        if everywhere or _leads_in(tree, keys):
            _set(tree, keys, value, where)


def _leads_in(tree: Tree, keys: KeyPath) -> bool:
    """Whether the section, plan or stage that a key path leads into is in the tree, or there without being written."""
    node: Any = tree
    for depth, key in enumerate(keys[:-1], start=1):
        if isinstance(node, list):
            node = node[key] if isinstance(key, int) and key < len(node) else None
        elif isinstance(node, dict):
            node = node[key] if key in node else {} if is_always_there(keys[:depth]) else None
    return keys[-1] in range(len(node)) if isinstance(node, list) else isinstance(node, dict)


def _set(tree: Tree, keys: KeyPath, value: Any, sources: Sources) -> None:
    node: Any = tree
    for position, key in enumerate(keys[:-1]):
        node = _child(node, key, keys[: position + 1])
    if isinstance(node, list):
        _child(node, keys[-1], keys)
    elif not isinstance(node, dict):
        raise _no_place(keys, node)
    node[keys[-1]] = value
    sources[keys] = "the command line"


def _child(node: Any, key: str | int, path: KeyPath) -> Any:
    if isinstance(node, dict):
        if node.get(key) is None:
            node[key] = {}
        return node[key]
    if isinstance(node, list) and isinstance(key, int) and key < len(node):
        return node[key]
    raise _no_place(path, node)


def _no_place(path: KeyPath, node: Any) -> ConfigError:
    found = f"a list of {len(node)}" if isinstance(node, list) else repr(node)
    return ConfigError(
        "this override leads nowhere", where=f"the command line: {dotted(path)}", found=f"its parent is {found}"
    )
