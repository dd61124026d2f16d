"""Rounds of synthesis: sample the images of every plan; with feedback, train a classifier on them and sample again.

Each later round is guided by the classifier of the round before it. Its pool therefore has its own address, which
depends on the images that were selected and on the stages that were trained on them. Methods for which all of this is
equal share these pools as they share the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from counterpoise.config import Experiment
from counterpoise.errors import ConfigError
from counterpoise.storage.view import ImageView
from counterpoise.synthesis.pool.pool import Pool, SamplingCost
from counterpoise.synthesis.selection.request import PlanRequest
from counterpoise.synthesis.selection.select import select_images
from counterpoise.synthesis.selection.selected_images import SelectedImages

if TYPE_CHECKING:
    from counterpoise.synthesis.feedback.classifier import GuideClassifier

PoolOf = Callable[[Experiment, "GuideClassifier"], Pool]
Timed = Callable[[str], AbstractContextManager[None]]
# (pool, its guide's training, the requests to it) -> images of the methods that have all; None if no method has
Take = Callable[[Pool, "GuideTraining | None", Sequence[PlanRequest]], SelectedImages | None]


@dataclass(frozen=True)
class Round:
    """A pool, and the images that the methods sharing it selected from it."""

    pool: Pool
    images: SelectedImages


@dataclass(frozen=True)
class Synthesized:
    """The synthetic images of all methods.

    Attributes:
        rounds: By method, its rounds of feedback in order; one without feedback. Methods without plans have none.
    """

    rounds: Mapping[str, Sequence[Round]]

    def pool(self, method: str) -> Pool:
        """Return the pool of a method's last round."""
        return self.rounds[method][-1].pool

    def views(self, method: str) -> Mapping[str, ImageView]:
        """Return a method's images by plan, of its last round; empty for a method without plans."""
        rounds = self.rounds.get(method)
        return rounds[-1].images.methods[method].views if rounds else {}

    def earlier(self, method: str) -> list[Mapping[str, ImageView]]:
        """Return the same of each round before the last."""
        return [one.images.methods[method].views for one in self.rounds.get(method, ())[:-1]]

    @property
    def realized(self) -> list[SelectedImages]:
        """The results of the pools, each once, in the order of rounds."""
        ordered = sorted(
            ((number, one.images) for rounds in self.rounds.values() for number, one in enumerate(rounds)),
            key=lambda entry: entry[0],
        )
        return list({id(images): images for _, images in ordered}.values())

    def cost(self, method: str) -> SamplingCost:
        """Return what sampling a method's images took, in all of its rounds."""
        costs = [one.images.methods[method].cost for one in self.rounds.get(method, ())]
        seconds = [cost.seconds for cost in costs]
        known = None if None in seconds else sum((second for second in seconds if second is not None), 0.0)
        return SamplingCost(sum(cost.images for cost in costs), known)


@dataclass(frozen=True)
class GuideTraining:
    """The training of the classifier that guides a method's round: its stages up to ``stage``, on these views."""

    experiment: Experiment
    views: Mapping[str, ImageView]
    validation: ImageView
    stage: str | None  # None: the classifier comes from a file

    def guide(self) -> GuideClassifier:
        """Return the classifier by its address; nothing is trained."""
        from counterpoise.synthesis.feedback import classifier as feedback

        if self.stage is None:
            return feedback.of_checkpoint(self.experiment, self.views["real"])
        return feedback.of_stage(self.experiment, self.views, self.validation, self.stage)

    def train(self, guide: GuideClassifier) -> None:
        """Train the classifier, unless the store holds it, and take the statistics that it needs."""
        from counterpoise.execution import graph
        from counterpoise.synthesis.feedback.classifier import FeatureStatistics, guide_fits
        from counterpoise.training.stages import with_gradients

        fits: list[Any] = []
        if self.stage is not None:
            fits = list(guide_fits(self.experiment, self.views, self.validation, self.stage))
        graph.run_all([*with_gradients(fits), FeatureStatistics(guide, self.views["real"], tuple(fits[-1:]))])


def synthesize(
    pools: Mapping[str, Pool],
    guides: Mapping[str, GuideTraining],
    requests: Sequence[PlanRequest],
    pool_of: PoolOf,
    timed: Timed,
) -> Synthesized:
    """Sample the missing images of all requests, round by round.

    Args:
        pools: Each method's first pool.
        guides: The training of the first round's classifier, by method with feedback.
        requests: The requests of all methods.
        pool_of: Returns the pool of an experiment guided by a classifier.
        timed: Context manager that measures the steps ``teach`` and ``synthesize``.

    Raises:
        ConfigError: Methods that share a pool have different sampling settings.
        CounterpoiseError: See :func:`counterpoise.synthesis.selection.select.select_images`; or training failed.
    """

    def take(pool: Pool, training: GuideTraining | None, asked: Sequence[PlanRequest]) -> SelectedImages:
        if pool.guide is not None and training is not None:
            with timed("teach"):
                training.train(pool.guide)
        with timed("synthesize"):
            return select_images(pool, asked)

    return each_round(pools, guides, requests, pool_of, take)


def each_round(
    pools: Mapping[str, Pool],
    guides: Mapping[str, GuideTraining],
    requests: Sequence[PlanRequest],
    pool_of: PoolOf,
    take: Take,
) -> Synthesized:
    """Take the images of all requests, round by round; arguments as of :func:`synthesize`.

    A method whose images ``take`` does not return has no further rounds.
    """
    rounds: dict[str, list[Round]] = {method: [] for method in pools}
    turn = 0
    while pools:
        turn += 1
        for pool, methods in sharing(pools):
            asked = [request for request in requests if request.method in methods]
            images = take(pool, guides.get(methods[0]), asked)
            if images is not None:
                for method in images.methods:
                    rounds[method].append(Round(pool, images))
        synthesized = Synthesized(rounds)
        guides = {
            method: _next(guides[method], synthesized.views(method))
            for method in pools
            if method in guides and len(rounds[method]) == turn < number_of_rounds(guides[method].experiment)
        }
        pools = {method: pool_of(guide.experiment, guide.guide()) for method, guide in guides.items()}
    return Synthesized(rounds)


def sharing(pools: Mapping[str, Pool]) -> Iterator[tuple[Pool, list[str]]]:
    """Return the distinct pools, each with the methods that share it.

    Raises:
        ConfigError: Methods that share a pool have different sampling settings.
    """
    grouped: dict[str, list[str]] = {}
    for method, pool in pools.items():
        grouped.setdefault(pool.digest, []).append(method)
    for first, *others in grouped.values():
        for other in others:
            _check_runtime(pools[first].runtime, pools[other].runtime, first, other)
    return ((pools[methods[0]], methods) for methods in grouped.values())


def _check_runtime(one: Mapping[str, object], two: Mapping[str, object], first: str, other: str) -> None:
    for key, value in one.items():
        if two[key] != value:
            raise ConfigError(
                "methods that share a pool must sample it with the same settings",
                where=key,
                found=f"{value} for {first}, {two[key]} for {other}",
                remedy=f"set the same `{key}` for both",
            )


def number_of_rounds(experiment: Experiment) -> int:
    """Return the rounds of feedback; one without feedback."""
    return experiment.feedback.rounds if experiment.feedback else 1


def _next(guide: GuideTraining, views: Mapping[str, ImageView]) -> GuideTraining:
    """Return the training of the next round's guide classifier: all stages, on the images of this one."""
    last = guide.experiment.stages[-1].name
    return GuideTraining(guide.experiment, {"real": guide.views["real"], **views}, guide.validation, last)
