"""Models of the real sizes with random weights, saved as the real ones are; or tiny ones of the same classes."""

from __future__ import annotations

import functools
import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import open_clip
import torch
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

TESTBED = Path(__file__).parents[2] / "platform" / "counterpoise" / "testbed" / "models" / "shapes"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPE = "bfloat16"

# Text encoders (CLIP ViT-L/14, OpenCLIP ViT-H/14, OpenCLIP ViT-bigG/14): width, MLP, layers, heads
_TEXT = {"L": (768, 3072, 12, 12), "H": (1024, 4096, 23, 16), "bigG": (1280, 5120, 32, 20), "tiny": (16, 32, 1, 2)}
_CROSS = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")
_PLAIN = ("DownBlock2D", "UpBlock2D")

_UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768},
    "sd21": {
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "sdxl": {
        "sample_size": 128,
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": (_PLAIN[0], _CROSS[0], _CROSS[0]),
        "up_block_types": (_CROSS[1], _CROSS[1], _PLAIN[1]),
        "transformer_layers_per_block": (1, 2, 10),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 6 * 256 + 1280,
    },
}
_TINY_UNET: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "down_block_types": (_PLAIN[0], _CROSS[0]),
    "up_block_types": (_CROSS[1], _PLAIN[1]),
}


@contextmanager
def folder() -> Iterator[Path]:
    """Make a temporary folder, in memory if the machine has such a file system."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="gpu-", dir=memory if memory.is_dir() else None) as path:
        yield Path(path)


def _unet(name: str, tiny: bool) -> dict[str, Any]:
    if not tiny:
        return _UNETS[name]
    if name != "sdxl":
        return _TINY_UNET | {"cross_attention_dim": 16}
    sizes = {"addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 16}
    return _TINY_UNET | sizes | {"cross_attention_dim": 32, "addition_embed_type": "text_time"}


def _autoencoder(name: str, tiny: bool) -> diffusers.AutoencoderKL:
    channels: Any = (8, 8) if tiny else (128, 256, 512, 512)
    sizes: dict[str, Any] = {"norm_num_groups": 4, "layers_per_block": 1} if tiny else {"layers_per_block": 2}
    pixels = 16 if tiny else 1024 if name == "sdxl" else 512
    return diffusers.AutoencoderKL(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        sample_size=pixels,
        scaling_factor=0.13025 if name == "sdxl" else 0.18215,
        **sizes,
    )


def _text_encoder(kind: str, words: CLIPTokenizer, tiny: bool, projected: bool = False) -> torch.nn.Module:
    width, inner, layers, heads = _TEXT["tiny" if tiny else kind]
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        projection_dim=width,
        max_position_embeddings=77,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
        pad_token_id=words.pad_token_id,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def make_pipeline(name: str, prediction: str = "epsilon", tiny: bool = False, device: str = DEVICE) -> Any:
    """Return a pipeline with random weights, in float32.

    Args:
        name: ``sd15``, ``sd21`` (at 512 pixels) or ``sdxl``.
        prediction: ``epsilon`` or ``v_prediction``.
        tiny: One of 16 × 16 pixels of the same class.
        device: Where the weights are made.
    """
    torch.manual_seed(0)
    words = CLIPTokenizer.from_pretrained(TESTBED / "diffusion" / "tokenizer", model_max_length=77)
    scheduler = diffusers.DDIMScheduler(
        beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, set_alpha_to_one=False,
        prediction_type=prediction,
    )  # fmt: skip
    kind = {"sd15": "L", "sd21": "H", "sdxl": "L"}[name]
    with warnings.catch_warnings(), torch.device(device):
        warnings.simplefilter("ignore")
        parts: dict[str, Any] = {
            "vae": _autoencoder(name, tiny),
            "unet": diffusers.UNet2DConditionModel(**_unet(name, tiny)),
            "text_encoder": _text_encoder(kind, words, tiny),
            "tokenizer": words,
            "scheduler": scheduler,
        }
        if name == "sdxl":
            second = _text_encoder("bigG", words, tiny, projected=True)
            return diffusers.StableDiffusionXLPipeline(
                **parts, text_encoder_2=second, tokenizer_2=words, add_watermarker=False
            )
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return diffusers.StableDiffusionPipeline(**parts)


def save_pipeline(name: str, path: Path, prediction: str = "epsilon", tiny: bool = False) -> str:
    """Write the pipeline of :func:`make_pipeline` in half precision and return its folder."""
    target = path / f"{name}-{prediction}"
    pipeline = make_pipeline(name, prediction, tiny)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(getattr(torch, DTYPE))
    pipeline.save_pretrained(target)
    return str(target)


def save_clip(architecture: str, path: Path, tiny: bool = False) -> str:
    """Write a CLIP of an open_clip architecture with random weights and return its folder."""
    torch.manual_seed(0)
    config: Any = open_clip.get_model_config(architecture)
    if tiny:
        config = {
            "embed_dim": 8,
            "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
        }
    with torch.device(DEVICE):
        model = open_clip.CLIP(**config)
    target = path / architecture
    target.mkdir(parents=True, exist_ok=True)
    save_file({name: value.cpu().contiguous() for name, value in model.state_dict().items()},
              target / "open_clip_model.safetensors")  # fmt: skip
    description = {"model_cfg": config, "preprocess_cfg": {"interpolation": "bicubic", "resize_mode": "shortest"}}
    (target / "open_clip_config.json").write_text(json.dumps(description))
    return str(target)


@functools.cache
def device_name() -> str:
    """Return the name of the GPU, or the number of CPU threads."""
    return torch.cuda.get_device_name() if DEVICE == "cuda" else f"cpu, {torch.get_num_threads()} threads"
