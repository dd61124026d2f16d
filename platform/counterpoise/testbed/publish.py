"""Publication of trained parts: written to a temporary folder, measured from it, and moved into place."""

import copy
import json
import shutil
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import nn
from transformers import CLIPTokenizer

from counterpoise.testbed.clip import save_clip, text_encoder, zero_shot
from counterpoise.testbed.oracle import Oracle, accuracy, judge, load_oracle, save_oracle, spread
from counterpoise.testbed.pairs import Pair
from counterpoise.testbed.unet import make_scheduler
from counterpoise.testbed.vae import psnr, reconstruct

# The least steps and guidance at which images follow the prompt; more guidance reduces variety.
SAMPLER: dict[str, dict[str, Any]] = {
    "shapes": {"num_inference_steps": 10, "guidance_scale": 3.0},
    "fashion": {"num_inference_steps": 10, "guidance_scale": 2.0},
}
LICENCES = {
    "shapes": "Apache-2.0, like the code that draws the images",
    "fashion": "Apache-2.0; learned from Fashion-MNIST, MIT licence, Copyright 2017 Zalando SE",
}


def save_pair(
    folder: Path,
    clip: open_clip.CLIP,
    tokenizer: CLIPTokenizer,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    oracle: Oracle,
) -> None:
    """Write diffusion/, clip/ and oracle.safetensors in half precision."""
    save_clip(clip, tokenizer, folder / "clip")
    save_oracle(oracle, folder / "oracle.safetensors")
    # copies, because the pipeline is converted to half precision and the models may still be in training
    pipe = StableDiffusionPipeline(
        vae=copy.deepcopy(vae),
        text_encoder=text_encoder(clip, tokenizer),
        tokenizer=tokenizer,
        unet=copy.deepcopy(unet),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.to(torch.float16).save_pretrained(folder / "diffusion", safe_serialization=True)
    for path in folder.rglob("*.safetensors"):
        path.chmod(0o644)  # safetensors writes files that only their owner may read


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """Load the published generator in float32; half precision is for storage only."""
    pipe = StableDiffusionPipeline.from_pretrained(
        folder / "diffusion", dtype=torch.float32, local_files_only=True, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(
    pipe: StableDiffusionPipeline, prompts: list[str], seed: int, num_inference_steps: int, guidance_scale: float
) -> np.ndarray:
    """Sample uint8 (N, 32, 32, 3) in batches of 64; image i has its own noise generator with seed seed + i."""
    out = []
    for low in range(0, len(prompts), 64):
        batch = prompts[low : low + 64]
        noise = [torch.Generator().manual_seed(seed + low + i) for i in range(len(batch))]
        settings = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        images = pipe(batch, generator=noise, output_type="np", **settings)
        out.append((images.images * 255).round().astype(np.uint8))
    return np.concatenate(out)


def measure(folder: Path, pair: Pair, n: int, seed: int = 7) -> dict:
    """Measure the published models by the oracle and by CLIP; every number comes from the files in `folder`."""
    pipe, oracle = (
        load_pipeline(folder),
        load_oracle(folder / "oracle.safetensors", tuple(map(len, pair.factors.values()))),
    )
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder / 'clip'}")
    rng = np.random.default_rng(seed)
    labels = pair.labels(n, rng)
    started = time.process_time()
    images = sample(pipe, [pair.fill(pair.full[0], label) for label in labels], 1000 * seed, **SAMPLER[pair.name])
    spent = time.process_time() - started
    truth = pair.labels(2048, rng)
    real = pair.held_out(truth, seed=seed)
    copy = reconstruct(pipe.vae, real[:512])
    report = {
        "sampled": n,
        **SAMPLER[pair.name],
        "sampled_accuracy_by_oracle": accuracy(oracle, pair, images, labels),
        "sampled_accuracy_by_clip": zero_shot(clip, pipe.tokenizer, pair, images, labels),
        "held_out_accuracy_by_clip": zero_shot(clip, pipe.tokenizer, pair, real, truth),
        "held_out_accuracy_by_oracle": accuracy(oracle, pair, real, truth),
        "reconstructed_accuracy_by_oracle": accuracy(oracle, pair, copy, truth[:512]),
        "sampled_spread_over_held_out": round(spread(oracle, images, labels) / spread(oracle, real[:n], truth[:n]), 3),
        "reconstruction_psnr_db": round(psnr(real[:512], copy), 2),
        "cpu_seconds_per_image_at_batch_64": round(spent / n, 4),
    }
    if n >= 512:
        report["shares_of_a_factor_left_out"] = left_out(pipe, oracle, pair, 256, seed + 1)
        save_grid(images[:128], folder / "samples.png")
    return report


def left_out(
    pipe: StableDiffusionPipeline, oracle: Oracle, pair: Pair, n: int, seed: int
) -> dict[str, dict[str, float]]:
    """Measure the share of each value of a factor, by the oracle, in n images whose prompts omit only that factor."""
    shares = {}
    labels = pair.labels(n, np.random.default_rng(seed))
    for column, (factor, values) in enumerate(pair.factors.items()):
        unsaid = [[i for i, key in enumerate(pair.factors) if ("{%s}" % key) not in t] for t in pair.partial]  # noqa: UP031
        template = pair.partial[unsaid.index([column])]
        images = sample(pipe, [pair.fill(template, label) for label in labels], 1000 * seed, **SAMPLER[pair.name])
        counts = np.bincount(judge(oracle, images)[:, column], minlength=len(values)) / n
        shares[factor] = {value: round(float(share), 3) for value, share in zip(values, counts, strict=True)}
    return shares


def save_grid(images: np.ndarray, path: Path, columns: int = 16, scale: int = 2) -> None:
    """Save a contact sheet of uint8 (N, 32, 32, 3)."""
    rows = -(-len(images) // columns)
    sheet = np.zeros((rows * 33, columns * 33, 3), np.uint8)
    for i, image in enumerate(images):
        y, x = divmod(i, columns)
        sheet[y * 33 : y * 33 + 32, x * 33 : x * 33 + 32] = image
    Image.fromarray(sheet).resize((sheet.shape[1] * scale, sheet.shape[0] * scale), 0).save(path, optimize=True)


def replace(new: Path, place: Path) -> None:
    """Move the folder `new` to `place`; readers find the old or the new one, except for an instant in between."""
    place.parent.mkdir(parents=True, exist_ok=True)
    old = place.with_name(f".{place.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def parameters(model: nn.Module) -> int:
    """Count the model's parameters."""
    return sum(p.numel() for p in model.parameters())


def write_card(folder: Path, pair: Pair, training: dict, measured: dict) -> None:
    """Write card.json and README.md with the same numbers."""
    names = ("torch", "diffusers", "transformers", "open_clip_torch", "numpy")
    sizes = {part: _megabytes(folder / part) for part in ("diffusion", "clip", "oracle.safetensors")}
    card = {
        "pair": pair.name,
        "data": pair.data,
        "licence": LICENCES[pair.name],
        "factors": {key: list(values) for key, values in pair.factors.items()},
        "default_prompt": pair.full[0],
        "sampler": {"scheduler": "DDIM", **SAMPLER[pair.name]},
        "training": training,
        "measured": measured,
        "megabytes": sizes,
        "versions": {name: version(name) for name in names},
    }
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    (folder / "README.md").write_text(_prose(card))


def _megabytes(path: Path) -> float:
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    return round(sum(p.stat().st_size for p in files) / 1e6, 3)


def _prose(card: dict) -> str:
    m, sampler = card["measured"], card["sampler"]
    rows = [
        (f"sampled images (n={m['sampled']}), judged by the oracle", m["sampled_accuracy_by_oracle"]),
        (f"sampled images (n={m['sampled']}), judged by the CLIP, zero-shot", m["sampled_accuracy_by_clip"]),
        ("held-out images (n=2048), the CLIP, zero-shot", m["held_out_accuracy_by_clip"]),
        ("held-out images (n=2048), the oracle: the ceiling", m["held_out_accuracy_by_oracle"]),
        ("held-out images (n=512) after the autoencoder, the oracle", m["reconstructed_accuracy_by_oracle"]),
    ]
    head = " | ".join(card["factors"])
    table = "\n".join(
        f"| {what} | " + " | ".join(f"{score[f]:.3f}" for f in card["factors"]) + " |" for what, score in rows
    )
    stages = "\n".join(
        f"| {stage} | {s['steps']} x {s['batch']} | {s['cpu_s']} | {s['parameters']:,} | {s['seed']} |"
        for stage, s in card["training"].items()
    )
    sizes = ", ".join(f"{part} {size} MB" for part, size in card["megabytes"].items())
    versions = ", ".join(f"{name} {v}" for name, v in card["versions"].items())
    return f"""# The {card["pair"]} pair: a StableDiffusionPipeline and an open_clip model

Written by `jobs/build_testbed.py --pair {card["pair"]}` from what it measured; `card.json` holds the same numbers.

- Learned from: {card["data"]}.
- Licence: {card["licence"]}.
- Prompts: "{card["default_prompt"]}" (a factor may be left out).
- Sampler: {sampler["scheduler"]}, {sampler["num_inference_steps"]} steps, guidance {sampler["guidance_scale"]}.
  One image takes {m["cpu_seconds_per_image_at_batch_64"]} CPU-seconds on one thread at batch 64 (on a shared machine).
- On disk (half precision; load with `dtype=torch.float32` on a CPU): {sizes}.

| accuracy on | {head} |
| --- |{" --- |" * len(card["factors"])}
{table}

Autoencoder: {m["reconstruction_psnr_db"]} dB PSNR on held-out images. Variety: within a class, the oracle's features of
sampled images spread {m["sampled_spread_over_held_out"]} times as far as those of as many held-out images.

{_left_out_prose(m)}
| stage | steps x batch | CPU-seconds | parameters | seed |
| --- | --- | --- | --- | --- |
{stages}

CPU-seconds are those of the run that led here, not of trials before it.
Accuracies of generated images say that the prompt was followed, not that the images are as varied as real ones.
Versions: {versions}.
"""


def _left_out_prose(measured: dict) -> str:
    lines = [
        f"- {factor}: " + ", ".join(f"{value} {share:.2f}" for value, share in shares.items())
        for factor, shares in measured.get("shares_of_a_factor_left_out", {}).items()
    ]
    return (
        "\n".join(["What appears when a prompt leaves a factor out (share of 256 images each):", "", *lines, ""])
        if lines
        else ""
    )
