"""The leaderboard as plain data: every method on every metric, ranked by one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from counterpoise.evaluation.catalogue import COSTS, ON_LEADERBOARDS
from counterpoise.report.content import Results
from counterpoise.report.verdict import standings, verdict

REGIMES = {
    "groups": "epochs selected by the groups of the validation images",
    "labels": "epochs selected by their labels only",
    "none": "the last epoch, without selection",
}


@dataclass(frozen=True, kw_only=True)
class Leaderboard(Results):
    """Results of methods on the same seeds and splits, in the order of their places; costs are among the metrics.

    Attributes:
        places: Method -> place by the mean of ``by``, from 1; None if it could not be measured.
        regimes: Method -> labels used to select its epochs; a key of :data:`REGIMES`.
        synthetic: The methods that train on synthetic images.
        stages: Numbers of stages ``fitted`` now, and ``found`` in the store.
        results: The flat row of every method and seed.
    """

    places: Mapping[str, int | None]
    regimes: Mapping[str, str]
    synthetic: list[str]
    stages: Mapping[str, int] = field(default_factory=dict)
    results: list[dict[str, Any]] = field(default_factory=list)

    @property
    def synthetic_methods(self) -> list[str]:
        """The methods that train on synthetic images."""
        return self.synthetic

    @property
    def columns_shown(self) -> list[str]:
        """The metrics that some method has, in reading order."""
        names = dict.fromkeys((*ON_LEADERBOARDS, self.by, *COSTS))
        return [name for name in names if name in self.defined]

    def about(self, method: str) -> str:
        """Return the table's remark on a method."""
        if method == self.baseline:
            return "the reference: real images only"
        if method != self.control:
            return ""
        return self.control_in_words or "the control"

    def to_json(self) -> dict[str, Any]:
        """Return the content of leaderboard.json."""
        conclusion, (to_base, to_control) = verdict(self), standings(self)
        return {
            "title": self.title,
            "command": self.command,
            "created": self.created,
            "by": self.by,
            "confidence": self.confidence,
            "intervals_over": "test images" if self.of_images else "seeds",
            "seeds": sorted({row.seed for row in self.rows}),
            "reference": self.baseline,
            "control": self.control,
            "control_of": self.control_of,
            "methods": [
                {
                    "place": self.places[method],
                    "method": method,
                    "regime": self.regimes[method],
                    "synthetic": method in self.synthetic,
                    "about": self.about(method),
                    "metrics": {
                        name: {"mean": found.mean, "low": found.low, "high": found.high}
                        for name in self.columns_shown
                        if (found := self.estimate(method, name))
                    },
                }
                for method in self.methods
            ],
            "differences": [asdict(difference) for difference in (*to_base.values(), *to_control.values())],
            "verdict": [conclusion.headline, *conclusion.lines],
            "stages": dict(self.stages),
            "rows": self.results,
            "digests": dict(self.digests),
            "versions": dict(self.versions),
        }
