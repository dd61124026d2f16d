"""Contextual prompts: the instruction to a language model for each cell, and the check of its answers.

AIM-Fair (Zhao et al., CVPR 2025), section 3.1: an instruction of task, number of prompts, target attribute, protected
attribute, other details and prompt format. Plain functions on texts; :mod:`counterpoise.synthesis.prompts.llm` asks.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from counterpoise.config import Prompts
from counterpoise.errors import SynthesisError
from counterpoise.storage.schema import LabelSpace
from counterpoise.synthesis.prompts.prompt_set import cell_words

Ask = Callable[[str, int], str]  # (instruction, number of earlier instructions for this cell) -> answer

_AT_ONCE = 50  # prompts requested in one instruction; models lose count of more
_ANSWERS = 5  # for each _AT_ONCE prompts, before missing ones are an error
_IDLE = {"a", "an", "the", "of", "with", "in", "on", "and", "is", "at"}  # words that a prompt need not repeat
_ENDINGS = ("ing", "ed", "es", "s", "e")


@dataclass(frozen=True)
class Request:
    """The request for one cell's prompts.

    Attributes:
        cell: The cell's name.
        number: Number of prompts.
        task: Subject of the prompts.
        target: The words for the class, which every prompt must contain.
        protected: The words for the group, likewise; empty without groups.
        about: Description of the class; may be empty.
        details: Further requirements, a sentence each.
        format: Beginning of every prompt; may be empty.
        others: Words of the other classes and groups, which no prompt may contain.
    """

    cell: str
    number: int
    task: str
    target: str
    protected: str
    about: str
    details: tuple[str, ...]
    format: str
    others: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return all that decides the requested prompts and the refusals."""
        return {"instruction": instruction(self, self.number), **asdict(self)}


@dataclass(frozen=True)
class CellPrompts:
    """The prompts of a cell, and the unusable answers, each with the reason."""

    prompts: list[str]
    refused: list[tuple[str, str]]


def requests(prompts: Prompts, names: LabelSpace) -> list[Request]:
    """Return a request for every cell, label by label."""
    contextual, words = prompts.contextual, cell_words(prompts, names)
    assert contextual is not None
    labels, groups = [row[0]["label"] for row in words], [cell["group"] for cell in words[0]]
    return [
        Request(
            cell=names.cell(i, j),
            number=contextual.number,
            task=contextual.task,
            target=cell["label"],
            protected=cell["group"],
            about=cell["description"],
            details=tuple(contextual.details),
            format=contextual.format,
            others=tuple(text for text in (*labels[:i], *labels[i + 1 :], *groups[:j], *groups[j + 1 :])),
        )
        for i, row in enumerate(words)
        for j, cell in enumerate(row)
    ]


def instruction(request: Request, number: int, known: Sequence[str] = ()) -> str:
    """Return the instruction to the language model: task, number, target, protected, details, format.

    Args:
        request: The cell's request.
        number: Number of prompts in this answer.
        known: Earlier prompts, which must not be repeated.
    """
    both = f'"{request.target}"' + (f' and "{request.protected}"' if request.protected else "")
    lines = [
        f"Write {number} different prompts for a text-to-image model. Task: {request.task}.",
        f"Every prompt says {both}, in these words, and nothing that contradicts them.",
        *([f'"{request.target}" means: {request.about}.'] if request.about else []),
        *request.details,
        "Vary everything else from prompt to prompt, so that no other trait goes along with these words.",
        *([f'Begin every prompt with "{request.format}".'] if request.format else []),
        "Answer with a numbered list, one prompt in each line, and nothing else.",
    ]
    if known:
        lines += ["Do not repeat any of these:", *(f"- {prompt}" for prompt in known)]
    return "\n".join(lines)


def collect(request: Request, ask: Ask) -> CellPrompts:
    """Ask until the cell has enough usable, different prompts; each time for the missing ones.

    Raises:
        SynthesisError: Prompts are missing after five answers for each fifty of them.
        CounterpoiseError: Errors of ``ask``.
    """
    kept: dict[tuple[str, ...], str] = {}
    refused: list[tuple[str, str]] = []
    answer, most = "", _ANSWERS * math.ceil(request.number / _AT_ONCE)
    for asked in range(most):
        missing = min(request.number - len(kept), _AT_ONCE)
        answer = ask(instruction(request, missing, list(kept.values())[-_AT_ONCE:]), asked)
        for prompt in parse(answer):
            words = tuple(_words(prompt))
            reason = "it was said before" if words in kept else defect(prompt, request)
            if reason:
                refused.append((prompt, reason))
            elif len(kept) < request.number:
                kept[words] = prompt
        if len(kept) == request.number:
            return CellPrompts(list(kept.values()), refused)
    reasons = Counter(reason for _, reason in refused).most_common(3)
    found = f"{len(kept)} of {request.number} in {most} answers" + (
        "; refused: " + ", ".join(f"{count} because {reason}" for reason, count in reasons)
        if reasons
        else f"; the last answer has no list of prompts: {_short(answer)}"
    )
    raise SynthesisError(
        f"the language model does not give enough prompts for {request.cell}",
        where="prompts.contextual",
        found=found + (f"; for example: {_short(refused[-1][0])}" if refused else ""),
        remedy="ask for fewer prompts, name the class and group in plainer words (prompts.labels, prompts.groups), "
        "or use another model",
    )


def defect(prompt: str, request: Request) -> str | None:
    """Return the reason why a prompt cannot be used for the cell; None if it can.

    It must begin with the format and contain the words of its class and group, in any order, inflected or not. It must
    not contain those of another class or group, unless its own words or the format do: "smiling" is in "not smiling",
    but a prompt for "smiling" that says "not smiling" belongs to the other class.
    """
    if not prompt.casefold().startswith(request.format.casefold()):
        return f"it does not begin with {request.format!r}"
    stems = set(_stems(prompt))
    for words in filter(None, (request.target, request.protected)):
        if not set(_stems(words)) <= stems:
            return f"it does not say {words!r}"
    expected = {*_stems(request.target), *_stems(request.protected), *_stems(request.format)}
    for words in request.others:
        other = set(_stems(words))
        if other <= stems and not other <= expected:
            return f"it says {words!r}"
    return None


def parse(answer: str) -> list[str]:
    """Return the prompts in an answer: of a JSON list, else of a numbered or bulleted list, else its lines.

    Numbers, bullets, quotes and emphasis around a prompt are removed, and so are headings and text before and after a
    list.
    """
    texts = _from_json(answer)
    if texts is None:
        lines = [line.strip() for line in answer.splitlines()]
        items = [match[1] for line in lines if (match := re.match(r"(?:\d+\s*[.):]|[-*•–])\s+(.*)", line))]
        texts = items or [line for line in lines if not line.endswith(":") and not line.startswith(("```", "#"))]
    cleaned = (" ".join(text.strip().strip("*_`\"'“”").split()) for text in texts)
    return [text for text in cleaned if text]


def _from_json(answer: str) -> list[str] | None:
    """Return the texts of the first list in the answer; None if it holds no JSON."""
    opening, closing = answer.find("["), answer.rfind("]")
    try:
        values = json.loads(answer[opening : closing + 1])
    except ValueError:
        return None
    if not isinstance(values, list):
        return None
    texts = [value.get("prompt") if isinstance(value, dict) else value for value in values]
    return [text for text in texts if isinstance(text, str)] or None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", re.sub(r"['’]s\b", "", text.casefold().replace("_", " ")))


def _stems(text: str) -> list[str]:
    """Return the significant words without endings: "Smiling faces" and "smile, face" have the same."""
    words = _words(text)
    return [_stem(word) for word in words if word not in _IDLE] or words


def _stem(word: str) -> str:
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word.removesuffix(ending)
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 80 else f"{text[:79]}…")
