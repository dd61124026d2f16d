"""Configuration of prompts: template, prompt file, grammar or language model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from counterpoise.config.base import RESOLVED, Decides, NonNegativeInt, Section

FIELDS = ("label", "group", "modifier", "description")  # placeholders of a template, in braces
Texts = Annotated[list[str], Field(min_length=1)]


class Llm(Section, decides="pixels"):
    """Language model that writes prompts: the model served at ``endpoint``, else a local one of transformers."""

    model: Annotated[str, RESOLVED]  # the name at the endpoint; local: a hub id, a folder, or package:NAME/path
    # URL of an OpenAI-compatible server, ending in /v1
    endpoint: Annotated[str | None, RESOLVED] = Field(default=None, pattern=r"^https?://\S+$")
    api_key_env: Annotated[str | None, Decides("runtime")] = None  # the environment variable that holds the key
    timeout: Annotated[PositiveFloat, Decides("runtime")] = 120.0  # seconds to wait for an answer of the endpoint
    temperature: Annotated[float, Field(ge=0)] = 1.0
    seed: NonNegativeInt | None = 0  # null: no seed is sent to the endpoint
    revision: Annotated[str | None, RESOLVED] = None  # local: revision on the hub
    num_gpus: Annotated[float, Field(ge=0), Decides("runtime")] = 0.0  # local: GPUs that its Ray actor reserves

    @model_validator(mode="after")
    def _one_of_two(self) -> Llm:
        kind, other = ("an endpoint", "a local model") if self.endpoint else ("a local model", "an endpoint")
        for key in ("revision", "num_gpus") if self.endpoint else ("api_key_env", "timeout"):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"`{key}` applies to {other} only, and this is {kind}")
        if not self.endpoint and self.seed is None:
            raise ValueError("a local model needs a `seed`")
        return self


class Contextual(Section, decides="pixels"):
    """Contextual prompts: many per cell, varied in everything but class and group (AIM-Fair, section 3.1)."""

    number: PositiveInt = 50  # prompts per cell
    attributes: dict[str, Texts] = {}  # grammar: attribute -> values, of which every prompt has one
    llm: Llm | None = None  # or a language model to ask; the keys below are for it
    task: str = "photographs"  # kind of images that the prompts describe
    details: list[str] = []  # further instructions, a sentence each
    format: str = "A photo of a"  # beginning of every prompt; empty: free
    # .yaml or .jsonl file to write the prompts to, for editing and use as prompts.file
    save_to: Annotated[str | None, Decides("place")] = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Contextual:
        if (self.llm is None) == (not self.attributes):
            raise ValueError("give either `llm` or `attributes`")
        for key in ("task", "details", "format"):
            if self.attributes and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"`{key}` applies to an `llm` only; with `attributes`, set `prompts.template`")
        for name, values in self.attributes.items():
            if not name.isidentifier() or name in FIELDS:
                raise ValueError(
                    f"invalid attribute name {name!r}: it must be one word, and none of {', '.join(FIELDS)}"
                )
            _different(values, f"attributes.{name}")
        return self


class Prompts(Section, decides="pixels"):
    """Prompts of the generator: one or many per cell, from the template, a file or contextual prompts.

    The template's ``{label}`` and ``{group}`` stand for the cell's names, or the words given for them, ``{modifier}``
    for each of its modifiers in turn (SYNAuG), ``{description}`` for its class's description. The template without
    modifier and description gives the cell's plain prompt, by which CLIP tells cells apart.
    """

    template: Annotated[str, RESOLVED] = "a photo of a {group} {label}"
    labels: Annotated[dict[str, str], RESOLVED] = {}  # class -> its words in prompts
    groups: Annotated[dict[str, str], RESOLVED] = {}  # group -> its words in prompts
    descriptions: Annotated[dict[str, str], RESOLVED] = {}  # class -> its description
    # one prompt for each: of all classes, or class -> its modifiers
    modifiers: Annotated[list[str] | dict[str, Texts], RESOLVED] = []
    # .yaml or .jsonl file of prompts instead of the template: rows of label, group, prompt
    file: Annotated[str | None, RESOLVED] = None
    contextual: Annotated[Contextual | None, RESOLVED] = None
    negative: str = ""  # negative prompt

    @model_validator(mode="before")
    @classmethod
    def _with_a_place_for_modifiers(cls, tree: Any) -> Any:
        """Put ``{modifier}`` before the class in a template without it: "a photo of a {modifier} {label}"."""
        if not isinstance(tree, dict) or not tree.get("modifiers"):
            return tree
        template = tree.get("template", cls.model_fields["template"].default)
        if isinstance(template, str) and "{modifier}" not in template:
            return tree | {"template": template.replace("{label}", "{modifier} {label}")}
        return tree

    @model_validator(mode="after")
    def _one_source(self) -> Prompts:
        given = {"file": self.file, "contextual": self.contextual, "modifiers": self.modifiers}
        sources = [key for key, value in given.items() if value]
        if len(sources) > 1:
            raise ValueError(f"set only one of {', '.join(given)}; found {' and '.join(sources)}")
        if self.file and self.descriptions:
            raise ValueError("`descriptions` apply to a template or an LLM only, and the prompts come from `file`")
        for where, values in self.modifiers.items() if isinstance(self.modifiers, dict) else [("", self.modifiers)]:
            _different(values, f"modifiers.{where}".rstrip("."))
        return self


def _different(values: Iterable[str], where: str) -> None:
    values = list(values)
    if twice := [value for index, value in enumerate(values) if value in values[:index]]:
        raise ValueError(f"`{where}` names {twice[0]!r} twice")
