"""Model sources: a hub id, a folder, or a folder inside an installed Python package.

Nothing here loads a model. :func:`locate` gives the argument of ``from_pretrained``; :func:`fingerprint` identifies
the weights, so that a pool of images is addressed by the model that sampled it, wherever that model is stored.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import re
from pathlib import Path

from counterpoise.errors import ModelError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_INDEX_FILES = ("model_index.json", "open_clip_config.json", "config.json")  # one of them is in every model repository
_ALLOWED = "a hub id (owner/name), a folder, or package:NAME/path"


def locate(model: str, where: str) -> str:
    """Return the folder (absolute) or hub id that ``model`` names.

    Args:
        model: ``owner/name`` on the hub, a path, or ``package:NAME/path``: a folder inside the Python package NAME.
            A path that has the form of a hub id is a path if it exists. The prefixes ``hf-hub:`` and
            ``local-dir:`` of open_clip are kept.
        where: The key path, for errors.

    Raises:
        ModelError: The folder or the package does not exist, or ``model`` is neither a path nor a hub id.
    """
    if not model:
        raise ModelError("no model is named", where=where, found="nothing", allowed=_ALLOWED)
    if model.startswith("hf-hub:"):
        return model
    if model.startswith("local-dir:"):
        return "local-dir:" + _folder(Path(model.removeprefix("local-dir:")), model, where)
    if model.startswith("package:"):
        return _folder(_in_package(model, where), model, where)
    if Path(model).expanduser().is_dir() or model.startswith(("/", ".", "~")) or not _HUB_ID.fullmatch(model):
        return _folder(Path(model), model, where)
    return model


def is_folder(located: str) -> bool:
    """Return True if a result of :func:`locate` is a folder on this machine."""
    return Path(located).is_absolute()


def fingerprint(model: str, revision: str | None = None, where: str = "model") -> dict[str, str]:
    """Identify the weights of a model, independent of where they are stored.

    Returns:
        ``{"sha256": …}`` of a folder's files (documentation and hidden files aside), or ``{"id": …, "revision": …}``
        with the commit that the revision points to on the hub now or, without a network, in the local cache.

    Raises:
        ModelError: There is no such model, or the hub cannot be reached and the model is not in its local cache.
    """
    located = locate(model, where).removeprefix("local-dir:")
    if is_folder(located):
        return {"sha256": _hash_of_folder(Path(located))}
    located = located.removeprefix("hf-hub:")
    return {"id": located, "revision": _commit(located, revision, where)}


def hash_of_file(path: Path) -> str:
    """Return the SHA-256 of a file; computed once per process as long as the file does not change."""
    status = path.stat()
    return _hash_of_file(path, status.st_mtime_ns, status.st_size)


@functools.cache
def _hash_of_file(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of_folder(folder: Path) -> str:
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and path.suffix != ".md" and not any(part.startswith(".") for part in name.split("/")):
            sha.update(f"{name}\0{hash_of_file(path)}\n".encode())
    return sha.hexdigest()


def _folder(path: Path, model: str, where: str) -> str:
    absolute = path.expanduser().absolute()
    if not absolute.is_dir():
        found = f"{model} (a file)" if absolute.is_file() else f"{model} (there is no folder {absolute})"
        raise ModelError("the model does not exist", where=where, found=found, allowed=_ALLOWED)
    return str(absolute)


def _in_package(model: str, where: str) -> Path:
    name, _, path = model.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"there is no Python package {name!r}", where=where, found=model, allowed=_ALLOWED)
    return Path(next(iter(spec.submodule_search_locations))) / path


def _commit(model: str, revision: str | None, where: str) -> str:
    if revision and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        return str(HfApi().model_info(model, revision=revision, timeout=20).sha)
    except Exception as error:  # offline, unreachable, not found, gated: the client has an error of its own for each
        for name in _INDEX_FILES:
            cached = try_to_load_from_cache(model, name, revision=revision)
            if isinstance(cached, str):
                return Path(cached).relative_to(Path(cached).parents[1]).parts[0]
        remedy = "check the name and the network, log in with `hf auth login` if it is gated, or name a folder"
        found = f"{model}: {str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
        raise ModelError(
            "the model is neither a folder nor available from the hub",
            where=where,
            found=found,
            allowed=_ALLOWED,
            remedy=remedy,
        ) from error
