"""How good a miniature is: what the judge says of its pictures, and how good the judge is."""

import pathlib
import random
import typing

import numpy as np
import torch
from diffusers import DiffusionPipeline

from extract.miniature import vae
from extract.miniature.data import CATEGORIES, STYLES, Picture
from extract.miniature.judge import unseen_objects
from revelio_jax.benchmark import miniature_judge
from revelio_jax.pipelines import hook_points
from revelio_jax.pipelines.sampling import sample

PROMPTS = 90
SEEDS = (0, 1, 2)
_SIZES = {"height": 32, "width": 32, "batch_size": 64}
SAMPLING = {"sd": {"steps": 15, "guidance": 2.5} | _SIZES, "flux": {"steps": 15, "guidance": 3.0} | _SIZES}


def measure(
    folder: pathlib.Path, judge_folder: pathlib.Path, pictures: list[Picture], images: torch.Tensor
) -> dict[str, typing.Any]:
    """Accuracy of style and category of the pipeline in ``folder``, by the judge in ``judge_folder``.

    ``images`` [N, 3, 32, 32] are the pictures of the data, for the judge's own accuracy.
    """
    pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    judge = miniature_judge.load(judge_folder)
    sampling = SAMPLING[hook_points.family(pipe)]
    trained = [p for p in pictures if p.category and not p.held_out]
    held_out = [p for p in pictures if p.category and p.held_out]
    return {
        "sampling": sampling,
        "prompts": PROMPTS,
        "seeds": len(SEEDS),
        "trained_pairs": _judged(pipe, sampling, judge, spread(trained, PROMPTS)),
        "held_out_pairs": _judged(pipe, sampling, judge, spread(held_out, PROMPTS)),
        "judge_on_unseen_objects": _judge_accuracy(pipe.vae, judge, pictures, images),
    }


def spread(pictures: list[Picture], n: int) -> list[Picture]:
    """``n`` pictures, as evenly as can be over style and category."""
    rng = random.Random(3)
    cells = [
        rng.sample(cell, len(cell))
        for style in STYLES
        for category in CATEGORIES
        if (cell := [p for p in pictures if (p.style, p.category) == (style, category)])
    ]
    chosen: list[Picture] = []
    while len(chosen) < min(n, len(pictures)):
        for cell in cells:
            if cell and len(chosen) < n:
                chosen.append(cell.pop())
    return chosen


def _judged(
    pipe: typing.Any, sampling: dict[str, typing.Any], judge: miniature_judge.JudgeNet, wanted: list[Picture]
) -> dict[str, float]:
    prompts = [f"{p.style} emoji of {p.name}" for p in wanted]
    made = [sample(pipe, prompts, [seed] * len(prompts), **sampling) for seed in SEEDS]
    labels = judge.label(np.concatenate(made))
    return _agreement(labels, wanted * len(SEEDS)) | {"pictures": len(labels)}


def _agreement(labels: list[dict[str, str]], wanted: list[Picture]) -> dict[str, float]:
    """Share of pictures whose label is the wanted one."""
    return {
        key: float(np.mean([label[key] == getattr(w, key) for label, w in zip(labels, wanted, strict=True)]))
        for key in miniature_judge.LABELS
    }


def _judge_accuracy(
    autoencoder: typing.Any, judge: miniature_judge.JudgeNet, pictures: list[Picture], images: torch.Tensor
) -> dict[str, float]:
    unseen = unseen_objects(pictures)
    chosen = [i for i, p in enumerate(pictures) if p.category and p.name in unseen]
    decoded = vae.decode(autoencoder, vae.encode(autoencoder, images[chosen]))
    labels = judge.label(vae.to_pixels(decoded))
    return _agreement(labels, [pictures[i] for i in chosen]) | {"pictures": len(labels)}
