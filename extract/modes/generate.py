"""Mode generate: record activations of a denoiser while its pipeline generates images of the prompts.

The pipeline is called as usual, with one random generator per sample. Only rows of the conditional branch are
recorded. Unless images or latents are saved, sampling ends at the last timestep to record. Columns of the prompt file
may give seed, guidance scale and size of each image.
"""

import dataclasses
import typing
from collections.abc import Iterator

import numpy as np
import PIL.Image
import pyarrow
import torch

from extract import artifacts, denoiser_rows, jobs, text_encoder
from extract.jobs import Progress, Sample, ShardRows
from revelio_jax.config import Config, ExtractConfig
from revelio_jax.errors import InputError
from revelio_jax.inputs import prompt_settings
from revelio_jax.inputs.prompt_settings import PromptSettings
from revelio_jax.inputs.prompts import read_prompts
from revelio_jax.pipelines import denoiser, hook_points, loading, placement, recorder, safety_checker
from revelio_jax.pipelines.denoiser import ActivationShape
from revelio_jax.pipelines.families import family_of
from revelio_jax.pipelines.loading import TextEncoder
from revelio_jax.pipelines.recorder import Recording
from revelio_jax.pipelines.source import PipelineSource
from revelio_jax.store import ModelRecord, StorePlan, Worker

# Fields of config.extract that determine the rows, in addition to denoiser_rows.FIELDS.
FIELDS = ("steps", "guidance", "true_cfg", "negative_prompt", "save_images", "save_latents")
COLUMNS = ("guidance_column", "height_column", "width_column")  # the seeds are a column of the samples


@dataclasses.dataclass(frozen=True)
class GenerateJob:
    """The prompts, the pipeline, and the activations to record.

    ``settings`` has an entry per prompt and ``shapes`` one per hook point. ``schedule`` maps each value of the
    denoiser's timestep argument to the timestep to record, or to None. ``model`` describes the model in the manifest.
    """

    config: Config
    prompts: list[Sample]
    settings: list[PromptSettings]
    pipe: typing.Any
    shapes: dict[str, ActivationShape]
    schedule: dict[float, int | None]
    model: ModelRecord
    unit: typing.ClassVar[str] = "image"
    passes: typing.ClassVar[int] = 1

    @property
    def timesteps(self) -> tuple[int, ...]:
        """Return the timesteps to record, in the order of the schedule."""
        return tuple(timestep for timestep in self.schedule.values() if timestep is not None)


def read_inputs(extract: ExtractConfig) -> list[Sample]:
    """Return the prompts, each with an integer ``seed``. Raise InputError if the file or a setting is invalid."""
    prompts = read_prompts(extract.prompts, extract.prompt_column, extract.shuffle)
    if line := prompt_settings.unused_seed_line(prompts, extract):
        print(line)
    if "seed" in prompts[0]:
        extract = dataclasses.replace(extract, seed_column=extract.seed_column or "seed")
    seeds = [each.seed for each in prompt_settings.read(prompts, extract)]
    first = extract.seed
    return [p | {"seed": first + p["id"] if seed is None else seed} for p, seed in zip(prompts, seeds, strict=True)]


def load(config: Config, prompts: list[Sample], worker: Worker, source: PipelineSource) -> GenerateJob:
    """Load the pipeline. Raise InputError if a field of the config does not fit it."""
    extract, model = config.extract, config.model
    device = loading.device(model.device, worker.number)
    if extract.save_latents and not source.layout.takes_prompts:
        raise InputError(
            f"config.extract.save_latents is True; it must be False for the family {source.family}, whose pipeline "
            "does not return latents"
        )
    settings = prompt_settings.read(prompts, extract)
    config = _with_size(config, settings)
    extract = config.extract
    shapes, schedule = _shapes_and_schedule(source, config, settings)
    pipe = loading.load(source, model, vae_dtype=model.dtype)
    # Raises InputError for a prompt that is not a class of a DiT.
    _call_arguments(pipe, prompts, extract, extract.guidance)
    # The fingerprint reads the weights on the CPU, before placement moves them.
    description = denoiser.model_record(source, model, device, pipe)
    placement.place(source, pipe, loading.components(source), model, device)
    return GenerateJob(config, prompts, settings, pipe, shapes, schedule, description)


def plan(job: GenerateJob) -> StorePlan:
    """Return the store's plan."""
    extract = job.config.extract
    return denoiser_rows.plan(
        extract,
        job.shapes,
        job.timesteps,
        len(job.prompts),
        model=job.model,
        settings={name: getattr(extract, name) for name in FIELDS}
        | {name: getattr(extract, name) for name in COLUMNS if getattr(extract, name)},
        inputs={"samples": jobs.samples_fingerprint(job.prompts)},
    )


def samples_table(job: GenerateJob) -> list[Sample] | pyarrow.Table:
    """Return the prompts, with their tokens if a hook point has one position per token, as in FLUX's text streams."""
    family = family_of(job.pipe)
    prefix = family.position_text_encoder
    has_text_positions = any(name.endswith(".text") for name in job.shapes) and job.config.extract.pool != "mean"
    if prefix is None or not has_text_positions:
        return job.prompts
    component = family.text_encoders[prefix]
    tokenizer = getattr(job.pipe, component.replace("text_encoder", "tokenizer"))
    encoder = TextEncoder(component, getattr(job.pipe, component), tokenizer, prefix)
    tokens = text_encoder.tokenize(encoder, [prompt["prompt"] for prompt in job.prompts])
    return text_encoder.samples_table(job.prompts, {component: encoder}, {component: tokens})


def shard_rows(job: GenerateJob, samples: range, progress: Progress) -> ShardRows:
    """Generate images of the prompts numbered ``samples`` and return the rows of every hook point."""
    batches = _recorded_batches(job, samples, progress)
    return denoiser_rows.shard_rows(batches, job.shapes, job.timesteps, samples, job.config.extract)


def _recorded_batches(job: GenerateJob, samples: range, progress: Progress) -> Iterator[tuple[list[int], Recording]]:
    """Call the pipeline on each batch; yield the ids and the recorded activations of its samples.

    Samples whose image the safety checker of a given pipeline replaces are left out.
    """
    extract = job.config.extract
    points = [hook_points.resolve(job.pipe, name) for name in job.shapes]
    runs_to_end = extract.save_images or extract.save_latents
    for numbers in _batches(job, samples):
        batch, settings = [job.prompts[number] for number in numbers], job.settings[numbers[0]]
        flags = np.zeros(len(batch), bool)
        with recorder.record(job.pipe, points, job.schedule, len(batch), extract, stop=not runs_to_end) as recording:
            images, latents, flags = _generate(job.pipe, batch, extract, settings)
            artifacts.save(extract, batch, images, latents)
        safety_checker.announce_flagged(flags, [p["prompt"] for p in batch], [p["seed"] for p in batch])
        kept = np.flatnonzero(~flags)
        if flags.any():
            recording = {t: {name: x[kept] for name, x in by_site.items()} for t, by_site in recording.items()}
        yield [numbers[i] for i in kept], recording
        progress(len(batch))


def _batches(job: GenerateJob, samples: range) -> Iterator[list[int]]:
    """Yield the ids of each batch. The samples of a batch share guidance scale and size."""
    groups: dict[typing.Hashable, list[int]] = {}
    for number in samples:
        settings = job.settings[number]
        groups.setdefault((settings.guidance, settings.size), []).append(number)
    size = job.config.extract.batch_size
    for numbers in groups.values():
        for start in range(0, len(numbers), size):
            yield numbers[start : start + size]


def _generate(
    pipe: typing.Any, batch: list[Sample], extract: ExtractConfig, settings: PromptSettings
) -> tuple[list[PIL.Image.Image], torch.Tensor | None, np.ndarray]:
    """Call the pipeline; return the images, the final latents, and which images were flagged: bool [image].

    The latents are None if the pipeline does not return them.
    """
    family = family_of(pipe)
    arguments = _call_arguments(pipe, batch, extract, settings.guidance) | {
        "num_inference_steps": extract.steps,
        # CPU generators give the same numbers on every machine.
        "generator": [torch.Generator().manual_seed(prompt["seed"]) for prompt in batch],
    }
    if not family.takes_prompts:
        return pipe(**arguments).images, None, np.zeros(len(batch), bool)
    final: dict[str, torch.Tensor] = {}

    def after_step(
        _pipe: object, _step: int, _timestep: object, tensors: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        final.update(tensors)
        return {}

    output = pipe(
        **arguments,
        height=settings.height,
        width=settings.width,
        output_type="pil" if extract.save_images else "latent",
        callback_on_step_end=after_step,
        callback_on_step_end_tensor_inputs=["latents"],
    )
    latents = family.unpacked_latents(pipe, final["latents"], settings.height, settings.width)
    return output.images, latents, safety_checker.flagged(output, len(batch))


def _call_arguments(
    pipe: typing.Any, batch: list[Sample], extract: ExtractConfig, guidance: float
) -> dict[str, typing.Any]:
    """Return the prompt and guidance arguments of the pipeline's call. Raise InputError for an unknown class."""
    texts = [prompt["prompt"] for prompt in batch]
    return family_of(pipe).guided_call_arguments(pipe, texts, guidance, extract.true_cfg, extract.negative_prompt)


def _with_size(config: Config, settings: list[PromptSettings]) -> Config:
    """Return the config with the height and width of the images, if all of them have the same size."""
    if len({each.size for each in settings}) > 1:
        return config
    height, width = settings[0].size
    return dataclasses.replace(config, extract=dataclasses.replace(config.extract, height=height, width=width))


def _shapes_and_schedule(
    source: PipelineSource, config: Config, settings: list[PromptSettings]
) -> tuple[dict[str, ActivationShape], dict[float, int | None]]:
    """Return the shapes of the hook points and the schedule.

    Raise InputError if images have several sizes and rows or timesteps depend on the size.
    """
    found: list[tuple[dict[str, ActivationShape], dict[float, int | None]]] = []
    for height, width in dict.fromkeys(each.size for each in settings):
        sized = dataclasses.replace(config.extract, height=height, width=width)
        shapes, latent = denoiser.extraction_shapes(source, sized)
        found.append((shapes, _selected(denoiser.schedule(source, config, latent), config.extract.timesteps)))
    columns = "config.extract.height_column and width_column give images of several sizes"
    if config.extract.pool != "mean" and any(shapes != found[0][0] for shapes, _ in found):
        raise InputError(f"{columns}; config.extract.pool must then be mean, because rows per image must be equal")
    if any(schedule != found[0][1] for _, schedule in found):
        raise InputError(f"{columns}, and the timesteps of this model depend on the size; split the file by size")
    return found[0]


def _selected(schedule: dict[float, int], timesteps: tuple[int, ...]) -> dict[float, int | None]:
    """Return the schedule with None for timesteps that are not in ``timesteps``; if that is empty, keep all.

    Raise InputError for a timestep that the schedule does not have.
    """
    for timestep in timesteps:
        if timestep not in schedule.values():
            raise InputError(
                f"config.extract.timesteps contains {timestep}; with config.extract.steps={len(schedule)} the "
                f"timesteps are {', '.join(map(str, schedule.values()))}"
            )
    return {value: timestep if not timesteps or timestep in timesteps else None for value, timestep in schedule.items()}
