"""The autoencoder of the miniatures: from 32 x 32 pixels to 8 latent channels of 8 x 8."""

import pathlib
import typing

import numpy as np
import torch
from diffusers import AutoencoderKL

from extract.miniature import data_parallel

LATENT_CHANNELS = 8
BATCH = 32
PEAK_RATE = 2e-3

# An AutoencoderKL. diffusers declares the outputs and the config of its models as tuples and dicts without attributes.
Autoencoder = typing.Any


def to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """Convert pixels, uint8 [N, H, W, 3], to images, float32 [N, 3, H, W] from -1 to 1."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """Convert images, float [N, 3, H, W] from -1 to 1, to pixels, uint8 [N, H, W, 3]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def encode(vae: Autoencoder, images: torch.Tensor) -> torch.Tensor:
    """Return the means of the latent distributions, [N, 8, 8, 8], scaled for the denoiser."""
    parts = [vae.encode(part).latent_dist.mean for part in images.split(64)]
    return torch.cat(parts) * vae.config.scaling_factor


@torch.no_grad()
def decode(vae: Autoencoder, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents to images [N, 3, 32, 32], clamped to -1 to 1."""
    parts = [vae.decode(part).sample for part in (latents / vae.config.scaling_factor).split(64)]
    return torch.cat(parts).clamp(-1, 1)


def build() -> Autoencoder:
    """Return an autoencoder with new weights."""
    blocks: dict[str, typing.Any] = {  # declared as tuples of one item
        "block_out_channels": (48, 48, 48),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
    }
    return AutoencoderKL(
        latent_channels=LATENT_CHANNELS,
        sample_size=32,
        layers_per_block=0,  # the decoder still has one residual block per level
        **blocks,
        norm_num_groups=8,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def train(rank: int, n_workers: int, images: torch.Tensor, steps: int, folder: pathlib.Path) -> None:
    """Train on ``images`` [N, 3, 32, 32]. The first worker saves the autoencoder to ``folder``."""
    torch.manual_seed(0)  # same initial weights in every worker
    vae = build()
    torch.manual_seed(1 + rank)
    optimizer = torch.optim.AdamW(vae.parameters(), weight_decay=1e-4, betas=(0.9, 0.99))
    errors = []
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = PEAK_RATE * data_parallel.schedule(step, steps)
        batch = images[torch.randint(len(images), (BATCH // n_workers,))]
        if torch.rand(()) < 0.5:
            batch = batch.flip(3)
        mean = vae.encode(batch).latent_dist.mean
        # Small noise of a fixed size makes the decoder smooth, as denoised latents require.
        spread = mean.detach().std((0, 2, 3), keepdim=True)
        error = vae.decode(mean + 0.05 * spread * torch.randn_like(mean)).sample - batch
        edges = error.diff(dim=3).square().mean() + error.diff(dim=2).square().mean()
        loss = error.square().mean() + 0.5 * edges + 0.02 * error.abs().mean()
        (loss + 1e-5 * mean.square().mean()).backward()
        data_parallel.average_gradients(vae.parameters())
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        errors.append(error.detach().square().mean().item())
        if rank == 0 and (step + 1) % 200 == 0:
            psnr = 10 * np.log10(4 / np.mean(errors[-200:]))
            print(f"vae step {step + 1}/{steps} psnr {psnr:.2f} dB", flush=True)
    if rank == 0:
        _normalize_latents(vae, images)
        vae.save_pretrained(folder)


@torch.no_grad()
def _normalize_latents(vae: Autoencoder, images: torch.Tensor) -> None:
    """Scale the 1 x 1 convolutions so that every latent channel has mean 0 and variance 1."""
    means = encode(vae, images).permute(1, 0, 2, 3).flatten(1)
    mu, sigma = means.mean(1), means.std(1)
    into, out = vae.quant_conv, vae.post_quant_conv
    out.bias += out.weight[:, :, 0, 0] @ mu
    out.weight *= sigma[None, :, None, None]
    channels = len(mu)
    into.weight[:channels] /= sigma[:, None, None, None]
    into.bias[:channels] = (into.bias[:channels] - mu) / sigma
    into.weight[channels:] = 0  # log-variance: almost deterministic
    into.bias[channels:] = -12
