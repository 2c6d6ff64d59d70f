"""The judge: a small convolutional network that predicts the style and category of an image.

It is trained on reconstructions of the autoencoder, which look like generated images, and on reconstructions of noisy
latents. A fifth of the objects is held out; the model card reports the accuracy on them.
"""

import pathlib
import random

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from extract.miniature import data_parallel
from extract.miniature.data import CATEGORIES, STYLES, Emoji
from extract.miniature.vae import decode, encode
from revelio_jax.benchmark.miniature_judge import WEIGHTS, JudgeNet

BATCH = 64
PEAK_RATE = 3e-3
UNSEEN_SHARE = 0.2
LATENT_NOISE = 0.15


def unseen_objects(emojis: list[Emoji]) -> set[str]:
    """Return the names of the objects that are held out of the judge's training."""
    names = sorted({emoji.name for emoji in emojis})
    return set(random.Random(11).sample(names, round(UNSEEN_SHARE * len(names))))


def train(
    rank: int,
    n_workers: int,
    images: torch.Tensor,
    emojis: list[Emoji],
    steps: int,
    vae_folder: pathlib.Path,
    folder: pathlib.Path,
) -> None:
    """Train the judge on every emoji that is not held out. The first worker saves it to ``folder``.

    A second task is to predict the subcategory of every emoji, for example tools and zodiac signs. It teaches shapes
    that the 500 objects alone do not. Its head is discarded.
    """
    vae = AutoencoderKL.from_pretrained(vae_folder).eval()
    unseen = unseen_objects(emojis)
    shown = [i for i, emoji in enumerate(emojis) if emoji.name not in unseen]
    subcategories = sorted({emoji.subcategory for emoji in emojis})
    categories = tuple(CATEGORIES)
    style = torch.tensor([STYLES.index(emojis[i].style) for i in shown])
    category = torch.tensor([categories.index(c) if (c := emojis[i].category) else -100 for i in shown])
    subcategory = torch.tensor([subcategories.index(emojis[i].subcategory) for i in shown])
    latents = encode(vae, images[shown])
    torch.manual_seed(2)
    clean = decode(vae, latents)
    noisy = decode(vae, latents + LATENT_NOISE * torch.randn_like(latents))

    torch.manual_seed(0)  # same initial weights in every worker
    judge = JudgeNet()
    auxiliary = nn.Linear(judge.style.in_features, len(subcategories))
    parameters = [*judge.parameters(), *auxiliary.parameters()]
    torch.manual_seed(1 + rank)
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    # Half of a batch comes from the eight categories, with rare categories (buildings, plants) oversampled.
    counts = torch.bincount(category[category >= 0]).float()
    weights = torch.ones(len(shown))
    weights[category >= 0] = counts[category[category >= 0]] ** -0.5
    weights[category >= 0] *= (category < 0).sum() / weights[category >= 0].sum()
    losses = []
    for step in range(steps):
        chosen = torch.multinomial(weights, BATCH // n_workers)
        source = torch.where(torch.rand(len(chosen), 1, 1, 1) < 0.5, clean[chosen], noisy[chosen])
        features = functional.dropout(judge.features(_augment(source)), 0.3)
        loss = (
            functional.cross_entropy(judge.style(features), style[chosen], label_smoothing=0.05)
            + functional.cross_entropy(judge.category(features), category[chosen], label_smoothing=0.05)
            + 0.5 * functional.cross_entropy(auxiliary(features), subcategory[chosen], label_smoothing=0.05)
        )
        loss.backward()
        data_parallel.average_gradients(parameters)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
        if rank == 0 and (step + 1) % 200 == 0:
            print(f"judge step {step + 1}/{steps} loss {np.mean(losses[-200:]):.3f}", flush=True)
    if rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({key: v.half() for key, v in judge.state_dict().items()}, folder / WEIGHTS)


def _augment(images: torch.Tensor) -> torch.Tensor:
    """Mirror images, stretch them by up to 15 % and shift them by up to 3 pixels; new pixels are white."""
    n = len(images)
    mirror = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = mirror * (1 + 0.15 * (2 * torch.rand(n) - 1))
    theta[:, 1, 1] = 1 + 0.15 * (2 * torch.rand(n) - 1)
    theta[:, :, 2] = 6 / images.shape[-1] * (2 * torch.rand(n, 2) - 1)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    # grid_sample pads with 0, so inverted images give white padding.
    return 1 - functional.grid_sample(1 - images, grid, align_corners=False)
