"""What libraries change in a process besides what they are asked for, kept as it was."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Sets environment variables inside the block."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextlib.contextmanager
def loggers_kept() -> Iterator[None]:
    """Keeps loggers switched on: a library that configures logging may switch off every one that exists."""
    loggers = [logger for logger in logging.Logger.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    enabled = [logger for logger in loggers if not logger.disabled]
    try:
        yield
    finally:
        for logger in enabled:
            logger.disabled = False
