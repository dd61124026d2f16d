"""Findings of a verification: the state of each artifact, what is damaged, and its removal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from counterpoise.storage.records import DamagedError
from counterpoise.storage.store import Store
from counterpoise.synthesis.pool import verify as pool_checks
from counterpoise.synthesis.pool.pool import Pool

State = Literal["sound", "damaged", "missing"]
# In the order in which one is made from the others. Repair goes backwards, so nothing outlives what it was made from.
KINDS = ("dataset", "prompts", "images", "start weights", "stages", "masks", "statistics", "results", "realism")


@dataclass(frozen=True)
class Damage:
    """A damaged artifact.

    Attributes:
        kind: One of :data:`KINDS`.
        key: Key of the damaged file in the store.
        wrong: The defect.
        remove: Keys that repair removes, in this order: a record before the file that it implies.
    """

    kind: str
    key: str
    wrong: str
    remove: tuple[str, ...]


@dataclass
class Findings:
    """Results of a verification.

    Attributes:
        store: The store.
        states: State of each artifact, by kind and key.
        damages: The damaged artifacts.
        pools: Checks of the pools that were read, by pool.
        unchecked: Method -> the reason why its other artifacts are not checked.
    """

    store: Store
    states: dict[str, dict[str, State]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    damages: list[Damage] = field(default_factory=list)
    pools: list[tuple[Pool, pool_checks.PoolCheck]] = field(default_factory=list)
    unchecked: dict[str, str] = field(default_factory=dict)

    def look(self, kind: str, keys: Sequence[str], read: Callable[[], object]) -> State:
        """Check an artifact, once, and return its state.

        Args:
            kind: One of :data:`KINDS`.
            keys: Its record, or its only file, and then the files that this implies.
            read: Reads all of it; raises DamagedError if it is not what was stored.
        """
        states, key = self.states[kind], keys[0]
        if key not in states:
            states[key] = "sound" if self.store.exists(key) else "missing"
            if states[key] == "sound":
                try:
                    read()
                except DamagedError as error:
                    states[key] = "damaged"
                    place = f"{error.where}".removeprefix(f"{self.store.uri}/")  # the record, or the file
                    self.damages.append(Damage(kind, place, f"{error.found}", tuple(keys)))
        return states[key]

    def add(self, kind: str, key: str, wrong: str, remove: Sequence[str]) -> None:
        """Add a damaged artifact."""
        self.states[kind][key] = "damaged"
        self.damages.append(Damage(kind, key, wrong, tuple(remove)))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able value: ``ok``, ``kinds``, ``damaged``, ``not_checked``, and images sampled again."""
        again = pool_checks.summary([check for _, check in self.pools])
        kinds = {
            kind: {
                "checked": sum(state != "missing" for state in states.values()),
                **{name: list(states.values()).count(name) for name in ("damaged", "missing")},
            }
            for kind, states in self.states.items()
        }
        return {
            "ok": not self.damages and again["equal"] == again["regenerated"],
            "kinds": kinds,
            "damaged": [{"kind": one.kind, "key": one.key, "wrong": one.wrong} for one in self.damages],
            "not_checked": self.unchecked,
            **{name: again[name] for name in ("regenerated", "equal", "largest_difference")},
        }


def repair(found: Findings) -> list[str]:
    """Remove what is damaged, so that the next run makes it again; return a line for each removed file.

    Records are removed before their files, and results before what they rest on: a kill in between leaves no record
    without its file. A pool's description is written anew at once, as images without one count as damaged.
    """
    lines = []
    for damage in sorted(found.damages, key=lambda one: -KINDS.index(one.kind)):
        for key in damage.remove:
            if found.store.exists(key):
                found.store.delete(key)
                lines.append(f"removed {key}")
    for pool, check in found.pools:
        if pool.description_key in dict(check.bad):
            pool.prepare()
            lines.append(f"wrote {pool.description_key}")
    return lines
