"""Make a text-to-image pipeline of the components of a loaded pipeline that needs more than a text."""

import inspect
import typing

import diffusers

from revelio_jax.errors import InputError
from revelio_jax.pipelines.families import family_of

# Arguments of pipelines that need more than a text.
IMAGE_ARGUMENTS = ("image", "control_image", "mask_image", "video", "conditioning_frames")


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
            f"the {family.denoiser} of {name} takes {config.in_channels} channels, those of an image among them, so it "
            "cannot sample images of a text alone; use the number of a latent or a saved concept"
        )
    cls: typing.Any = getattr(diffusers, family.pipelines[0])
    parts = {part: pipe.components.get(part) for part in inspect.signature(cls.__init__).parameters if part != "self"}
    options = {part: value for part, value in parts.items() if part in pipe.components}
    if "requires_safety_checker" in parts:
        options |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    try:
        twin = cls(**options)
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{name} has no text-to-image pipeline of its components: {str(error)[:200]}") from error
    twin.set_progress_bar_config(disable=True)
    return twin
