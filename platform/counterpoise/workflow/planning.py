"""Planning: images wanted of each cell, prompts, pools, and the images left to sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from counterpoise.config import Experiment
from counterpoise.data import dataset
from counterpoise.errors import DataError
from counterpoise.storage.schema import SPLITS, LabelSpace
from counterpoise.storage.store import Store
from counterpoise.storage.view import ImageView
from counterpoise.synthesis.pool.pool import Pool
from counterpoise.synthesis.prompts.prompt_set import PromptSet
from counterpoise.synthesis.prompts.resolve import resolve
from counterpoise.synthesis.selection import select
from counterpoise.synthesis.selection.request import Counts, PlanKey, PlanRequest
from counterpoise.synthesis.selection.strategies import check_held_out, target_counts
from counterpoise.workflow.suite import Suite
from counterpoise.workflow.synthesis import GuideTraining, sharing

if TYPE_CHECKING:
    from counterpoise.synthesis.feedback.classifier import GuideClassifier


@dataclass(frozen=True)
class Dataset:
    """A suite's real images.

    Attributes:
        loaded: The imported table, with its quarantine.
    """

    loaded: dataset.Loaded

    @property
    def names(self) -> LabelSpace:
        """Classes and groups."""
        return self.loaded.view.names

    @cached_property
    def splits(self) -> dict[str, ImageView]:
        """The images of each split."""
        return {split: self.loaded.view.where(split=split) for split in SPLITS}

    @property
    def train(self) -> ImageView:
        """The training images."""
        return self.splits["train"]

    @property
    def validation(self) -> ImageView:
        """The images that choose epochs."""
        return self.splits["validation"]


def load_dataset(suite: Suite, store: Store) -> Dataset:
    """Return the suite's dataset, imported into the store if necessary.

    Raises:
        DataError: It cannot be read, or a split is empty.
    """
    loaded = Dataset(dataset.load(suite.shared.data, store))
    for split, view in loaded.splits.items():
        if not len(view):
            remedy = "give data.splits, or a dataset that has this split"
            raise DataError(f"the {split} split is empty", where="data", found="0 images", remedy=remedy)
    return loaded


def wanted_images(suite: Suite, loaded: Dataset) -> dict[PlanKey, Counts]:
    """Return the synthetic images wanted of each cell, by method and plan.

    Raises:
        PlanError: A strategy is impossible for these counts.
        ConfigError: The plan of ``evaluation.test`` shares images with one that stages train on.
    """
    counts = loaded.train.counts
    wanted = {
        (method, name): target_counts(plan, counts, loaded.names, where=f"plans.{name}")
        for method, experiment in suite.planned.items()
        for name, plan in experiment.plans.items()
    }
    for method, experiment in suite.planned.items():
        check_held_out(experiment, {name: wanted[method, name] for name in experiment.plans})
    return wanted


def plan_requests(suite: Suite, wanted: Mapping[PlanKey, Counts]) -> list[PlanRequest]:
    """Return what each method's plans ask of its pool."""
    return [
        PlanRequest(method, name, counts, one.plans[name].skip, one.selection, one.pool.max_quarantined)
        for (method, name), counts in wanted.items()
        for one in [suite.methods[method]]
    ]


class PoolFactory:
    """Pools of experiments on a dataset. A section of prompts is resolved once.

    Args:
        loaded: The real images: class and group names, condition images, and training images of guide classifiers.
        store: The store of pools and prompts.
    """

    def __init__(self, loaded: Dataset, store: Store) -> None:
        self.loaded, self.store = loaded, store
        self._resolved: dict[str, PromptSet] = {}  # by the prompts section

    def prompts(self, experiment: Experiment) -> PromptSet:
        """Return an experiment's prompts of each cell."""
        section = experiment.prompts.model_dump_json()
        if section not in self._resolved:
            self._resolved[section] = resolve(experiment.prompts, self.loaded.names, self.store)
        return self._resolved[section]

    def pool(self, experiment: Experiment, guide: GuideClassifier | None = None) -> Pool:
        """Return an experiment's pool, of the first round of feedback unless a guide classifier is given."""
        if guide is None and experiment.feedback is not None:
            guide = self.guide_training(experiment).guide()
        loaded, prompts = self.loaded, self.prompts(experiment)
        return Pool.of(experiment, loaded.names, self.store, prompts, loaded.train, guide)

    def guide_training(self, experiment: Experiment) -> GuideTraining:
        """Return the training of the first round's guide classifier, which uses real images alone."""
        assert experiment.feedback is not None
        views = {"real": self.loaded.train}
        return GuideTraining(experiment, views, self.loaded.validation, experiment.feedback.stage)


def shared_pools(suite: Suite, factory: PoolFactory) -> dict[str, Pool]:
    """Return each method's pool of the first round; methods with the same pixels share one."""
    pools = {method: factory.pool(experiment) for method, experiment in suite.planned.items()}
    return {method: pool for pool, methods in sharing(pools) for method in methods}


def forecast(
    requests: Sequence[PlanRequest], pools: Mapping[str, Pool], prompts: Mapping[str, PromptSet]
) -> dict[str, Any]:
    """Return the images that each plan wants, that the pools hold and that are left to sample, and the time for these.

    Returns:
        A JSON-able value: ``wanted`` (``METHOD/PLAN`` -> class × group counts), ``held`` and ``to_sample`` (images),
        ``seconds`` (None if no rate is known), ``pools`` (method -> address), ``prompts`` (method -> set).
    """
    held, missing, seconds = 0, 0, 0.0
    for pool, methods in sharing(pools):
        here, lacking = select.forecast(pool, [request for request in requests if request.method in methods])
        held, missing = held + int(here.sum()), missing + int(lacking.sum())
        rate = pool.rate()
        seconds = seconds + lacking.sum() / rate if rate else float("nan")
    return {
        "wanted": {"/".join(request.key): request.counts.tolist() for request in requests},
        "held": held,
        "to_sample": missing,
        "seconds": None if np.isnan(seconds) else round(seconds, 1),
        "pools": {method: pool.digest for method, pool in pools.items()},
        "prompts": {method: found.to_json() for method, found in prompts.items()},
    }
