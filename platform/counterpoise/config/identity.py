"""The keys of an experiment with the artifacts that each decides, and the parts of addresses that follow from them.

The keys are marked with :class:`counterpoise.config.base.Decides` where they are declared.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from counterpoise.config.base import Decides, Decision, Section
from counterpoise.config.experiment import Experiment
from counterpoise.config.flat_form import flattened


@dataclass(frozen=True)
class Leaf:
    """A key that holds a value, not a section.

    Attributes:
        path: The key path. For a kind of section, ``*`` stands for the number of a stage and the name of a plan.
        decides: The artifacts that the key decides; see :mod:`counterpoise.config.base`.
        resolved: True if addresses contain the resolved value, such as a fingerprint, instead of the value itself.
    """

    path: str
    decides: tuple[Decision, ...]
    resolved: bool


def identity(section: Section, decision: Decision) -> dict[str, Any]:
    """Return a section's part of an address: all its keys that decide this, as a JSON-able tree.

    Keys that enter in resolved form are left out, as only the caller can resolve them. A section without a key that
    decides this is left out; an optional section that is null stays as None.
    """
    return _dump(section, lambda leaf: decision in leaf.decides and not leaf.resolved, finish=flattened)


def without(section: Section, *decisions: Decision) -> dict[str, Any]:
    """Return the section as a JSON-able tree without the keys that decide one of these."""
    return _dump(section, lambda leaf: not set(decisions) & set(leaf.decides))


def leaves(kind: type[Section] = Experiment) -> Iterator[Leaf]:
    """Yield every key that a kind of section may have, in all variants of the sections below it.

    A key path that several variants have, such as ``data.root``, comes once for each.

    Raises:
        TypeError: A key is not marked with its decisions.
    """
    for name in kind.model_fields:
        yield from _below(kind, name, "", resolved=False)


def present_leaves(section: Section) -> Iterator[Leaf]:
    """Yield the keys of a section's instance. A null or empty section is one leaf, with the decisions of its keys."""
    yield from _present(section, "", resolved=False)


def decisions(kind: type[Section] = Experiment) -> dict[str, tuple[Decision, ...]]:
    """Return the decisions of each key path, over all variants that have the key."""
    decided: dict[str, tuple[Decision, ...]] = {}
    for leaf in leaves(kind):
        decided[leaf.path] = tuple(dict.fromkeys((*decided.get(leaf.path, ()), *leaf.decides)))
    return decided


# -- walks -------------------------------------------------------------------------------------------------------------


def _mark(kind: type[Section], name: str) -> Decides:
    marks = [mark for mark in kind.model_fields[name].metadata if isinstance(mark, Decides)]
    what = next((mark.what for mark in marks if mark.what), kind.own_decisions.get(name, ()))
    return Decides(*what, resolved=any(mark.resolved for mark in marks))


def _sections(annotation: Any) -> list[tuple[str, type[Section]]]:
    """Return the kinds of section that an annotation allows, each with its path from the key: ``*.`` in containers."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return [section for part in arguments for section in _sections(part)]
    if origin is typing.Annotated:
        return _sections(arguments[0])
    if origin in (list, dict):
        return [(f"*.{path}", kind) for path, kind in _sections(arguments[-1])]
    return [("", annotation)] if isinstance(annotation, type) and issubclass(annotation, Section) else []


def _below(kind: type[Section], name: str, prefix: str, resolved: bool) -> Iterator[Leaf]:
    """Yield the leaves of one key: itself, or those of the sections that it may hold."""
    mark, sections = _mark(kind, name), _sections(kind.model_fields[name].annotation)
    resolved = resolved or mark.resolved
    for path, section in sections:
        for key in section.model_fields:
            yield from _below(section, key, f"{prefix}{name}.{path}", resolved)
    if not sections:
        if not mark.what:
            raise TypeError(f"{kind.__name__}.{name} does not say what it decides; see counterpoise.config.base")
        yield Leaf(prefix + name, mark.what, resolved and not set(mark.what) <= {"place", "runtime"})


def _present(section: Section, prefix: str, resolved: bool) -> Iterator[Leaf]:
    kind = type(section)
    for name in kind.model_fields:
        value, mark = getattr(section, name), _mark(kind, name)
        below = list(_below(kind, name, prefix, resolved))
        inside = dict(_children(value)) if _sections(kind.model_fields[name].annotation) else {}
        if not inside:
            what = tuple(dict.fromkeys(decision for leaf in below for decision in leaf.decides))
            yield Leaf(prefix + name, what, all(leaf.resolved for leaf in below))
        for path, child in inside.items():
            yield from _present(child, f"{prefix}{name}.{path}", resolved or mark.resolved)


def _children(value: Any) -> Iterator[tuple[str, Section]]:
    """Yield the sections in a key's value, by the path from the key."""
    if isinstance(value, Section):
        yield "", value
    elif isinstance(value, list | dict):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield f"{key}.", child


def _as_it_is(section: Section, tree: dict[str, Any]) -> dict[str, Any]:
    return tree


def _dump(
    section: Section,
    keep: Callable[[Leaf], bool],
    resolved: bool = False,
    finish: Callable[[Section, dict[str, Any]], dict[str, Any]] = _as_it_is,
) -> dict[str, Any]:
    """Dump a section as a JSON-able tree of the leaves to keep; ``finish`` gives each section's tree its final form."""
    kind, plain, kept = type(section), section.model_dump(mode="json"), dict[str, Any]()
    for name in kind.model_fields:
        if not any(map(keep, _below(kind, name, "", resolved))):
            continue
        value, below = getattr(section, name), resolved or _mark(kind, name).resolved
        if not _sections(kind.model_fields[name].annotation):
            kept[name] = plain[name]
        elif isinstance(value, list):
            kept[name] = [_dump(child, keep, below, finish) for child in value]
        elif isinstance(value, dict):
            kept[name] = {key: _dump(child, keep, below, finish) for key, child in value.items()}
        else:
            kept[name] = None if value is None else _dump(value, keep, below, finish)
    return finish(section, kept)
