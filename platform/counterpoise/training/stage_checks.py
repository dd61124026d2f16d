"""Checks of a stage before anything is fitted: of its images, and of its training.

Those of its training build models and transforms, which needs torch. A stage that the store holds has passed them.
"""

from __future__ import annotations

from counterpoise import config
from counterpoise.config.trainable import AllButBlocks, Blocks, LastLayer
from counterpoise.errors import ConfigError, DataError, PlanError
from counterpoise.storage.view import ImageView
from counterpoise.training.backbones import check_backbone


def check_images(
    experiment: config.Experiment, stage: config.Stage, where: str, images: list[ImageView], validation: ImageView
) -> None:
    """Raise DataError or PlanError unless the stage can be fitted on these images.

    Args:
        experiment: The experiment; its training section applies.
        stage: One of the experiment's stages.
        where: The stage's key path.
        images: The non-empty views that the stage names.
        validation: The images that select the stage's epoch.
    """
    if not images:
        raise PlanError(
            f"stage {stage.name!r} has no images to train on",
            where=f"{where}.data",
            found=", ".join(f"{name}: 0 images" for name in stage.data),
            remedy="the plan asks for none, perhaps because the dataset is balanced already: use another strategy "
            "or other data",
        )
    uses_groups = stage.group_aware or (stage.select_by or experiment.training.select_by) in config.GROUP_METRICS
    if not (validation.counts.sum() if uses_groups else len(validation)):
        raise DataError(
            "there are no validation images of known cells",
            where="data",
            found=f"{len(validation)} validation images",
            remedy="give the dataset a validation split (data.splits), with groups if it has groups",
        )
    if stage.mixture.real_share is not None and len({bool(view.synthetic[0]) for view in images}) < 2:
        raise PlanError(
            f"stage {stage.name!r} mixes real and synthetic images, but has only one of the two",
            where=f"{where}.mixture.real_share",
            found=", ".join(stage.data),
            remedy="the plan asks for none, perhaps because the dataset is balanced already: use another strategy",
        )
    _check_groups(stage, where, images, validation)


def _check_groups(stage: config.Stage, where: str, images: list[ImageView], validation: ImageView) -> None:
    if not (validation.names.groups and stage.group_aware):
        return
    unknown = sum(int((view.groups < 0).sum()) for view in images)
    if unknown:
        raise DataError(
            f"stage {stage.name!r} needs the group of every training image",
            where=where,
            found=f"{unknown} images of unknown group",
            remedy="label their groups, remove these images, or use a risk, sampling and mixture that need no groups",
        )


def check_training(training: config.Training, stage: config.Stage, where: str) -> None:
    """Raise ConfigError unless the stage can be fitted with these settings: backbone, batch, transforms, parameters.

    Args:
        training: The experiment's training section.
        stage: One of the experiment's stages.
        where: The stage's key path.
    """
    from counterpoise.training.loading.augmentation import check_transforms
    from counterpoise.training.models import Classifier, without_data
    from counterpoise.training.parameters.trainable import prepare

    check_backbone(training)
    if training.batch_size < training.num_workers:
        remedy = "every worker needs at least one image of each batch"
        raise ConfigError(
            "the batch is smaller than the number of workers",
            where="training.batch_size",
            found=f"{training.batch_size} for {training.num_workers} workers",
            remedy=remedy,
        )
    if stage.augmentation is None:
        check_transforms(training.augmentation, training.image_size, "training.augmentation")
    else:
        check_transforms(stage.augmentation, training.image_size, f"{where}.augmentation")
    if isinstance(stage.trainable, Blocks | AllButBlocks | LastLayer):
        prepare(Classifier(without_data(training.backbone)), stage, seed=0)
