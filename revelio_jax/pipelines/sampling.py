"""Sample images from a pipeline, each from its own seed, independent of the batch size."""

import dataclasses
import typing
from collections.abc import Callable

import numpy as np
import torch
import tqdm

from revelio_jax.config import SteerConfig
from revelio_jax.pipelines import safety_checker
from revelio_jax.pipelines.families import family_of


@dataclasses.dataclass(frozen=True)
class Samples:
    """Sampled images, and which of them the pipeline's safety checker replaced by black ones.

    ``images`` are uint8 [image, height, width, 3]. ``flagged`` is bool [image], and False without a safety checker.
    """

    images: np.ndarray
    flagged: np.ndarray


@torch.inference_mode()
def sample(
    pipe: typing.Any,
    prompts: list[str],
    seeds: list[int],
    *,
    steps: int,
    guidance: float,
    height: int,
    width: int,
    batch_size: int,
    progress: tqdm.tqdm | None = None,
    on_step: Callable[[], None] | None = None,
) -> Samples:
    """Return one image per prompt. ``seeds`` has one seed per prompt. Print the images that are flagged.

    ``guidance`` is the scale of classifier-free guidance, or of embedded guidance in a distilled FLUX.
    ``on_step`` is called after every step; an exception that it raises ends the sampling.
    """
    callback = {"callback_on_step_end": lambda *_: on_step() or {}} if on_step else {}
    images, flags = [], []
    for start in range(0, len(prompts), batch_size):
        batch = slice(start, start + batch_size)
        output = pipe(
            **family_of(pipe).call_arguments(pipe, prompts[batch], guidance),
            num_inference_steps=steps,
            height=height,
            width=width,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[batch]],
            output_type="np",
            **callback,
        )
        images.append((output.images * 255).round().astype(np.uint8))
        flags.append(safety_checker.flagged(output, len(output.images)))
        if progress is not None:
            progress.update(len(output.images))
    flagged = np.concatenate(flags)
    safety_checker.announce_flagged(flagged, prompts, seeds)
    return Samples(np.concatenate(images), flagged)


def call_settings(pipe: typing.Any, settings: SteerConfig) -> dict[str, typing.Any]:
    """Return the arguments of the pipeline's call that ``config.steer`` sets, without prompts."""
    family = family_of(pipe)
    arguments = {"num_inference_steps": settings.steps, **family.call_arguments(pipe, [], settings.guidance)}
    for name in ("prompt", "negative_prompt", "class_labels"):
        arguments.pop(name, None)
    size = {"height": settings.height, "width": settings.width} if family.takes_prompts else {}
    return arguments | size
