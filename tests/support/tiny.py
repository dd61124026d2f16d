"""Tiny models with random weights in the formats of the real ones; see the fixtures in conftest.py."""

import json
import warnings
from pathlib import Path

import torch


def tokenizer():
    """CLIP's, with a vocabulary of single letters."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=32)


def make_diffusion(folder: Path, *, seed: int = 0, broken: bool = False, dtype: torch.dtype = torch.float32) -> Path:
    """A StableDiffusionPipeline of 16 × 16 pixels. ``broken``: its VAE returns NaN."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    words = tokenizer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                num_attention_heads=2, max_position_embeddings=32, bos_token_id=words.bos_token_id,
                eos_token_id=words.eos_token_id, pad_token_id=words.eos_token_id,
            )
        )  # fmt: skip
        unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=16,
            attention_head_dim=2, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=(8, 8), norm_num_groups=4, sample_size=16, layers_per_block=1,
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        )  # fmt: skip
        if broken:
            torch.nn.init.constant_(vae.decoder.conv_out.bias, float("nan"))
        scheduler = DDIMScheduler(
            beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, set_alpha_to_one=False
        )
        pipeline = StableDiffusionPipeline(
            vae=vae, text_encoder=text, tokenizer=words, unet=unet, scheduler=scheduler, safety_checker=None,
            feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
        pipeline.to(dtype).save_pretrained(folder)
    return folder


def make_clip(folder: Path, *, seed: int = 0) -> Path:
    """A CLIP for 16 × 16 pixels in open_clip's local-dir format."""
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    config = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    preprocess = {
        "mean": [0.48, 0.46, 0.41],
        "std": [0.27, 0.26, 0.28],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    return folder


def make_experiment(models: Path, store: str | Path, **changes):
    """An experiment of 2 classes × 2 groups on the tiny models, in shards of 8; ``changes`` are sections to replace."""
    from counterpoise.config import Experiment

    sections = {
        "name": "tiny",
        "method": "tiny",
        "store": str(store),
        "data": {"adapter": "testbed"},
        "generator": {"model": str(models / "diffusion"), "num_inference_steps": 3},
        "scorer": {"model": str(models / "clip")},
        "pool": {"shard_size": 8, "sampling": {"workers": 1}},
        "plans": {"synthetic": {"strategy": "usb"}},
        "stages": [{"name": "only", "data": ["real", "synthetic"]}],
    }
    return Experiment.model_validate(sections | changes)
