"""What a person asks for in the page: a picture, and what is steered in it. Both are keys of what is kept."""

import base64
import dataclasses
import io
import math

import numpy as np
import PIL.Image

from revelio_jax.errors import InputError
from revelio_jax.pipelines import tokens
from revelio_jax.steering.strengths import Strength

MOST_STEPS, MOST_TEXT = 1000, 10_000
MOST_PAINTED, MOST_SIDE = 8_000_000, 4096  # bytes and pixels of what is painted


@dataclasses.dataclass(frozen=True)
class SamplingRequest:
    """A picture without steering."""

    prompt: str
    seed: int
    steps: int
    guidance: float
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class SteeringRequest:
    """What :meth:`Steerer.attach` is given; ``mask`` is :func:`png_of` one, ``positions`` may be numbers."""

    concepts: tuple[tuple[str | int, Strength], ...]
    rule: str
    positions: str | tuple[int, ...] = "all"
    steps: tuple[float, float] | None = None
    ramp: tuple[float, float] = (1.0, 1.0)
    mask: bytes | None = None
    pooled: bool | None = None
    negative_branch: bool | None = None

    def with_strength(self, key: str | int, strength: Strength) -> "SteeringRequest":
        """The same with another strength of one concept."""
        concepts = tuple((k, strength if k == key else held) for k, held in self.concepts)
        return dataclasses.replace(self, concepts=concepts)


def sampling(
    prompt: str | None, seed: float | None, steps: float | None, guidance: float | None, size: tuple[int, int]
) -> SamplingRequest:
    """What the fields of the page say, and the picture's height and width. Raises InputError."""
    return SamplingRequest(
        text("prompt", prompt),
        whole("seed", seed, 0, 2**53),
        whole("steps", steps, 1, MOST_STEPS),
        number("guidance", guidance, 0.0, 100.0),
        *size,
    )


def text(name: str, given: str | None) -> str:
    """What was typed, without the space around it. Raises InputError where nothing is left."""
    typed = (given or "").strip()
    if not typed:
        raise InputError(f"the {name} is empty; type what the picture shows, as a red apple")
    if len(typed) > MOST_TEXT:
        raise InputError(f"the {name} has {len(typed):,} letters; {MOST_TEXT:,} are allowed")
    return typed


def whole(name: str, value: float | None, low: int, high: int) -> int:
    """Raises InputError where ``value`` is no whole number in low .. high."""
    if value is None or not math.isfinite(value) or value != int(value) or not low <= value <= high:
        shown = "empty" if value is None else f"{value:g}"
        raise InputError(f"{name} is {shown}; it must be a whole number from {low} to {high}")
    return int(value)


def number(name: str, value: float | None, low: float, high: float) -> float:
    """Raises InputError where ``value`` is no number in low .. high."""
    if value is None or not math.isfinite(value) or not low <= value <= high:
        shown = "empty" if value is None else f"{value:g}"
        raise InputError(f"{name} is {shown}; it must be a number from {low:g} to {high:g}")
    return float(value)


def concept(typed: str | None) -> str:
    """A concept as a text. Raises InputError: a name of a file would be read as one."""
    typed = text("concept", typed)
    if typed.endswith(".safetensors"):
        raise InputError(f"the concept is {typed!r}; here it is a text, such as glossy 3d, and no file")
    return typed


def positions(typed: str | None) -> str | tuple[int, ...]:
    """``content``, or numbers of tokens as ``2,5-7``. Raises InputError."""
    typed = (typed or "all").strip()
    if typed in tokens.KEPT:
        return typed
    numbers: set[int] = set()
    for part in typed.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)) or len(part) > 12:
            raise InputError(
                f"positions is {typed[:40]!r}; allowed: {', '.join(tokens.KEPT)}, or numbers of tokens, as 2,5-7"
            )
        first, last = int(first), int(last or first)
        if not first <= last < 4096:
            raise InputError(f"positions has {part.strip()}; numbers of tokens go up from 0")
        numbers |= set(range(first, last + 1))
    return tuple(sorted(numbers))


def timesteps(first: float | None, last: float | None) -> tuple[float, float] | None:
    """From first down to last; None where that is all. Raises InputError."""
    steps = number("from timestep", first, 0, 1000), number("to timestep", last, 0, 1000)
    if steps[0] < steps[1]:
        raise InputError(f"timesteps go from {steps[0]:g} to {steps[1]:g}; they fall, as from 1000 to 600")
    return None if steps == (1000, 0) else steps


def png_of(mask: np.ndarray) -> bytes | None:
    """A mask [height, width] in 0 .. 1 as PNG of 8 bit; None where nothing is painted."""
    grey = np.round(mask * 255).astype(np.uint8)
    if not grey.any():
        return None
    written = io.BytesIO()
    PIL.Image.fromarray(grey).save(written, "png", optimize=True)
    return written.getvalue()


def mask_of(png: bytes) -> np.ndarray:
    """The mask float32 [height, width] of :func:`png_of`."""
    return np.asarray(PIL.Image.open(io.BytesIO(png)), np.float32) / 255


def painted(address: str | None, height: int, width: int) -> bytes | None:
    """The mask of a picture of height x width, from what was painted: where that is opaque, it is 1.

    ``address`` is that of a PNG of any size, data:image/png;base64,...; None or "" is nothing painted.
    Raises InputError.
    """
    if not address:
        return None
    try:
        head, _, data = address.partition(",")
        if head != "data:image/png;base64" or len(data) > MOST_PAINTED:
            raise ValueError(f"{len(data)} bytes of {head[:30]!r}")
        picture = PIL.Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=["PNG"])
        if max(picture.size) > MOST_SIDE:
            raise ValueError(f"{picture.size} pixels")
        opaque = picture.convert("RGBA").getchannel("A")
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise InputError(f"the mask cannot be read: {error}; clear it and paint it again") from error
    return png_of(np.asarray(opaque.resize((width, height), PIL.Image.Resampling.BOX), np.float32) / 255)
