"""Mode noised: record activations of a denoiser on noised images, with one forward pass per timestep.

An image is encoded as the mode of the VAE's latent distribution. Each pass adds the noise of one of
config.extract.timesteps and ends after the last hook point. The noise depends only on the sample's seed and the
timestep, so it is the same in every batch and process. An image that cannot be decoded is skipped and counted; it
keeps its row of samples.parquet.
"""

import dataclasses
import typing
from collections.abc import Iterator

import numpy as np
import torch

from extract import denoiser_rows, jobs
from extract.jobs import Progress, Sample, ShardRows
from revelio_jax.config import Config, ExtractConfig
from revelio_jax.errors import InputError
from revelio_jax.inputs.images import Images, read_images
from revelio_jax.pipelines import denoiser, hook_points, loading, noising, placement, recorder
from revelio_jax.pipelines.denoiser import ActivationShape
from revelio_jax.pipelines.families import family_of
from revelio_jax.pipelines.families.base import Arguments
from revelio_jax.pipelines.hooks import HookPoint
from revelio_jax.pipelines.recorder import Recording
from revelio_jax.pipelines.source import PipelineSource
from revelio_jax.store import ModelRecord, StorePlan, Worker


@dataclasses.dataclass(frozen=True)
class NoisedJob:
    """The images, the pipeline, and the activations to record.

    ``conditioning`` are the denoiser's arguments for config.extract.prompt, with one row. ``shapes`` has an entry per
    hook point. ``model`` describes the model in the manifest.
    """

    config: Config
    images: Images
    pipe: typing.Any
    conditioning: Arguments
    shapes: dict[str, ActivationShape]
    model: ModelRecord
    unit: typing.ClassVar[str] = "image"
    passes: typing.ClassVar[int] = 1


def read_inputs(extract: ExtractConfig) -> Images:
    """Find the images and check that at least one can be decoded. Raise InputError if none can."""
    images = read_images(extract.images, extract.image_column, extract.label_column, extract.split)
    numbers = range(len(images.samples))
    if all(images.load(number, extract.height, extract.width) is None for number in numbers):
        raise InputError(f"config.extract.images {extract.images!r}: none of its {len(numbers)} images can be decoded")
    return images


def load(config: Config, images: Images, worker: Worker, source: PipelineSource) -> NoisedJob:
    """Load the pipeline and encode the prompt. Raise InputError if a field of the config does not fit the model."""
    extract, model = config.extract, config.model
    device = loading.device(model.device, worker.number)
    shapes, _ = denoiser.extraction_shapes(source, extract)
    _check_timesteps(extract.timesteps, loading.scheduler(source).config.num_train_timesteps)
    pipe = loading.load(source, model, vae_dtype="float32")
    # The fingerprint reads the weights on the CPU, before placement moves them.
    description = denoiser.model_record(source, model, device, pipe)
    placement.place(source, pipe, loading.components(source), model, device)
    family = source.layout
    with torch.inference_mode():
        conditioning = family.conditioning(pipe, extract.prompt, extract.guidance, (extract.height, extract.width))
    if source.pipe is None:
        for component in family.text_encoders.values():
            setattr(pipe, component, None)  # frees the memory of the encoders, which are not needed again
    return NoisedJob(config, images, pipe, conditioning, shapes, description)


def plan(job: NoisedJob) -> StorePlan:
    """Return the store's plan."""
    extract, samples = job.config.extract, samples_table(job)
    fields = ("prompt", *family_of(job.pipe).noised_fields)
    return denoiser_rows.plan(
        extract,
        job.shapes,
        extract.timesteps,
        len(samples),
        model=job.model,
        settings={name: getattr(extract, name) for name in fields},
        inputs={"samples": jobs.samples_fingerprint(samples), "images": job.images.fingerprint},
    )


def samples_table(job: NoisedJob) -> list[Sample]:
    """Return the images' samples, each with its ``seed``."""
    first = job.config.extract.seed
    return [sample | {"seed": first + sample["id"]} for sample in job.images.samples]


def shard_rows(job: NoisedJob, samples: range, progress: Progress) -> ShardRows:
    """Run the denoiser on the noised images numbered ``samples`` and return the rows of every hook point."""
    batches = _recorded_batches(job, samples, progress)
    return denoiser_rows.shard_rows(batches, job.shapes, job.config.extract.timesteps, samples, job.config.extract)


def _recorded_batches(job: NoisedJob, samples: range, progress: Progress) -> Iterator[tuple[list[int], Recording]]:
    """Run the denoiser on each batch; yield the ids and the recorded activations of its samples."""
    extract = job.config.extract
    points = [hook_points.resolve(job.pipe, name) for name in job.shapes]
    schedule = noising.noise_schedule(job.pipe)
    batches = [samples[start : start + extract.batch_size] for start in range(0, len(samples), extract.batch_size)]
    for batch, loaded in zip(batches, job.images.batches(batches, extract.height, extract.width), strict=True):
        images = {number: image for number, image in zip(batch, loaded, strict=True) if image is not None}
        if images:
            seeds = [extract.seed + number for number in images]
            latents = noising.encode_images(job.pipe, np.stack(list(images.values())))
            recording: Recording = {}
            for timestep in extract.timesteps:
                noised = noising.add_noise(schedule, latents, seeds, timestep)
                recording |= _pass(job, noised, timestep, points)
            yield list(images), recording
        progress(len(batch))


@torch.inference_mode()
def _pass(job: NoisedJob, latents: torch.Tensor, timestep: int, points: list[HookPoint]) -> Recording:
    """Run the denoiser once on noised latents, up to the last hook point, and return the recording."""
    family = family_of(job.pipe)
    model = family.denoiser_of(job.pipe)
    # With one entry in the schedule, every value of the timestep argument is mapped to this timestep.
    schedule = {0.0: timestep}
    with recorder.record(job.pipe, points, schedule, len(latents), job.config.extract, stop=True) as recording:
        model(**family.denoiser_arguments(latents.to(model.dtype), timestep, job.conditioning))
    return recording


def _check_timesteps(timesteps: tuple[int, ...], train_timesteps: int) -> None:
    if not timesteps:
        raise InputError("config.extract.timesteps is empty; mode noised needs at least one, for example 25,100")
    for timestep in timesteps:
        if not 0 <= timestep < train_timesteps:
            raise InputError(
                f"config.extract.timesteps contains {timestep}; this model has timesteps 0 to {train_timesteps - 1}"
            )
        if timesteps.count(timestep) > 1:
            raise InputError(f"config.extract.timesteps contains {timestep} twice")
