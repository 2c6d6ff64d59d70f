"""Assemble diffusers pipelines from components."""

import inspect
import typing
from collections.abc import Mapping

import diffusers

from revelio_jax.errors import InputError
from revelio_jax.pipelines.families import family_of

SAFETY_CHECKER = ("safety_checker", "feature_extractor")
# Arguments of pipelines that need more than a text.
IMAGE_ARGUMENTS = ("image", "control_image", "mask_image", "video", "conditioning_frames")


def assemble(cls: typing.Any, parts: Mapping[str, typing.Any], settings: Mapping[str, typing.Any]) -> typing.Any:
    """Return a pipeline of the class ``cls`` with the components ``parts``.

    Other arguments of the class come from ``settings``, which is a model_index.json or the config of a pipeline; its
    entries for components are ignored. Components that are missing are None.
    """
    arguments: dict[str, typing.Any] = {}
    for name, parameter in list(inspect.signature(cls.__init__).parameters.items())[1:]:
        setting = settings.get(name)
        default = None if parameter.default is inspect.Parameter.empty else parameter.default
        arguments[name] = parts.get(name, default if setting is None or isinstance(setting, list | tuple) else setting)
    if "requires_safety_checker" in arguments:
        arguments["requires_safety_checker"] = arguments.get("safety_checker") is not None
    return cls(**arguments)


def text_to_image_twin(pipe: typing.Any) -> typing.Any:
    """Return ``pipe``, or a text-to-image pipeline of its components if it needs more than a text.

    Raise InputError if the components cannot generate images from a text alone.
    """
    if not set(inspect.signature(type(pipe).__call__).parameters) & set(IMAGE_ARGUMENTS):
        return pipe
    family = family_of(pipe)
    denoiser, name = family.denoiser_of(pipe), type(pipe).__name__
    denoiser = getattr(denoiser, "_orig_mod", denoiser)  # torch.compile wraps a module
    config = denoiser.config
    if type(denoiser).__name__ != family.component_classes[family.denoiser or ""][0]:
        raise InputError(
            f"the {family.denoiser} of {name} is a {type(denoiser).__name__}, so it cannot sample images of a text "
            "alone; use the number of a latent or a saved concept"
        )
    if (config.out_channels or config.in_channels) != config.in_channels:
        raise InputError(
            f"the {family.denoiser} of {name} takes {config.in_channels} channels, including those of an image, so it "
            "cannot sample images of a text alone; use the number of a latent or a saved concept"
        )
    parts = {part: value for part, value in pipe.components.items() if part not in SAFETY_CHECKER}
    try:
        twin = assemble(getattr(diffusers, family.pipelines[0]), parts, pipe.config)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{name} has no text-to-image pipeline of its components: {str(error)[:200]}") from error
    twin.set_progress_bar_config(disable=True)
    return twin
