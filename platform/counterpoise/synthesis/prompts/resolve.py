"""A run's prompts, wherever they come from: the template, a file, a grammar, or a language model's stored answers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import yaml

from counterpoise.config import Contextual, Prompts
from counterpoise.core.digest import digest
from counterpoise.core.progress import Progress
from counterpoise.errors import StoreError
from counterpoise.storage.schema import LabelSpace
from counterpoise.storage.store import Store, read
from counterpoise.synthesis.prompts.contextual import Found, Request, requests
from counterpoise.synthesis.prompts.grammar import grammar_prompts
from counterpoise.synthesis.prompts.prompt_file import read_prompts, write_prompts
from counterpoise.synthesis.prompts.prompt_set import PromptSet, plain_prompts, template_prompts

_FORMAT = 1  # of stored answers


def resolve(prompts: Prompts, names: LabelSpace, store: Store) -> PromptSet:
    """The prompts of every cell.

    A language model is asked for each cell at most once: its prompts are stored under the digest of instruction,
    model and settings, as soon as they are there. Whoever stores them first decides for all.

    Raises:
        ConfigError: Template, words or prompt file are wrong, or the prompts cannot be written to ``save_to``.
        ModelError, SynthesisError: The language model does not answer, or not enough; see
            :func:`counterpoise.synthesis.prompts.llm.answers`.
        StoreError: The store fails.
    """
    plain = plain_prompts(prompts, names)
    if prompts.file:
        return PromptSet(read_prompts(prompts.file, names), plain, f"the file {prompts.file}")
    contextual = prompts.contextual
    if contextual is None:
        return PromptSet(template_prompts(prompts, names), plain, "the template")
    if contextual.llm:
        found = _contextual(prompts, contextual, names, store, plain)
    else:
        found = PromptSet(grammar_prompts(prompts, names), plain, "a grammar")
    if contextual.save_to:
        where = "prompts.contextual.save_to"
        if not write_prompts(contextual.save_to, found.prompts, names, where):
            text = f"{where}: {contextual.save_to} holds other prompts and is kept; to use it, give it as prompts.file"
            warnings.warn(text, stacklevel=2)
    return found


def _contextual(
    prompts: Prompts, contextual: Contextual, names: LabelSpace, store: Store, plain: list[list[str]]
) -> PromptSet:
    from counterpoise.synthesis.prompts.llm import answers, identify

    llm = contextual.llm
    assert llm is not None
    wanted = requests(prompts, names)
    asked = identify(llm)
    keys = [f"prompts/{digest({'format': _FORMAT, 'llm': asked, **request.to_json()})}.yaml" for request in wanted]
    missing = [number for number, key in enumerate(keys) if not store.exists(key)]
    if missing:
        with Progress("asking", len(missing), "cells") as progress:
            for number, found in answers([wanted[number] for number in missing], llm):
                _put(store, keys[missing[number]], wanted[missing[number]], found)
                progress.advance(note=llm.model)
    cells = [_get(store, key) for key in keys]
    columns = names.shape[1]
    return PromptSet(
        [[cell.prompts for cell in cells[low : low + columns]] for low in range(0, len(cells), columns)],
        plain,
        f"the language model {llm.model}",
        _refused(wanted, cells),
    )


def _refused(wanted: Sequence[Request], cells: Sequence[Found]) -> list[dict[str, str]]:
    return [
        {"cell": request.cell, "prompt": prompt, "reason": reason}
        for request, cell in zip(wanted, cells, strict=True)
        for prompt, reason in cell.refused
    ]


def _put(store: Store, key: str, request: Request, found: Found) -> None:
    record = {"cell": request.cell, "prompts": found.prompts, "refused": [list(pair) for pair in found.refused]}
    store.create(key, yaml.safe_dump(record, sort_keys=False, allow_unicode=True, width=1000).encode())


def _get(store: Store, key: str) -> Found:
    try:
        record = yaml.safe_load(read(store, key))
        return Found([str(text) for text in record["prompts"]], [(str(a), str(b)) for a, b in record["refused"]])
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        remedy = "remove it: the language model is asked again"
        raise StoreError(
            "stored prompts are damaged", where=f"{store.uri}/{key}", found=error, remedy=remedy
        ) from error
