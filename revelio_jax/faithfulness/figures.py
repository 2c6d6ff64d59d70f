"""Measure what a pipeline does: the prompt embedding, the denoiser's loss, and the picture.

Each figure is an array with a value per sample, so that intervals over samples can be computed.
"""

import dataclasses
import typing
from collections.abc import Sequence

import numpy as np
import torch

from revelio_jax.benchmark.judgment import DETECTED, Judge
from revelio_jax.pipelines import noising
from revelio_jax.pipelines.families import family_of
from revelio_jax.pipelines.families.base import Arguments
from revelio_jax.steering.labels import LabeledPrompt

FIGURES = {
    "embedding": "distance of the prompt embedding",
    "loss": "denoising loss",
    "pixels": "pixel distance",
    "accuracy": "judge accuracy",
}


@dataclasses.dataclass(frozen=True)
class NoisedImages:
    """Latents [N, C, h, w] of images of one size in pixels, the seeds of their noise, and the timesteps of the loss.

    ``prompts`` condition the denoiser, one per image.
    """

    latents: torch.Tensor
    seeds: list[int]
    timesteps: tuple[int, ...]
    prompts: list[str]
    size: tuple[int, int]
    guidance: float
    batch_size: int

    def conditioning(self, pipe: typing.Any) -> Arguments:
        """Encode the prompts; see :func:`encode`."""
        return encode(pipe, self.prompts, self.guidance, self.size)


@torch.inference_mode()
def encode(pipe: typing.Any, prompts: Sequence[str], guidance: float, size: tuple[int, int]) -> Arguments:
    """Return the arguments of the denoiser that depend on prompts, one row per prompt.

    ``guidance`` is the scale that a distilled FLUX takes as an input, ``size`` height and width in pixels. Patches of
    text encoders act on the prompts.
    """
    distinct = {prompt: family_of(pipe).conditioning(pipe, prompt, guidance, size) for prompt in dict.fromkeys(prompts)}
    rows = [distinct[prompt] for prompt in prompts]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def embedding_distance(changed: Arguments, plain: Arguments) -> np.ndarray:
    """Return the relative distance of each prompt's embedding to the plain one, float64 [prompts].

    The denoiser receives one or two tensors of a prompt: its tokens, and in SDXL and FLUX a pooled vector. The distance
    is the mean over these tensors of |changed - plain| / |plain|. Tensors that are equal for all prompts, for example
    the image size, are left out.
    """
    names = [name for name, row in plain.items() if row.is_floating_point() and not (row == row[:1]).all()]
    names = names or [name for name, row in plain.items() if row.is_floating_point() and row.ndim == 3]
    distances = [
        (changed[name].float() - plain[name].float()).flatten(1).norm(dim=1)
        / plain[name].float().flatten(1).norm(dim=1)
        for name in names
    ]
    return torch.stack(distances).mean(0).double().cpu().numpy()


@torch.inference_mode()
def denoising_loss(pipe: typing.Any, noised: NoisedImages, conditioning: Arguments) -> np.ndarray:
    """Return the mean squared error of the denoiser's prediction, float64 [images, timesteps].

    The noise of an image at a timestep is the same in every call. ``conditioning`` has one row per image. Passes are
    not guided.
    """
    family, schedule = family_of(pipe), noising.noise_schedule(pipe)
    model = family.denoiser_of(pipe)
    losses = np.empty((len(noised.seeds), len(noised.timesteps)))
    for start in range(0, len(noised.seeds), noised.batch_size):
        part = slice(start, start + noised.batch_size)
        latents, seeds = noised.latents[part], noised.seeds[part]
        rows = {name: tensor[part] for name, tensor in conditioning.items()}
        for i, timestep in enumerate(noised.timesteps):
            x = noising.add_noise(schedule, latents, seeds, timestep)
            output = model(**family.denoiser_arguments(x.to(model.dtype), timestep, rows), return_dict=False)[0]
            output = family.unpacked_latents(pipe, output.float(), *noised.size)[:, : latents.shape[1]]
            error = output - noising.target(schedule, latents, seeds, timestep)
            losses[part, i] = error.square().flatten(1).mean(1).double().cpu().numpy()
    return losses


def judge_accuracy(judge: Judge, images: np.ndarray, rows: Sequence[LabeledPrompt]) -> np.ndarray:
    """Return the share of correct labels of each image, float64 [images]; NaN if its prompt has no judged label.

    A judge that only detects a concept has no correct labels: all values are NaN.
    """
    shares: list[float] = []
    for judgment, row in zip(judge.judge(images), rows, strict=True):
        columns = [column for column in judge.columns if column != DETECTED and row.get(column)]
        shares.append(float(np.mean([judgment.labels[c] == row[c] for c in columns])) if columns else np.nan)
    return np.array(shares)
