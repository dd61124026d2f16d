"""Image-conditioned variant of the text-to-image model: a StableUnCLIPImg2ImgPipeline fine-tuned from it.

The denoiser starts from the published one and learns to use an image embedding as well (Ramesh et al. 2022; Rombach
et al., Stable unCLIP). diffusers needs the image tower as a transformers ViT, and the testbed's CLIP has a ResNet, so
a small ViT is distilled from that tower's embeddings.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from torch.nn import functional
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from counterpoise.testbed.clip import MEAN, STD, degrade, pixels
from counterpoise.testbed.loop import Trainer, generators, plateau
from counterpoise.testbed.oracle import judge, load_oracle
from counterpoise.testbed.pairs import Pair
from counterpoise.testbed.publish import SAMPLER, load_pipeline, parameters, replace
from counterpoise.testbed.unet import embed_captions, make_scheduler, make_unet, velocity_loss
from counterpoise.testbed.vae import encode

EMBEDDING = 64
WITHOUT_IMAGE = 0.25  # probability that the image embedding is left out, as in Stable unCLIP
CLEAN = 0.5  # probability that it has no noise; otherwise its noise level is uniform
VISION, DENOISER = (1500, 128, 11), (1500, 64, 12)  # steps, batch, seed
IMAGES = 16_384


def build_unclip(pair: Pair, published: Path, work: Path, budget: float = 1.0) -> dict:
    """Train both parts from the published pair, write ``published/unclip``, and return its card."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    pipe = load_pipeline(published)
    clip, _, _ = open_clip.create_model_and_transforms(f"local-dir:{published / 'clip'}")
    vision = train_vision(work / "vision.pt", pair, clip.eval(), max(1, round(VISION[0] * budget)))
    cache = cached_conditions(
        work / "conditions.pt", pair, pipe, vision.average, max(256, round(IMAGES * min(1, budget)))
    )
    unet = train_denoiser(work / "unclip.pt", pair, pipe, cache, max(1, round(DENOISER[0] * budget)))
    temporary = published / ".unclip.new"
    assemble(pipe, vision.average, unet.average, cache["embeds"]).to(torch.float16).save_pretrained(temporary)
    for path in temporary.rglob("*.safetensors"):
        path.chmod(0o644)
    measured = measure(temporary, published, pair, 256 if budget >= 0.5 else 16)
    training = {
        name: {"steps": trainer.step, "cpu_s": round(trainer.cpu_s), "parameters": parameters(trainer.average)}
        for name, trainer in (("vision", vision), ("denoiser", unet))
    }
    card = {"pair": pair.name, "training": training, "measured": measured, "sampler": SAMPLER[pair.name]}
    (temporary / "card.json").write_text(json.dumps(card, indent=2) + "\n")
    replace(temporary, published / "unclip")
    return card


def train_vision(path: Path, pair: Pair, clip: open_clip.CLIP, steps: int) -> Trainer:
    """Train a ViT to embed images as CLIP's unit vector times √d, so that each component has variance of about one."""
    torch.manual_seed(VISION[2])
    config = CLIPVisionConfig(
        hidden_size=96, intermediate_size=384, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=4,
        projection_dim=EMBEDDING,
    )  # fmt: skip
    model = CLIPVisionModelWithProjection(config)

    def loss(step: int) -> torch.Tensor:
        rng, noise = generators(VISION[2], step)
        labels = pair.labels(VISION[1], rng)
        image = (degrade(pixels(pair.images(labels, seed=int(rng.integers(2**31)))), noise) - MEAN) / STD
        with torch.no_grad():
            target = EMBEDDING**0.5 * clip.encode_image(image, normalize=True)
        return functional.mse_loss(model(image).image_embeds, target)

    return Trainer(path, model, lr=1e-3, weight_decay=0.05, ema=0.99).fit(steps, loss)


@torch.no_grad()
def cached_conditions(
    path: Path, pair: Pair, pipe: StableDiffusionPipeline, vision: CLIPVisionModelWithProjection, n: int
) -> dict[str, torch.Tensor]:
    """Return posteriors and embeddings of n balanced images; cached at `path`."""
    if not path.exists():
        labels = pair.labels(n, np.random.default_rng(13))
        images = pair.images(labels, seed=13)
        mean, std = encode(pipe.vae, images)
        embeds = torch.cat([vision((part - MEAN) / STD).image_embeds for part in pixels(images).split(256)])
        torch.save({"mean": mean, "std": std, "labels": torch.from_numpy(labels), "embeds": embeds}, path)
    return torch.load(path, weights_only=True)


def make_conditioned(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Add a zero-initialised projection of an image embedding and its noise level to the denoiser."""
    model = make_unet(class_embed_type="projection", projection_class_embeddings_input_dim=2 * EMBEDDING)
    model.load_state_dict(unet.state_dict(), strict=False)
    torch.nn.init.zeros_(model.class_embedding.linear_2.weight)
    torch.nn.init.zeros_(model.class_embedding.linear_2.bias)
    return model


def train_denoiser(
    path: Path, pair: Pair, pipe: StableDiffusionPipeline, cache: dict[str, torch.Tensor], steps: int
) -> Trainer:
    """Fine-tune the denoiser with noised image embeddings; the checkpoint is at `path`."""
    _, batch, seed = DENOISER
    torch.manual_seed(seed)
    model = make_conditioned(pipe.unet)
    texts = embed_captions(pipe.text_encoder, pipe.tokenizer, pair)
    noising, centre, spread = make_noising(), cache["embeds"].mean(0), cache["embeds"].std(0)

    def condition(rows: np.ndarray, rng: np.random.Generator, noise: torch.Generator) -> torch.Tensor:
        level = torch.from_numpy(np.where(rng.random(batch) < CLEAN, 0, rng.integers(0, 1000, batch)))
        embeds = (cache["embeds"][rows] - centre) / spread
        embeds = noising.add_noise(embeds, torch.randn(embeds.shape, generator=noise), level) * spread + centre
        whole = torch.cat([embeds, get_timestep_embedding(level, EMBEDDING, True, 0)], 1)
        return torch.where(torch.from_numpy(rng.random(batch) < WITHOUT_IMAGE)[:, None], 0.0, whole)

    loss = velocity_loss(model, pair, cache, texts, batch, seed, pipe.vae.config.scaling_factor, condition)
    return Trainer(path, model, lr=2e-3, ema=0.998, muon=True).fit(steps, loss, schedule=plateau)


def make_noising() -> DDPMScheduler:
    """Create the noise scheduler of the embeddings, as in Stable unCLIP."""
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2")


def assemble(
    pipe: StableDiffusionPipeline,
    vision: CLIPVisionModelWithProjection,
    unet: UNet2DConditionModel,
    embeds: torch.Tensor,
) -> StableUnCLIPImg2ImgPipeline:
    """Assemble the pipeline from its parts; `embeds` gives mean and deviation of the image embeddings."""
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=EMBEDDING)
    normalizer.mean.data, normalizer.std.data = embeds.mean(0)[None], embeds.std(0)[None]
    crop = {"height": 32, "width": 32}
    processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop)
    return StableUnCLIPImg2ImgPipeline(
        feature_extractor=processor, image_encoder=vision, image_normalizer=normalizer,
        image_noising_scheduler=make_noising(), tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder, unet=unet,
        scheduler=make_scheduler(), vae=pipe.vae,
    )  # fmt: skip


def measure(folder: Path, published: Path, pair: Pair, n: int) -> dict:
    """Measure by the oracle how images follow a full prompt and, with an empty prompt, the condition image."""
    pipe = StableUnCLIPImg2ImgPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    oracle = load_oracle(published / "oracle.safetensors", tuple(map(len, pair.factors.values())))
    rng = np.random.default_rng(17)
    prompted, shown = pair.labels(n, rng), pair.labels(n, rng)
    conditions = pair.held_out(shown, seed=18)

    def predictions(captions: list[str]) -> np.ndarray:
        embeds = pipe.image_encoder(
            pipe.feature_extractor(images=list(conditions), return_tensors="pt").pixel_values
        ).image_embeds.detach()
        noise = [torch.Generator().manual_seed(i) for i in range(n)]
        images = pipe(prompt=captions, image_embeds=embeds, generator=noise, output_type="np", **SAMPLER[pair.name])
        return judge(oracle, (images.images * 255).round().astype(np.uint8))

    with_prompt = predictions([pair.fill(pair.full[0], label) for label in prompted])
    without_prompt = predictions([""] * n)
    names = list(pair.factors)
    share = lambda predicted, truth: {  # noqa: E731
        name: round(float((predicted[:, i] == truth[:, i]).mean()), 3) for i, name in enumerate(names)
    }
    return {
        "full prompt, image of another cell: the prompt's factor": share(with_prompt, prompted),
        "full prompt, image of another cell: the image's factor": share(with_prompt, shown),
        "empty prompt: the image's factor": share(without_prompt, shown),
    }
