"""Contextual prompts: what a language model is asked for a cell, and what of its answers can be used.

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

Ask = Callable[[str, int], str]  # (instruction, how many were asked for this cell before) -> answer

_AT_ONCE = 50  # prompts asked for in one instruction: of more, models lose count
_ANSWERS = 5  # for each so many prompts, before it is an error that some are missing
_IDLE = {"a", "an", "the", "of", "with", "in", "on", "and", "is", "at"}  # words that a prompt need not repeat
_ENDINGS = ("ing", "ed", "es", "s", "e")


@dataclass(frozen=True)
class Request:
    """What is asked for one cell.

    Attributes:
        cell: Its name.
        number: Prompts wanted.
        task: Of what they are.
        target: The words for the class, which every prompt must carry.
        protected: Those for the group; empty without groups.
        about: What the class is or looks like; may be empty.
        details: What else the prompts should say, a sentence each.
        format: How every prompt begins; may be empty.
        others: Words of the other classes and groups, which no prompt may carry.
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
        """All that decides which prompts are asked for and which are refused."""
        return {"instruction": instruction(self, self.number), **asdict(self)}


@dataclass(frozen=True)
class Found:
    """The prompts of a cell, and the answers that could not be used, each with the reason."""

    prompts: list[str]
    refused: list[tuple[str, str]]


def requests(prompts: Prompts, names: LabelSpace) -> list[Request]:
    """A request for every cell, label by label."""
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
    """What the language model is told: task, number, target, protected, details, format.

    Args:
        request: For which cell.
        number: Prompts to ask for now.
        known: Prompts that are there already and must not come again.
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


def collect(request: Request, ask: Ask) -> Found:
    """Asks until there are as many good and different prompts as wanted; each time for those that are missing.

    Raises:
        SynthesisError: They are not there after five answers for each fifty of them.
        CounterpoiseError: What ``ask`` raises.
    """
    kept: dict[tuple[str, ...], str] = {}
    refused: list[tuple[str, str]] = []
    answer, most = "", _ANSWERS * math.ceil(request.number / _AT_ONCE)
    for asked in range(most):
        missing = min(request.number - len(kept), _AT_ONCE)
        answer = ask(instruction(request, missing, list(kept.values())[-_AT_ONCE:]), asked)
        for prompt in parse(answer):
            same = tuple(_words(prompt))
            reason = "it was said before" if same in kept else defect(prompt, request)
            if reason:
                refused.append((prompt, reason))
            elif len(kept) < request.number:
                kept[same] = prompt
        if len(kept) == request.number:
            return Found(list(kept.values()), refused)
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
        remedy="ask for a smaller number, name the class and group in plainer words (prompts.labels, prompts.groups), "
        "or ask another model",
    )


def defect(prompt: str, request: Request) -> str | None:
    """Why a prompt cannot be used for the cell; None if it can.

    It must begin as the format says and carry the words of its class and group, in any order and inflected or not.
    It must not carry those of another class or group, unless its own words or the format do: "smiling" is in "not
    smiling", but a prompt for "smiling" that says "not smiling" is one for the other class.
    """
    if not prompt.casefold().startswith(request.format.casefold()):
        return f"it does not begin with {request.format!r}"
    said = set(_stems(prompt))
    for words in filter(None, (request.target, request.protected)):
        if not set(_stems(words)) <= said:
            return f"it does not say {words!r}"
    own = {*_stems(request.target), *_stems(request.protected), *_stems(request.format)}
    for words in request.others:
        other = set(_stems(words))
        if other <= said and not other <= own:
            return f"it says {words!r}"
    return None


def parse(answer: str) -> list[str]:
    """The prompts in an answer: of a JSON list, else of a numbered or bulleted list, else its lines.

    Numbers, bullets, quotes and emphasis around a prompt are taken off; what stands before and after a list is not
    part of it, and neither is a heading.
    """
    found = _from_json(answer)
    if found is None:
        lines = [line.strip() for line in answer.splitlines()]
        items = [match[1] for line in lines if (match := re.match(r"(?:\d+\s*[.):]|[-*•–])\s+(.*)", line))]
        found = items or [line for line in lines if not line.endswith(":") and not line.startswith(("```", "#"))]
    cleaned = (" ".join(text.strip().strip("*_`\"'“”").split()) for text in found)
    return [text for text in cleaned if text]


def _from_json(answer: str) -> list[str] | None:
    """The texts of the first list in the answer; None if it holds no JSON."""
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
    """The words that count, without endings: "Smiling faces" and "smile, face" have the same."""
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
