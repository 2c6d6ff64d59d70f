"""Measure the quality of a miniature: agreement of the judge with its prompts, and accuracy of the judge itself."""

import pathlib
import random
import typing

import numpy as np
import torch

from extract.miniature import vae
from extract.miniature.data import CATEGORIES, STYLES, Emoji
from extract.miniature.judge import unseen_objects
from revelio_jax.benchmark import miniature_judge
from revelio_jax.config import ModelConfig
from revelio_jax.pipelines.families import family_of
from revelio_jax.pipelines.loading import load_pipeline
from revelio_jax.pipelines.sampling import sample
from revelio_jax.pipelines.source import find_family

PROMPTS = 90
SEEDS = (0, 1, 2)
_SIZES = {"height": 32, "width": 32, "batch_size": 64}
SAMPLING = {"sd": {"steps": 15, "guidance": 2.5} | _SIZES, "flux": {"steps": 15, "guidance": 3.0} | _SIZES}


def measure(
    folder: pathlib.Path, judge_folder: pathlib.Path, emojis: list[Emoji], images: torch.Tensor
) -> dict[str, typing.Any]:
    """Return the accuracy of style and category of the pipeline in ``folder``, by the judge in ``judge_folder``.

    ``images`` [N, 3, 32, 32] are the images of ``emojis``, to measure the accuracy of the judge itself.
    """
    pipe = load_pipeline(ModelConfig(id=str(folder), family=find_family(str(folder), None), device="cpu"))
    judge = miniature_judge.load(judge_folder)
    sampling = SAMPLING[family_of(pipe).name]
    trained = [emoji for emoji in emojis if emoji.category and not emoji.held_out]
    held_out = [emoji for emoji in emojis if emoji.category and emoji.held_out]
    return {
        "sampling": sampling,
        "prompts": PROMPTS,
        "seeds": len(SEEDS),
        "trained_pairs": _judged(pipe, sampling, judge, spread(trained, PROMPTS)),
        "held_out_pairs": _judged(pipe, sampling, judge, spread(held_out, PROMPTS)),
        "judge_on_unseen_objects": _judge_accuracy(pipe.vae, judge, emojis, images),
    }


def spread(emojis: list[Emoji], n: int) -> list[Emoji]:
    """Return ``n`` emojis, spread as evenly as possible over style and category."""
    rng = random.Random(3)
    cells = [
        rng.sample(cell, len(cell))
        for style in STYLES
        for category in CATEGORIES
        if (cell := [emoji for emoji in emojis if (emoji.style, emoji.category) == (style, category)])
    ]
    chosen: list[Emoji] = []
    while len(chosen) < min(n, len(emojis)):
        for cell in cells:
            if cell and len(chosen) < n:
                chosen.append(cell.pop())
    return chosen


def _judged(
    pipe: typing.Any, sampling: dict[str, typing.Any], judge: miniature_judge.JudgeNet, targets: list[Emoji]
) -> dict[str, float]:
    prompts = [f"{emoji.style} emoji of {emoji.name}" for emoji in targets]
    images = [sample(pipe, prompts, [seed] * len(prompts), **sampling).images for seed in SEEDS]
    labels = judge.label(np.concatenate(images))
    return _agreement(labels, targets * len(SEEDS)) | {"pictures": len(labels)}


def _agreement(labels: list[dict[str, str]], targets: list[Emoji]) -> dict[str, float]:
    """Return the share of images whose label equals the label of the target, for style and category."""
    return {
        key: float(np.mean([label[key] == getattr(target, key) for label, target in zip(labels, targets, strict=True)]))
        for key in miniature_judge.LABELS
    }


def _judge_accuracy(
    autoencoder: typing.Any, judge: miniature_judge.JudgeNet, emojis: list[Emoji], images: torch.Tensor
) -> dict[str, float]:
    unseen = unseen_objects(emojis)
    chosen = [i for i, emoji in enumerate(emojis) if emoji.category and emoji.name in unseen]
    decoded = vae.decode(autoencoder, vae.encode(autoencoder, images[chosen]))
    labels = judge.label(vae.to_pixels(decoded))
    return _agreement(labels, [emojis[i] for i in chosen]) | {"pictures": len(labels)}
