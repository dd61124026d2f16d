"""Tiny pipelines with random weights of the families beside Stable Diffusion 1: each saved as the real ones are."""

import warnings
from pathlib import Path

import torch

from tiny import tokenizer

TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
BLOCKS = {
    "sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4,
    "attention_head_dim": 2, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip


def text_config(words, **changes):
    from transformers import CLIPTextConfig

    start, end = words.bos_token_id, words.eos_token_id
    sizes = {"vocab_size": len(words), "max_position_embeddings": 32}
    special = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    return CLIPTextConfig(**TEXT, **sizes, **special, **changes)


def autoencoder(channels=4, **changes):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, sample_size=16, layers_per_block=1, latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **changes,
    )  # fmt: skip


def t5(words):
    from transformers import T5Config, T5EncoderModel

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 4}
    return T5EncoderModel(T5Config(vocab_size=len(words), **sizes))


def stable_diffusion(prediction_type="epsilon", **unet):
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    words = tokenizer()
    return StableDiffusionPipeline(
        vae=autoencoder(), text_encoder=CLIPTextModel(text_config(words)), tokenizer=words,
        unet=UNet2DConditionModel(**BLOCKS, cross_attention_dim=16, **unet),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, set_alpha_to_one=False,
            prediction_type=prediction_type,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_v():
    return stable_diffusion("v_prediction")


def stable_diffusion_xl():
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    words = tokenizer()
    unet = UNet2DConditionModel(
        **BLOCKS, cross_attention_dim=32, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=6 * 8 + 16,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=autoencoder(), text_encoder=CLIPTextModel(text_config(words)), tokenizer=words, tokenizer_2=words,
        text_encoder_2=CLIPTextModelWithProjection(text_config(words, projection_dim=16)), unet=unet,
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1), add_watermarker=False,
    )  # fmt: skip


def vision(**changes):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    sizes = {"projection_dim": 16, "image_size": 16, "patch_size": 8}
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**TEXT | sizes | changes)).eval()


def unclip():
    from diffusers import DDIMScheduler, DDPMScheduler, StableUnCLIPImg2ImgPipeline, UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
    from transformers import CLIPImageProcessor, CLIPTextModel

    words = tokenizer()
    crop = {"height": 16, "width": 16}
    unet = UNet2DConditionModel(
        **BLOCKS, cross_attention_dim=16, class_embed_type="projection", projection_class_embeddings_input_dim=32
    )
    return StableUnCLIPImg2ImgPipeline(
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=crop),
        image_encoder=vision(),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=16),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=words, text_encoder=CLIPTextModel(text_config(words)), unet=unet, vae=autoencoder(),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, prediction_type="v_prediction"),
    )  # fmt: skip


def stable_diffusion_3():
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    words = tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32, out_channels=4,
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder(shift_factor=0.1),
        text_encoder=CLIPTextModelWithProjection(text_config(words, projection_dim=16)), tokenizer=words,
        text_encoder_2=CLIPTextModelWithProjection(text_config(words, projection_dim=16)), tokenizer_2=words,
        text_encoder_3=t5(words), tokenizer_3=words, image_encoder=None, feature_extractor=None,
    )  # fmt: skip


def flux():
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextModel

    words = tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return FluxPipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(1, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=CLIPTextModel(text_config(words)), tokenizer=words,
        text_encoder_2=t5(words), tokenizer_2=words,
    )  # fmt: skip


def deepfloyd_if():
    """In pixel space, with a learned variance and dynamic thresholding. Its UNet is the real one's kind, made small."""
    from diffusers import DDPMScheduler, IFPipeline, UNet2DConditionModel

    words = tokenizer()
    unet = UNet2DConditionModel(
        sample_size=16, in_channels=3, out_channels=6, block_out_channels=(8, 16), layers_per_block=1,
        norm_num_groups=4, attention_head_dim=4, cross_attention_dim=16, act_fn="gelu",
        encoder_hid_dim=32, encoder_hid_dim_type="text_proj", addition_embed_type="text",
        addition_embed_type_num_heads=2, only_cross_attention=False, resnet_time_scale_shift="scale_shift",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    )  # fmt: skip
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True,
        dynamic_thresholding_ratio=0.95, sample_max_value=1.5,
    )  # fmt: skip
    return IFPipeline(
        tokenizer=words, text_encoder=t5(words), unet=unet, scheduler=scheduler, safety_checker=None,
        feature_extractor=None, watermarker=None, requires_safety_checker=False,
    )  # fmt: skip


FAMILIES = {
    "sd-epsilon": stable_diffusion,
    "sd-v": stable_diffusion_v,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "flux": flux,
    "if": deepfloyd_if,
    "unclip": unclip,
}


def save(family: str, folder: Path) -> Path:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        FAMILIES[family]().save_pretrained(folder)
    return folder


def save_adapter(family: str, folder: Path, patches: bool = False) -> Path:
    """An IP-Adapter for a family, with its image encoder, laid out and named as h94/IP-Adapter.

    ``patches``: one of the kind "Plus", whose resampler reads the encoder's patches instead of its pooled embedding.
    """
    from safetensors.torch import save_file

    torch.manual_seed(1)
    unet = FAMILIES[family]().unet
    width = unet.config.cross_attention_dim
    tensors = resampler(width) if patches else pooled(width)
    layers = [layer for name, layer in unet.named_modules() if name.endswith("attn2")]
    for number, layer in enumerate(layers):
        for key in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * number + 1}.{key}.weight"] = torch.randn(layer.to_k.weight.shape) / width**0.5
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter.safetensors")
    vision().save_pretrained(folder / "image_encoder")
    return folder


def pooled(width):
    sizes = {"proj.weight": (4 * width, 16), "proj.bias": (4 * width,), "norm.weight": (width,), "norm.bias": (width,)}
    return {f"image_proj.{name}": torch.randn(size) for name, size in sizes.items()}


def resampler(width):
    """The names are the original implementation's, as are four layers and 64 numbers a head."""
    inner = 16
    sizes = {
        "latents": (1, 4, inner), "proj_in.weight": (inner, 16), "proj_in.bias": (inner,),
        "proj_out.weight": (width, inner), "proj_out.bias": (width,), "norm_out.weight": (width,),
        "norm_out.bias": (width,),
    }  # fmt: skip
    for layer in range(4):
        sizes |= {f"layers.{layer}.{name}": (inner,) for name in ("0.norm1.weight", "0.norm1.bias")}
        sizes |= {f"layers.{layer}.{name}": (inner,) for name in ("0.norm2.weight", "0.norm2.bias")}
        sizes |= {f"layers.{layer}.0.to_q.weight": (64, inner), f"layers.{layer}.0.to_kv.weight": (128, inner)}
        sizes |= {f"layers.{layer}.0.to_out.weight": (inner, 64)}
        sizes |= {f"layers.{layer}.{name}": (inner,) for name in ("1.0.weight", "1.0.bias")}
        sizes |= {f"layers.{layer}.1.1.weight": (4 * inner, inner), f"layers.{layer}.1.3.weight": (inner, 4 * inner)}
    return {f"image_proj.{name}": torch.randn(size) / 4 for name, size in sizes.items()}
