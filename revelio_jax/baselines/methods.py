"""The methods by name, their settings, and the checks that need no model."""

import contextlib
import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence

from revelio_jax.baselines.checkpoint import Checkpoint, checkpoint
from revelio_jax.baselines.negative_prompt import NegativePrompt, negative_prompt
from revelio_jax.baselines.plain import Plain, plain
from revelio_jax.baselines.safree import FAMILIES as SAFREE_FAMILIES
from revelio_jax.baselines.safree import Safree, safree
from revelio_jax.baselines.sampler import Sampler
from revelio_jax.baselines.settings import PAPER, check_choice, check_guidance
from revelio_jax.baselines.sld import FAMILIES as SLD_FAMILIES
from revelio_jax.baselines.sld import Sld, sld
from revelio_jax.baselines.technique import Technique, technique
from revelio_jax.baselines.trasce import FAMILIES as TRASCE_FAMILIES
from revelio_jax.baselines.trasce import Trasce, trasce
from revelio_jax.errors import InputError
from revelio_jax.pipelines.families import FAMILIES

Settings = typing.Any  # the frozen dataclass of a method
DENOISING = tuple(family.name for family in FAMILIES if family.denoiser)


@dataclasses.dataclass(frozen=True)
class Method:
    """A method: its settings, and a context manager that yields a Sampler for a pipeline and the concept's phrases.

    ``families`` are the families that it supports. ``needs_guidance`` returns whether the method with some settings
    needs a guidance scale above 1. ``source`` names the paper.
    """

    settings: type
    open: Callable[[typing.Any, Sequence[str], Settings], contextlib.AbstractContextManager[Sampler]]
    families: tuple[str, ...]
    needs_guidance: Callable[[Settings], bool]
    source: str


def _always(_settings: Settings) -> bool:
    return True


def _never(_settings: Settings) -> bool:
    return False


METHODS: dict[str, Method] = {
    "plain": Method(Plain, plain, DENOISING, _never, "the loaded pipeline"),
    "negative_prompt": Method(NegativePrompt, negative_prompt, ("sd", "sdxl", "flux"), _always, "diffusers"),
    "sld": Method(Sld, sld, SLD_FAMILIES, _always, "arXiv 2211.05105"),
    "safree": Method(Safree, safree, SAFREE_FAMILIES, lambda each: each.mode != PAPER, "arXiv 2410.12761"),
    "trasce": Method(Trasce, trasce, TRASCE_FAMILIES, _always, "arXiv 2412.07658"),
    "checkpoint": Method(Checkpoint, checkpoint, DENOISING, _never, "the checkpoint's"),
    "technique": Method(Technique, technique, ("sd",), _never, "eval-unlearn"),
}


def make_settings(name: str, fields: Mapping[str, typing.Any]) -> Settings:
    """Return the settings of the method ``name``.

    Raise InputError if the method or a field is unknown, or a value is not allowed.
    """
    check_choice("method", name, tuple(METHODS))
    cls = METHODS[name].settings
    parameters = inspect.signature(cls).parameters
    for field in fields:
        if field not in parameters:
            allowed = f"allowed: {', '.join(parameters)}" if parameters else "it has no settings"
            raise InputError(f"unknown setting {field!r} of the method {name}; {allowed}")
    for field, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and field not in fields:
            raise InputError(f"the method {name} needs the setting {field}")
    try:
        return cls(**fields)
    except InputError as error:
        raise InputError(f"method {name}: {error}") from error


def check_method(name: str, settings: Settings, family: str, guidance: float | Sequence[float]) -> None:
    """Raise InputError if a method cannot run with a family and the guidance scales, before a model is loaded."""
    method = METHODS[name]
    if family not in method.families:
        raise InputError(f"{name} does not support the family {family}; supported: {', '.join(method.families)}")
    if method.needs_guidance(settings):
        check_guidance(name, guidance)


def open_method(
    name: str, pipe: typing.Any, phrases: Sequence[str], settings: Settings
) -> contextlib.AbstractContextManager[Sampler]:
    """Return a context manager that yields the Sampler of a method; after the block, ``pipe`` is as before.

    ``phrases`` describe the concept to remove. ``settings`` come from :func:`make_settings`. Opening raises InputError
    if the method does not support the pipeline.
    """
    return METHODS[name].open(pipe, phrases, settings)
