"""User-defined functions, named in the config as ``module:function``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from counterpoise.errors import ConfigError, did_you_mean


def load(reference: str, where: str) -> Callable[..., Any]:
    """Import the function ``module:function``; modules in the working folder are found too.

    Args:
        reference: Module, colon, function.
        where: The key path, for errors.

    Raises:
        ConfigError: The module cannot be imported, or has no such function.
    """
    module, _, name = reference.partition(":")
    if "" not in sys.path:
        sys.path.append("")  # python adds the working folder itself, a console script does not
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        remedy = "put the module into the working folder or on PYTHONPATH, or install it"
        raise ConfigError(
            "this module cannot be imported", where=where, found=f"{reference}: {error}", remedy=remedy
        ) from error
    function = getattr(imported, name, None)
    if not callable(function):
        callables = [key for key, value in vars(imported).items() if callable(value)]
        raise ConfigError(
            "the module has no such function", where=where, found=reference, remedy=did_you_mean(name, callables)
        )
    return function
