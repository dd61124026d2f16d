"""Logbook: the MLflow run of each result that was logged, remembered in the store so that no command logs it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from counterpoise.core.digest import digest
from counterpoise.storage.store import Store, read
from counterpoise.tracking.mlflow import TrackedRun

_FORMAT = 1  # of what is logged of a result: raise it to have results logged anew


class Logbook:
    """Records of logged results, for the tracking server and the experiment of a run.

    An entry counts while its run is there: after the run or the whole database was deleted, the result is logged
    again. A result is described by a JSON-able mapping of all that decides what is logged of it.

    Args:
        store: The store of the results and of the records.
        run: The command's run.
    """

    def __init__(self, store: Store, run: TrackedRun) -> None:
        self._store, self._run = store, run

    def find(self, results: Sequence[Mapping[str, Any]]) -> list[str | None]:
        """Return the run that holds each result; None for one that is to be logged."""
        if not self._run.connected:
            return [None] * len(results)
        keys = [self._key(result) for result in results]
        noted = [json.loads(read(self._store, key))["run_id"] if self._store.exists(key) else None for key in keys]
        there = self._run.active([run_id for run_id in noted if run_id is not None])
        return [run_id if run_id in there else None for run_id in noted]

    def enter(self, result: Mapping[str, Any], run_id: str | None) -> None:
        """Remember the run of a result, to be called after its last item; nothing if tracking was lost on the way."""
        if run_id is not None and self._run.connected:
            record = {"run_id": run_id, "result": result}
            self._store.replace(self._key(result), json.dumps(record, indent=1).encode())

    def _key(self, result: Mapping[str, Any]) -> str:
        return f"tracking/{digest({'format': _FORMAT, 'place': self._run.place, 'result': result})}.json"
