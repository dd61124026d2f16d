"""Training of a pair of models from scratch: tokenizer, CLIP, autoencoder, oracle, denoiser; then publication.

Every stage keeps its checkpoint in the work folder, so calling `build` again continues where the last call stopped.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from counterpoise.testbed.clip import text_encoder, train_clip
from counterpoise.testbed.loop import Trainer
from counterpoise.testbed.oracle import train_oracle
from counterpoise.testbed.pairs import Pair
from counterpoise.testbed.publish import measure, parameters, replace, save_pair, write_card
from counterpoise.testbed.tokenizer import make_tokenizer
from counterpoise.testbed.unet import embed_captions, train_unet
from counterpoise.testbed.vae import encode, train_vae


@dataclass(frozen=True)
class Stage:
    """Length, batch size and seed of the training of one part."""

    steps: int
    batch: int
    seed: int


STAGES = {
    "clip": Stage(1000, 128, 1),
    "vae": Stage(1800, 32, 2),
    "oracle": Stage(700, 128, 3),
}
UNET = {"shapes": Stage(3300, 64, 4), "fashion": Stage(2800, 64, 4)}
LATENTS = {"shapes": 32_768, "fashion": 30_000}


def build(pair: Pair, out: Path, work: Path, budget: float = 1.0, publish_every_s: float = 480.0) -> dict:
    """Train a pair, publish it to `out` at intervals and at the end, and return the last measurements.

    Args:
        pair: Source of images and captions.
        out: Folder to publish to.
        work: Folder of the checkpoints.
        budget: Factor of the number of steps of every stage; 1.0 gives the shipped models.
        publish_every_s: CPU seconds of the denoiser's training between two publications.
    """
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    stages = STAGES | {"unet": UNET[pair.name]}
    plan = {name: Stage(max(1, round(s.steps * budget)), s.batch, s.seed) for name, s in stages.items()}
    tokenizer = make_tokenizer(pair.vocabulary())
    parts = _prepare(pair, work, plan, tokenizer)
    vae = parts.vae.average
    latents, scale = cached_latents(
        work / "latents.pt", pair, vae, max(512, round(LATENTS[pair.name] * min(1, budget)))
    )
    vae.register_to_config(scaling_factor=scale)
    texts = embed_captions(text_encoder(parts.clip.average, tokenizer), tokenizer, pair)
    published_at: float | None = None  # for a resumed run, the time of its first save

    def publish(unet: Trainer, n: int) -> dict:
        measured = _publish(out, pair, tokenizer, parts, unet, plan, n)
        print(f"published at step {unet.step}: {measured}", flush=True)
        return measured

    def publish_at_intervals(unet: Trainer) -> None:
        nonlocal published_at
        published_at = unet.cpu_s if published_at is None else published_at
        if unet.cpu_s - published_at >= publish_every_s:
            published_at = unet.cpu_s
            publish(unet, 128)

    stage = plan["unet"]
    unet = train_unet(
        work / "unet.pt", pair, latents, texts, stage.steps, stage.batch, stage.seed, publish_at_intervals
    )
    return publish(unet, 512 if budget >= 0.5 else 64)


@dataclass(frozen=True)
class Parts:
    """Trained parts that the denoiser needs."""

    clip: Trainer
    vae: Trainer
    oracle: Trainer


def _prepare(pair: Pair, work: Path, plan: dict[str, Stage], tokenizer: CLIPTokenizer) -> Parts:
    clip, vae, oracle = plan["clip"], plan["vae"], plan["oracle"]
    return Parts(
        train_clip(work / "clip.pt", pair, tokenizer, clip.steps, clip.batch, clip.seed),
        train_vae(work / "vae.pt", pair, vae.steps, vae.batch, vae.seed),
        train_oracle(work / "oracle.pt", pair, oracle.steps, oracle.batch, oracle.seed),
    )


def _publish(
    out: Path,
    pair: Pair,
    tokenizer: CLIPTokenizer,
    parts: Parts,
    unet: Trainer,
    plan: dict[str, Stage],
    n: int,
) -> dict:
    """Write all parts to a temporary folder, measure them on n samples, and replace `out` by it."""
    temporary = out.parent / f".{out.name}.new"
    save_pair(temporary, parts.clip.average, tokenizer, parts.vae.average, unet.average, parts.oracle.average)
    measured = measure(temporary, pair, n)
    trained = {"clip": parts.clip, "vae": parts.vae, "oracle": parts.oracle, "unet": unet}
    write_card(temporary, pair, {name: _record(trainer, plan[name]) for name, trainer in trained.items()}, measured)
    replace(temporary, out)
    return measured


def _record(trainer: Trainer, stage: Stage) -> dict[str, int]:
    return {
        "steps": trainer.step,
        "batch": stage.batch,
        "seed": stage.seed,
        "cpu_s": round(trainer.cpu_s),
        "parameters": parameters(trainer.average),
    }


def cached_latents(
    path: Path, pair: Pair, vae: AutoencoderKL, n: int, seed: int = 5
) -> tuple[dict[str, torch.Tensor], float]:
    """Return posteriors of n balanced images, scaled to unit total variance, and the factor; cached at `path`."""
    if not path.exists():
        labels = pair.labels(n, np.random.default_rng(seed))
        mean, std = encode(vae, pair.images(labels, seed=seed))
        torch.save({"mean": mean, "std": std, "labels": torch.from_numpy(labels)}, path)
    cache = torch.load(path, weights_only=True)
    scale = 1 / float((cache["mean"].float().var() + cache["std"].float().square().mean()).sqrt())
    return {"mean": cache["mean"] * scale, "std": cache["std"] * scale, "labels": cache["labels"]}, scale
