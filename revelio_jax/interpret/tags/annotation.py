"""Mark where a latent fires: an image with a heat map and a crop at the peak, or a text with **stars**."""

import io
import itertools
from collections.abc import Sequence

import numpy as np
import PIL.Image

from revelio_jax.interpret import token_text

SMALLEST, LARGEST = 224, 512  # pixels: limits of the longer side of an image
GAP = 8  # pixels between the parts of a panel
CROP = 1 / 4  # a crop has at least this share of each side, and at least two positions
NEARBY = 40  # tokens shown on either side of the peak
FIRES = 64  # weaker positions are not marked; the peak has 255
LONGEST = 4000  # characters of a text


def panel(image: PIL.Image.Image, heat_HW: np.ndarray | None = None, peak: tuple[int, int] = (0, 0)) -> PIL.Image.Image:
    """Return the resized image; with a map, return three images side by side: plain, with the map, cropped at the peak.

    ``heat_HW`` has values in 0 .. 1 by position; ``peak`` is row and column of its largest value.
    """
    plain = _resize(image)
    if heat_HW is None:
        return plain
    parts = [plain, overlay(plain, heat_HW), crop_at_peak(plain, heat_HW.shape, peak)]
    whole = PIL.Image.new("RGB", (sum(part.width + GAP for part in parts) - GAP, plain.height), "white")
    left = 0
    for part in parts:
        whole.paste(part, (left, 0))
        left += part.width + GAP
    return whole


def overlay(image: PIL.Image.Image, heat_HW: np.ndarray) -> PIL.Image.Image:
    """Return the image in gray with the map over it, in colors from red to yellow at the peak."""
    heat_image = PIL.Image.fromarray(np.round(heat_HW * 255).astype(np.uint8))
    heat = np.asarray(heat_image.resize(image.size, PIL.Image.Resampling.BILINEAR), np.float32) / 255
    gray = np.asarray(image.convert("L"), np.float32)[..., None].repeat(3, 2) * 0.6
    color = np.stack([np.full_like(heat, 255), 255 * np.clip(2 * heat - 1, 0, 1), np.zeros_like(heat)], 2)
    weight = 0.8 * np.clip(2 * heat, 0, 1)[..., None]
    return PIL.Image.fromarray(np.round(gray * (1 - weight) + color * weight).astype(np.uint8))


def crop_at_peak(image: PIL.Image.Image, grid: tuple[int, ...], peak: tuple[int, int]) -> PIL.Image.Image:
    """Return the part of the image around the peak, enlarged to the size of the image."""
    sides, starts = [], []
    for length, places, place in zip((image.height, image.width), grid, peak, strict=True):
        side = min(length, max(round(length * CROP), round(2 * length / places)))
        middle = (place + 0.5) * length / places
        sides.append(side)
        starts.append(min(max(round(middle - side / 2), 0), length - side))
    (height, width), (top, left) = sides, starts
    crop = image.crop((left, top, left + width, top + height))
    return crop.resize(image.size, PIL.Image.Resampling.BICUBIC)


def png(image: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def plain_text(tokens: Sequence[str]) -> str:
    """Return the part of a prompt that the text encoder reads."""
    shown = [piece for piece in token_text.pieces(tokens) if not token_text.is_special(piece)]
    return truncate("".join(shown))


def text(tokens: Sequence[str], shade_P: np.ndarray, peak: int) -> str:
    """Return the prompt near position ``peak`` with **stars** around the tokens on which the latent fires.

    ``shade_P`` is uint8 [positions] with 255 at the peak. Start, end and padding tokens are shown only if it fires on
    them.
    """
    first, last = max(0, peak - NEARBY), min(len(tokens), peak + NEARBY + 1)
    pieces = []
    for i, piece in enumerate(token_text.pieces(tokens)[first:last], first):
        fires = bool(shade_P[i] >= FIRES) or i == peak
        if not token_text.is_special(piece):
            pieces.append((fires, piece))
        elif fires:
            pieces.append((fires, f" ({'start' if i == 0 else 'end'}) "))
    if peak >= len(tokens):
        pieces.append((True, " (padding)"))
    runs = [
        (fires, "".join(piece for _, piece in run))
        for fires, run in itertools.groupby(pieces, key=lambda piece: piece[0])
    ]
    marked = "".join(_starred(run) if fires else run for fires, run in runs)
    return " ".join(f"{'… ' * (first > 0)}{marked}{' …' * (last < len(tokens))}".split())


def _starred(text: str) -> str:
    """Return the text with stars around it and its outer spaces outside of the stars."""
    inside = text.strip()
    return text.replace(inside, f"**{inside}**", 1) if inside else text


def truncate(text: str) -> str:
    """Return the text on one line of at most LONGEST characters."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _resize(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return the image as RGB, its longer side within SMALLEST and LARGEST."""
    image, side = image.convert("RGB"), max(image.size)
    target = min(max(side, SMALLEST), LARGEST)
    if target == side:
        return image
    size = [max(1, round(length * target / side)) for length in image.size]
    return image.resize((size[0], size[1]), PIL.Image.Resampling.BICUBIC)
