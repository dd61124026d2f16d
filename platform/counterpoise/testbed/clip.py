"""Small open_clip model: a ResNet tower for images, two transformer layers for text, trained contrastively.

Several images of a batch may match one caption ("a photo of a star" is true of every star), so the targets are uniform
over all true pairs instead of diagonal.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from counterpoise.testbed.loop import Trainer, generators
from counterpoise.testbed.pairs import Pair
from counterpoise.testbed.tokenizer import CONTEXT, save_tokenizer

WIDTH, LAYERS, HEADS = 96, 2, 3
MEAN = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1)
STD = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1)


def clip_config(vocab_size: int) -> dict:
    """Return open_clip's `model_cfg`. The tokenizer's name need only be non-empty: `local-dir:` reads the folder."""
    return {
        "embed_dim": 64,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16},
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": vocab_size,
            "width": WIDTH,
            "heads": HEADS,
            "layers": LAYERS,
            "hf_tokenizer_name": "local",
        },
    }


def make_clip(vocab_size: int) -> open_clip.CLIP:
    """Create the model with random weights."""
    cfg = clip_config(vocab_size)
    return open_clip.CLIP(embed_dim=cfg["embed_dim"], vision_cfg=cfg["vision_cfg"], text_cfg=cfg["text_cfg"])


def tokens(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Tokenize texts to int64 (N, CONTEXT)."""
    return tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def pixels(images: np.ndarray) -> torch.Tensor:
    """Convert uint8 (N, 32, 32, 3) to float (N, 3, 32, 32) in 0..1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255


def train_clip(path: Path, pair: Pair, tokenizer: CLIPTokenizer, steps: int, batch: int, seed: int) -> Trainer:
    """Train the model on degraded images and captions of the pair; the checkpoint is at `path`."""
    torch.manual_seed(seed)
    model = make_clip(len(tokenizer))

    def loss(step: int) -> torch.Tensor:
        rng, noise = generators(seed, step)
        labels = pair.labels(batch, rng)
        texts, claims = pair.captions(labels, rng)
        image = degrade(pixels(pair.images(labels, seed=int(rng.integers(2**31)))), noise)
        image_vectors, text_vectors, scale = model((image - MEAN) / STD, tokens(tokenizer, texts))[:3]
        true = ((labels[:, None] == claims[None]) | (claims[None] < 0)).all(-1)
        return _contrast(scale * image_vectors @ text_vectors.T, torch.from_numpy(true).float())

    return Trainer(path, model, lr=2e-3, weight_decay=0.05).fit(steps, loss)


def degrade(image: torch.Tensor, noise: torch.Generator) -> torch.Tensor:
    """Blur and add noise to half of the images, at random: generated images, which CLIP will score, are not sharp."""
    u = torch.rand(len(image), 2, 1, 1, 1, generator=noise)
    soft = functional.avg_pool2d(functional.pad(image, (1, 1, 1, 1), mode="replicate"), 3, 1)
    mixed = torch.lerp(image, soft, u[:, 0]) + 0.06 * u[:, 0] * torch.randn(image.shape, generator=noise)
    return torch.where(u[:, 1] < 0.5, mixed, image)


def _contrast(logits: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Compute the cross-entropy against uniform targets over the true pairs, in both directions."""
    rows = -(functional.log_softmax(logits, 1) * true / true.sum(1, keepdim=True)).sum(1).mean()
    columns = -(functional.log_softmax(logits, 0) * true / true.sum(0, keepdim=True)).sum(0).mean()
    return (rows + columns) / 2


@torch.no_grad()
def zero_shot(
    model: Any, tokenizer: CLIPTokenizer, pair: Pair, images: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Measure the zero-shot accuracy per factor by its probe template, e.g. "a photo of a {shape}"."""
    model.eval()
    vectors = torch.cat([model.encode_image((part - MEAN) / STD, normalize=True) for part in pixels(images).split(256)])
    scores = {}
    for column, (factor, values) in enumerate(pair.factors.items()):
        texts = [pair.probes[factor].format(**{factor: value}) for value in values]
        text_vectors = model.encode_text(tokens(tokenizer, texts), normalize=True)
        guess = (vectors @ text_vectors.T).argmax(1).numpy()
        scores[factor] = float((guess == labels[:, column]).mean())
    return scores


def save_clip(model: nn.Module, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write an open_clip `local-dir:` folder with half-precision weights."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}
    config = {"model_cfg": clip_config(len(tokenizer)), "preprocess_cfg": {"size": 32, **preprocess}}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors", metadata={"format": "pt"})
    save_tokenizer(tokenizer, folder)


def text_encoder(model: open_clip.CLIP, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Convert the text tower to the CLIPTextModel of a StableDiffusionPipeline: the same weights under other names."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
        hidden_act="gelu",
        projection_dim=64,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    encoder = CLIPTextModel(config).eval()
    expected = encoder.state_dict()
    prefix = "text_model." if any(key.startswith("text_model.") for key in expected) else ""
    encoder.load_state_dict({prefix + key: value for key, value in _translate(model.state_dict())}, strict=False)
    missing = set(expected) - {prefix + key for key, _ in _translate(model.state_dict())}
    if any("position_ids" not in key for key in missing):
        raise RuntimeError(f"text weights without a source: {sorted(missing)}")
    return encoder


def _translate(state: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    out = [
        ("embeddings.token_embedding.weight", state["token_embedding.weight"]),
        ("embeddings.position_embedding.weight", state["positional_embedding"]),
        ("final_layer_norm.weight", state["ln_final.weight"]),
        ("final_layer_norm.bias", state["ln_final.bias"]),
    ]
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    names |= {"attn.out_proj": "self_attn.out_proj"}
    for layer in range(LAYERS):
        old, new = f"transformer.resblocks.{layer}", f"encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            out += [(f"{new}.{b}.{kind}", state[f"{old}.{a}.{kind}"]) for a, b in names.items()]
            thirds = state[f"{old}.attn.in_proj_{kind}"].chunk(3)
            out += [(f"{new}.self_attn.{p}_proj.{kind}", t) for p, t in zip("qkv", thirds, strict=True)]
    return out
