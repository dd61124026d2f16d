"""Realism (FID, density, coverage, domain probe) of each method's synthetic images, cached in the store.

The distinct images of all of a method's plans are compared with the real training images. Of each class, at most
``realism.max_images`` of either are used, drawn by seed. Methods with the same images share a measurement.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from importlib.metadata import version
from operator import add
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from counterpoise.config import ActorResources, Experiment, Realism
from counterpoise.config.identity import identity, without
from counterpoise.core.digest import digest
from counterpoise.core.progress import Progress
from counterpoise.core.rng import stream
from counterpoise.errors import ConfigError
from counterpoise.execution import graph
from counterpoise.scoring import features
from counterpoise.scoring.features import Extractor, Images
from counterpoise.scoring.identity import identify_scorer
from counterpoise.scoring.realism import realism
from counterpoise.storage.records import create_record, read_record
from counterpoise.storage.schema import LabelSpace
from counterpoise.storage.store import Store
from counterpoise.storage.view import ImageView
from counterpoise.training import stages
from counterpoise.workflow.outcomes import TrainingSummary
from counterpoise.workflow.suite import Suite
from counterpoise.workflow.synthesis import Synthesized

_FORMAT = 3  # of stored measurements: raise it when the same images would get other values
_LIBRARIES = ("torch", "torchvision", "open_clip_torch", "numpy", "scikit-learn")


@dataclass(frozen=True)
class FeatureClassifier:
    """Trained classifier as feature extractor: its experiment and the fitted stage."""

    experiment: Experiment
    fitted: stages.Fitted


def resolve_extractor(experiment: Experiment) -> str:
    """Return the extractor that the config selects on this machine: ``inception``, ``clip``, ``model`` or ``none``.

    Raises:
        ModelError: Inception is asked for, and its weights are not there.
    """
    asked = experiment.realism.extractor
    if asked == "inception":
        features.check_inception()
    if asked != "auto":
        return asked
    if features.has_inception():
        return "inception"
    return "clip" if experiment.scorer else "model"


def compared_by(experiments: Sequence[Experiment]) -> Experiment:
    """Return the experiment whose features all are compared on: the first of those with plans, which must agree.

    Raises:
        ConfigError: They would be compared on different features.
        ModelError: Inception is asked for, and its weights are not there.
    """
    first, *others = experiments
    for other in others:
        if _compared_on(other) != _compared_on(first):
            raise ConfigError(
                "methods must be compared on the same features, but these have different scorers",
                where="scorer",
                found=f"another for {other.method} than for {first.method}",
                remedy="use one scorer for all, or set realism.extractor to inception, model or none",
            )
    return first


def _compared_on(experiment: Experiment) -> tuple[str, Any]:
    kind, scorer = resolve_extractor(experiment), experiment.scorer
    return kind, without(scorer, "runtime") if kind == "clip" and scorer is not None else None


def of_suite(
    suite: Suite,
    real: ImageView,
    synthesized: Synthesized,
    store: Store,
    train: Callable[[], TrainingSummary],
) -> list[dict[str, Any]]:
    """Return the realism of each method's images in its last round; nothing where no method has plans.

    Args:
        suite: The methods.
        real: The real training images.
        synthesized: Their images.
        store: The store that keeps measurements.
        train: Trains the methods; called only if the features are a trained classifier's.

    Raises:
        ConfigError: The methods would be compared on different features.
    """
    planned = list(suite.planned.values())
    if not planned:
        return []
    experiment = compared_by(planned)
    kind = resolve_extractor(experiment)
    if kind == "none":
        return []
    images = {method: list(synthesized.views(method).values()) for method in suite.planned}
    classifier = None
    if kind == "model":
        index = feature_experiment(suite)
        last = train().outcomes[index].stages[-1]
        classifier = FeatureClassifier(suite.experiments[index], stages.Fitted(**last))
    scorers = {method: synthesized.pool(method).generation["scorer"] for method in images}
    return measure(experiment, real, images, store, classifier, scorers)


def feature_experiment(suite: Suite) -> int:
    """Return the number of the experiment whose classifier gives the features of the extractor ``model``.

    It is the first that sees no synthetic images, or the first of all if there is none.
    """
    return next((number for number, experiment in enumerate(suite.experiments) if not experiment.plans), 0)


def measure(
    experiment: Experiment,
    real: ImageView,
    made: Mapping[str, Sequence[ImageView]],
    store: Store,
    judge: FeatureClassifier | None = None,
    scorers: Mapping[str, dict[str, str] | None] | None = None,
) -> list[dict[str, Any]]:
    """Measure the realism of each method's images.

    Args:
        experiment: The experiment whose ``realism`` and ``scorer`` sections apply.
        real: The real training images.
        made: Method -> its plans' views. A method without images is left out.
        store: The store that keeps measurements.
        judge: The classifier, for the extractor ``model``.
        scorers: Method -> the scorer whose features its pool holds, as of
            :func:`counterpoise.scoring.identity.identify_scorer`; None if it holds none. For the extractor ``clip``.

    Returns:
        For each set of images: ``methods``, ``extractor`` (name, resizer, dimension), ``k``, ``max_images``, ``rows``
        as of :func:`counterpoise.scoring.realism.realism`, ``versions``, ``digest`` and ``reused``.
    """
    settings = experiment.realism
    extractor = identify_extractor(experiment, judge.fitted.digest if judge else None)
    compared, clip = comparisons(experiment, real, made, extractor), extractor.get("clip")
    missing = {key: view for key, (_, view) in compared.items() if not store.exists(place(key))}
    scored = {  # a pool holds features of its scorer
        key for key in missing if clip and any((scorers or {}).get(method) == clip for method in compared[key][0])
    }
    real = subsample_per_class(real, settings.max_images, settings.seed)
    graph.run_all([_Scoring(experiment, real, missing, frozenset(scored), store, judge)])
    return [
        {"methods": methods, **read_record(store, place(key)), "digest": key, "reused": key not in missing}
        for key, (methods, _) in compared.items()
    ]


def comparisons(
    experiment: Experiment, real: ImageView, made: Mapping[str, Sequence[ImageView]], extractor: Mapping[str, Any]
) -> dict[str, tuple[list[str], ImageView]]:
    """Return the methods and the images of each measurement, by its address.

    Args:
        experiment: The experiment whose ``realism`` section applies.
        real: The real training images.
        made: Method -> its plans' views. A method without images is left out.
        extractor: As of :func:`identify_extractor`.
    """
    settings, compared = experiment.realism, dict[str, tuple[list[str], ImageView]]()
    real = subsample_per_class(real, settings.max_images, settings.seed)
    for method, plans in made.items():
        view = subsample_per_class(reduce(add, plans).distinct(), settings.max_images, settings.seed)
        if len(view):
            address = {"format": _FORMAT, "real": real.digest, "synthetic": view.digest, "extractor": extractor}
            key = digest(address | identity(settings, "metrics"))
            compared.setdefault(key, ([], view))[0].append(method)
    return compared


@dataclass(frozen=True)
class _Scoring:
    """Missing measurements, made together since they share the real images' features: a graph node.

    Attributes:
        experiment: The experiment whose realism and scorer sections apply.
        real: The real images, subsampled.
        missing: Address -> synthetic images.
        scored: Addresses of those whose features the pool holds.
        store: The store that keeps measurements.
        classifier: The classifier, for the extractor ``model``.
    """

    experiment: Experiment
    real: ImageView
    missing: Mapping[str, ImageView]
    scored: frozenset[str]
    store: Store
    classifier: FeatureClassifier | None
    parents: tuple[Any, ...] = ()
    num_workers = 1

    @property
    def digest(self) -> str:
        return digest(sorted(self.missing))

    @property
    def resources(self) -> ActorResources:
        return self.experiment.training.resources

    def note(self) -> str:
        return "realism"

    def done(self) -> bool:
        return all(self.store.exists(place(key)) for key in self.missing)

    def run(self) -> None:
        extractor = _extractor(self.experiment, self.real.names, self.classifier)
        _measure(extractor, self.experiment.realism, self.real, self.missing, self.scored, self.store)


def subsample_per_class(view: ImageView, most: int, seed: int) -> ImageView:
    """Return at most ``most`` images of each class, drawn by seed, in the view's order."""
    chosen = []
    for label in range(len(view.names.classes)):
        positions = np.flatnonzero(view.labels == label)
        chosen.append(stream(seed, label).permutation(positions)[:most])
    return view.take(np.sort(np.concatenate(chosen)))


def _measure(
    extractor: Extractor,
    settings: Realism,
    real: ImageView,
    missing: Mapping[str, ImageView],
    scored: Collection[str],
    store: Store,
) -> None:
    total = len(real) + sum(map(len, missing.values()))
    with Progress("realism", total, "images") as progress:
        ours = features.features(real, extractor, progress)
        for key, view in missing.items():
            theirs = features.stored(view, progress) if key in scored else None
            if theirs is None:
                theirs = features.features(view, extractor, progress)
            rows = realism(ours, real.labels, theirs, view.labels, view.names.classes, settings.k, settings.seed)
            measured = {
                "extractor": {"name": extractor.name, "resizer": extractor.resizer, "dimension": ours.shape[1]},
                **settings.model_dump(include={"k", "max_images"}),
                "rows": rows,
                "versions": {name: version(name) for name in _LIBRARIES},
            }
            create_record(store, place(key), measured)


def place(key: str) -> str:
    """Return the key of a measurement in the store."""
    return f"realism/{key}.json"


def identify_extractor(experiment: Experiment, classifier: str | None) -> dict[str, Any]:
    """Return the identity of the extractor, for the address.

    Args:
        experiment: The experiment whose ``realism`` and ``scorer`` sections apply.
        classifier: Address of the trained stage, for the extractor ``model``.
    """
    kind = resolve_extractor(experiment)
    if kind == "inception":
        return {kind: features.INCEPTION}
    if kind == "clip":
        assert experiment.scorer is not None
        return {kind: identify_scorer(experiment.scorer)}
    return {kind: classifier}


def _extractor(experiment: Experiment, names: LabelSpace, judge: FeatureClassifier | None) -> Extractor:
    kind, device = resolve_extractor(experiment), "cuda" if torch.cuda.is_available() else "cpu"
    if kind == "inception":
        return features.inception(device)
    if kind == "clip":
        assert experiment.scorer is not None
        return features.clip(experiment.scorer, device)
    assert judge is not None
    return _classifier(judge, names, device)


def _classifier(judge: FeatureClassifier, names: LabelSpace, device: str) -> Extractor:
    training, fitted = judge.experiment.training, judge.fitted
    model = stages.load(judge.experiment, fitted, names).to(device)

    def embed(images: Images) -> Float[np.ndarray, "n d"]:
        batch = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2)
        with torch.inference_mode():
            return model.logits_and_features(batch)[1].float().cpu().numpy()

    name = f"{training.backbone} of {judge.experiment.method}, stage {fitted.name}, seed {judge.experiment.seed}"
    return Extractor(name, features.bilinear(training.image_size), training.image_size, embed)
