"""The shapes and the schedule of a denoiser, from its components' configs alone.

A forward pass on the meta device gives the shapes; no weights are read.
"""

import contextlib
import dataclasses
import typing

import diffusers
import torch

from revelio_jax.config import Config, ExtractConfig, ModelConfig
from revelio_jax.errors import InputError
from revelio_jax.pipelines import dependence, fingerprint, loading, text_to_image
from revelio_jax.pipelines.families import FAMILIES, Family
from revelio_jax.pipelines.families.base import LONGEST_PROMPT
from revelio_jax.pipelines.hooks import HookPoint
from revelio_jax.pipelines.source import PipelineSource, component_config, tokenizer_config

if typing.TYPE_CHECKING:
    from revelio_jax.store import ModelRecord


@dataclasses.dataclass(frozen=True)
class ActivationShape:
    """The shape of a hook point's activations for one sample at one timestep: [positions, d].

    ``input_matches``: the module's input has the same shape, so output minus input can be extracted. ``is_used``: the
    output of the denoiser depends on the activations.
    """

    positions: int
    d: int
    input_matches: bool
    is_used: bool = True


def skeleton(source: PipelineSource) -> typing.Any:
    """Return the pipeline's text encoders and denoiser on the meta device, without reading or allocating weights."""
    pipe = loading.skeleton(source)
    if component := source.layout.denoiser:
        with loading.one_line_errors(source, component):
            cls = getattr(diffusers, source.index[component][1])
            with torch.device("meta"):
                model = cls.from_config(loading.architecture(source, component))
        setattr(pipe, component, model.eval().to("meta"))  # tables created by numpy are not on meta yet
    return pipe


def extraction_shapes(
    source: PipelineSource, extract: ExtractConfig
) -> tuple[dict[str, ActivationShape], tuple[int, int, int]]:
    """Return the shapes of config.extract.sites, and the shape of the latents: [channels, height, width].

    Print a warning for hook points that no output depends on. Raise InputError if the family has no denoiser or a hook
    point is unknown. With config.extract.value=difference, also raise it if input and output of a hook point differ in
    shape.
    """
    if source.layout.denoiser is None:
        raise InputError(
            f"config.model.family is {source.family!r}, which has no denoiser; with config.extract.mode={extract.mode} "
            f"it must be one of {', '.join(family.name for family in FAMILIES if family.denoiser)}"
        )
    text_to_image.check(source)
    if extract.mode == "noised" and component_config(source, source.layout.denoiser).get("time_cond_proj_dim"):
        raise InputError(
            f"{source.subject}, a {source.class_name}; its denoiser takes the guidance scale as an embedding, which "
            "config.extract.mode=noised does not have; allowed: generate, text"
        )
    pipe = skeleton(source)
    latent = latent_shape(source, source.layout.denoiser_of(pipe), extract)
    points = [loading.hook_point(pipe, name) for name in extract.sites]
    shapes_by_name = shapes(source.layout, pipe, points, latent, prompt_tokens(source))
    dependence.warn_of_unused(extract.sites, frozenset(n for n, shape in shapes_by_name.items() if not shape.is_used))
    for name, shape in shapes_by_name.items():
        if extract.value == "difference" and not shape.input_matches:
            raise InputError(
                f"config.extract.value is 'difference'; input and output of {name} differ in shape; allowed: output"
            )
    return shapes_by_name, latent


def shapes(
    family: Family, pipe: typing.Any, points: list[HookPoint], latent: tuple[int, int, int], tokens: int | None
) -> dict[str, ActivationShape]:
    """Return the shapes of hook points of a denoiser, from a forward pass on the meta device.

    ``tokens`` is the length of the prompt, or None if the family does not fix it.
    """
    latents = torch.empty(1, *latent, device="meta")
    shapes_by_name: dict[str, ActivationShape] = {}
    with dependence.traced(points) as unused, contextlib.ExitStack() as hooks:
        for point in points:

            def record(_module, args, kwargs, output, point: HookPoint = point) -> None:
                hidden = point.read(output)
                same = point.read_input(args, kwargs).shape == hidden.shape
                shapes_by_name[point.name] = ActivationShape(hidden.shape[1], hidden.shape[2], same)

            hooks.callback(point.module.register_forward_hook(record, with_kwargs=True).remove)
        conditioning = family.empty_conditioning(pipe, latents, tokens)
        arguments = family.denoiser_arguments(latents, 0, conditioning)
        unused_names = unused(family.denoiser_of(pipe)(**arguments, return_dict=False))
    return {
        point.name: dataclasses.replace(shapes_by_name[point.name], is_used=point.name not in unused_names)
        for point in points
    }


def latent_shape(
    source: PipelineSource, denoiser: torch.nn.Module, size: typing.Any, section: str = "extract"
) -> tuple[int, int, int]:
    """Return the shape of latents, [channels, height, width], for the height and width of a config section.

    ``size`` is that section, with ``height`` and ``width`` in pixels. Raise InputError if the model does not support
    them.
    """
    vae = component_config(source, "vae")
    factor = 2 ** (len(vae.get("block_out_channels", (0,))) - 1)
    multiple, only = source.layout.size_multiple(factor), source.layout.only_size(denoiser, factor)
    for field in ("height", "width"):
        pixels = getattr(size, field)
        if pixels % multiple:
            raise InputError(
                f"config.{section}.{field} is {pixels}; it must be a multiple of {multiple} for this model"
            )
        if only and pixels != only:
            raise InputError(f"config.{section}.{field} is {pixels}; it must be {only}, the only size of this model")
    return vae.get("latent_channels", 4), size.height // factor, size.width // factor


def prompt_tokens(source: PipelineSource) -> int | None:
    """Return the number of tokens of the denoiser's text, padding included, or None if the family does not fix it."""
    if source.layout.position_text_encoder is None:
        return None
    component = source.layout.text_encoders[source.layout.position_text_encoder]
    config = tokenizer_config(source, component.replace("text_encoder", "tokenizer"))
    return min(LONGEST_PROMPT, int(config.get("model_max_length", LONGEST_PROMPT)))


def schedule(source: PipelineSource, config: Config, latent: tuple[int, int, int]) -> dict[float, int]:
    """Return the timesteps of the pipeline's schedule, in order, by the value that the denoiser receives.

    Timesteps are rounded to whole numbers. If several have the same key or value, only the first one is returned.
    """
    scheduler = loading.scheduler(source)
    with loading.one_line_errors(source, "scheduler"):
        source.layout.set_timesteps(scheduler, config.extract.steps, latent)
    timesteps: dict[float, int] = {}
    for timestep in scheduler.timesteps:
        value = timestep
        if source.layout.timestep_scale != 1:  # the pipeline scales it in the denoiser's dtype
            value = timestep.to(loading.DTYPES[config.model.dtype]) / source.layout.timestep_scale
        if round(float(timestep)) not in timesteps.values():
            timesteps.setdefault(float(value), round(float(timestep)))
    return timesteps


def model_record(source: PipelineSource, model: ModelConfig, device: torch.device, pipe: typing.Any) -> "ModelRecord":
    """Return the record of a pipeline in a store; its fingerprint covers every component with weights."""
    parts = [fingerprint.Component(name, getattr(pipe, name)) for name in loading.components(source)]
    return {
        **fingerprint.model_record(model, source, device, parts),
        "scheduler": component_config(source, "scheduler"),
    }
