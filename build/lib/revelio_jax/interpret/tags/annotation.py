"""What a latent fires on, marked: a picture with its heat map and a crop at the peak, a text with stars."""

import io
import itertools
from collections.abc import Sequence

import numpy as np
import PIL.Image

from revelio_jax.interpret import token_text

SMALLEST, LARGEST = 224, 512  # pixels of the larger side of a picture that is shown
GAP = 8  # pixels between the parts of a panel
CROP = 1 / 4  # of a side, at least; and two positions
NEARBY = 40  # tokens on either side of the strongest
FIRES = 64  # of 255, the peak: what is weaker is not marked
LONGEST = 4000  # letters of a text


def panel(
    picture: PIL.Image.Image, heat_HW: np.ndarray | None = None, peak: tuple[int, int] = (0, 0)
) -> PIL.Image.Image:
    """A picture; with its map, 0 .. 1 [row, column], three: plain, under the map, and cropped at the peak.

    ``peak`` is the row and column of the largest value in the map.
    """
    plain = _sized(picture)
    if heat_HW is None:
        return plain
    parts = [plain, overlaid(plain, heat_HW), cropped(plain, heat_HW.shape, peak)]
    whole = PIL.Image.new("RGB", (sum(part.width + GAP for part in parts) - GAP, plain.height), "white")
    left = 0
    for part in parts:
        whole.paste(part, (left, 0))
        left += part.width + GAP
    return whole


def overlaid(picture: PIL.Image.Image, heat_HW: np.ndarray) -> PIL.Image.Image:
    """The picture in grey, with what fires in red, and most in yellow."""
    as_picture = PIL.Image.fromarray(np.round(heat_HW * 255).astype(np.uint8))
    heat = np.asarray(as_picture.resize(picture.size, PIL.Image.Resampling.BILINEAR), np.float32) / 255
    grey = np.asarray(picture.convert("L"), np.float32)[..., None].repeat(3, 2) * 0.6
    colour = np.stack([np.full_like(heat, 255), 255 * np.clip(2 * heat - 1, 0, 1), np.zeros_like(heat)], 2)
    weight = 0.8 * np.clip(2 * heat, 0, 1)[..., None]
    return PIL.Image.fromarray(np.round(grey * (1 - weight) + colour * weight).astype(np.uint8))


def cropped(picture: PIL.Image.Image, grid: tuple[int, ...], peak: tuple[int, int]) -> PIL.Image.Image:
    """The surroundings of the peak, as large as the picture."""
    sides, starts = [], []
    for length, places, place in zip((picture.height, picture.width), grid, peak, strict=True):
        side = min(length, max(round(length * CROP), round(2 * length / places)))
        middle = (place + 0.5) * length / places
        sides.append(side)
        starts.append(min(max(round(middle - side / 2), 0), length - side))
    (height, width), (top, left) = sides, starts
    crop = picture.crop((left, top, left + width, top + height))
    return crop.resize(picture.size, PIL.Image.Resampling.BICUBIC)


def png(picture: PIL.Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def plain_text(tokens: Sequence[str]) -> str:
    """What the encoder read of a prompt."""
    shown = [piece for piece in token_text.pieces(tokens) if not token_text.special(piece)]
    return cut("".join(shown))


def text(tokens: Sequence[str], shade_P: np.ndarray, peak: int) -> str:
    """The prompt near position ``peak``, with **stars** around the tokens that fire; 255 is the peak.

    Starts, ends and padding are there only where they fire.
    """
    first, last = max(0, peak - NEARBY), min(len(tokens), peak + NEARBY + 1)
    pieces = []
    for i, piece in enumerate(token_text.pieces(tokens)[first:last], first):
        fires = bool(shade_P[i] >= FIRES) or i == peak
        if not token_text.special(piece):
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
    """Stars around a text, with its spaces outside of them."""
    inside = text.strip()
    return text.replace(inside, f"**{inside}**", 1) if inside else text


def cut(text: str) -> str:
    """One line, not too long."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"


def _sized(picture: PIL.Image.Image) -> PIL.Image.Image:
    """RGB, neither too small to be seen nor larger than it helps."""
    picture, side = picture.convert("RGB"), max(picture.size)
    wanted = min(max(side, SMALLEST), LARGEST)
    if wanted == side:
        return picture
    size = [max(1, round(length * wanted / side)) for length in picture.size]
    return picture.resize((size[0], size[1]), PIL.Image.Resampling.BICUBIC)
