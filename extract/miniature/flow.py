"""The transformer of the miniature FLUX, trained by flow matching on latents with frozen text encoders."""

import copy
import pathlib
import random
import typing

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)

from extract.miniature import data_parallel, encoders
from extract.miniature.data import Emoji, balanced_weights, caption

BATCH = 48
PEAK_RATE = 1.2e-3
EMA = 0.998
# Shares of captions that are hidden from one of the encoders. CLIP's share is larger, so that T5 must encode the style.
WITHOUT_CLIP, WITHOUT_T5 = 0.20, 0.05


def build(latent_channels: int) -> FluxTransformer2DModel:
    """Return a transformer of two double and three single blocks of width 192, with new weights."""
    transformer = FluxTransformer2DModel(
        in_channels=4 * latent_channels,  # a position is 2 x 2 latents
        num_layers=2,
        num_single_layers=3,
        num_attention_heads=6,
        attention_head_dim=32,
        axes_dims_rope=(8, 12, 12),
        joint_attention_dim=encoders.WIDTH,
        pooled_projection_dim=encoders.WIDTH,
        guidance_embeds=False,
    )
    # Every block starts as the identity. diffusers leaves this initialization to the trainer.
    modulations = ("norm.linear", "norm1.linear", "norm1_context.linear", "norm_out.linear")
    for name, module in transformer.named_modules():
        if name == "proj_out" or name.endswith(modulations):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    return transformer


def pipeline(transformer: FluxTransformer2DModel, vae: AutoencoderKL, encoders_folder: pathlib.Path) -> FluxPipeline:
    """Return a pipeline with the trained components."""
    texts, tokenizer, tokenizer_2 = encoders.load(encoders_folder)
    vae.register_to_config(shift_factor=0.0)  # FLUX requires a number; the latents already have mean 0
    components: dict[str, typing.Any] = {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": vae,
        "text_encoder": texts["text_encoder"],
        "tokenizer": tokenizer,
        "text_encoder_2": texts["text_encoder_2"],
        "tokenizer_2": tokenizer_2,
        "transformer": transformer,
    }
    pipe = FluxPipeline(**components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def train(
    rank: int,
    n_workers: int,
    latents: torch.Tensor,
    emojis: list[Emoji],
    steps: int,
    vae_folder: pathlib.Path,
    encoders_folder: pathlib.Path,
    folder: pathlib.Path,
) -> None:
    """Train on ``latents`` [N, C, H, W] of ``emojis``. The first worker saves the averaged (EMA) weights."""
    n, channels, height, width = latents.shape
    images = FluxPipeline._pack_latents(latents, n, channels, height, width)
    image_ids = FluxPipeline._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", torch.float32)
    texts, tokenizer, tokenizer_2 = encoders.load(encoders_folder)
    text_ids = torch.zeros(tokenizer_2.model_max_length, 3)
    torch.manual_seed(0)  # same initial weights in every worker
    transformer = build(channels)
    averaged = copy.deepcopy(transformer).eval().requires_grad_(False)
    parameters, averages = list(transformer.parameters()), list(averaged.parameters())
    optimizer = torch.optim.AdamW(parameters, weight_decay=1e-2, betas=(0.9, 0.98), fused=True)

    torch.manual_seed(1 + rank)
    rng = random.Random(rank)
    weights = balanced_weights(emojis)
    losses = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = PEAK_RATE * data_parallel.schedule(step, steps)
        chosen = rng.choices(range(n), weights, k=BATCH // n_workers)
        captions = [caption(emojis[i], rng) for i in chosen]
        with torch.no_grad():
            tokens = encoders.tokens(tokenizer, _blank(captions, WITHOUT_CLIP, rng))
            tokens_2 = encoders.tokens(tokenizer_2, _blank(captions, WITHOUT_T5, rng))
            pooled = texts["text_encoder"](tokens).pooler_output
            stream = texts["text_encoder_2"](tokens_2).last_hidden_state
        clean = images[chosen]
        noise = torch.randn_like(clean)
        t = torch.sigmoid(torch.randn(len(clean)))
        noisy = torch.lerp(clean, noise, t[:, None, None])
        velocity = transformer(
            hidden_states=noisy,
            timestep=t,
            encoder_hidden_states=stream,
            pooled_projections=pooled,
            img_ids=image_ids,
            txt_ids=text_ids,
        ).sample
        loss = (velocity - (noise - clean)).square().mean()
        loss.backward()
        data_parallel.average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        data_parallel.move_averages(averages, parameters, 1 - min(EMA, (1 + step) / (10 + step)))
        losses.append(loss.item())
        if rank == 0 and (step + 1) % 200 == 0:
            print(f"transformer step {step + 1}/{steps} loss {np.mean(losses[-200:]):.4f}", flush=True)
        if rank == 0 and ((step + 1) % 1000 == 0 or step + 1 == steps):
            vae = AutoencoderKL.from_pretrained(vae_folder).eval()
            pipeline(averaged, vae, encoders_folder).save_pretrained(folder)


def _blank(captions: list[str], share: float, rng: random.Random) -> list[str]:
    """Return the captions with a random ``share`` of them replaced by empty captions."""
    return ["" if rng.random() < share else caption for caption in captions]
