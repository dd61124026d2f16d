"""Progress of long work and warnings, on standard error.

A terminal gets a bar with rate and time left, anything else plain lines.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

_LINE_SECONDS = 5.0


class Progress:
    """Counter of finished units of work, used as a context manager.

    Example::

        with Progress("sampling", total=1200, unit="images") as progress:
            progress.advance(32)

    Args:
        title: Name of the work, one word or two.
        total: Number of units.
        unit: Name of the units, in the plural.
    """

    def __init__(self, title: str, total: int, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done = 0
        self._start = self._last_line = time.monotonic()
        self._bar = _bar(title, total, unit) if sys.stderr.isatty() else None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self.done:
            self._line()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Record that ``count`` more units are done; ``note`` is shown after the rate."""
        self.done += count
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], advance=count, note=note, rate=self.rate)
        elif self.done < self.total and time.monotonic() - self._last_line >= _LINE_SECONDS:
            self._line(note)

    def restart_clock(self, seconds_ago: float) -> None:
        """Move the start of the work to ``seconds_ago``: start-up time before it does not count in the rate."""
        self._start = time.monotonic() - seconds_ago

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return self.done / max(time.monotonic() - self._start, 1e-9)

    def _line(self, note: str = "") -> None:
        self._last_line = time.monotonic()
        seconds_left = (self.total - self.done) / self.rate if self.done else 0
        ending = f"{seconds_left:.0f} s left" if self.done < self.total else f"{time.monotonic() - self._start:.1f} s"
        text = f"{self.title}: {self.done}/{self.total} {self.unit}, {self.rate:.2f}/s, {ending} {note}"
        print(text.rstrip(), file=sys.stderr, flush=True)


def _bar(title: str, total: int, unit: str) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn(f"{title:<10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}  {{task.fields[rate]:.2f}}/s"),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}"),
    )
    bar = RichProgress(*columns, console=Console(stderr=True))
    bar.add_task(title, total=total, rate=0.0, note="")
    return bar


def warn(message: str) -> None:
    """Print a warning on standard error, not to a logger: libraries that configure logging disable existing ones."""
    print(f"warning: {message}", file=sys.stderr, flush=True)
