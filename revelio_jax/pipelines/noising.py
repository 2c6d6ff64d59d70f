"""Noise images for a denoiser: latents, and noise that depends only on a sample's seed and the timestep."""

import typing

import diffusers
import numpy as np
import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines.families import family_of


def noise_schedule(pipe: typing.Any) -> typing.Any:
    """Return a scheduler with the noise of the denoiser's training, which may differ from the pipeline's scheduler."""
    if family_of(pipe).is_flow:
        return pipe.scheduler
    return diffusers.DDPMScheduler.from_config(pipe.scheduler.config)


@torch.inference_mode()
def encode_images(pipe: typing.Any, images: np.ndarray) -> torch.Tensor:
    """Return float32 latents of images [sample, 3, height, width]: the shifted and scaled mode of the VAE."""
    vae = pipe.vae
    pixels = torch.from_numpy(images).to(pipe._execution_device, vae.dtype)
    mode = vae.encode(pixels).latent_dist.mode().float()
    return (mode - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


@torch.inference_mode()
def add_noise(schedule: typing.Any, latents: torch.Tensor, seeds: list[int], timestep: int) -> torch.Tensor:
    """Return latents [sample, channel, height, width] with the noise of ``timestep``, in float32.

    The noise of a sample depends only on its seed and the timestep. ``schedule`` is :func:`noise_schedule`.
    """
    noise = noise_of(latents, seeds, timestep)
    if not hasattr(schedule, "add_noise"):  # rectified flow: a straight line from image to noise
        sigma = timestep / schedule.config.num_train_timesteps
        return (1 - sigma) * latents + sigma * noise
    return schedule.add_noise(latents, noise, _timesteps(latents, timestep))


@torch.inference_mode()
def target(schedule: typing.Any, latents: torch.Tensor, seeds: list[int], timestep: int) -> torch.Tensor:
    """Return what the denoiser was trained to predict for :func:`add_noise`, of the shape of ``latents``.

    That is the noise, the velocity (arXiv 2202.00512), the image, or with rectified flow the noise minus the image.
    Raise InputError if the scheduler's ``prediction_type`` is unknown.
    """
    noise = noise_of(latents, seeds, timestep)
    if not hasattr(schedule, "add_noise"):
        return noise - latents
    kind = schedule.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return schedule.get_velocity(latents, noise, _timesteps(latents, timestep))
    if kind == "sample":
        return latents
    raise InputError(f"the scheduler's prediction_type is {kind!r}; it must be epsilon, v_prediction or sample")


def noise_of(latents: torch.Tensor, seeds: list[int], timestep: int) -> torch.Tensor:
    """Return the noise of samples with these seeds, of the shape, dtype and device of ``latents``."""
    return torch.stack([_noise(latents.shape[1:], seed, timestep) for seed in seeds]).to(latents)


def _noise(shape: torch.Size, seed: int, timestep: int) -> torch.Tensor:
    # CPU generators give the same numbers on every machine.
    mixed_seed = int(np.random.SeedSequence([seed, timestep]).generate_state(1, np.uint64)[0])
    return torch.randn(shape, generator=torch.Generator().manual_seed(mixed_seed))


def _timesteps(latents: torch.Tensor, timestep: int) -> torch.Tensor:
    return torch.full((len(latents),), timestep, device=latents.device)
