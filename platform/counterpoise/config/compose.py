"""Composition of validated experiments from YAML files and ``key.path=value`` overrides.

A file may name others in ``extends``; mappings are merged, everything else is replaced, and the later wins:
extended files, then a method file, then the file itself, then the command line. A file with ``methods`` and
``seeds`` describes several experiments, one for each pair.

An override applies to the methods that have its parent section: ``feedback.scale=0.1`` to those with a ``feedback``
section, ``plans.even.rate=0.9`` to those with a biased plan of this name, ``stages.fair.trainable.top_k=3`` to those
with a selective stage of this name. If no method has it, it applies to all.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from counterpoise.config import Experiment
from counterpoise.config.diagnostics import validate
from counterpoise.config.files import CONFIGS, find_file, read_tree
from counterpoise.config.overrides import apply_override, parse_override, set_value
from counterpoise.config.trees import Sources, Tree, key_paths, merge
from counterpoise.errors import ConfigError, did_you_mean, one_of

_SHARED = ("name", "store", "data", "evaluation", "realism", "tracking")
_AXES: dict[str, tuple[type, ...]] = {"methods": (str, dict), "seeds": (int,)}


def load(
    path: str,
    overrides: Iterable[str] = (),
    *,
    only_method: str | None = None,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Experiment]:
    """Load the experiments that a file describes: its methods × its seeds, in that order.

    Args:
        path: A YAML file; if it does not exist, the name of one in ``configs/experiments``.
        overrides: ``key.path=value`` each; the value is YAML.
        only_method: Keep only this one of the file's methods.
        methods: Replace the file's methods: names of methods in the file, names of method files, or their paths.
        seeds: Replace the file's seeds.

    Raises:
        ConfigError: A file is missing or not YAML, an override has no ``=``, or a key or value is wrong.
    """
    file = find_file(path, Path(), "experiments")
    body, sources = read_tree(file, ())
    body.pop("reproduction", None)  # read by counterpoise.comparison.reproduction
    parsed = [parse_override(override) for override in overrides]
    for keys, value in parsed:
        if keys[0] in _AXES:
            set_value(body, keys, value, sources)
    axis, file_seeds = (_axis(body, name, kinds, file) for name, kinds in _AXES.items())
    selected = axis if methods is None else _select_methods(methods, axis, body, file)
    trees = [_with_method(body, sources, method, file) for method in selected or [None]]
    for keys, value in parsed:  # applied after the methods, which they override too
        if keys[0] not in _AXES:
            apply_override(trees, keys, value, only_method)
    experiments = []
    for tree, where in trees:
        seeds_of_method = file_seeds or [tree.get("seed", 0)] if seeds is None else seeds
        experiments.append([validate({**tree, "seed": seed}, where, file) for seed in seeds_of_method])
    _check_names([group[0].method for group in experiments], file)
    _check_shared([group[0] for group in experiments], file)
    return _only([experiment for group in experiments for experiment in group], only_method, file)


def _select_methods(
    names: Sequence[str], axis: Sequence[str | Tree], body: Tree, file: Path
) -> list[str | Tree | None]:
    """Return the named methods, each an entry of the file or the path of a method file."""
    in_file: dict[str, str | Tree | None] = {
        entry if isinstance(entry, str) else str(entry.get("method") or entry.get("extends")): entry for entry in axis
    }
    if not axis and isinstance(body.get("method"), str):
        in_file = {body["method"]: None}
        if other := next((name for name in names if name not in in_file), None):
            raise ConfigError(
                f"this file describes one method, {body['method']}: its stages would replace those of another",
                where=file,
                found=f"--methods {other}",
                remedy="put the sections that the methods share into a file without `method`, `plans` and `stages`",
            )
    return [in_file[name] if name in in_file else _method_file(name, list(in_file), file) for name in names]


def _method_file(name: str, in_file: Sequence[str], file: Path) -> str:
    if Path(name).is_file():
        return str(Path(name).resolve())
    try:
        return str(find_file(name, file.parent, "methods").resolve())
    except ConfigError:
        shipped = sorted(path.stem for path in (CONFIGS / "methods").glob("*.yaml") if path.stem not in in_file)
        names = [*in_file, *shipped]
        raise ConfigError(
            "unknown method",
            where="--methods",
            found=name,
            allowed=f"{one_of(names, 60)}, or a file",
            remedy=did_you_mean(name, names),
        ) from None


def _check_names(names: Sequence[str], file: Path) -> None:
    if twice := next((name for name in names if names.count(name) > 1), None):
        remedy = "give one of them another name: {extends: …, method: NAME}"
        raise ConfigError("two methods have the same name", where=f"{file}: methods", found=twice, remedy=remedy)


def _check_shared(methods: Sequence[Experiment], file: Path) -> None:
    """Raise ConfigError unless all methods share the data and the evaluation by which they are compared."""
    for key in _SHARED:
        for experiment in methods[1:]:
            if getattr(experiment, key) != getattr(methods[0], key):
                raise ConfigError(
                    f"all methods of a file share `{key}`: one method cannot set its own",
                    where=f"{file}: methods",
                    found=f"different `{key}` for {experiment.method} and {methods[0].method}",
                    remedy=f"set `{key}` at the top of the file, or write a file for each method",
                )


def _only(experiments: list[Experiment], only_method: str | None, file: Path) -> list[Experiment]:
    names = list(dict.fromkeys(experiment.method for experiment in experiments))
    if only_method is None:
        return experiments
    if only_method not in names:
        remedy = did_you_mean(only_method, names)
        raise ConfigError(
            "unknown method", where=f"{file}: methods", found=only_method, allowed=one_of(names), remedy=remedy
        )
    return [experiment for experiment in experiments if experiment.method == only_method]


# -- files -------------------------------------------------------------------------------------------------------------


def _with_method(body: Tree, sources: Sources, method: str | Tree | None, file: Path) -> tuple[Tree, Sources]:
    """Merge the file's tree over a method's."""
    tree: Tree = {}
    where: Sources = {}
    if isinstance(method, str):
        method_tree, method_where = read_tree(find_file(method, file.parent, "methods"), (file.resolve(),))
        merge(tree, method_tree, where, method_where)
    merge(tree, body, where, sources)
    if isinstance(method, dict):  # a variant written in place is the more specific one: merged over the file
        method = dict(method)
        parent = method.pop("extends", None)
        if parent is not None:
            tree, where = _with_method(body, sources, parent, file)
        merge(tree, method, where, dict.fromkeys(key_paths(method), f"{file}: methods"))
    return tree, where


def _axis(body: Tree, key: str, kinds: tuple[type, ...], file: Path) -> list:
    values = body.pop(key, None)
    if values is None:
        return []
    good = isinstance(values, list) and values and all(isinstance(v, kinds) and not isinstance(v, bool) for v in values)
    if not good or len({str(value) for value in values}) < len(values):
        kind = " or ".join("an integer" if k is int else "a name" if k is str else "a mapping" for k in kinds)
        allowed = f"a list of different values, each {kind}"
        raise ConfigError(f"invalid `{key}`", where=f"{file}: {key}", found=values, allowed=allowed)
    return values


# -- trees -------------------------------------------------------------------------------------------------------------
