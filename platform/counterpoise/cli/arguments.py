"""Parsing of option values."""

from __future__ import annotations

from counterpoise.errors import ConfigError


def method_names(text: str) -> list[str]:
    """Return the methods in ``a,b,c``.

    Raises:
        ConfigError: There is none, or one is named twice.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        allowed = "a list of distinct methods, such as erm,ffr"
        raise ConfigError("invalid --methods value", where="--methods", found=text, allowed=allowed)
    return names


def seed_numbers(text: str) -> list[int]:
    """Return the seeds in ``5`` (0 to 4) or ``0,3,7`` (exactly these; ``3,`` is the seed 3).

    Raises:
        ConfigError: The text is neither, or a seed is named twice.
    """
    parts = [part.strip() for part in text.split(",")]
    listed = parts[:-1] if len(parts) > 1 and not parts[-1] else parts
    if all(part.isascii() and part.isdigit() for part in listed):
        numbers = [int(part) for part in listed] if len(parts) > 1 else list(range(int(text)))
        if numbers and len(set(numbers)) == len(numbers):
            return numbers
    allowed = "a number of seeds, such as 5 (0 to 4), or a list of distinct seeds, such as 0,3,7"
    raise ConfigError("invalid --seeds value", where="--seeds", found=text, allowed=allowed)
