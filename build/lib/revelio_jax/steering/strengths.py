"""Strengths as a person types them."""

import math

from revelio_jax.errors import InputError


def parse_strengths(text: str) -> list[float]:
    """``"-1,-0.5,0"`` to numbers. Raises InputError naming the one that is none."""
    strengths = []
    for part in text.split(","):
        try:
            strength = float(part)
        except ValueError:
            strength = math.nan
        if not math.isfinite(strength):
            raise InputError(f"--strength has {part.strip()!r}; allowed: finite numbers, as -1,-0.5,0")
        strengths.append(strength)
    return strengths
