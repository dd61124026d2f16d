"""Kinds of section that keys may hold, read from their annotations.

A union of sections that a key tells apart (``data.adapter``, ``objective.loss.name``) is a choice of variants. The
locations of pydantic's errors have the name of the variant in them, ``stages.0.objective.loss.focal.gamma``; the key
paths of users do not.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from counterpoise.config.base import OR_WORD, Section
from counterpoise.config.experiment import Experiment


@dataclass(frozen=True)
class Variants:
    """Choice of variants.

    Attributes:
        key: The key that tells them apart.
        kinds: The variants by their value of this key.
        or_word: True if a bare word is short for a mapping of this key alone.
    """

    key: str
    kinds: dict[str, type[Section]]
    or_word: bool

    def spelled_out(self, value: Any) -> Any:
        """Return a bare word as the mapping that it is short for; anything else as it is."""
        return {self.key: value} if self.or_word and isinstance(value, str) else value

    def that_take(self, key: str) -> list[str]:
        """Return the variants that have a key of their own of this name."""
        return [name for name, kind in self.kinds.items() if key != self.key and key in kind.model_fields]


@dataclass(frozen=True)
class _At:
    """Types allowed at a key path: the members of its annotation, and whether one of their unions takes a bare word."""

    members: list[Any]
    or_word: bool = False

    @property
    def sections(self) -> list[type[Section]]:
        return [kind for kind in self.members if isinstance(kind, type) and issubclass(kind, Section)]

    @property
    def variants(self) -> Variants | None:
        tags = [_tag(kind) for kind in self.sections]
        if len(tags) < 2 or None in tags:
            return None
        names = {tag[1]: kind for tag, kind in zip(tags, self.sections, strict=True) if tag}
        return Variants(tags[0][0], names, self.or_word) if tags[0] else None

    def below(self, key: str | int) -> _At:
        found: list[_At] = []
        for kind in self.members:
            if typing.get_origin(kind) in (list, dict):
                found.append(_opened(typing.get_args(kind)[-1]))
            elif kind in self.sections and key in kind.model_fields:
                field = kind.model_fields[str(key)]
                opened = _opened(field.annotation)
                found.append(_At(opened.members, opened.or_word or OR_WORD in field.metadata))
        members = [member for one in found for member in one.members]
        return _At(members, any(one.or_word for one in found)) if found else self


def variants_at(path: Sequence[str | int]) -> Variants | None:
    """Return the variants to choose from at a user's key path, if there are any."""
    return _at(path).variants


def default_at(path: Sequence[str | int]) -> Any:
    """Return the section or mapping that an experiment has at a user's key path by default, as a tree; else None."""
    for kind in _at(path[:-1]).sections:
        field = kind.model_fields.get(str(path[-1]))
        if field and isinstance(field.default, Section | dict):
            return field.default.model_dump() if isinstance(field.default, Section) else field.default
    return None


def keys_of(location: Sequence[str | int]) -> list[str | int]:
    """Return the key path of pydantic's location, without the names of variants."""
    return [key for key, is_name, _ in _follow(location) if not is_name]


def sections_at(location: Sequence[str | int]) -> list[type[Section]]:
    """Return the kinds of section at pydantic's location: one where it names a variant."""
    return _end(location).sections


def variants_from(location: Sequence[str | int]) -> Variants | None:
    """Return the variants to choose from at pydantic's location, or that its last part is the name of one of."""
    *_, (_, is_name, _) = _follow(location)
    return _end(location[:-1] if is_name else location).variants


def variants_below(kind: type[Section]) -> dict[str, Variants]:
    """Return the keys of a section that are a choice of variants, with these."""
    found = {name: _At([kind]).below(name).variants for name in kind.model_fields}
    return {name: variants for name, variants in found.items() if variants}


def _at(path: Sequence[str | int]) -> _At:
    at = _At([Experiment])
    for key in path:
        at = at.below(key)
    return at


def _follow(location: Sequence[str | int]) -> Iterator[tuple[str | int, bool, _At]]:
    """Each part of pydantic's location, whether it is the name of a variant, and what may be there."""
    at, chosen = _At([Experiment]), False
    for key in location:
        variants = None if chosen else at.variants
        chosen = variants is not None and key in variants.kinds
        at = _At([variants.kinds[str(key)]]) if variants and chosen else at.below(key)
        yield key, chosen, at


def _end(location: Sequence[str | int]) -> _At:
    return [_At([Experiment]), *(at for _, _, at in _follow(location))][-1]


def _opened(annotation: Any) -> _At:
    """Return the types that an annotation allows: Annotated and unions are opened, containers are not."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        parts = [_opened(part) for part in arguments]
        return _At([member for part in parts for member in part.members], any(part.or_word for part in parts))
    if origin is typing.Annotated:
        opened = _opened(arguments[0])
        return _At(opened.members, opened.or_word or OR_WORD in arguments[1:])
    return _At([annotation])


def _tag(kind: type[Section]) -> tuple[str, str] | None:
    """Return the key that names a variant, and its name: a required field of one value."""
    for key, field in kind.model_fields.items():
        values = typing.get_args(field.annotation) if typing.get_origin(field.annotation) is typing.Literal else ()
        if field.is_required() and len(values) == 1:
            return key, values[0]
    return None
