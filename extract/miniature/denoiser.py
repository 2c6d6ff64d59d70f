"""The text encoder and U-Net of the miniature Stable Diffusion, trained jointly on latents and captions."""

import copy
import pathlib
import random
import typing

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from extract.miniature import data_parallel
from extract.miniature import tokenizer as bpe
from extract.miniature.data import Emoji, balanced_weights, caption

WIDTH = 128  # of the text encoder and of cross attention
BATCH = 64
PEAK_RATE = 1e-3
EMA = 0.998
NOISE: dict[str, typing.Any] = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}


def clip(tokenizer: CLIPTokenizer, layers: int) -> CLIPTextModel:
    """Return a CLIP text encoder with new weights."""
    marks: typing.Any = tokenizer  # its declared types allow more than one id
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=bpe.MAX_LENGTH,
            bos_token_id=marks.bos_token_id,
            eos_token_id=marks.eos_token_id,
            pad_token_id=marks.pad_token_id,
        )
    )
    with torch.no_grad():
        encoder.embeddings.token_embedding.weight.normal_(0, 0.05)
        encoder.embeddings.position_embedding.weight.normal_(0, 0.02)
    return encoder


def build(tokenizer: CLIPTokenizer, latent_channels: int) -> torch.nn.ModuleDict:
    """Return the text encoder and the U-Net with new weights, named as in the pipeline."""
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )
    return torch.nn.ModuleDict({"text_encoder": clip(tokenizer, layers=4), "unet": unet})


def pipeline(networks: torch.nn.ModuleDict, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """Return a pipeline with the trained components, which samples with DDIM."""
    components: dict[str, typing.Any] = {
        "vae": vae,
        "text_encoder": networks["text_encoder"],
        "tokenizer": tokenizer,
        "unet": networks["unet"],
        "scheduler": DDIMScheduler(**NOISE, clip_sample=False, timestep_spacing="trailing"),
        "safety_checker": None,
        "feature_extractor": None,
    }
    pipe = StableDiffusionPipeline(**components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def train(
    rank: int,
    n_workers: int,
    latents: torch.Tensor,
    emojis: list[Emoji],
    steps: int,
    vae_folder: pathlib.Path,
    tokenizer_folder: pathlib.Path,
    folder: pathlib.Path,
) -> None:
    """Train on ``latents`` [N, C, 8, 8] of ``emojis``. The first worker saves the averaged (EMA) weights."""
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    vae = AutoencoderKL.from_pretrained(vae_folder).eval()
    torch.manual_seed(0)  # same initial weights in every worker
    networks = build(tokenizer, vae.config["latent_channels"])
    averaged = copy.deepcopy(networks).eval().requires_grad_(False)
    parameters, averages = list(networks.parameters()), list(averaged.parameters())
    optimizer = torch.optim.AdamW(parameters, weight_decay=1e-2, betas=(0.9, 0.99), fused=True)
    noise_schedule: typing.Any = DDPMScheduler(**NOISE)

    torch.manual_seed(1 + rank)
    rng = random.Random(rank)
    weights = balanced_weights(emojis)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = PEAK_RATE * data_parallel.schedule(step, steps)
        chosen = rng.choices(range(len(emojis)), weights, k=BATCH // n_workers)
        captions = [caption(emojis[i], rng) for i in chosen]
        tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
        clean = latents[chosen]
        noise = torch.randn_like(clean)
        t = torch.randint(noise_schedule.config.num_train_timesteps, (len(clean),))
        noisy = noise_schedule.add_noise(clean, noise, t)
        text = networks["text_encoder"](tokens).last_hidden_state
        predicted = networks["unet"](noisy, t, encoder_hidden_states=text).sample
        loss = (predicted - noise_schedule.get_velocity(clean, noise, t)).square().mean()
        loss.backward()
        data_parallel.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        data_parallel.move_averages(averages, parameters, 1 - min(EMA, (1 + step) / (10 + step)))
        losses.append(loss.item())
        if rank == 0 and (step + 1) % 200 == 0:
            print(f"denoiser step {step + 1}/{steps} loss {np.mean(losses[-200:]):.4f}", flush=True)
        if rank == 0 and ((step + 1) % 2000 == 0 or step + 1 == steps):
            pipeline(averaged, vae, tokenizer).save_pretrained(folder)
