"""One object per pipeline family, chosen by the class of a pipeline.

To add a family, write one file next to ``sd.py``, add its object to ``FAMILIES``, and add its name to
``revelio_jax.config.extraction.FAMILIES``.
"""

import typing

from revelio_jax.errors import InputError
from revelio_jax.pipelines.families.base import Family, PooledVector
from revelio_jax.pipelines.families.dit import DiT
from revelio_jax.pipelines.families.flux import Flux
from revelio_jax.pipelines.families.sd import StableDiffusion
from revelio_jax.pipelines.families.sdxl import StableDiffusionXL
from revelio_jax.pipelines.families.text import TextEncoderAlone

__all__ = ["BY_CLASS", "BY_NAME", "FAMILIES", "Family", "PooledVector", "denoiser_prefixes", "family_of"]

FAMILIES: tuple[Family, ...] = (StableDiffusion(), StableDiffusionXL(), Flux(), DiT(), TextEncoderAlone())
BY_NAME = {family.name: family for family in FAMILIES}
BY_CLASS = {name: family for family in FAMILIES for name in family.pipelines}


def family_of(pipe: typing.Any) -> Family:
    """Return the family of a pipeline by its class or a base class, otherwise by the classes of its components.

    Raise InputError if no family matches.
    """
    for cls in type(pipe).__mro__:
        if cls.__name__ in BY_CLASS:
            return BY_CLASS[cls.__name__]
    # Pipelines of other tasks, and pipelines without weights: the family that shares the most components.
    matching = [family for family in FAMILIES if family.matches(pipe)]
    if matching:
        return max(matching, key=lambda family: len(family.components))
    raise InputError(
        f"{type(pipe).__name__} is not a supported pipeline; supported: pipelines with the components of "
        f"{', '.join(BY_CLASS)}, and text encoders alone"
    )


def denoiser_prefixes() -> tuple[str, ...]:
    """Return the first parts of the names of all denoiser hook points."""
    return tuple(dict.fromkeys(family.denoiser_prefix for family in FAMILIES if family.denoiser_prefix))
