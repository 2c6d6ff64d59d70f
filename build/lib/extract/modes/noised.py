"""Activations of a denoiser on noised pictures: one forward pass a timestep, which ends after the last site.

A picture becomes the mode of the VAE's latents; at each of config.extract.timesteps it gets noise that
depends on the sample's seed and the timestep alone, so it is the same in every batch and process. A
picture that does not decode is skipped and counted; its row of samples.parquet stays.
"""

import functools
import typing
from collections.abc import Iterator

import diffusers
import numpy as np
import torch

from extract import denoiser_rows, jobs
from extract.jobs import Done, ExtractionJob, Row, Rows
from revelio_jax.config import Config, ExtractConfig
from revelio_jax.errors import InputError
from revelio_jax.inputs.images import Images, read_images
from revelio_jax.pipelines import denoiser, hook_points, loading, placement, recorder
from revelio_jax.pipelines.denoiser import ActivationShape, Tensors
from revelio_jax.pipelines.recorder import Found
from revelio_jax.store import Worker


def prepare(config: Config, worker: Worker) -> ExtractionJob:
    """Check all that can be refused, load the model, plan the store. Raises InputError."""
    extract = config.extract
    images = read_images(extract.images, extract.image_column, extract.label_column, extract.split)
    denoiser.quiet()
    device = loading.device(config.model.device, worker.number)
    source = loading.find(config.model.id, config.model.revision, config.model.family)
    shapes, _ = denoiser.wanted_shapes(source, extract)
    _check_timesteps(extract.timesteps, denoiser.scheduler(source).config.num_train_timesteps)
    every = range(len(images.samples))
    if all(images.load(number, extract.height, extract.width) is None for number in every):
        raise InputError(f"config.extract.images {extract.images!r}: none of its {len(every)} pictures can be decoded")

    samples = [sample | {"seed": extract.seed + sample["id"]} for sample in images.samples]
    pipe = denoiser.load(source, config.model, vae_dtype="float32")
    fields = {"prompt": extract.prompt} | ({"guidance": extract.guidance} if source.family == "flux" else {})
    facts = {
        "model": denoiser.described(source, config.model, device, pipe),
        "extract": fields,
        "input": {"samples": jobs.fingerprint(samples), "images": images.fingerprint},
    }
    placement.place(pipe, denoiser.components(source.family), config.model, device)
    plan = denoiser_rows.plan(extract, shapes, extract.timesteps, len(samples), facts)
    conditioning = denoiser.encoded(pipe, extract)
    for component in hook_points.TEXT_ENCODERS[source.family].values():
        setattr(pipe, component, None)  # they are not needed again, and T5 is large
    shard = functools.partial(_shard, config, pipe, conditioning, images, samples, shapes)
    return ExtractionJob(samples, plan, shard, "image")


@torch.inference_mode()
def noised(schedule: typing.Any, latents: torch.Tensor, seeds: list[int], timestep: int) -> torch.Tensor:
    """Latents [sample, channel, height, width] with the noise of ``timestep``, in float32.

    A sample's noise depends on its seed and the timestep alone. ``schedule`` is :func:`noise_schedule`.
    """
    noise = torch.stack([_noise(latents.shape[1:], seed, timestep) for seed in seeds]).to(latents)
    if not hasattr(schedule, "add_noise"):  # rectified flow: a straight line from picture to noise
        sigma = timestep / schedule.config.num_train_timesteps
        return (1 - sigma) * latents + sigma * noise
    return schedule.add_noise(latents, noise, torch.full((len(latents),), timestep, device=latents.device))


def noise_schedule(pipe: typing.Any) -> typing.Any:
    """A scheduler with the noise that the denoiser was trained on, whatever the pipeline samples with."""
    if hook_points.family(pipe) == "flux":
        return pipe.scheduler
    return diffusers.DDPMScheduler.from_config(pipe.scheduler.config)


@torch.inference_mode()
def latents_of(pipe: typing.Any, pictures: np.ndarray) -> torch.Tensor:
    """Latents, float32, of pictures [sample, 3, height, width]: the mode, shifted and scaled."""
    vae = pipe.vae
    pixels = torch.from_numpy(pictures).to(pipe._execution_device, vae.dtype)
    mode = vae.encode(pixels).latent_dist.mode().float()
    return (mode - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor


def _shard(
    config: Config,
    pipe: typing.Any,
    conditioning: Tensors,
    images: Images,
    samples: list[Row],
    shapes: dict[str, ActivationShape],
    part: range,
    advance: Done,
) -> Rows:
    extract = config.extract
    wanted = [hook_points.resolve(pipe, name) for name in shapes]

    schedule = noise_schedule(pipe)
    size = extract.batch_size
    numbers = [part[start : start + size] for start in range(0, len(part), size)]

    def batches() -> Iterator[tuple[list[int], Found]]:
        loading = images.batches(numbers, extract.height, extract.width)
        for asked, loaded in zip(numbers, loading, strict=True):
            pictures = {number: picture for number, picture in zip(asked, loaded, strict=True) if picture is not None}
            if pictures:
                seeds = [samples[number]["seed"] for number in pictures]
                latents = latents_of(pipe, np.stack(list(pictures.values())))
                found: Found = {}
                for timestep in extract.timesteps:
                    given = noised(schedule, latents, seeds, timestep)
                    found |= _pass(pipe, given, timestep, conditioning, wanted, extract)
                yield list(pictures), found
            advance(len(asked))

    return denoiser_rows.rows(batches(), shapes, extract.timesteps, part, extract)


@torch.inference_mode()
def _pass(
    pipe: typing.Any,
    latents: torch.Tensor,
    timestep: int,
    conditioning: Tensors,
    wanted: list[hook_points.HookPoint],
    extract: ExtractConfig,
) -> Found:
    """Run the denoiser once on noised latents, as far as its last wanted site."""
    family = hook_points.family(pipe)
    model = getattr(pipe, hook_points.DENOISERS[family])
    # Any value of the argument is this pass's.
    with recorder.recorded(pipe, wanted, {0.0: timestep}, len(latents), extract, stop=True) as found:
        model(**denoiser.arguments(family, latents.to(model.dtype), timestep, conditioning))
    return found


def _noise(shape: torch.Size, seed: int, timestep: int) -> torch.Tensor:
    # On the CPU, where a seed means the same numbers on every machine.
    mixed = int(np.random.SeedSequence([seed, timestep]).generate_state(1, np.uint64)[0])
    return torch.randn(shape, generator=torch.Generator().manual_seed(mixed))


def _check_timesteps(timesteps: tuple[int, ...], trained: int) -> None:
    if not timesteps:
        raise InputError("config.extract.timesteps is empty; mode noised needs some, such as (25, 100)")
    for timestep in timesteps:
        if not 0 <= timestep < trained:
            raise InputError(f"config.extract.timesteps has {timestep}; this model has 0 to {trained - 1}")
        if timesteps.count(timestep) > 1:
            raise InputError(f"config.extract.timesteps has {timestep} twice")
