"""Training: our loop from its loader against the same model on tensors that are on the device."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator

from gpu.cases import Case, Row, Setting
from gpu.timing import Box
from training import GOAL, compare, steps_per_second


def training(setting: Setting) -> Iterator[Case]:
    """Cases of backbones at 224 pixels, in bfloat16 on a GPU, then of what the bare loop gains from two options."""
    backbones = ("small_cnn",) if setting.tiny else ("resnet50", "resnet18", "vit_b_16", "convnext_tiny")
    options = argparse.Namespace(
        batch_size=4 if setting.tiny else 128,
        image_size=16 if setting.tiny else 224,
        steps=2 if setting.tiny else 32,
        epochs=2 if setting.tiny else 5,
        compile=False,
    )
    compiled = argparse.Namespace(**{**vars(options), "compile": True})
    first = backbones[0]
    yield Case(f"{first}, {options.image_size} px", functools.partial(_loop, options, first, 30))
    yield Case(f"{first}, channels-last, both bare", functools.partial(_channels_last, options, first))
    yield Case(f"{first}, compiled", functools.partial(_loop, compiled, first, 0 if setting.tiny else 150))
    for backbone in backbones[1:]:
        yield Case(f"{backbone}, {options.image_size} px", functools.partial(_loop, options, backbone, 45))


def _loop(options: argparse.Namespace, backbone: str, needs: float, box: Box) -> Row:
    box.require(needs)
    row = compare(options, backbone)
    return {
        "images_per_second": row["ours_steps_per_second"] * options.batch_size,
        "bare_images_per_second": row["bare_steps_per_second"] * options.batch_size,
        "ratio": [None, row["steps_ratio"], None],
        "whole_epochs_ratio": row["epochs_ratio"],
        "epoch_end_s": row["epoch_end_seconds"],
        "pairs": options.epochs - 1,
        "goal": GOAL,
        "met": row["steps_ratio"] >= GOAL,
    }


def _channels_last(options: argparse.Namespace, backbone: str, box: Box) -> Row:
    plain, other = (steps_per_second(options, backbone, channels_last) for channels_last in (False, True))
    return {
        "images_per_second": other * options.batch_size,
        "bare_images_per_second": plain * options.batch_size,
        "ratio": [None, other / plain, None],
        "pairs": 1,
    }
