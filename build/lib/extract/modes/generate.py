"""Activations of a denoiser while its pipeline makes pictures of the prompts.

The pipeline is called as anyone would call it, a generator a sample. Only the branch that sees the
prompt is kept. Without pictures or latents to keep, sampling ends at the last wanted timestep.
"""

import functools
import typing
from collections.abc import Iterator

import PIL.Image
import pyarrow
import torch

from extract import artifacts, denoiser_rows, jobs, text_encoder
from extract.jobs import Done, ExtractionJob, Row, Rows
from revelio_jax.config import Config, ExtractConfig
from revelio_jax.errors import InputError
from revelio_jax.inputs.prompts import read_prompts
from revelio_jax.pipelines import denoiser, hook_points, loading, placement, recorder
from revelio_jax.pipelines.denoiser import ActivationShape
from revelio_jax.pipelines.loading import TextEncoder
from revelio_jax.pipelines.recorder import Found
from revelio_jax.store import Worker


def prepare(config: Config, worker: Worker) -> ExtractionJob:
    """Check all that can be refused, load the model, plan the store. Raises InputError."""
    extract = config.extract
    samples = read_prompts(extract.prompts, extract.prompt_column, extract.shuffle)
    samples = _seeded(samples, extract.seed)
    denoiser.quiet()
    device = loading.device(config.model.device, worker.number)
    source = loading.find(config.model.id, config.model.revision, config.model.family)
    if extract.save_latents and source.family == "dit":
        raise InputError("config.extract.save_latents is True, but the family dit does not give its latents")
    shapes, latent = denoiser.wanted_shapes(source, extract)
    schedule = denoiser.schedule(source, config, latent)
    timesteps = _kept(extract.timesteps, schedule)

    pipe = denoiser.load(source, config.model, vae_dtype=config.model.dtype)
    if source.family == "dit":
        for sample in samples:
            denoiser.class_number(pipe, sample["prompt"])
    decisive = ("steps", "guidance", "true_cfg", "negative_prompt", "save_images", "save_latents")
    facts = {
        "model": denoiser.described(source, config.model, device, pipe),
        "extract": {name: getattr(extract, name) for name in decisive},
        "input": {"samples": jobs.fingerprint(samples)},
    }
    placement.place(pipe, denoiser.components(source.family), config.model, device)
    plan = denoiser_rows.plan(extract, shapes, timesteps, len(samples), facts)
    wanted = {value: t if t in timesteps else None for value, t in schedule.items()}
    shard = functools.partial(_shard, config, pipe, samples, shapes, timesteps, wanted)
    of_text = extract.pool != "mean" and any(name.endswith(".text") for name in shapes)
    return ExtractionJob(_with_tokens(pipe, samples) if of_text else samples, plan, shard, "image")


def _with_tokens(pipe: typing.Any, samples: list[Row]) -> pyarrow.Table:
    """The samples with T5's tokens: they are the positions of the text in FLUX's blocks."""
    encoder = TextEncoder("text_encoder_2", pipe.text_encoder_2, pipe.tokenizer_2, "t5")
    tokens = text_encoder.tokenise(encoder, [sample["prompt"] for sample in samples])
    return text_encoder.described(samples, {"t5": encoder}, {"t5": tokens})


def _shard(
    config: Config,
    pipe: typing.Any,
    samples: list[Row],
    shapes: dict[str, ActivationShape],
    timesteps: tuple[int, ...],
    schedule: dict[float, int | None],
    part: range,
    advance: Done,
) -> Rows:
    extract = config.extract
    hooked = [hook_points.resolve(pipe, name) for name in shapes]
    keep = extract.save_images or extract.save_latents

    def batches() -> Iterator[tuple[list[int], Found]]:
        for start in range(part.start, part.stop, extract.batch_size):
            batch = samples[start : min(start + extract.batch_size, part.stop)]
            with recorder.recorded(pipe, hooked, schedule, len(batch), extract, stop=not keep) as found:
                pictures, latents = _sampled(pipe, batch, extract)
                artifacts.save(extract, batch, pictures, latents)
            yield [sample["id"] for sample in batch], found
            advance(len(batch))

    return denoiser_rows.rows(batches(), shapes, timesteps, part, extract)


def _sampled(
    pipe: typing.Any, batch: list[Row], extract: ExtractConfig
) -> tuple[list[PIL.Image.Image], torch.Tensor | None]:
    """Call the pipeline: pictures where they are asked for, and the final latents but of a DiT."""
    family = hook_points.family(pipe)
    prompts = [sample["prompt"] for sample in batch]
    given: dict[str, typing.Any] = {
        "num_inference_steps": extract.steps,
        "guidance_scale": extract.guidance,
        # On the CPU, where a seed means the same numbers on every machine.
        "generator": [torch.Generator().manual_seed(sample["seed"]) for sample in batch],
    }
    if family == "dit":
        labels = [denoiser.class_number(pipe, prompt) for prompt in prompts]
        return pipe(class_labels=labels, **given).images, None
    given |= {"prompt": prompts, "height": extract.height, "width": extract.width}
    if family == "flux":
        given["max_sequence_length"] = denoiser.prompt_length(pipe)
    if family == "flux" and extract.true_cfg > 1:
        given |= {
            "true_cfg_scale": extract.true_cfg,
            "negative_prompt": [extract.negative_prompt] * len(batch),
        }
    elif extract.negative_prompt:
        given["negative_prompt"] = [extract.negative_prompt] * len(batch)
    last: dict[str, torch.Tensor] = {}

    def after_step(_pipe, _step, _timestep, tensors: dict[str, torch.Tensor]) -> dict:
        last.update(tensors)
        return {}

    pictures = pipe(
        **given,
        output_type="pil" if extract.save_images else "latent",
        callback_on_step_end=after_step,
        callback_on_step_end_tensor_inputs=["latents"],
    ).images
    latents = last["latents"]
    if family == "flux":
        latents = pipe._unpack_latents(latents, extract.height, extract.width, pipe.vae_scale_factor)
    return pictures, latents


def _seeded(samples: list[Row], first: int) -> list[Row]:
    """Samples with an integer ``seed``: that of their own column, else counted up from ``first``."""
    seeded = []
    for sample in samples:
        given = sample.get("seed", first + sample["id"])
        try:
            seed = int(given)
            torch.Generator().manual_seed(seed)
            if not isinstance(given, str) and seed != given:
                raise ValueError
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InputError(
                f"prompts: the seed of prompt {sample['id']} is {given!r}; it must be a whole number"
            ) from error
        seeded.append(sample | {"seed": seed})
    return seeded


def _kept(asked: tuple[int, ...], schedule: dict[float, int]) -> tuple[int, ...]:
    """Timesteps in the order of the schedule. Raises InputError for one that it does not have."""
    for timestep in asked:
        if timestep not in schedule.values():
            raise InputError(
                f"config.extract.timesteps has {timestep}; with config.extract.steps={len(schedule)} "
                f"there are {', '.join(map(str, schedule.values()))}"
            )
    return tuple(t for t in schedule.values() if not asked or t in asked)
