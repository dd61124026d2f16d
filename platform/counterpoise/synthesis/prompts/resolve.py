"""Resolution of a run's prompts: from the template, a file, a grammar, or a language model's stored answers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from counterpoise.config import Contextual, Llm, Prompts
from counterpoise.core.digest import digest
from counterpoise.core.progress import Progress
from counterpoise.storage.records import create_record, read_record
from counterpoise.storage.schema import LabelSpace
from counterpoise.storage.store import Store
from counterpoise.synthesis.prompts.contextual import CellPrompts, Request, requests
from counterpoise.synthesis.prompts.grammar import grammar_prompts
from counterpoise.synthesis.prompts.prompt_file import read_prompts, write_prompts
from counterpoise.synthesis.prompts.prompt_set import PromptSet, plain_prompts, template_prompts

_FORMAT = 2  # version of stored answers


def resolve(prompts: Prompts, names: LabelSpace, store: Store) -> PromptSet:
    """Return the prompts of every cell.

    A language model is asked at most once for each cell: its prompts are stored under the digest of instruction, model
    and settings as soon as they arrive. Among concurrent runs the first to store them decides for all.

    Raises:
        ConfigError: Template, words or prompt file are wrong, or the prompts cannot be written to ``save_to``.
        ModelError, SynthesisError: The language model does not answer, or not enough; see
            :func:`counterpoise.synthesis.prompts.llm.answers`.
        DamagedError: Stored prompts are not what was stored.
        StoreError: The store fails.
    """
    plain = plain_prompts(prompts, names)
    if prompts.file:
        return PromptSet(read_prompts(prompts.file, names), plain, f"the file {prompts.file}")
    contextual = prompts.contextual
    if contextual is None:
        return PromptSet(template_prompts(prompts, names), plain, "the template")
    if contextual.llm:
        resolved = _contextual(prompts, contextual, names, store, plain)
    else:
        resolved = PromptSet(grammar_prompts(prompts, names), plain, "a grammar")
    if contextual.save_to:
        where = "prompts.contextual.save_to"
        if not write_prompts(contextual.save_to, resolved.prompts, names, where):
            text = f"{where}: {contextual.save_to} holds other prompts and is kept; to use it, set prompts.file to it"
            warnings.warn(text, stacklevel=2)
    return resolved


def answer_keys(prompts: Prompts, names: LabelSpace) -> list[str]:
    """Return the keys of a language model's answers in the store, one for each cell; none if none is asked."""
    contextual = None if prompts.file else prompts.contextual
    return _keys(requests(prompts, names), contextual.llm) if contextual and contextual.llm else []


def _keys(cell_requests: Sequence[Request], llm: Llm) -> list[str]:
    from counterpoise.synthesis.prompts.llm import identify

    model = identify(llm)
    return [
        f"prompts/{digest({'format': _FORMAT, 'llm': model, **request.to_json()})}.json" for request in cell_requests
    ]


def _contextual(
    prompts: Prompts, contextual: Contextual, names: LabelSpace, store: Store, plain: list[list[str]]
) -> PromptSet:
    from counterpoise.synthesis.prompts.llm import answers

    llm = contextual.llm
    assert llm is not None
    cell_requests = requests(prompts, names)
    keys = _keys(cell_requests, llm)
    missing = [index for index, key in enumerate(keys) if not store.exists(key)]
    if missing:
        with Progress("asking", len(missing), "cells") as progress:
            for number, prompts_of_cell in answers([cell_requests[index] for index in missing], llm):
                _save(store, keys[missing[number]], cell_requests[missing[number]], prompts_of_cell)
                progress.advance(note=llm.model)
    cells = [_load(store, key) for key in keys]
    columns = names.shape[1]
    return PromptSet(
        [[cell.prompts for cell in cells[low : low + columns]] for low in range(0, len(cells), columns)],
        plain,
        f"the language model {llm.model}",
        _refused(cell_requests, cells),
    )


def _refused(cell_requests: Sequence[Request], cells: Sequence[CellPrompts]) -> list[dict[str, str]]:
    return [
        {"cell": request.cell, "prompt": prompt, "reason": reason}
        for request, cell in zip(cell_requests, cells, strict=True)
        for prompt, reason in cell.refused
    ]


def _save(store: Store, key: str, request: Request, answer: CellPrompts) -> None:
    record = {"cell": request.cell, "prompts": answer.prompts, "refused": [list(pair) for pair in answer.refused]}
    create_record(store, key, record)


def _load(store: Store, key: str) -> CellPrompts:
    record = read_record(store, key)
    return CellPrompts(record["prompts"], [(prompt, reason) for prompt, reason in record["refused"]])
