"""Pipelines that the caller has built: with adapters, quantized or offloaded. They are used where and as they are."""

import contextlib
import dataclasses
import typing
from collections.abc import Generator

import diffusers
import torch

from revelio_jax.config import ModelConfig
from revelio_jax.errors import InputError
from revelio_jax.pipelines import text_to_image
from revelio_jax.pipelines.devices import execution_device
from revelio_jax.pipelines.families import BY_CLASS
from revelio_jax.pipelines.source import TEXT_ENCODERS, PipelineSource, family_of_index

STEERING = "_revelio_steering"  # the attribute that revelio_jax.steering.session, a layer above, adds to a pipeline
LIBRARIES = ("diffusers", "transformers")
DTYPES = ("float32", "float16", "bfloat16")


def source_of(pipe: typing.Any) -> PipelineSource:
    """Describe a pipeline by its components. Raise InputError if it is not a diffusers pipeline of a known family."""
    if not isinstance(pipe, diffusers.DiffusionPipeline):
        raise InputError(f"pipe is a {type(pipe).__name__}; it must be a diffusers pipeline")
    classes = type(pipe).__mro__
    if STEERING in vars(pipe):
        raise InputError("pipe is steered; extract from it outside of the steering block")
    name = next((cls.__name__ for cls in classes if cls.__name__ in BY_CLASS), classes[0].__name__)
    index: dict[str, typing.Any] = {**pipe.config, "_class_name": name}
    for component, part in pipe.components.items():
        index[component] = [None, None] if part is None else _library_class(part)
    family = family_of_index(index)
    if family is None:
        raise InputError(f"pipe is a {name}; supported: {', '.join(BY_CLASS)}, and pipelines with the same components")
    for component in family.text_encoders.values():
        encoder = index.get(component, [None, None])[1]
        if encoder not in TEXT_ENCODERS:
            raise InputError(f"the {component} of pipe is {encoder}; known: {', '.join(TEXT_ENCODERS)}")
    if getattr(getattr(pipe, family.denoiser or "", None), "is_cache_enabled", False):
        raise InputError(
            f"the {family.denoiser} of pipe has a step cache, which skips blocks; call "
            f"pipe.{family.denoiser}.disable_cache() first"
        )
    return PipelineSource(str(pipe.name_or_path or ""), None, family.name, index, pipe)


def model_config(model: ModelConfig, source: PipelineSource) -> ModelConfig:
    """Return config.model with the family, dtype and device of the given pipeline.

    Raise InputError if config.model asks for another placement, or for the dtype of the weights is not supported.
    """
    for field in ("compile", "offload"):
        if getattr(model, field) != getattr(ModelConfig(), field):
            raise InputError(
                f"config.model.{field} is {getattr(model, field)!r}; a given pipeline stays as it is: "
                f"leave config.model.{field} unset, and place the pipeline before passing it"
            )
    layout = source.layout
    main = getattr(source.pipe, layout.denoiser or next(iter(layout.text_encoders.values())))
    dtype = str(main.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise InputError(f"the {layout.denoiser} of pipe has the dtype {dtype}; allowed: {', '.join(DTYPES)}")
    return dataclasses.replace(
        model,
        id=model.id or source.id or None,
        family=source.family,
        dtype=dtype,
        device=str(execution_device(main)),
    )


def text_to_image_pipeline(source: PipelineSource) -> typing.Any:
    """Return the given pipeline, or the text-to-image pipeline of its components if it is a sibling."""
    cls = text_to_image.pipeline_class(source)
    if isinstance(source.pipe, cls):
        return source.pipe
    parts = {name: part for name, part in source.pipe.components.items() if part is not None}
    pipe = text_to_image.assemble(source, parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextlib.contextmanager
def borrowed(pipe: typing.Any) -> Generator[None]:
    """Use a pipeline in the block: in evaluation mode, without progress bars, with a scheduler of its own.

    Afterwards all three are as before. Nothing is moved or cast.
    """
    scheduler, bars = getattr(pipe, "scheduler", None), getattr(pipe, "_progress_bar_config", None)
    parts = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    training = [module for part in parts for module in part.modules() if module.training]
    try:
        for module in training:
            module.training = False
        if scheduler is not None:
            pipe.scheduler = type(scheduler).from_config(scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        yield
    finally:
        for module in training:
            module.training = True
        if scheduler is not None:
            pipe.scheduler = scheduler
        if bars is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = bars


def _library_class(part: typing.Any) -> list[str | None]:
    """Return the library and the class of a component, or of its first base class that belongs to a library."""
    for cls in type(getattr(part, "_orig_mod", part)).__mro__:
        library = cls.__module__.partition(".")[0]
        if library in LIBRARIES:
            return [library, cls.__name__]
    return [type(part).__module__.partition(".")[0], type(part).__name__]
