"""Feedback guidance: against the same batch without it, and against the paper's way."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch

from counterpoise.config import Generator, Training
from counterpoise.generators.guidance import Guide
from counterpoise.generators.text_to_image import TextToImage
from counterpoise.synthesis.feedback.criteria import ClassifierContext, weighted_criterion
from counterpoise.training.models import build_model
from gpu.cases import Case, Row, Setting
from gpu.models import DEVICE, DTYPE, save_pipeline
from gpu.timing import Box, seconds_of, take_turns
from guidance import PROMPT, one_by_one

OVERHEAD, SPEEDUP = 1.35, 8.0  # guided ÷ unguided seconds; images per second ÷ those of the paper's way
EVERY, SCALE = 5, 0.03


def guidance(setting: Setting) -> Iterator[Case]:
    """Cases at Stable Diffusion 2.1's size; the paper's way is timed once for each kind of prediction."""
    steps = 5 if setting.tiny else 30
    runs = ((1, False), (2, True)) if setting.tiny else ((4, False), (16, True), (1, False), (16, False))
    size, backbone, classes = (16, "small_cnn", 4) if setting.tiny else (224, "resnet50", 1000)
    judge = ClassifierContext(build_model(Training(backbone=backbone, image_size=size), classes, 0).to(DEVICE), size)
    for prediction in ("epsilon", "v_prediction"):
        folder = save_pipeline("sd21", setting.folder, prediction, setting.tiny)
        model = TextToImage(Generator(model=folder, num_inference_steps=steps), DEVICE, DTYPE)
        paper: list[float] = []
        for batch, checkpoint in runs:
            decoder = ", checkpointed decoder" if checkpoint else ""
            run = functools.partial(_guided, model, judge, batch, checkpoint, paper)
            yield Case(f"sd21, {prediction}, batch {batch}{decoder}", run)
        del model, run
        torch.cuda.empty_cache()


def _guided(
    model: TextToImage, judge: ClassifierContext, batch: int, checkpoint: bool, paper: list[float], box: Box
) -> Row:
    entropy = weighted_criterion({"entropy": 1.0})

    def criterion(images: torch.Tensor) -> torch.Tensor:
        values = entropy(images, torch.zeros(len(images), dtype=torch.long, device=images.device), judge)
        judge.forget()
        return values

    def sample(guide: Guide | None) -> None:
        model.sample([PROMPT] * batch, "", list(range(batch)), guide=guide)

    guide = Guide(criterion, SCALE, EVERY, checkpoint=checkpoint)
    paired = take_turns(lambda: sample(guide), lambda: sample(None), box, pairs=3)
    if not paper:
        paper.append(_paper_seconds(model, judge))
    row = paired.row(batch, paired.time, OVERHEAD, least=False)
    rate = batch / float(np.median(paired.ours))
    return row | {
        "times_the_papers_way": rate * paper[0],
        "papers_way_images_per_second": 1 / paper[0],
        "speedup_goal": SPEEDUP,
    }


def _paper_seconds(model: TextToImage, judge: ClassifierContext) -> float:
    """Seconds of an image by the authors' way: every weight asks for a gradient."""
    parts = (model.pipeline.unet, model.pipeline.vae, judge.classifier)
    run = functools.partial(
        one_by_one, model.pipeline, judge, 1, model.config.num_inference_steps, model.config.guidance_scale, EVERY
    )
    try:
        for part in parts:
            part.requires_grad_(True)
        run()
        return float(np.median([seconds_of(run) for _ in range(2)]))
    finally:
        for part in parts:
            part.requires_grad_(False)
