"""Prompt sets: the prompts of every cell, from words and templates.

Prompt sets from other places: :mod:`counterpoise.synthesis.prompts.prompt_file` and
:mod:`counterpoise.synthesis.prompts.contextual`.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from counterpoise.config import Prompts
from counterpoise.config.prompts import FIELDS
from counterpoise.core.digest import digest
from counterpoise.errors import ConfigError, did_you_mean, one_of
from counterpoise.storage.schema import LabelSpace


@dataclass(frozen=True)
class PromptSet:
    """The prompts of every cell. A dataset without groups has one column.

    Image ``index`` of a cell has prompt ``index % n`` of its n prompts. The prompt never changes, and among any number
    of first images of a cell all prompts are equally frequent (±1).

    Attributes:
        prompts: ``prompts[label][group]``: a cell's prompts, at least one.
        plain: ``plain[label][group]``: a short description of the cell, by which the scorer distinguishes cells.
        origin: Source of the prompts, in words.
        refused: Unusable answers of a language model: ``cell``, ``prompt``, ``reason``.
    """

    prompts: list[list[list[str]]]
    plain: list[list[str]]
    origin: str
    refused: list[dict[str, str]] = field(default_factory=list)

    @cached_property
    def digest(self) -> str:
        """The address of the prompts, independent of their source."""
        return digest(self.prompts)

    @property
    def counts(self) -> list[list[int]]:
        """The number of prompts of each cell."""
        return [[len(cell) for cell in row] for row in self.prompts]

    def to_json(self) -> dict[str, Any]:
        """Return a plan's summary of the prompts: ``digest``, ``origin`` and ``counts``."""
        return {"digest": self.digest, "origin": self.origin, "counts": self.counts}


def template_prompts(prompts: Prompts, names: LabelSpace) -> list[list[list[str]]]:
    """Return a prompt for each cell and each of its modifiers (SYNAuG, section 3.1), by the template.

    Raises:
        ConfigError: The template or its words are wrong; see :func:`plain_prompts`. A class has no modifiers while
            others have.
    """
    plain_prompts(prompts, names)  # for its errors
    modifiers = _modifiers(prompts, names)
    return [
        [[fill(prompts.template, **words, modifier=modifier) for modifier in modifiers[label]] for words in cells]
        for label, cells in enumerate(cell_words(prompts, names))
    ]


def plain_prompts(prompts: Prompts, names: LabelSpace) -> list[list[str]]:
    """Return the template's text for every cell without modifier, description and attributes.

    ``{label}`` and ``{group}`` become the names of the cell's class and group, or the words that ``prompts.labels``
    and ``prompts.groups`` give for them, with underscores as spaces. Without groups, ``{group}`` is left out.

    Raises:
        ConfigError: The template has an unknown field, does not distinguish the cells, or words are given for a class
            or group that does not exist.
    """
    fields = _check_template(prompts, names)
    empty = dict.fromkeys(fields, "")
    return [
        [fill(prompts.template, **empty | words | {"description": ""}) for words in row]
        for row in cell_words(prompts, names)
    ]


def cell_words(prompts: Prompts, names: LabelSpace) -> list[list[dict[str, str]]]:
    """Return the words for each cell's ``label``, ``group`` and ``description``; empty where there are none.

    Raises:
        ConfigError: Words for a class or group that does not exist, or descriptions for some classes only.
    """
    labels = _words(prompts.labels, names.classes, "prompts.labels", "class")
    groups = _words(prompts.groups, names.groups, "prompts.groups", "group") if names.groups else [""]
    described = prompts.descriptions
    if described:
        _check_names(described, names.classes, "prompts.descriptions", "class", complete=True)
    return [
        [{"label": label, "group": group, "description": described.get(name, "")} for group in groups]
        for name, label in zip(names.classes, labels, strict=True)
    ]


def fill(template: str, **words: str) -> str:
    """Return the template with words in its places, without the spaces, commas and brackets that empty words leave."""
    text = re.sub(r"\(\s*\)", "", template.format(**words))
    text = re.sub(r"\s+(?=[,;]|\.(?:\s|$))", "", " ".join(text.split()))
    return re.sub(r"^[\s,;]+|[,;]\s*(?=[,;.]|$)", "", text)


def _check_template(prompts: Prompts, names: LabelSpace) -> set[str]:
    """Return the template's fields; raise ConfigError unless they distinguish the cells."""
    template, where, allowed = prompts.template, "prompts.template", list(FIELDS)
    contextual = prompts.contextual
    allowed += contextual.attributes if contextual else []
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
        for name in sorted(fields - set(allowed)):
            braces = one_of(f"{{{word}}}" for word in allowed)
            raise ConfigError("unknown word in braces", where=where, found=f"{{{name}}}", allowed=braces)
        template.format(**dict.fromkeys(fields, ""))
    except ValueError as error:
        raise ConfigError("the template cannot be read", where=where, found=f"{template!r}: {error}") from error
    if "label" not in fields:
        raise ConfigError("the template is the same for every class", where=where, found=template, allowed="{label}")
    if names.groups and "group" not in fields:
        remedy = "add {group} to it, or remove the group from the dataset"
        raise ConfigError("the template is the same for every group", where=where, found=template, remedy=remedy)
    if not prompts.file and not (contextual and contextual.llm):
        _check_used("modifier", prompts.modifiers, fields, template)
        _check_used("description", prompts.descriptions, fields, template)
    return fields


def _check_used(name: str, given: object, fields: set[str], template: str) -> None:
    """Raise ConfigError if only one of the template's ``{name}`` and its words is given."""
    if given and name not in fields:
        remedy = f"add {{{name}}} to it, or remove prompts.{name}s"
        raise ConfigError(
            f"the template does not use the {name}s", where="prompts.template", found=template, remedy=remedy
        )
    if name in fields and not given:
        remedy = f"set prompts.{name}s, or remove {{{name}}}"
        raise ConfigError(
            f"the template uses {name}s, but there are none",
            where="prompts.template",
            found=template,
            remedy=remedy,
        )


def _modifiers(prompts: Prompts, names: LabelSpace) -> list[list[str]]:
    """Return each class's modifiers; a single empty one if there are none."""
    given = prompts.modifiers
    if isinstance(given, list):
        return [given or [""]] * len(names.classes)
    if not given:
        return [[""]] * len(names.classes)
    _check_names(given, names.classes, "prompts.modifiers", "class", complete=True)
    return [given[name] for name in names.classes]


def _words(given: Mapping[str, str], names: tuple[str, ...], where: str, kind: str) -> list[str]:
    _check_names(given, names, where, kind)
    return [given.get(name, name.replace("_", " ")) for name in names]


def _check_names(
    given: Mapping[str, object], names: tuple[str, ...], where: str, kind: str, complete: bool = False
) -> None:
    for name in given:
        if name not in names:
            raise ConfigError(
                f"words for a {kind} that does not exist",
                where=f"{where}.{name}",
                found=name,
                allowed=one_of(names) or f"nothing: the dataset has no {kind}s",
                remedy=did_you_mean(name, names),
            )
    if complete and (left_out := [name for name in names if name not in given]):
        remedy = f"give them for every {kind}; an empty text says nothing"
        raise ConfigError(f"a {kind} is left out", where=where, found=f"nothing for {one_of(left_out)}", remedy=remedy)
