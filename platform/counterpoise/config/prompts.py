"""What is asked of the generator, and where the words come from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from counterpoise.config.base import RESOLVED, Decides, NonNegativeInt, Section

FIELDS = ("label", "group", "modifier", "description")  # what a template may say in braces
Texts = Annotated[list[str], Field(min_length=1)]


class Llm(Section, decides="pixels"):
    """Who is asked for prompts: with ``endpoint`` a model served there, without it a local one of transformers."""

    model: Annotated[str, RESOLVED]  # the name it is served under; local: a hub id, a folder, or package:NAME/path
    # …/v1, of an OpenAI-compatible server
    endpoint: Annotated[str | None, RESOLVED] = Field(default=None, pattern=r"^https?://\S+$")
    api_key_env: Annotated[str | None, Decides("runtime")] = None  # the environment variable that holds the key
    timeout: Annotated[PositiveFloat, Decides("runtime")] = 120.0  # seconds, for an answer of the endpoint
    temperature: Annotated[float, Field(ge=0)] = 1.0
    seed: NonNegativeInt | None = 0  # null: the endpoint is told none
    revision: Annotated[str | None, RESOLVED] = None  # local, from the hub
    # local: what its Ray actor reserves
    num_gpus: Annotated[float, Field(ge=0), Decides("runtime")] = 0.0

    @model_validator(mode="after")
    def _one_of_two(self) -> Llm:
        kind, other = ("an endpoint", "a local model") if self.endpoint else ("a local model", "an endpoint")
        for key in ("revision", "num_gpus") if self.endpoint else ("api_key_env", "timeout"):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"`{key}` is for {other}, and this is {kind}")
        if not self.endpoint and self.seed is None:
            raise ValueError("a local model needs a `seed`")
        return self


class Contextual(Section, decides="pixels"):
    """Many prompts for each cell, that differ in what is neither class nor group (AIM-Fair, section 3.1)."""

    number: PositiveInt = 50  # prompts of a cell
    attributes: dict[str, Texts] = {}  # a grammar: every prompt has one value of each
    llm: Llm | None = None  # or somebody to ask; then also:
    task: str = "photographs"  # of what the prompts are
    details: list[str] = []  # what else they should say, a sentence each
    format: str = "A photo of a"  # how every prompt begins; empty: as it likes
    # write the prompts to this .yaml or .jsonl file, to edit and then to give as prompts.file
    save_to: Annotated[str | None, Decides("place")] = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Contextual:
        if (self.llm is None) == (not self.attributes):
            raise ValueError("give either `llm` or `attributes`")
        for key in ("task", "details", "format"):
            if self.attributes and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"`{key}` is said to an `llm`; with `attributes`, write `prompts.template`")
        for name, values in self.attributes.items():
            if not name.isidentifier() or name in FIELDS:
                raise ValueError(f"an attribute cannot be called {name!r}: a word other than {', '.join(FIELDS)}")
            _different(values, f"attributes.{name}")
        return self


class Prompts(Section, decides="pixels"):
    """What is asked of the generator: one prompt for each cell from the template, or many.

    The template's ``{label}`` and ``{group}`` stand for the cell's names, or the words given for them, ``{modifier}``
    for each of its modifiers in turn (SYNAuG), ``{description}`` for its class's description. What the template says
    without modifier and description is the cell's plain prompt, by which cells are told apart.
    """

    template: Annotated[str, RESOLVED] = "a photo of a {group} {label}"
    labels: Annotated[dict[str, str], RESOLVED] = {}  # class -> the words to use for it
    groups: Annotated[dict[str, str], RESOLVED] = {}
    descriptions: Annotated[dict[str, str], RESOLVED] = {}  # class -> what it is or looks like
    # a prompt for each; for all classes, or class -> its own
    modifiers: Annotated[list[str] | dict[str, Texts], RESOLVED] = []
    # prompts to use instead: .yaml or .jsonl, rows of label, group, prompt
    file: Annotated[str | None, RESOLVED] = None
    contextual: Annotated[Contextual | None, RESOLVED] = None
    negative: str = ""

    @model_validator(mode="before")
    @classmethod
    def _with_a_place_for_modifiers(cls, tree: Any) -> Any:
        """A template that does not say where gets its modifiers before the class: "a photo of a {modifier} {label}"."""
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
            raise ValueError(f"the prompts come from one of {', '.join(given)}; found {' and '.join(sources)}")
        if self.file and self.descriptions:
            raise ValueError("`descriptions` are for the template or an LLM, and the prompts come from `file`")
        for where, values in self.modifiers.items() if isinstance(self.modifiers, dict) else [("", self.modifiers)]:
            _different(values, f"modifiers.{where}".rstrip("."))
        return self


def _different(values: Iterable[str], where: str) -> None:
    values = list(values)
    if twice := [value for number, value in enumerate(values) if value in values[:number]]:
        raise ValueError(f"`{where}` names {twice[0]!r} twice")
