"""Overrides from the command line: ``key.path=value``."""

from __future__ import annotations

from typing import Any

import yaml

from counterpoise.config.schema import default_at, variants_at
from counterpoise.config.trees import KeyPath, Sources, Tree, dotted
from counterpoise.errors import ConfigError

_TEXT_SIGNS = ("#", "%", "@", "`", "&", "*", "|", ">")  # no one-line value begins with one of these in YAML


def parse_override(text: str) -> tuple[KeyPath, Any]:
    """Parse ``key.path=value``; the value is YAML. Raises ConfigError if it has no ``=`` or is not YAML.

    Text is taken whole, also where a file would need quotes: with `` #`` in it, which begins a comment there, or with a
    sign at its start that YAML reserves.
    """
    key, equals, value = text.partition("=")
    if not equals or not key:
        remedy = "write key.path=value, for example training.epochs=5"
        raise ConfigError("this override has no value", where="the command line", found=text, remedy=remedy)
    return tuple(int(part) if part.isdigit() else part for part in key.split(".")), _parse_value(key, value)


def _parse_value(key: str, value: str) -> Any:
    if value.startswith(_TEXT_SIGNS):
        return value
    where, remedy = f"the command line: {key}", "write text with such signs in quotes: key='\"value\"'"
    try:
        parsed, node = yaml.safe_load(value), yaml.compose(value, yaml.SafeLoader)
        has_comment = _has_comment(value)
    except yaml.YAMLError as error:
        raise ConfigError("this override's value is not YAML", where=where, found=value, remedy=remedy) from error
    is_plain = isinstance(node, yaml.ScalarNode) and node.style is None and not value.startswith("!")
    if is_plain and (has_comment or isinstance(parsed, str)):
        return value
    if has_comment:
        raise ConfigError("an override has no comments", where=where, found=value, remedy=remedy)
    return parsed


def _has_comment(value: str) -> bool:
    """Return True if something stands between the tokens of YAML that is not white space."""
    end = 0
    for token in yaml.scan(value, yaml.SafeLoader):
        if value[end : token.start_mark.index].strip():
            return True
        end = max(end, token.end_mark.index)
    return bool(value[end:].strip())


def apply_override(trees: list[tuple[Tree, Sources]], keys: KeyPath, value: Any, only_method: str | None) -> None:
    """Set a value in the methods that have its parent section; in all of them if no requested method has it."""
    requested = [tree for tree, _ in trees if only_method in (None, tree.get("method"))]
    everywhere = not any(_leads_in(tree, _numbered(tree, keys)) for tree in requested)
    for tree, where in trees:
        if everywhere or _leads_in(tree, _numbered(tree, keys)):
            set_value(tree, _numbered(tree, keys), value, where)


def _numbered(tree: Tree, keys: KeyPath) -> KeyPath:
    """Return a key path with the number of a stage in place of its name, if the tree has a stage of this name."""
    stages = tree.get("stages")
    if keys[0] != "stages" or len(keys) == 1 or not isinstance(stages, list):
        return keys
    names = [stage.get("name") if isinstance(stage, dict) else None for stage in stages]
    return ("stages", names.index(keys[1]), *keys[2:]) if keys[1] in names else keys


def _leads_in(tree: Tree, keys: KeyPath) -> bool:
    """Return True if the section, plan or stage that a key path leads into is in the tree or exists by default.

    Of variants, if it is one that takes the key: ``stages.0.trainable.top_k`` leads into selective stages alone.
    """
    node: Any = tree
    for depth, key in enumerate(keys[:-1], start=1):
        if isinstance(node, list):
            node = node[key] if isinstance(key, int) and key < len(node) else None
        elif isinstance(node, dict):
            node = node[key] if key in node else default_at(keys[:depth])
        variants = variants_at(keys[:depth])
        if variants is not None:
            node = variants.spelled_out(node)
            variant = variants.kinds.get(str(node.get(variants.key))) if isinstance(node, dict) else None
            if variant is not None and keys[depth] not in variant.model_fields:
                return False
    return keys[-1] in range(len(node)) if isinstance(node, list) else isinstance(node, dict)


def set_value(tree: Tree, keys: KeyPath, value: Any, sources: Sources) -> None:
    """Set the value at a key path in place. Raises ConfigError if a parent is neither a mapping nor a list entry."""
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
        variants = variants_at(path)
        if node.get(key) is None:
            default = default_at(path) if variants else None
            node[key] = {variants.key: default[variants.key]} if variants and default else {}
        elif variants is not None:
            node[key] = variants.spelled_out(node[key])
        return node[key]
    if isinstance(node, list) and isinstance(key, int) and key < len(node):
        return node[key]
    raise _no_place(path, node)


def _no_place(path: KeyPath, node: Any) -> ConfigError:
    found = f"a list of {len(node)}" if isinstance(node, list) else repr(node)
    return ConfigError(
        "the override does not fit the structure of the config",
        where=f"the command line: {dotted(path)}",
        found=f"its parent is {found}",
    )
