"""SQLite database in which MLflow keeps the runs if there is no server."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

_LOCK_SECONDS = 120  # time for another process to set up a fresh database


def sqlite_uri(path: Path) -> str:
    """Return the address of a SQLite database, whose path may hold any characters."""
    from sqlalchemy import URL

    uri = URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
    if uri == f"sqlite:///{path}":
        return uri
    # MLflow makes the folder that it reads, still quoted, out of "sqlite:///…"; with the driver named, it makes none
    return URL.create("sqlite+pysqlite", database=str(path)).render_as_string(hide_password=False)


@contextlib.contextmanager
def opened_alone(uri: str, seconds: int) -> Iterator[None]:
    """Hold a lock file for a SQLite database: two processes that set up a fresh one at once would break it.

    The database is opened first: MLflow would try for minutes to open one that cannot be.

    Args:
        uri: Address of a tracking server or database; only SQLite databases are locked.
        seconds: Time for the database to be opened.

    Raises:
        sqlite3.Error: The database cannot be opened.
    """
    from sqlalchemy import make_url

    path = make_url(uri).database if uri.startswith("sqlite") else None
    if not path or path == ":memory:":
        yield
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock", timeout=_LOCK_SECONDS):
        with contextlib.closing(sqlite3.connect(path, timeout=seconds)) as database:
            database.execute("PRAGMA schema_version")
        yield
