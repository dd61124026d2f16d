"""The export itself: sampled as needed, written beside its place, and there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from counterpoise.core.progress import Progress
from counterpoise.errors import ConfigError
from counterpoise.export.card import card
from counterpoise.export.content import Content, content
from counterpoise.export.formats import FORMATS, Row, check
from counterpoise.workflow.run import Run


def export(
    run: Run, form: str, out: Path, plans: Sequence[str] = (), with_real: bool = False, per_file: int = 1000
) -> dict[str, Any]:
    """Writes a method's views into a new folder, with a card.

    Args:
        run: Whose method and plans; see :func:`counterpoise.export.content.content`.
        form: A key of :data:`counterpoise.export.formats.FORMATS`.
        out: The folder. It must be empty or not there.
        plans: Names of plans; none are all.
        with_real: Put the real training images beside them.
        per_file: Images of a Parquet, tar or Arrow file.

    Raises:
        ConfigError: The folder holds something or cannot be written, a library is missing, or the plans are wrong.
        CounterpoiseError: Sampling failed.
    """
    check_free(out)
    check(form)
    chosen = content(run, plans, with_real)
    with whole(out) as folder:
        FORMATS[form](folder, chosen, _counted(chosen), per_file)
        (folder / "README.md").write_text(card(chosen, form, run.dataset.loaded.view.digest), encoding="utf-8")
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    return {"format": form, "out": str(out), "images": len(chosen), "bytes": sum(sizes), "files": len(sizes)}


def _counted(chosen: Content) -> Iterator[Row]:
    with Progress("exporting", len(chosen), "images") as progress:
        for row in chosen.rows():
            yield row
            progress.advance()


def check_free(out: Path) -> None:
    """Raises ConfigError if there is something in the folder, or something else in its place."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        remedy = "name a folder that is not there, or empty this one"
        raise ConfigError("an export goes into a folder of its own", where=f"--out {out}", remedy=remedy)


@contextlib.contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes ``out`` in one step at the end. After an error nothing is left of it.

    It lies in the nearest folder above ``out`` that is there: on the same disk, and not yet in anybody's sight.

    Raises:
        ConfigError: Something there cannot be written, or ``out`` came to be in the meantime.
    """
    above = next(folder for folder in out.absolute().parents if folder.is_dir())
    temporary = None
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=above))
        inner = temporary / out.name
        inner.mkdir()  # with the permissions that new folders have; mkdtemp's are for the owner alone
        yield inner
        out.parent.mkdir(parents=True, exist_ok=True)
        os.rename(inner, out)
    except OSError as error:
        remedy = "name a folder that you may write to, with space left"
        raise ConfigError("the export cannot be written", where=f"--out {out}", found=error, remedy=remedy) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
