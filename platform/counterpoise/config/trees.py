"""Trees of keys and values, and the source of each key."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

KeyPath = tuple[str | int, ...]
Sources = dict[KeyPath, str]  # key path -> the file, or "the command line", that set it
Tree = dict[str, Any]


def dotted(path: Sequence[str | int]) -> str:
    """Return a key path as users write it: ``plans.synthetic.rate``."""
    return ".".join(map(str, path)) or "(the whole file)"


def key_paths(node: object, prefix: KeyPath = ()) -> Iterable[KeyPath]:
    """Yield the key path of every node below this one."""
    if prefix:
        yield prefix
    items: Iterable = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in items:
        yield from key_paths(child, (*prefix, key))


def merge(tree: Tree, other: Tree, sources: Sources, where: Sources, prefix: KeyPath = ()) -> None:
    """Merge ``other`` over ``tree`` in place: mappings key by key, anything else whole."""
    for key, value in other.items():
        path = (*prefix, key)
        if isinstance(value, dict) and isinstance(tree.get(key), dict):
            merge(tree[key], value, sources, where, path)
        else:
            tree[key] = _copy(value)
        sources.update({p: where[p] for p in where if p[: len(path)] == path})


def _copy(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _copy(value) for key, value in node.items()}
    return [_copy(value) for value in node] if isinstance(node, list) else node
