"""The text-to-image pipeline of a family, as which sibling pipelines run.

Img2img, inpaint, ControlNet, Kontext, LCM and similar pipelines have the text encoders of their family, so mode text
extracts from all of them. Their denoiser is sampled or recorded as in the family's text-to-image pipeline. This is
refused if the denoiser needs other input, for example a mask or a control image.
"""

import typing

import diffusers

from revelio_jax.errors import InputError
from revelio_jax.pipelines import assembly
from revelio_jax.pipelines.source import PipelineSource, component_config

# Components that condition the denoiser on input that a prompt does not give.
CONDITIONING = ("controlnet", "adapter", "motion_adapter", "depth_estimator", "image_normalizer")


def pipeline_class(source: PipelineSource) -> type:
    """Return the class of the family's text-to-image pipeline."""
    return getattr(diffusers, source.layout.pipelines[0])


def assemble(source: PipelineSource, parts: dict[str, typing.Any]) -> typing.Any:
    """Return the family's text-to-image pipeline of the components ``parts``, with the settings of the index."""
    pipe = assembly.assemble(pipeline_class(source), parts, source.index)
    if source.id:
        pipe.register_to_config(_name_or_path=source.id)
    return pipe


def check(source: PipelineSource) -> None:
    """Raise InputError if a sibling pipeline conditions its denoiser on more than a prompt."""
    if (reason := obstacle(source)) is not None:
        raise InputError(
            f"{source.subject}, a {source.class_name}; {reason}, so it cannot run as a "
            f"{pipeline_class(source).__name__}; only its text encoders can be used, with config.extract.mode=text"
        )


def obstacle(source: PipelineSource) -> str | None:
    """Return why a pipeline cannot run as the text-to-image pipeline of its family, or None if it can."""
    layout = source.layout
    if layout.denoiser is None or source.class_name == layout.pipelines[0]:
        return None
    for name in CONDITIONING:
        if any(source.index.get(name) or ()):
            return f"it also needs its {name}"
    cls, wanted = source.index[layout.denoiser][1], layout.component_classes[layout.denoiser][0]
    if cls != wanted:
        return f"its {layout.denoiser} is a {cls}, not a {wanted}"
    channels = component_config(source, layout.denoiser).get("in_channels")
    latents = component_config(source, "vae").get("latent_channels", 4)
    # A denoiser of patches reads all values of a patch, whose edge is the size multiple of one pixel.
    taken = latents * layout.size_multiple(1) ** 2
    if channels is not None and channels != taken:
        return f"its {layout.denoiser} takes {channels} channels, where the latents have {taken}"
    return None
