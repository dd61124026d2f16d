"""Sampling: the step of a sampler actor against a bare pipeline, and whether an image depends on its batch."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from counterpoise.config import Generator
from counterpoise.config import Scorer as ScorerConfig
from counterpoise.execution.devices import Devices
from counterpoise.storage.schema import LabelSpace
from counterpoise.storage.uri import open_store
from counterpoise.synthesis.pool.actors import SamplingActor, ScoringActor
from counterpoise.synthesis.pool.address import Shard, seed
from counterpoise.synthesis.pool.sampling_spec import SamplingSpec
from counterpoise.synthesis.pool.shard_spec import ShardSpec
from gpu.cases import Case, Row, Setting
from gpu.models import DEVICE, DTYPE, save_clip, save_pipeline
from gpu.timing import Box, seconds_of, take_turns, typical_seconds

PROMPT = "a photo of a red star"
ROW = pa.table({"label": [0], "group": [0], "number": [0]})
GOAL = 0.95  # images per second of the actor ÷ those of the bare pipeline
BATCHES = (1, 4, 16, 64)


def make_work(setting: Setting, model: str, clip: str | None) -> SamplingSpec:
    """Return the actors' sampling spec for a dataset of one cell. Unusable images are not sampled again."""
    generator = Generator(model=model, num_inference_steps=3 if setting.tiny else 30)
    names, codec = LabelSpace(("star",)), "webp"
    recipe = ShardSpec("benchmark", "noise", names, codec, [[[PROMPT]]], [[PROMPT]], "", shard_size=1, max_attempts=1)
    scorer = None if clip is None else ScorerConfig(model=clip)
    store = open_store(str(setting.folder / "store"))
    return SamplingSpec(recipe, generator, scorer, Devices(DEVICE, DTYPE, DEVICE), store, (1.0, 1.0), None, None)


def load_sampler(setting: Setting, name: str) -> SamplingActor:
    """Load a sampling actor for a pipeline, in this process."""
    return _loaded(SamplingActor(make_work(setting, save_pipeline(name, setting.folder, tiny=setting.tiny), None)))


def _loaded(actor: Any) -> Any:
    if actor.failure is not None:
        raise actor.failure
    return actor


def set_batch(actor: SamplingActor | ScoringActor, size: int) -> None:
    """Let an actor's shards hold so many images, without loading its models again."""
    recipe = replace(actor.work.recipe, shard_size=size)
    actor.work = replace(actor.work, recipe=recipe)
    if isinstance(actor, SamplingActor):
        actor.models.recipe = recipe


def bare_sample(sampler: SamplingActor, size: int) -> None:
    """Run the reference loop: the same pipeline, called as its documentation shows."""
    settings = sampler.work.generator
    sampler.models.generator.pipeline(
        [PROMPT] * size,
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        generator=[torch.Generator().manual_seed(number) for number in range(size)],
        output_type="np",
    )


# -- the actor's step --------------------------------------------------------------------------------------------------


def throughput(setting: Setting) -> Iterator[Case]:
    """Cases of every model and batch; the largest batches of a model only if they fit into the box."""
    for name, clip in (("sd15", "ViT-B-32"), ("sdxl", "ViT-L-14")):
        began = time.perf_counter()
        sampler = load_sampler(setting, name)
        loaded = {"save_and_load_s": time.perf_counter() - began}
        scoring = ScorerConfig(model=save_clip(clip, setting.folder, setting.tiny))
        scorer = _loaded(ScoringActor(replace(sampler.work, scorer=scoring)))
        known: dict[int, float] = {}
        for batch in BATCHES[:2] if setting.tiny else BATCHES:
            run = functools.partial(_throughput, sampler, scorer, batch, known, loaded)
            yield Case(f"{name}, batch {batch}", run)
        del sampler, scorer, run
        torch.cuda.empty_cache()


def _throughput(
    sampler: SamplingActor,
    scorer: ScoringActor,
    batch: int,
    known: dict[int, float],
    loaded: dict[str, float],
    box: Box,
) -> Row:
    if known:  # seconds of smaller batches: two runs that warm up and a pair
        box.require(4 * known[max(known)] * batch / max(known))
    for actor in (sampler, scorer):
        set_batch(actor, batch)
    laps: list[pa.Table] = []
    paired = take_turns(lambda: laps.append(sampler.step(ROW)), lambda: bare_sample(sampler, batch), box)
    known[batch] = float(np.median(paired.ours))
    laps = laps[1:]  # the first one warms up
    scored = [scorer.step(laps[-1]) for _ in range(2)][-1]
    table = pa.ipc.open_stream(laps[-1]["table"][0].as_py()).read_all()
    parts = _parts(sampler, batch)
    sample, encode = (float(np.median([lap[step][0].as_py() for lap in laps])) for step in ("sample", "encode"))
    return paired.row(batch, paired.speed, GOAL) | {
        "sample_s": sample,
        "text_s": parts["text"],
        "decode_s": parts["decode"],
        "png_s": encode,
        "score_s": scored["score"][0].as_py(),
        "defects": len(table) - table["defect"].null_count,
        **loaded,
    }


def _parts(sampler: SamplingActor, batch: int) -> dict[str, float]:
    """Seconds that a bare call spends outside the denoiser: encoding the prompts, decoding the latents."""
    pipeline = sampler.models.generator.pipeline
    unet, vae = pipeline.unet, pipeline.vae
    shape = (batch, 4, unet.config.sample_size, unet.config.sample_size)
    latents = torch.randn(shape, device=unet.device, dtype=unet.dtype)
    with torch.inference_mode():
        return {
            "text": typical_seconds(lambda: pipeline.encode_prompt([PROMPT] * batch, device=unet.device,
                                    num_images_per_prompt=1, do_classifier_free_guidance=True), 1),
            "decode": typical_seconds(lambda: vae.decode(latents).sample.float().cpu(), 1),
        }  # fmt: skip


# -- independence of the batch -----------------------------------------------------------------------------------------


def independence(setting: Setting) -> Iterator[Case]:
    """Cases of the difference between an image of a batch and the same image alone."""
    sampler = load_sampler(setting, "sd15")
    for batch in (4,) if setting.tiny else (4, 16):
        yield Case(f"sd15, {DTYPE}, batch {batch}", functools.partial(_independence, sampler, batch))


def _independence(sampler: SamplingActor, batch: int, box: Box) -> Row:
    set_batch(sampler, batch)
    first, again = (np.stack(sampler.models.draw(Shard(0, 0, 0)).pixels).astype(int) for _ in range(2))
    seeds = [seed("noise", 0, 0, index, 0) for index in range(batch)]
    alone = np.concatenate([sampler.models.generator.sample([PROMPT], "", [one]).pixels for one in seeds]).astype(int)
    away = np.abs(first - alone)
    return {
        "same_batch_twice_equal": bool((first == again).all()),
        "pixels_that_differ": float((away > 0).mean()),
        "mean_difference_of_255": float(away.mean()),
        "largest_difference_of_255": int(away.max()),
        "images_equal": int((away.max(axis=(1, 2, 3)) == 0).sum()),
        "images": batch,
    }


# -- compiled and channels-last denoisers ------------------------------------------------------------------------------


def denoiser(setting: Setting) -> Iterator[Case]:
    """Cases of what the options of the config gain: ``generator.channels_last`` and ``generator.compile``."""
    batch = 2 if setting.tiny else 16
    plain = load_sampler(setting, "sd15")
    set_batch(plain, batch)
    for option in ("channels_last", "compile"):
        yield Case(f"sd15, batch {batch}, {option}", functools.partial(_denoiser, plain, option, batch))


def _denoiser(plain: SamplingActor, option: str, batch: int, box: Box) -> Row:
    box.require(90 if option == "compile" and DEVICE == "cuda" else 10)
    generator = plain.work.generator.model_copy(update={option: True})
    changed = _loaded(SamplingActor(replace(plain.work, generator=generator)))
    first = seconds_of(lambda: changed.step(ROW))
    paired = take_turns(lambda: changed.step(ROW), lambda: plain.step(ROW), box, pairs=3)
    return paired.row(batch, paired.speed, None) | {"first_step_s": first}
