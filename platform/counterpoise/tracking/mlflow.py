"""Tracking of experiments in MLflow.

Tracking is a copy of the results for inspection; the store holds the results themselves. A tracking server that
disappears during a run costs one warning and no work: the run continues untracked, and the same command, which then
finds all its results in the store, logs those that are missing. Only :meth:`Tracker.check`, before any work, raises.

Only the driver process writes. All calls go through ``MlflowClient`` with explicit run ids instead of MLflow's "active
run", which belongs to a thread, so that parallel fits cannot log into each other's runs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, SupportsFloat, TypeVar

import numpy as np
import yaml
from jaxtyping import Shaped

from counterpoise import __version__, config
from counterpoise.core.addresses import without_passwords
from counterpoise.core.digest import digest
from counterpoise.core.environment import environment
from counterpoise.core.progress import warn as _warn
from counterpoise.errors import TrackingError
from counterpoise.storage.view import ImageView
from counterpoise.tracking.database import opened_alone, sqlite_uri
from counterpoise.tracking.exported_model import log_model

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

T = TypeVar("T")

CHECK_SECONDS = 5  # timeout of the first request, before any work
_PARAMS_PER_BATCH, _METRICS_PER_BATCH, _PARAM_LENGTH, _KEY_LENGTH = 100, 1000, 500, 250
_RUNS_PER_SEARCH = 100
_ENVIRONMENT = {  # defaults; values set by the user take precedence
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",  # also keeps MLflow from writing into the home folder
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # a lost database would print a page of traceback; here it is one line
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",  # MLflow's default of 120 s and 7 retries would delay a run for minutes
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
}


class Tracker:
    """Tracking client of an experiment.

    ``MLFLOW_TRACKING_URI`` is respected. Without it, runs go to ``mlflow.db`` (SQLite) and artifacts to ``mlruns`` in
    the store's folder, or in the working directory if the store is not a folder.

    Args:
        experiment: The experiment; its ``tracking`` section and its name are used.
        store_uri: The store's ``uri``.

    Attributes:
        uri: Argument of ``mlflow ui --backend-store-uri``; None if tracking is switched off.
    """

    def __init__(self, experiment: config.Experiment, store_uri: str) -> None:
        self.name = experiment.tracking.experiment or experiment.name
        self.uri: str | None = None
        self._artifacts: str | None = None  # None: the server decides
        self._client: MlflowClient | None = None
        self._experiment_id = ""
        if experiment.tracking.enabled:
            self.uri = os.environ.get("MLFLOW_TRACKING_URI")
            if not self.uri:
                folder = Path.cwd() if store_uri.startswith("s3://") else Path(store_uri).absolute()
                self.uri, self._artifacts = sqlite_uri(folder / "mlflow.db"), (folder / "mlruns").as_uri()

    def check(self) -> None:
        """Connect, and find or create the experiment, within a few seconds.

        Raises:
            TrackingError: The server does not answer, or the database cannot be used.
        """
        if self.uri is None or self._client is not None:
            return
        try:
            for key, value in _ENVIRONMENT.items():
                os.environ.setdefault(key, value)  # before the import, which reads them
            from mlflow import MlflowClient

            logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"])  # it may have been imported before
            impatient = {"MLFLOW_HTTP_REQUEST_TIMEOUT": f"{CHECK_SECONDS}", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
            with environment(impatient), opened_alone(self.uri, CHECK_SECONDS), _without_foreign_warnings():
                client = MlflowClient(self.uri)
                self._experiment_id = _experiment_id(client, self.name, self._artifacts)
        except Exception as error:  # MLflow lets through whatever its database and HTTP libraries raise
            raise TrackingError(
                "the tracking server cannot be used",
                where=without_passwords(self.uri),
                found=_one_line(error),
                remedy="start the server, correct MLFLOW_TRACKING_URI, unset it to use a file in the store, "
                "or set tracking.enabled=false",
            ) from error
        self._client = client

    @contextlib.contextmanager
    def run(self, name: str, tags: Mapping[str, str] | None = None) -> Iterator[TrackedRun]:
        """Open a run that ends with the block: finished, failed or (by the keyboard) killed.

        Raises:
            TrackingError: As :meth:`check`, which is called first.
        """
        self.check()
        link = _Link(self._client)
        with _started(link, self._experiment_id, name, {"counterpoise.version": __version__, **(tags or {})}) as run:
            yield run


class TrackedRun:
    """MLflow run. Its methods do nothing if tracking is switched off or lost.

    Attributes:
        id: MLflow's run id; None if tracking is switched off or lost.
    """

    def __init__(self, link: _Link, experiment_id: str, run_id: str | None) -> None:
        self._link, self._experiment_id, self.id = link, experiment_id, run_id

    @property
    def connected(self) -> bool:
        """True while tracking is neither switched off nor lost."""
        return self._link.client is not None

    @property
    def place(self) -> tuple[str | None, str]:
        """The tracking server, and the id of the experiment there."""
        return self._link.uri, self._experiment_id

    def active(self, run_ids: Sequence[str]) -> set[str]:
        """Return those of the experiment's runs that are there and not deleted."""

        def search(client: MlflowClient) -> set[str]:
            found = (
                client.search_runs([self._experiment_id], f"attributes.run_id IN ({', '.join(map(repr, some))})")
                for some in _batches(run_ids, _RUNS_PER_SEARCH)
            )
            return {run.info.run_id for runs in found for run in runs}

        return self._link(search) or set()

    @contextlib.contextmanager
    def child(self, name: str, tags: Mapping[str, str] | None = None) -> Iterator[TrackedRun]:
        """Open a nested run, for a step or a fit."""
        parent = {"mlflow.parentRunId": self.id} if self.id else {}
        with _started(self._link, self._experiment_id, name, {**parent, **(tags or {})}) as run:
            yield run

    def params(self, values: Mapping[str, object]) -> None:
        """Log parameters; nested mappings become dotted keys, long values are truncated to 500 characters."""
        texts = [(_key(key), _text(value)) for key, value in _flat(values)]

        def log(client: MlflowClient, run_id: str) -> None:
            from mlflow.entities import Param

            for batch in _batches([Param(*pair) for pair in texts], _PARAMS_PER_BATCH):
                client.log_batch(run_id, params=batch)

        self._log(log)

    def config(self, experiment: config.Experiment) -> None:
        """Log the effective configuration, as parameters and as ``config.yaml``."""
        tree = experiment.model_dump(mode="json")
        self.params(tree)
        self.file("config.yaml", yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))

    def metrics(self, values: Mapping[str, SupportsFloat | None], step: int | None = None) -> None:
        """Log metrics; values of None (a cell without test images) are left out."""
        self._log_metrics((key, value, step or 0) for key, value in values.items())

    def history(self, rows: Sequence[Mapping[str, SupportsFloat | None]]) -> None:
        """Log a fit's epochs in few requests. Row i is step i, unless it has an ``epoch``."""
        self._log_metrics(
            (key, value, int(float(row.get("epoch") or 0)) if "epoch" in row else index)
            for index, row in enumerate(rows)
            for key, value in row.items()
            if key != "epoch"
        )

    def file(self, name: str, data: str | bytes) -> None:
        """Log an artifact under a relative path such as ``samples/star.png``."""
        path = PurePosixPath(name)
        content = data.encode() if isinstance(data, str) else data

        def log(client: MlflowClient, run_id: str) -> None:
            with tempfile.TemporaryDirectory() as folder:
                local = Path(folder) / path.name
                local.write_bytes(content)
                client.log_artifact(run_id, str(local), str(path.parent) if path.parent.name else None)

        self._log(log)

    def json(self, name: str, value: object) -> None:
        """Log a JSON-serializable value as an artifact."""
        self.file(name, json.dumps(value, indent=1, ensure_ascii=False))

    def figure(self, name: str, figure: Figure) -> None:
        """Log a matplotlib figure as an artifact, in the format of the name's suffix."""
        self._log(lambda client, run_id: client.log_figure(run_id, figure, name))

    def dataset(self, name: str, view: ImageView, context: str) -> None:
        """Log a view as an input: its digest, its store and the images of each cell. No data is copied.

        Args:
            name: Name of the dataset.
            view: The images.
            context: Use of the view: ``audit``, ``training``, ``validation``, ``test``.
        """
        counts = {view.names.cell(*cell): int(count) for cell, count in np.ndenumerate(view.counts) if count}
        profile = json.dumps({"num_rows": len(view), "cells": counts}, ensure_ascii=False)
        kind, source = "s3" if view.store.uri.startswith("s3://") else "local", json.dumps({"uri": view.store.uri})
        address = view.digest

        def log(client: MlflowClient, run_id: str) -> None:
            from mlflow.entities import Dataset, DatasetInput, InputTag

            entity = Dataset(name, address, kind, source, profile=profile)
            client.log_inputs(run_id, datasets=[DatasetInput(entity, [InputTag("mlflow.data.context", context)])])

        self._log(log)

    def model(self, name: str, module: torch.nn.Module, example: Shaped[np.ndarray, batch * shape]) -> str | None:
        """Log a classifier with its signature, as an exported graph: loading needs no pickle and no Counterpoise.

        Args:
            name: Name of the model.
            module: The classifier.
            example: Inputs of the module, two or more: with one, the graph would take batches of one only.

        Returns:
            The model's URI for ``mlflow.pytorch.load_model``, or None if it could not be logged.
        """
        client, run_id = self._link.client, self.id
        if client is None or run_id is None:
            return None
        try:
            with _without_foreign_warnings():
                return log_model(client, self._experiment_id, run_id, name, module, example)
        except Exception as error:  # a module that torch cannot export is no reason to stop tracking
            _warn(f"the model {name!r} is not logged: {_one_line(error)}")
            return None

    def _log(self, action: Callable[[MlflowClient, str], None]) -> None:
        run_id = self.id
        if run_id is not None:
            self._link(lambda client: action(client, run_id))

    def _log_metrics(self, values: Iterable[tuple[str, SupportsFloat | None, int]]) -> None:
        now = int(time.time() * 1000)
        numbers = [(_key(key), float(value), step) for key, value, step in values if value is not None]

        def log(client: MlflowClient, run_id: str) -> None:
            from mlflow.entities import Metric

            entities = [Metric(key, value, now, step) for key, value, step in numbers]
            for batch in _batches(entities, _METRICS_PER_BATCH):
                client.log_batch(run_id, metrics=batch)

        self._log(log)


class _Link:
    """Connection shared by a run and its children; after the first failure it stays closed, and calls do nothing."""

    def __init__(self, client: MlflowClient | None) -> None:
        self.client = client
        self.uri = without_passwords(client.tracking_uri) if client else None

    def __call__(self, action: Callable[[MlflowClient], T]) -> T | None:
        if self.client is None:
            return None
        try:
            with _without_foreign_warnings():
                return action(self.client)
        except Exception as error:  # no failure of tracking may end hours of work
            self.client = None
            _warn(
                f"tracking stopped at {self.uri}: {_one_line(error)}. "
                "No result is lost: run the same command again to log them."
            )
            return None


@contextlib.contextmanager
def _started(link: _Link, experiment_id: str, name: str, tags: Mapping[str, str]) -> Iterator[TrackedRun]:
    source = {"mlflow.source.name": "counterpoise", "mlflow.source.type": "LOCAL"}
    created = link(lambda client: client.create_run(experiment_id, run_name=name, tags={**source, **tags}))
    run = TrackedRun(link, experiment_id, created.info.run_id if created else None)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        run._log(lambda client, run_id: client.set_terminated(run_id, status))


def _experiment_id(client: MlflowClient, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, artifacts, {"mlflow.experimentKind": "custom_model_development"})
        except MlflowException:  # another process created it just now
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise ValueError(f"the experiment {name!r} was deleted; restore it or set tracking.experiment=NAME")
    return experiment.experiment_id


@contextlib.contextmanager
def _without_foreign_warnings() -> Iterator[None]:
    """Silence warnings: MLflow uses deprecated parts of SQLAlchemy, torch and itself, which a user cannot mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _flat(values: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _PARAM_LENGTH else text[: _PARAM_LENGTH - 1] + "…"


def _key(name: str) -> str:
    """Return a name that MLflow accepts: unchanged, or cleaned and with a digest so that it stays unique."""
    plain = re.fullmatch(r"[\w\-. ]+(/[\w\-. ]+)*", name) and not re.search(r"(^|/)\.+(/|$)", name)
    if plain and len(name) <= _KEY_LENGTH:
        return name
    return re.sub(r"[^\w\-. /]", "_", name)[: _KEY_LENGTH - 20].strip("/.") + "-" + digest(name)[:6]


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _one_line(error: BaseException) -> str:
    return without_passwords(next(iter(str(error).strip().splitlines()), "") or type(error).__name__)
