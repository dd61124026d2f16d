"""Parsing of option values."""

from __future__ import annotations

from counterpoise.errors import ConfigError


def method_names(text: str) -> list[str]:
    """The methods in ``a,b,c``. Raises ConfigError if there is none, or one twice."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        allowed = "different methods, such as erm,ffr"
        raise ConfigError("these are no methods to compare", where="--methods", found=text, allowed=allowed)
    return names


def seed_numbers(text: str) -> list[int]:
    """The seeds in ``5`` (0 to 4) or ``0,3,7`` (these; ``3,`` is the seed 3). Raises ConfigError for anything else."""
    parts = [part.strip() for part in text.split(",")]
    listed = parts[:-1] if len(parts) > 1 and not parts[-1] else parts
    if all(part.isascii() and part.isdigit() for part in listed):
        numbers = [int(part) for part in listed] if len(parts) > 1 else list(range(int(text)))
        if numbers and len(set(numbers)) == len(numbers):
            return numbers
    allowed = "how many there are, such as 5 (0 to 4), or different numbers, such as 0,3,7"
    raise ConfigError("these are no seeds", where="--seeds", found=text, allowed=allowed)
