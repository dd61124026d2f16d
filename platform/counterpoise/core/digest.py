"""Content addresses: digests of JSON-serializable values."""

from __future__ import annotations

import hashlib
import json


def digest(value: object) -> str:
    """Return the address of a JSON-serializable value: 16 hex digits of the SHA-256 of its canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
