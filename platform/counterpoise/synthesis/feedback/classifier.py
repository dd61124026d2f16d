"""The guide classifier: its address, its training or checkpoint, its statistics, and its use by the generator.

Addresses are known before anything is trained, so that an existing pool is found without its classifier.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors

from counterpoise import config
from counterpoise.config.identity import identity
from counterpoise.core.digest import digest
from counterpoise.core.model_source import fingerprint, hash_of_file, is_folder, locate
from counterpoise.errors import ModelError
from counterpoise.generators.guidance import Guide
from counterpoise.storage.records import create_record, put_file, read_file, read_record, sha256
from counterpoise.storage.schema import LabelSpace
from counterpoise.storage.store import Store
from counterpoise.storage.view import ImageView
from counterpoise.synthesis.feedback.criteria import (
    ClassifierContext,
    ClassStatistics,
    Criterion,
    Images,
    class_statistics,
    weighted_criterion,
)
from counterpoise.training import stages
from counterpoise.training.loading.pixel_cache import PixelCache
from counterpoise.training.models import Classifier, build_model, load_weights

_FORMAT = 2
_BATCH = 256


@dataclass(frozen=True)
class GuideClassifier:
    """The classifier that guides sampling. Can be pickled: it holds keys, not weights.

    Attributes:
        settings: The experiment's feedback section.
        training: The training section, from which its network is built.
        names: Classes and groups.
        store: The store of its weights and statistics.
        address: Digest of the stage that produced it, or hash of its file.
        weights: Key of its weights in the store; or None for ``settings.checkpoint``.
        real: Digest of the images whose features the statistics describe.
    """

    settings: config.Feedback
    training: config.Training
    names: LabelSpace
    store: Store
    address: str
    weights: str | None
    real: str

    @property
    def needs_statistics(self) -> bool:
        """True if a criterion needs the statistics of real features."""
        return "hardness" in self.settings.weights or any(":" in name for name in self.settings.weights)

    @property
    def identity(self) -> dict[str, Any]:
        """The part of the classifier and its settings that decides pixels."""
        return {
            **identity(self.settings, "pixels"),
            **identity(self.training, "pixels"),
            "criterion": self.settings.weights,
            "decoder": fingerprint(self.settings.decoder, where="feedback.decoder") if self.settings.decoder else None,
            "classifier": self.address,
            "statistics": self.real if self.needs_statistics else None,
        }

    @property
    def statistics_key(self) -> str:
        """Key of the statistics in the store."""
        return f"{self._statistics}.safetensors"

    @property
    def statistics_record(self) -> str:
        """Key of the record of the statistics, which holds their hash."""
        return f"{self._statistics}.json"

    @property
    def _statistics(self) -> str:
        return f"statistics/{digest({'format': _FORMAT, 'classifier': self.address, 'images': self.real})}"

    def read_statistics(self) -> bytes:
        """Return the bytes of the statistics.

        Raises:
            DamagedError: They are not what was stored.
        """
        expected = read_record(self.store, self.statistics_record)["statistics_sha256"]
        return read_file(self.store, self.statistics_key, expected)

    def classifier(self) -> Classifier:
        """Return the network, on the CPU.

        Raises:
            DamagedError: The weights in the store are not what was stored.
            ModelError: The checkpoint does not fit ``training.backbone``, or has changed since the run began.
        """
        fresh = self.training.model_copy(update={"pretrained": False})
        model = build_model(fresh, len(self.names.classes), seed=0)
        if self.weights is not None:
            model.load_state_dict(load_weights(self.store, self.weights))
            return model.eval()
        try:
            data = _path(self.settings).read_bytes()
            if sha256(data) != self.address:
                raise OSError("the file has changed since the run began")
            model.load_state_dict(load_safetensors(data))
        except (OSError, RuntimeError, SafetensorError) as error:
            remedy = f"use the state dict of a classifier with training.backbone {self.training.backbone}"
            raise ModelError(
                "the classifier cannot be loaded",
                where="feedback.checkpoint",
                found=f"{self.settings.checkpoint}: {str(error).splitlines()[0]}",
                remedy=remedy,
            ) from error
        return model.eval()

    def context(self, device: str = "cpu") -> ClassifierContext:
        """Return the classifier as criteria use it, with its statistics if a criterion needs them."""
        statistics = None
        if self.needs_statistics:
            values = load_safetensors(self.read_statistics())
            statistics = ClassStatistics(**{name: value.to(device) for name, value in values.items()})
        return ClassifierContext(self.classifier().to(device), self.training.image_size, statistics)

    def compute_statistics(self, real: ImageView) -> None:
        """Store the statistics of the real images' features, if they are needed and not stored yet."""
        if not self.needs_statistics or self.store.exists(self.statistics_record):
            return
        model, pixels = self.classifier(), PixelCache([real], self.training.image_size)
        with torch.inference_mode():
            features = torch.cat([_features(model, pixels, low) for low in range(0, len(pixels), _BATCH)])
        statistics = class_statistics(features, torch.from_numpy(real.labels.copy()), len(self.names.classes))
        data = save_safetensors(vars(statistics))
        stored = {"statistics_sha256": put_file(self.store, self.statistics_key, data, self.statistics_record)}
        create_record(self.store, self.statistics_record, stored)


@dataclass(frozen=True)
class FeatureStatistics:
    """Statistics of the real images' features, computed once: a :class:`counterpoise.execution.graph.Node`.

    Attributes:
        guide: The classifier whose features they are.
        real: The real images.
        parents: The fits that train the classifier.
    """

    guide: GuideClassifier
    real: ImageView
    parents: tuple[Any, ...] = ()
    num_workers = 1

    @property
    def digest(self) -> str:
        """The key of the statistics in the store."""
        return self.guide.statistics_key

    @property
    def resources(self) -> config.ActorResources:
        """The reservations of a fit."""
        return self.guide.training.resources

    def note(self) -> str:
        """Label for a progress bar."""
        return "statistics of real features"

    def done(self) -> bool:
        """Return whether they are in the store, or not needed."""
        return not self.guide.needs_statistics or self.guide.store.exists(self.guide.statistics_record)

    def run(self) -> None:
        """Compute and store them."""
        self.guide.compute_statistics(self.real)


def of_stage(
    experiment: config.Experiment, views: Mapping[str, ImageView], validation: ImageView, stage: str
) -> GuideClassifier:
    """Return the classifier that the experiment's ``stage`` gives on these images; nothing is trained."""
    fits = {fit.stage.name: fit for fit in stages.tasks(guide_experiment(experiment, stage), views, validation)}
    fit = fits[stage]
    return _guide_classifier(experiment, fit.store, fit.digest, fit.weights_key, views["real"], validation.names)


def of_checkpoint(experiment: config.Experiment, real: ImageView) -> GuideClassifier:
    """Return the classifier in ``feedback.checkpoint``.

    Raises:
        ModelError: There is no such file.
    """
    assert experiment.feedback is not None
    try:
        address = hash_of_file(_path(experiment.feedback))
    except OSError as error:
        raise ModelError("the classifier cannot be read", where="feedback.checkpoint", found=error) from error
    return _guide_classifier(experiment, real.store, address, None, real, real.names)


def guide_fits(
    experiment: config.Experiment, views: Mapping[str, ImageView], validation: ImageView, stage: str
) -> list[stages.StageFit]:
    """Return the fits of the stages up to ``stage``, nodes of :mod:`counterpoise.execution.graph`."""
    return stages.tasks(guide_experiment(experiment, stage), views, validation)


def guide_experiment(experiment: config.Experiment, stage: str) -> config.Experiment:
    """Return the experiment up to that stage, with the seed of feedback."""
    assert experiment.feedback is not None
    end = [item.name for item in experiment.stages].index(stage) + 1
    return experiment.model_copy(update={"stages": experiment.stages[:end], "seed": experiment.feedback.seed})


def guides(classifier: GuideClassifier, device: str) -> functools.partial[Guide]:
    """Return a function from a batch's ``labels`` to its guide; load classifier, statistics and tiny decoder.

    Raises:
        ConfigError, ModelError: A criterion, the checkpoint or the decoder does not exist.
    """
    settings = classifier.settings
    context, criterion = classifier.context(device), weighted_criterion(settings.weights)
    return functools.partial(_guide, settings, context, criterion, _decoder(settings.decoder, device))


def _guide(
    settings: config.Feedback,
    context: ClassifierContext,
    criterion: Criterion,
    decoder: Any,
    labels: Int[torch.Tensor, " n"],
) -> Guide:
    def score(images: Images) -> Float[torch.Tensor, " n"]:
        try:
            return criterion(images, labels.to(images.device), context)
        finally:
            context.forget()

    return Guide(
        criterion=score,
        scale=settings.scale,
        every=settings.every,
        start=settings.start,
        stop=settings.stop,
        blend=settings.predicted == "blend",
        checkpoint=settings.checkpoint_decoder,
        decoder=decoder,
    )


def _decoder(model: str | None, device: str) -> Any:
    if model is None:
        return None
    import diffusers

    located = locate(model, "feedback.decoder")
    try:
        decoder = diffusers.AutoencoderTiny.from_pretrained(located, local_files_only=is_folder(located))
    except (OSError, ValueError, RuntimeError) as error:
        found = f"{model}: {str(error).splitlines()[0]}"
        remedy = "name an AutoencoderTiny of diffusers, such as madebyollin/taesd"
        raise ModelError(
            "the decoder cannot be loaded", where="feedback.decoder", found=found, remedy=remedy
        ) from error
    return decoder.to(device).eval().requires_grad_(False)


def _path(settings: config.Feedback) -> Path:
    return Path(str(settings.checkpoint)).expanduser()


def _features(model: Classifier, pixels: PixelCache, low: int) -> torch.Tensor:
    images = pixels[np.arange(low, min(low + _BATCH, len(pixels)))]
    return model.logits_and_features(torch.from_numpy(images).permute(0, 3, 1, 2))[1]


def _guide_classifier(
    experiment: config.Experiment, store: Store, address: str, weights: str | None, real: ImageView, names: LabelSpace
) -> GuideClassifier:
    assert experiment.feedback is not None
    return GuideClassifier(experiment.feedback, experiment.training, names, store, address, weights, real.digest)
