"""Strengths of concepts: their types and checks."""

import dataclasses
import math
import numbers
import typing

from revelio_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Clamp:
    """A strength of a latent that sets the latent to ``value``, in the SAE's units, at every steered position."""

    value: float


Strength = float | Clamp
"""A factor on the change of a concept (negative removes, positive adds, 0 changes nothing), or a :class:`Clamp`."""
Key = typing.Hashable
"""The key of a concept: a text, the number of a latent, a file or a Concept."""


def check_strength(concept: Key, strength: typing.Any) -> Strength:
    """Return the strength as a float, or as a Clamp of a float; all types of real numbers are accepted.

    Raise InputError if it is not finite, or if it is a Clamp and ``concept`` is not a latent.
    """
    number = strength.value if isinstance(strength, Clamp) else strength
    if isinstance(strength, Clamp) and not isinstance(concept, int):
        raise InputError(f"strength of {concept!r} is {strength}; Clamp is allowed only for the number of a latent")
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or not math.isfinite(number):
        raise InputError(f"strength of {concept!r} is {strength!r}; it must be a finite number")
    return Clamp(float(number)) if isinstance(strength, Clamp) else float(number)


def parse_strengths(text: str, name: str = "--strength") -> list[float]:
    """Parse strengths, for example ``"-1,-0.5,0"``. Raise InputError with ``name`` if one is not finite."""
    strengths: list[float] = []
    for part in text.split(","):
        try:
            strength = float(part)
        except ValueError:
            strength = math.nan
        if not math.isfinite(strength):
            raise InputError(f"{name} has {part.strip()!r}; it must be finite numbers, for example -1,-0.5,0")
        strengths.append(strength)
    return strengths
