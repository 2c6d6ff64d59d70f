"""Checks that all methods share: their settings, the phrases of the concept, and the guidance scale."""

import math
import typing
from collections.abc import Sequence

import numpy as np

from revelio_jax.errors import InputError
from revelio_jax.pipelines.families import family_of

PAPER, RELEASED = "paper", "released"
MODES = (PAPER, RELEASED)


def check_number(name: str, value: object, low: float, high: float = math.inf) -> None:
    """Raise InputError unless ``value`` is a number from ``low`` to ``high``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        limit = f"from {low:g} to {high:g}" if high < math.inf else f"of at least {low:g}"
        raise InputError(f"{name} is {value!r}; it must be a number {limit}")


def check_whole(name: str, value: object, low: int) -> None:
    """Raise InputError unless ``value`` is a whole number of at least ``low``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise InputError(f"{name} is {value!r}; it must be a whole number of at least {low}")


def check_bool(name: str, value: object) -> None:
    """Raise InputError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise InputError(f"{name} is {value!r}; it must be True or False")


def check_text(name: str, value: object) -> None:
    """Raise InputError unless ``value`` is a text."""
    if not isinstance(value, str):
        raise InputError(f"{name} is {value!r}; it must be a text")


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise InputError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise InputError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def check_phrases(phrases: Sequence[str]) -> None:
    """Raise InputError unless ``phrases`` is a non-empty list of texts that are not blank."""
    if isinstance(phrases, str) or not phrases:
        raise InputError(f"phrases is {phrases!r}; it must be a list of at least one text that describes the concept")
    for phrase in phrases:
        check_text("a phrase of the concept", phrase)
        if not phrase.strip():
            raise InputError(f"a phrase of the concept is {phrase!r}; it must not be blank")


def check_family(method: str, pipe: typing.Any, families: Sequence[str]) -> None:
    """Raise InputError if a method does not support the family of a pipeline."""
    if (name := family_of(pipe).name) not in families:
        raise InputError(f"{method} does not support the family {name}; supported: {', '.join(families)}")


def check_guidance(method: str, guidance: float | Sequence[float]) -> None:
    """Raise InputError if an image would be sampled without the unconditional branch, where a method does nothing."""
    lowest = float(np.min(guidance))
    if lowest <= 1:
        raise InputError(
            f"guidance is {lowest:g}; it must be above 1 for {method}, which changes nothing without an unconditional "
            "branch"
        )


def check_weights_in_memory(method: str, module: typing.Any) -> None:
    """Raise InputError if the weights of a component are not in the module because of sequential offloading."""
    if any(parameter.is_meta for parameter in module.parameters()):
        raise InputError(f"config.model.offload is 'sequential'; for {method} it must be none or model")


def has_unconditional_branch(pipe: typing.Any) -> bool:
    """Return whether a pipeline runs a negative prompt if its guidance scale is above 1."""
    family = family_of(pipe)
    config = family.denoiser_of(pipe).config
    # Guidance that a denoiser takes as an embedding replaces the unconditional branch.
    is_embedded = bool(config.get("guidance_embeds")) or config.get("time_cond_proj_dim") is not None
    return family.takes_prompts and not is_embedded


def check_unconditional_branch(method: str, pipe: typing.Any) -> None:
    """Raise InputError if a pipeline never runs a negative prompt."""
    if not has_unconditional_branch(pipe):
        raise InputError(
            f"{method} changes nothing in this {type(pipe).__name__}, which has no unconditional branch: its denoiser "
            "takes the guidance scale as an embedding, or no prompts"
        )
