"""What a user can get wrong. Each error says where, what was found, what is allowed and what to do.

The command line prints these in a few lines and exits with status 2. Every other exception is a bug of ours and
keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CounterpoiseError(Exception):
    """A mistake that the user can mend.

    Args:
        message: What is wrong, in one sentence.
        where: The place: a file, a key path such as ``plans.synthetic.ratio``, a row id, a URI.
        found: What was found there.
        allowed: What is allowed there.
        remedy: What to do about it.
    """

    def __init__(
        self,
        message: str,
        *,
        where: object = None,
        found: object = None,
        allowed: object = None,
        remedy: str | None = None,
    ) -> None:
        self.message, self.where, self.found, self.allowed, self.remedy = message, where, found, allowed, remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = {"where": self.where, "found": self.found, "allowed": self.allowed, "do": self.remedy}
        return "\n".join(
            [self.message, *(f"  {key + ':':<9}{value}" for key, value in parts.items() if value is not None)]
        )

    def __reduce__(self) -> tuple:  # exceptions with keyword arguments do not survive a trip through Ray otherwise
        return _rebuild, (type(self), self.message, self.where, self.found, self.allowed, self.remedy)


def _rebuild(
    kind: type[CounterpoiseError], message: str, where: object, found: object, allowed: object, remedy: str
) -> CounterpoiseError:
    return kind(message, where=where, found=found, allowed=allowed, remedy=remedy)


class ConfigError(CounterpoiseError):
    """The experiment file or an override is wrong."""


class DataError(CounterpoiseError):
    """The dataset is not what the experiment says it is."""


class StoreError(CounterpoiseError):
    """The place where results live cannot be read or written."""


class ModelError(CounterpoiseError):
    """A generator, a CLIP or a checkpoint cannot be loaded."""


class PlanError(CounterpoiseError):
    """The counts asked for are impossible."""


class SynthesisError(CounterpoiseError):
    """Sampling failed in a way that retrying does not mend."""


class TrackingError(CounterpoiseError):
    """The tracking server or its database cannot be used."""


def one_of(options: Iterable[object], limit: int = 12) -> str:
    """The options as a readable list, cut after ``limit`` of them."""
    names = [str(option) for option in options]
    more = f", … ({len(names) - limit} more)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def did_you_mean(word: str, options: Iterable[str]) -> str | None:
    """A remedy that names the option nearest to ``word``, if one is near."""
    near = difflib.get_close_matches(word, list(options), n=1)
    return f"did you mean {near[0]!r}?" if near else None
