"""What is asked of the generator for each cell."""

from __future__ import annotations

import string
from collections.abc import Mapping

from counterpoise.config import Prompts
from counterpoise.errors import ConfigError, did_you_mean, one_of
from counterpoise.table import Names


def cell_prompts(prompts: Prompts, names: Names) -> list[list[str]]:
    """The prompt of every cell: ``cell_prompts(…)[label][group]``; one column for a dataset without groups.

    ``{label}`` and ``{group}`` become the names of the cell's class and group, or the words that ``prompts.labels``
    and ``prompts.groups`` give for them, with underscores as spaces. Without groups, ``{group}`` is left out.

    Raises:
        ConfigError: The template names something else, leaves out what tells the cells apart, or words are given for
            a class or group that does not exist.
    """
    _check_template(prompts.template, names)
    labels = _words(prompts.labels, names.classes, "prompts.labels", "class")
    groups = _words(prompts.groups, names.groups, "prompts.groups", "group") if names.groups else [""]
    return [
        [" ".join(prompts.template.format(label=label, group=group).split()) for group in groups] for label in labels
    ]


def _check_template(template: str, names: Names) -> None:
    where, allowed = "prompts.template", "{label} and {group}"
    try:
        fields = {field for _, field, _, _ in string.Formatter().parse(template) if field is not None}
    except ValueError as error:
        raise ConfigError("the template cannot be read", where=where, found=f"{template!r}: {error}") from error
    for field in sorted(fields - {"label", "group"}):
        raise ConfigError("unknown word in braces", where=where, found=f"{{{field}}}", allowed=allowed)
    if "label" not in fields:
        raise ConfigError("the template is the same for every class", where=where, found=template, allowed=allowed)
    if names.groups and "group" not in fields:
        remedy = "say {group} in it, or leave the group out of the dataset"
        raise ConfigError("the template is the same for every group", where=where, found=template, remedy=remedy)


def _words(given: Mapping[str, str], names: tuple[str, ...], where: str, kind: str) -> list[str]:
    for name in given:
        if name not in names:
            raise ConfigError(
                f"words for a {kind} that does not exist",
                where=f"{where}.{name}",
                found=name,
                allowed=one_of(names) or f"nothing: the dataset has no {kind}s",
                remedy=did_you_mean(name, names),
            )
    return [given.get(name, name.replace("_", " ")) for name in names]
