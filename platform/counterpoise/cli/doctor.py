"""Preflight checks: this machine and, given an experiment, its store, models, dataset and endpoints."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from counterpoise.config import Experiment, Generator, Llm, Scorer, Section
from counterpoise.config.compose import load
from counterpoise.core.addresses import without_passwords
from counterpoise.core.model_source import locate
from counterpoise.errors import CounterpoiseError, ModelError, did_you_mean, one_of
from counterpoise.generators.identity import check_pipeline_folder
from counterpoise.scoring.identity import identify_scorer
from counterpoise.storage.uri import open_store
from counterpoise.synthesis.prompts.llm import models_listed

_LIBRARIES = ("torch", "torchvision", "diffusers", "transformers", "open_clip_torch", "ray", "mlflow", "boto3")
_COMPILED = (".so", ".dylib", ".pyd")  # suffixes of compiled libraries
_LLM = "prompts.contextual.llm.model"
_GIB = 2**30
Part = TypeVar("Part", bound=Section)


@dataclass(frozen=True)
class Check:
    """Result of one check: ``state`` is ok, warn or fail."""

    name: str
    state: str
    detail: str


def examine(config: str | None, overrides: Sequence[str] = ()) -> list[Check]:
    """Run all checks in order, without ``config`` only the machine's. A failed check does not stop the others."""
    checks = list(_machine())
    if config is None:
        return checks
    try:
        experiments = load(config, overrides)
    except CounterpoiseError as error:
        return [*checks, Check("experiment", "fail", str(error))]
    checks.append(Check("experiment", "ok", f"{len(experiments)} fits: {', '.join(_fits(experiments))}"))
    return [*checks, *_parts(experiments), *language_models(experiments)]


def _fits(experiments: list[Experiment]) -> list[str]:
    return [f"{experiment.method} (seed {experiment.seed})" for experiment in experiments]


def _machine() -> Iterator[Check]:
    version = sys.version.split()[0]
    yield Check("python", "ok" if sys.version_info >= (3, 11) else "fail", f"{version}; 3.11 or newer is needed")
    yield _guarded("libraries", lambda: ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES))
    yield _memory()
    yield _guarded("devices", _devices)
    yield _guarded("operators", operators)
    address = os.environ.get("RAY_ADDRESS")
    yield Check(
        "ray",
        "ok",
        f"RAY_ADDRESS={address}" if address else "no RAY_ADDRESS: a run starts a cluster of its own on this machine",
    )
    uri = without_passwords(os.environ.get("MLFLOW_TRACKING_URI", ""))
    yield Check(
        "mlflow",
        "ok",
        f"MLFLOW_TRACKING_URI={uri}" if uri else "no MLFLOW_TRACKING_URI: runs go to mlflow.db next to the store",
    )


def _memory() -> Check:
    available = next(
        int(line.split()[1]) * 1024 for line in Path("/proc/meminfo").read_text().splitlines() if "MemAvailable" in line
    )
    shared = shutil.disk_usage("/dev/shm").free
    state = "ok" if available > 4 * _GIB else "warn"
    return Check(
        "memory",
        state,
        f"{available / _GIB:.1f} GiB free (a sampler needs 1 plus its weights); {shared / _GIB:.1f} GiB in /dev/shm",
    )


def _devices() -> str:
    torch = importlib.import_module("torch")
    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    return f"{os.cpu_count()} CPU cores, no GPU: fine for small models"


def operators() -> str:
    """Load torchvision's compiled operators, which fail for another build of torch: here, not in the middle of a run.

    They are loaded as torchvision does, but without its Python modules, which take seconds to import.

    Raises:
        ModelError: There are none, or they do not fit the installed torch.
    """
    torch = importlib.import_module("torch")
    found = importlib.util.find_spec("torchvision")
    folders = [Path(folder) for folder in (found and found.submodule_search_locations) or ()]
    libraries = sorted(path for folder in folders for path in folder.glob("_C*") if path.suffix in _COMPILED)
    remedy = f"install the torchvision that belongs to torch {torch.__version__}, from the same index"
    if not libraries:
        raise ModelError(
            "torchvision has no compiled operators", where=folders[0] if folders else "torchvision", remedy=remedy
        )
    for library in libraries:
        try:
            torch.ops.load_library(str(library))
        except OSError as error:
            raise ModelError(
                "torchvision's compiled operators do not fit torch", where=library, found=error, remedy=remedy
            ) from error
    return f"those of torchvision fit torch {torch.__version__}"


def _parts(experiments: Sequence[Experiment]) -> Iterator[Check]:
    """Check the parts that experiments share, and each model that a method names, once."""
    first, planned = experiments[0], [experiment for experiment in experiments if experiment.plans]
    yield _guarded("store", lambda: _store(first))
    yield _guarded("tracking", lambda: _tracking(first))
    for generator in _distinct([one.generator for one in experiments if one.generator is not None]):
        yield _guarded("generator", functools.partial(_generator, generator))
    for scorer in _distinct([one.scorer for one in experiments if one.scorer is not None]):
        yield _guarded("scorer", functools.partial(_scorer, scorer))
    if planned:
        yield _guarded("realism", lambda: _realism(planned))
    yield _guarded("dataset", lambda: _dataset(first))


def _distinct(sections: Sequence[Part]) -> list[Part]:
    return [one for number, one in enumerate(sections) if one not in sections[:number]]


def language_models(experiments: Sequence[Experiment]) -> Iterator[Check]:
    """Check that each language model that writes prompts is available; an endpoint only lists its models."""
    contextual = (experiment.prompts.contextual for experiment in experiments)
    asked = [one.llm for one in contextual if one is not None and one.llm is not None]
    for llm in _distinct(asked):
        try:
            yield _endpoint(llm) if llm.endpoint else Check("language model", "ok", locate(llm.model, _LLM))
        except CounterpoiseError as error:
            yield Check("language model", "fail", str(error))


def _endpoint(llm: Llm) -> Check:
    listed = models_listed(llm)
    if listed is None:
        found = f"{llm.endpoint} answers, but does not list its models: check that {llm.model!r} is one of them."
        return Check("language model", "warn", f"{found} The URL ends before /chat/completions, often with /v1")
    if llm.model not in listed:
        near = did_you_mean(llm.model, listed)
        found = f"{llm.endpoint} does not list {llm.model!r}, but {one_of(listed, 6) or 'none'}"
        return Check("language model", "warn", f"{found}; {near}" if near else found)
    return Check("language model", "ok", f"{llm.model} at {llm.endpoint}")


def _generator(generator: Generator) -> str:
    check_pipeline_folder(generator)
    return locate(generator.model, "generator.model")


def _scorer(scorer: Scorer) -> str:
    return ", ".join(identify_scorer(scorer).values())


def _realism(experiments: Sequence[Experiment]) -> str:
    from counterpoise.workflow.realism import compared_by, resolve_extractor

    return f"on features of: {resolve_extractor(compared_by(experiments))}"


def _store(experiment: Experiment) -> str:
    store = open_store(experiment.store)
    store.check()
    if store.uri.startswith("s3://"):
        return store.uri
    free = shutil.disk_usage(store.uri).free / _GIB
    return f"{store.uri}, {free:.1f} GiB free"


def _tracking(experiment: Experiment) -> str:
    from counterpoise.tracking.mlflow import Tracker

    tracker = Tracker(experiment, open_store(experiment.store).uri)
    tracker.check()
    return without_passwords(tracker.uri)


def _dataset(experiment: Experiment) -> str:
    from counterpoise.data.dataset import load as load_dataset

    loaded = load_dataset(experiment.data, open_store(experiment.store))
    classes, groups = loaded.view.names.classes, loaded.view.names.groups
    return f"{len(loaded.view)} images, {len(classes)} classes, {len(groups)} groups, {loaded.quarantined} quarantined"


def _guarded(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", check())
    except (CounterpoiseError, ImportError, RuntimeError, importlib.metadata.PackageNotFoundError) as error:
        return Check(name, "fail", str(error))
