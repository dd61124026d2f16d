"""The keys of an experiment and what each decides: what belongs into an address, and what does not.

The knowledge itself is at the keys, as :class:`counterpoise.config.base.Decides` marks. Here it is read.
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
        path: The key path. Of a kind of section, ``*`` stands for the number of a stage and the name of a plan.
        decides: What the key decides; see :mod:`counterpoise.config.base`.
        resolved: Whether addresses have what the value comes to instead of the value.
    """

    path: str
    decides: tuple[Decision, ...]
    resolved: bool


def identity(section: Section, decision: Decision) -> dict[str, Any]:
    """Return the part of an address that a section is: all its keys that decide this, as a JSON-able tree.

    What enters in resolved form is left out: only the caller knows what it comes to. A section in which nothing
    decides this is left out whole; one that may be null and is null stays as None.
    """
    return _dump(section, lambda leaf: decision in leaf.decides and not leaf.resolved, finish=flattened)


def without(section: Section, *decisions: Decision) -> dict[str, Any]:
    """Return the section as a JSON-able tree but for the keys that decide one of these."""
    return _dump(section, lambda leaf: not set(decisions) & set(leaf.decides))


def leaves(kind: type[Section] = Experiment) -> Iterator[Leaf]:
    """Yield every key that a kind of section may have, in all variants of the sections below it.

    A key path that several variants have, such as ``data.root``, comes once for each.

    Raises:
        TypeError: A key does not say what it decides.
    """
    for name in kind.model_fields:
        yield from _below(kind, name, "", resolved=False)


def present_leaves(section: Section) -> Iterator[Leaf]:
    """Yield the keys of a section that is there. One that is null or empty is a leaf that decides what its keys do."""
    yield from _present(section, "", resolved=False)


def decisions(kind: type[Section] = Experiment) -> dict[str, tuple[Decision, ...]]:
    """Return what each key path decides; of variants, all that the key decides in any of them."""
    found: dict[str, tuple[Decision, ...]] = {}
    for leaf in leaves(kind):
        found[leaf.path] = tuple(dict.fromkeys((*found.get(leaf.path, ()), *leaf.decides)))
    return found


# -- walks -------------------------------------------------------------------------------------------------------------


def _mark(kind: type[Section], name: str) -> Decides:
    marks = [mark for mark in kind.model_fields[name].metadata if isinstance(mark, Decides)]
    what = next((mark.what for mark in marks if mark.what), kind.own_decisions.get(name, ()))
    return Decides(*what, resolved=any(mark.resolved for mark in marks))


def _sections(annotation: Any) -> list[tuple[str, type[Section]]]:
    """The kinds of section that an annotation may stand for, each with the path from the key: ``*.`` in containers."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return [found for part in arguments for found in _sections(part)]
    if origin is typing.Annotated:
        return _sections(arguments[0])
    if origin in (list, dict):
        return [(f"*.{path}", kind) for path, kind in _sections(arguments[-1])]
    return [("", annotation)] if isinstance(annotation, type) and issubclass(annotation, Section) else []


def _below(kind: type[Section], name: str, prefix: str, resolved: bool) -> Iterator[Leaf]:
    """The leaves of one key: itself, or those of the sections that it may hold."""
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
    """The sections in a key's value, by the path from the key."""
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
    """A section as a JSON-able tree of the leaves to keep; ``finish`` gives each section's tree its last form."""
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
