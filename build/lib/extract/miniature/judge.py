"""The judge: a small convolutional network that names the style and category of a picture.

It is fitted on the autoencoder's reconstructions, because that is how generated pictures look, and
on reconstructions of noisy latents. A fifth of the objects is never shown to it; its accuracy on
those is in the model card.
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
from extract.miniature.data import CATEGORIES, STYLES, Picture
from extract.miniature.vae import decode, encode
from revelio_jax.benchmark.miniature_judge import WEIGHTS, JudgeNet

BATCH = 64
PEAK_RATE = 3e-3
UNSEEN_SHARE = 0.2
LATENT_NOISE = 0.15


def unseen_objects(pictures: list[Picture]) -> set[str]:
    """Names of the objects that the judge is never shown."""
    names = sorted({picture.name for picture in pictures})
    return set(random.Random(11).sample(names, round(UNSEEN_SHARE * len(names))))


def train(
    rank: int,
    n_workers: int,
    images: torch.Tensor,
    pictures: list[Picture],
    steps: int,
    vae_folder: pathlib.Path,
    folder: pathlib.Path,
) -> None:
    """Fit the judge on every emoji that is not unseen; the first worker saves to ``folder``.

    Subcategories of all emoji (animals and faces, but also tools and zodiac signs) are a second
    task whose head is thrown away: it teaches shapes that 500 objects alone do not.
    """
    vae = AutoencoderKL.from_pretrained(vae_folder).eval()
    unseen = unseen_objects(pictures)
    shown = [i for i, picture in enumerate(pictures) if picture.name not in unseen]
    subcategories = sorted({picture.subcategory for picture in pictures})
    categories = tuple(CATEGORIES)
    style = torch.tensor([STYLES.index(pictures[i].style) for i in shown])
    category = torch.tensor([categories.index(c) if (c := pictures[i].category) else -100 for i in shown])
    subcategory = torch.tensor([subcategories.index(pictures[i].subcategory) for i in shown])
    latents = encode(vae, images[shown])
    torch.manual_seed(2)
    clean = decode(vae, latents)
    noisy = decode(vae, latents + LATENT_NOISE * torch.randn_like(latents))

    torch.manual_seed(0)  # the same initial weights in every worker
    judge = JudgeNet()
    auxiliary = nn.Linear(judge.style.in_features, len(subcategories))
    parameters = [*judge.parameters(), *auxiliary.parameters()]
    torch.manual_seed(1 + rank)
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps)
    # Half of a batch from the eight categories, rare ones (buildings, plants) more than their share.
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
    """Mirror, stretch by up to 15 % and shift by up to 3 pixels; the border is white as in the data."""
    n = len(images)
    mirror = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = mirror * (1 + 0.15 * (2 * torch.rand(n) - 1))
    theta[:, 1, 1] = 1 + 0.15 * (2 * torch.rand(n) - 1)
    theta[:, :, 2] = 6 / images.shape[-1] * (2 * torch.rand(n, 2) - 1)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    # Sampled as ink on paper, so that what is outside is white.
    return 1 - functional.grid_sample(1 - images, grid, align_corners=False)
