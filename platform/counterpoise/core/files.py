"""Output files and folders for the user: each is written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from counterpoise.errors import ConfigError

_REMEDY = "choose a writable folder with free space"


def write_files(folder: Path, files: Mapping[str, str | bytes], *, what: str, where: str = "--out") -> dict[str, str]:
    """Write files into a folder, which is created if it does not exist, and return the path of each.

    A file is replaced in one step: an error or a kill leaves the old one, or none, but never a part of the new one.

    Args:
        folder: The folder.
        files: Name -> content; text is written as UTF-8.
        what: Noun phrase for the error, such as "the report".
        where: The option or key that names the folder.

    Raises:
        ConfigError: The folder or a file cannot be written.
    """
    with _reported(what, where):
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _replace(folder / name, content.encode() if isinstance(content, str) else content)
    return {name: str(folder / name) for name in files}


def make_folder(folder: Path, *, what: str, where: str = "--out") -> None:
    """Create the folder if it does not exist, so that a bad path is reported before the work.

    Raises:
        ConfigError: It cannot be created.
    """
    write_files(folder, {}, what=what, where=where)


@contextlib.contextmanager
def new_folder(out: Path, *, what: str, where: str = "--out") -> Iterator[Path]:
    """Yield a temporary folder that is renamed to ``out`` at the end. After an error nothing of it remains.

    It is a hidden folder in the nearest existing parent of ``out``, on the same disk.

    Raises:
        ConfigError: The folder cannot be written, or ``out`` was created in the meantime.
    """
    above = next(folder for folder in out.absolute().parents if folder.is_dir())
    temporary = None
    try:
        with _reported(what, where):
            temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=above))
            inner = temporary / out.name
            inner.mkdir()  # with the default permissions; mkdtemp's are for the owner alone
            yield inner
            out.parent.mkdir(parents=True, exist_ok=True)
            os.rename(inner, out)
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _reported(what: str, where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{what} cannot be written", where=where, found=error, remedy=_REMEDY) from error


def _replace(path: Path, content: bytes) -> None:
    target = Path(os.path.realpath(path))  # a link stays, and its target is replaced
    temporary = target.with_name(f".counterpoise-{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
