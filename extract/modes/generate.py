"""Mode generate: record activations of a denoiser while its pipeline generates images of the prompts.

The pipeline is called as usual, with one random generator per sample. Only rows of the conditional branch are
recorded. Unless images or latents are saved, sampling ends at the last timestep to record.
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


@dataclasses.dataclass(frozen=True)
class GenerateJob:
    """The prompts, the pipeline, and the activations to record.

    ``shapes`` has an entry per hook point. ``schedule`` maps each value of the denoiser's timestep argument to the
    timestep to record, or to None. ``model`` describes the model in the manifest.
    """

    config: Config
    prompts: list[Sample]
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
    """Return the prompts, each with an integer ``seed``. Raise InputError if the file or a seed is invalid."""
    prompts = read_prompts(extract.prompts, extract.prompt_column, extract.shuffle)
    return [prompt | {"seed": _seed(prompt, extract.seed)} for prompt in prompts]


def load(config: Config, prompts: list[Sample], worker: Worker, source: PipelineSource) -> GenerateJob:
    """Load the pipeline. Raise InputError if a field of the config does not fit it."""
    extract, model = config.extract, config.model
    device = loading.device(model.device, worker.number)
    if extract.save_latents and not source.layout.takes_prompts:
        raise InputError(
            f"config.extract.save_latents is True; it must be False for the family {source.family}, whose pipeline "
            "does not return latents"
        )
    shapes, latent = denoiser.extraction_shapes(source, extract)
    schedule = _selected(denoiser.schedule(source, config, latent), extract.timesteps)
    pipe = loading.load(source, model, vae_dtype=model.dtype)
    _call_arguments(pipe, prompts, extract)  # raises InputError for a prompt that is not a class of a DiT
    # The fingerprint reads the weights on the CPU, before placement moves them.
    description = denoiser.model_record(source, model, device, pipe)
    placement.place(source, pipe, loading.components(source), model, device)
    return GenerateJob(config, prompts, pipe, shapes, schedule, description)


def plan(job: GenerateJob) -> StorePlan:
    """Return the store's plan."""
    extract = job.config.extract
    return denoiser_rows.plan(
        extract,
        job.shapes,
        job.timesteps,
        len(job.prompts),
        model=job.model,
        settings={name: getattr(extract, name) for name in FIELDS},
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
    for start in range(samples.start, samples.stop, extract.batch_size):
        batch = job.prompts[start : min(start + extract.batch_size, samples.stop)]
        flags = np.zeros(len(batch), bool)
        with recorder.record(job.pipe, points, job.schedule, len(batch), extract, stop=not runs_to_end) as recording:
            images, latents, flags = _generate(job.pipe, batch, extract)
            artifacts.save(extract, batch, images, latents)
        safety_checker.announce_flagged(flags, [p["prompt"] for p in batch], [p["seed"] for p in batch])
        kept = np.flatnonzero(~flags)
        if flags.any():
            recording = {t: {name: x[kept] for name, x in by_site.items()} for t, by_site in recording.items()}
        yield [batch[i]["id"] for i in kept], recording
        progress(len(batch))


def _generate(
    pipe: typing.Any, batch: list[Sample], extract: ExtractConfig
) -> tuple[list[PIL.Image.Image], torch.Tensor | None, np.ndarray]:
    """Call the pipeline; return the images, the final latents, and which images were flagged: bool [image].

    The latents are None if the pipeline does not return them.
    """
    family = family_of(pipe)
    arguments = _call_arguments(pipe, batch, extract) | {
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
        height=extract.height,
        width=extract.width,
        output_type="pil" if extract.save_images else "latent",
        callback_on_step_end=after_step,
        callback_on_step_end_tensor_inputs=["latents"],
    )
    latents = family.unpacked_latents(pipe, final["latents"], extract.height, extract.width)
    return output.images, latents, safety_checker.flagged(output, len(batch))


def _call_arguments(pipe: typing.Any, batch: list[Sample], extract: ExtractConfig) -> dict[str, typing.Any]:
    """Return the prompt and guidance arguments of the pipeline's call. Raise InputError for an unknown class."""
    texts = [prompt["prompt"] for prompt in batch]
    return family_of(pipe).guided_call_arguments(
        pipe, texts, extract.guidance, extract.true_cfg, extract.negative_prompt
    )


def _seed(prompt: Sample, first: int) -> int:
    """Return the prompt's column ``seed``, or else ``first`` plus its id. Raise InputError if the seed is invalid."""
    value = prompt.get("seed", first + prompt["id"])
    try:
        seed = int(value)
        torch.Generator().manual_seed(seed)
        if not isinstance(value, str) and seed != value:
            raise ValueError
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"prompts: the seed of prompt {prompt['id']} is {value!r}; it must be a 64-bit whole number"
        ) from error
    return seed


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
