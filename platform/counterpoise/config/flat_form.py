"""Flat form of sections with variants in addresses.

Addresses of today's storage format were made when such a section held the keys of all variants side by side. They keep
this form, so that what stores hold is found. The lists of these keys are complete: a variant with other keys enters
addresses as it is. The whole file goes when the storage format changes.
"""

from __future__ import annotations

from typing import Any

from counterpoise.config.base import Section
from counterpoise.config.objectives import Objective
from counterpoise.config.trainable import TrainableSettings
from counterpoise.config.training import Optimizer

# section -> its key -> the keys of all its variants, each with the default that it had
_FLAT: dict[type[Section], dict[str, dict[str, Any]]] = {
    Objective: {
        "loss": {
            "tau": 1.0,
            "gamma": 2.0,
            "q": 0.7,
            "max_margin": 0.5,
            "margin": None,
            "concentration": 0.333,
            "scale": None,
        },
        "risk": {"step_size": 0.01, "adjustment": 0.0, "worst_share": 0.2},
    },
    Optimizer: {"schedule": {"milestones": [], "decay": 0.1}},
}
_WAS_NULL = {("ldam", "scale"): 30.0, ("arcface", "margin"): 0.5, ("adaface", "margin"): 0.4}  # null stood for these
_TRAINABLE: dict[str, Any] = {
    "blocks": [],
    "share": None,
    "rank": 4,
    "alpha": 8.0,
    "top_k": None,
    "similar": ["real", "biased"],
    "different": ["biased", "balanced"],
    "distance": "absolute",
}


def flattened(section: Section, tree: dict[str, Any]) -> dict[str, Any]:
    """Return the dumped tree of a section with its variants in flat form."""
    if isinstance(section, TrainableSettings):
        return _TRAINABLE | tree
    flat = dict(tree)
    for key, defaults in _FLAT.get(type(section), {}).items():
        if key not in tree:
            continue
        flat |= defaults
        name, own = tree[key]["name"], {inner: value for inner, value in tree[key].items() if inner != "name"}
        if own.keys() <= defaults.keys():
            given = {inner: value for inner, value in own.items() if _WAS_NULL.get((name, inner)) != value}
            flat |= {key: name, **given}
    return flat
