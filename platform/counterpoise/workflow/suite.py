"""Suites: methods × seeds on one dataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import yaml

from counterpoise.config import Experiment


@dataclass(frozen=True)
class Suite:
    """Methods × seeds that share a dataset and a store.

    Attributes:
        methods: Each method's experiment, with its first seed.
        seeds: The seeds of each method.
    """

    methods: Mapping[str, Experiment]
    seeds: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, experiments: Sequence[Experiment]) -> Suite:
        """Return the suite of experiments, such as those of :func:`counterpoise.config.compose.load`."""
        methods: dict[str, Experiment] = {}
        seeds: dict[str, tuple[int, ...]] = {}
        for experiment in experiments:
            methods.setdefault(experiment.method, experiment)
            seeds[experiment.method] = (*seeds.get(experiment.method, ()), experiment.seed)
        return cls(methods, seeds)

    @property
    def shared(self) -> Experiment:
        """An experiment whose name, store, data, evaluation, realism and tracking are those of all."""
        return next(iter(self.methods.values()))

    @property
    def experiments(self) -> list[Experiment]:
        """Every method with every seed, method by method."""
        return [experiment for method in self.methods for experiment in self.of_method(method)]

    def of_method(self, method: str) -> Iterator[Experiment]:
        """Yield a method's experiment with each of its seeds."""
        for seed in self.seeds[method]:
            yield self.methods[method].model_copy(update={"seed": seed})

    @property
    def planned(self) -> dict[str, Experiment]:
        """The methods with plans, that is, those that train on synthetic images."""
        return {method: experiment for method, experiment in self.methods.items() if experiment.plans}

    @property
    def baseline(self) -> str | None:
        """The method to compare with: the first on real images alone, plain training before others."""
        real = [experiment for experiment in self.methods.values() if not experiment.plans]
        return next((experiment.method for experiment in (*filter(is_plain, real), *real)), None)

    def with_methods(self, experiments: Sequence[Experiment]) -> Suite:
        """Return this suite with more experiments at its end."""
        return Suite.of([*self.experiments, *experiments])

    def to_yaml(self) -> str:
        """Return the effective configuration: the shared keys once, then each method's own."""
        trees = [experiment.model_dump(mode="json", exclude={"seed"}) for experiment in self.methods.values()]
        shared = {key: value for key, value in trees[0].items() if all(tree[key] == value for tree in trees)}
        methods = {
            tree["method"]: {key: value for key, value in tree.items() if key not in shared and key != "method"}
            for tree in trees
        }
        seeds = sorted({seed for numbers in self.seeds.values() for seed in numbers})
        return yaml.safe_dump({**shared, "methods": methods, "seeds": seeds}, sort_keys=False, allow_unicode=True)


def is_plain(experiment: Experiment) -> bool:
    """Return whether this is ERM: mean cross-entropy on all real images, uniformly sampled."""
    return not experiment.plans and all(stage.data == ["real"] and stage.plain for stage in experiment.stages)
