"""Stable Diffusion 1.4 at its real width and depth, with random weights, to measure time and memory.

Its tokenizer is the miniature's at CLIP's length, since the vocabulary costs no time.
"""

import pathlib

import transformers
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel

MINIATURE = pathlib.Path(__file__).parents[2] / "extract" / "miniature" / "sd"
SIZE = 512  # pixels


def stable_diffusion() -> StableDiffusionPipeline:
    """Return the pipeline in float32: 860 M parameters of U-Net, 85 M of CLIP without embeddings, 84 M of VAE."""
    tokenizer = transformers.CLIPTokenizerFast.from_pretrained(MINIATURE, subfolder="tokenizer", model_max_length=77)
    text = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        projection_dim=768,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # All other settings are the defaults of diffusers, which are those of Stable Diffusion 1.
    unet = UNet2DConditionModel(sample_size=SIZE // 8, cross_attention_dim=768)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=SIZE,
    )
    pipe = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=transformers.CLIPTextModel(text).eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
