"""Requests of the page: an image and its steering, read from the page's fields. Both are keys of the image cache."""

import base64
import dataclasses
import io
import math

import numpy as np
import PIL.Image

from revelio_jax.errors import InputError
from revelio_jax.pipelines import tokens
from revelio_jax.steering.strengths import Strength

MAX_STEPS, MAX_CHARACTERS, MAX_TOKENS = 1000, 10_000, 4096
MAX_MASK_BYTES, MAX_MASK_SIDE = 8_000_000, 4096  # of a painted mask; the side is in pixels


@dataclasses.dataclass(frozen=True)
class SamplingRequest:
    """The settings of an image, without steering."""

    prompt: str
    seed: int
    steps: int
    guidance: float
    height: int
    width: int


@dataclasses.dataclass(frozen=True)
class SteeringRequest:
    """Arguments of :meth:`Steerer.attach`. ``mask`` is a PNG file, ``positions`` may be token numbers."""

    concepts: tuple[tuple[str | int, Strength], ...]
    rule: str
    positions: str | tuple[int, ...] = "all"
    steps: tuple[float, float] | None = None
    ramp: tuple[float, float] = (1.0, 1.0)
    mask: bytes | None = None
    pooled: bool | None = None
    negative_branch: bool | None = None

    def with_strength(self, key: str | int, strength: Strength) -> "SteeringRequest":
        """Return the request with another strength of one concept."""
        concepts = tuple((k, strength if k == key else old) for k, old in self.concepts)
        return dataclasses.replace(self, concepts=concepts)


def sampling(
    prompt: str | None, seed: float | None, steps: float | None, guidance: float | None, size: tuple[int, int]
) -> SamplingRequest:
    """Return the request in the page's fields; ``size`` is the image's height and width.

    Raise InputError if a value is not allowed.
    """
    return SamplingRequest(
        text("prompt", prompt),
        whole("seed", seed, 0, 2**53),
        whole("steps", steps, 1, MAX_STEPS),
        number("guidance", guidance, 0.0, 100.0),
        *size,
    )


def text(name: str, value: str | None) -> str:
    """Return the stripped text of a field. Raise InputError if it is empty or too long."""
    stripped = (value or "").strip()
    if not stripped:
        raise InputError(f"the {name} is empty; type a text, for example: a red apple")
    if len(stripped) > MAX_CHARACTERS:
        raise InputError(f"the {name} has {len(stripped):,} characters; it must have at most {MAX_CHARACTERS:,}")
    return stripped


def whole(name: str, value: float | None, low: int, high: int) -> int:
    """Return ``value`` as an int. Raise InputError if it is not a whole number in low .. high."""
    if value is None or not math.isfinite(value) or value != int(value) or not low <= value <= high:
        shown = "empty" if value is None else f"{value:g}"
        raise InputError(f"{name} is {shown}; it must be a whole number from {low} to {high}")
    return int(value)


def number(name: str, value: float | None, low: float, high: float) -> float:
    """Return ``value`` as a float. Raise InputError if it is not a number in low .. high."""
    if value is None or not math.isfinite(value) or not low <= value <= high:
        shown = "empty" if value is None else f"{value:g}"
        raise InputError(f"{name} is {shown}; it must be a number from {low:g} to {high:g}")
    return float(value)


def concept(value: str | None) -> str:
    """Return the text of a concept. Raise InputError for a file name, because the steerer would open the file."""
    stripped = text("concept", value)
    if stripped.endswith(".safetensors"):
        raise InputError(f"the concept is {stripped!r}; it must be a text, for example glossy 3d, not a file")
    return stripped


def positions(value: str | None) -> str | tuple[int, ...]:
    """Return a rule for positions, or token numbers from a list, for example ``2,5-7``. Raise InputError otherwise."""
    stripped = (value or "all").strip()
    if stripped in tokens.KEPT:
        return stripped
    numbers: set[int] = set()
    for part in stripped.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)) or len(part) > 12:
            raise InputError(
                f"tokens is {stripped[:40]!r}; it must be {', '.join(tokens.KEPT)}, or numbers, for example 2,5-7"
            )
        first, last = int(first), int(last or first)
        if not first <= last < MAX_TOKENS:
            raise InputError(f"tokens has {part.strip()}; a range must increase and stay below {MAX_TOKENS}")
        numbers |= set(range(first, last + 1))
    return tuple(sorted(numbers))


def timesteps(first: float | None, last: float | None) -> tuple[float, float] | None:
    """Return the first and the last timestep, or None for the whole range. Raise InputError if they increase."""
    limits = number("from timestep", first, 0, 1000), number("to timestep", last, 0, 1000)
    if limits[0] < limits[1]:
        raise InputError(f"timesteps are {limits[0]:g} to {limits[1]:g}; they must decrease, for example 1000 to 600")
    return None if limits == (1000, 0) else limits


def png_of(mask: np.ndarray) -> bytes | None:
    """Return a mask [height, width] in 0 .. 1 as an 8-bit PNG file, or None if it is 0 everywhere."""
    gray = np.round(mask * 255).astype(np.uint8)
    if not gray.any():
        return None
    file = io.BytesIO()
    PIL.Image.fromarray(gray).save(file, "png", optimize=True)
    return file.getvalue()


def mask_of(png: bytes) -> np.ndarray:
    """Return the mask float32 [height, width] in a file of :func:`png_of`."""
    return np.asarray(PIL.Image.open(io.BytesIO(png)), np.float32) / 255


def painted_mask(url: str | None, height: int, width: int) -> bytes | None:
    """Return the painted mask of an image of height x width as a PNG file, or None if nothing is painted.

    ``url`` is a data URL of a PNG of any size. The mask is 1 where that image is opaque. Raise InputError if the URL
    is malformed or too large.
    """
    if not url:
        return None
    try:
        head, _, data = url.partition(",")
        if head != "data:image/png;base64" or len(data) > MAX_MASK_BYTES:
            raise ValueError(f"{len(data)} bytes of {head[:30]!r}")
        image = PIL.Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=["PNG"])
        if max(image.size) > MAX_MASK_SIDE:
            raise ValueError(f"{image.size} pixels")
        alpha = image.convert("RGBA").getchannel("A")
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise InputError(f"the mask cannot be read: {error}; clear it and paint it again") from error
    return png_of(np.asarray(alpha.resize((width, height), PIL.Image.Resampling.BOX), np.float32) / 255)
