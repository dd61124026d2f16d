"""Errors that a user can mend. Each says where, what was found, what is allowed and what to do.

The command line prints these in a few lines and exits with status 2. Every other exception is a bug in Counterpoise
and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CounterpoiseError(Exception):
    """A mistake that the user can mend.

    Args:
        message: The mistake, in one sentence.
        where: The place: a file, a key path such as ``plans.synthetic.rate``, a row id, a URI.
        found: The value found there.
        allowed: The values allowed there.
        remedy: The action that mends it.
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
    """A wrong experiment file, option or override."""


class DataError(CounterpoiseError):
    """A dataset that is not what the experiment says it is."""


class StoreError(CounterpoiseError):
    """A store that cannot be read or written."""


class ModelError(CounterpoiseError):
    """A generator, CLIP model or checkpoint that cannot be loaded."""


class PlanError(CounterpoiseError):
    """A plan whose counts are impossible."""


class SynthesisError(CounterpoiseError):
    """A failure of sampling that retrying does not mend."""


class TrackingError(CounterpoiseError):
    """A tracking server or database that cannot be used."""


def one_of(options: Iterable[object], limit: int = 12) -> str:
    """Return the options as a readable list, cut after ``limit`` of them."""
    names = [str(option) for option in options]
    more = f", … ({len(names) - limit} more)" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def did_you_mean(word: str, options: Iterable[str]) -> str | None:
    """Return a remedy that names the option nearest to ``word``; None if none is near."""
    near = difflib.get_close_matches(word, list(options), n=1)
    return f"did you mean {near[0]!r}?" if near else None
