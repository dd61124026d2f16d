"""Writing of an export: sampled as needed, written to a temporary folder, and moved into place atomically."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from counterpoise.core.files import new_folder, write_files
from counterpoise.core.progress import Progress
from counterpoise.errors import ConfigError
from counterpoise.export.card import card
from counterpoise.export.content import Content, content
from counterpoise.export.formats import FORMATS, Row, check
from counterpoise.workflow.run import Run


def export(
    run: Run, form: str, out: Path, plans: Sequence[str] = (), with_real: bool = False, per_file: int = 1000
) -> dict[str, Any]:
    """Write a method's views into a new folder, with a dataset card.

    Args:
        run: The run; see :func:`counterpoise.export.content.content`.
        form: A key of :data:`counterpoise.export.formats.FORMATS`.
        out: The folder. It must be empty or not exist.
        plans: Names of the plans; empty for all.
        with_real: Also export the real training images.
        per_file: Images per Parquet, tar or Arrow file.

    Raises:
        ConfigError: The folder is not empty or not writable, a library is missing, or the plans are wrong.
        CounterpoiseError: Sampling failed.
    """
    check_free(out)
    check(form)
    exported = content(run, plans, with_real)
    with new_folder(out, what="the export", where=f"--out {out}") as folder:
        FORMATS[form](folder, exported, _counted(exported), per_file)
        text = card(exported, form, run.dataset.loaded.view.digest)
        write_files(folder, {"README.md": text}, what="the export", where=f"--out {out}")
    sizes = [path.stat().st_size for path in out.rglob("*") if path.is_file()]
    return {"format": form, "out": str(out), "images": len(exported), "bytes": sum(sizes), "files": len(sizes)}


def _counted(exported: Content) -> Iterator[Row]:
    with Progress("exporting", len(exported), "images") as progress:
        for row in exported.rows():
            yield row
            progress.advance()


def check_free(out: Path) -> None:
    """Raise ConfigError unless the folder is empty or does not exist."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        remedy = "choose a folder that does not exist, or empty this one"
        raise ConfigError("an export needs an empty folder", where=f"--out {out}", remedy=remedy)
