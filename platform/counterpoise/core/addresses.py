"""Addresses of servers in messages, without the passwords in them."""

from __future__ import annotations

import re

# "user:password@" of any length up to the last sign before the host, and "token@". A password may hold a slash.
_USERINFO = re.compile(r"(?<=://)(?:[^/:@\s]*:[^\s@]*@(?:[^/@\s]*@)*|[^/@\s]+@)")
_QUERY = re.compile(r"(?i)([?&][\w-]*(?:password|passwd|pwd|secret|token|signature|credential)[\w-]*=)[^&\s\"']+")


def without_passwords(text: object) -> str:
    """Return a text with the user names and passwords of all addresses in it replaced by ``***``."""
    return _QUERY.sub(r"\1***", _USERINFO.sub("***@", str(text)))
