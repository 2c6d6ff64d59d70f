"""Estimate the cost of a benchmark before anything is loaded: images, hours and gigabytes."""

import typing
from collections.abc import Mapping, Sequence

from revelio_jax.benchmark.images import Shot

# Time of an image relative to the plain pipeline. SLD and SAFREE evaluate a third row; TraSCE's three rows need
# gradients, which cost about twice an evaluation. The times in Concept Steerers (arXiv 2501.19066, 150 prompts on an
# L40S) give 2.84, 1.40 and 5.17, and 1.05 for steering.
RELATIVE_TIMES = {"sld": 1.5, "safree": 1.5, "trasce": 4.5}
BYTES_PER_PIXEL = 1.8  # of a PNG; photographs take 1.4 to 1.9

# Seconds of a plain image at 512 x 512 pixels and 50 steps on an L40S, from Concept Steerers.
PAPER_SECONDS, PAPER_STEPS, PAPER_PIXELS = 3.02, 50, 512 * 512
PAPER_MODELS = ("stable-diffusion-v1-4", "stable-diffusion-v1-5")


class Estimate(typing.NamedTuple):
    """The images to draw, the hours for them, None if the time of an image is unknown, and the gigabytes on disk."""

    images: int
    hours: float | None
    gigabytes: float


def seconds_per_image(model: str, steps: int, width: int, height: int) -> float | None:
    """Return the seconds of a plain image on an L40S, from the paper's time; None if it has no time for the model."""
    if not model.rstrip("/").endswith(PAPER_MODELS):
        return None
    return PAPER_SECONDS * steps / PAPER_STEPS * width * height / PAPER_PIXELS


def estimate(images: Mapping[str, Sequence[Shot]], seconds: float | None) -> Estimate:
    """Return the cost of images that are not drawn yet. ``images`` has the shots of each method by its name.

    ``seconds`` is the time of a plain image; None if it is unknown.
    """
    count = sum(len(shots) for shots in images.values())
    pixels = sum(shot.prompt.width * shot.prompt.height for shots in images.values() for shot in shots)
    hours = None
    if seconds is not None:
        hours = sum(RELATIVE_TIMES.get(name, 1.0) * len(shots) for name, shots in images.items()) * seconds / 3600
    return Estimate(count, hours, pixels * BYTES_PER_PIXEL / 1e9)
