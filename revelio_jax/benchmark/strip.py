"""Draw a strip of images: one row per prompt and one column per strength, with labels."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from revelio_jax.errors import InputError

CELL = 112  # pixels; images are enlarged by a whole factor to about this width
MARGIN, GAP = 34, 4


def draw(images: list[list[np.ndarray | None]], prompts: list[str], strengths: list[float], title: str) -> Image.Image:
    """Draw a strip. ``images[prompt][strength]`` are uint8 [height, width, 3], or None for flagged images.

    Raise InputError if all images are flagged.
    """
    height, width = next((x.shape[:2] for row in images for x in row if x is not None), (0, 0))
    if not height:
        raise InputError("the safety checker of the pipeline flagged all images, so there is nothing to draw")
    scale = max(1, round(CELL / width))
    height, width = height * scale, width * scale
    small, large = ImageFont.load_default(13), ImageFont.load_default(15)
    label = max(round(small.getlength(prompt)) for prompt in prompts) + 2 * GAP + 8
    size = (label + len(strengths) * (width + GAP), MARGIN + 18 + len(prompts) * (height + GAP))
    size = (max(size[0], round(large.getlength(title)) + 16), size[1])
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((8, 8), title, "black", large)
    for column, strength in enumerate(strengths):
        x = label + column * (width + GAP)
        name = "plain" if strength == 0 else f"{strength:+g}"
        pen.text((x + width / 2, MARGIN), name, "black", small, anchor="ma")
    for row, prompt in enumerate(prompts):
        y = MARGIN + 18 + row * (height + GAP)
        pen.text((8, y + height / 2), prompt, "black", small, anchor="lm")
        for column, pixels in enumerate(images[row]):
            if pixels is None:
                x = label + column * (width + GAP)
                pen.text((x + width / 2, y + height / 2), "flagged", "black", small, anchor="mm")
                continue
            image = Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)
            sheet.paste(image, (label + column * (width + GAP), y))
    return sheet
