"""Sample images from a pipeline, each from its own seed, independent of the batch size."""

import dataclasses
import typing
from collections.abc import Callable, Sequence

import numpy as np
import torch
import tqdm

from revelio_jax.config import SteerConfig
from revelio_jax.pipelines import safety_checker
from revelio_jax.pipelines.families import family_of

MEMORY_ADVICE = "lower config.steer.batch_size, height or width, or set config.model.offload=model"


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
    guidance: float | Sequence[float],
    height: int,
    width: int,
    batch_size: int,
    progress: tqdm.tqdm | None = None,
    on_step: Callable[[], None] | None = None,
    extra: Callable[[list[int]], dict[str, typing.Any]] | None = None,
) -> Samples:
    """Return one image per prompt. ``seeds`` has one seed per prompt. Print the images that are flagged.

    ``guidance`` is the scale of classifier-free guidance, or of embedded guidance in a distilled FLUX, for all prompts
    or for each of them. A batch has prompts of one scale.
    ``on_step`` is called after every step; an exception that it raises ends the sampling.
    ``extra`` is called before every batch with the indices of its prompts, and returns more arguments of the pipeline's
    call, which override those of the family.
    """
    callback = {"callback_on_step_end": lambda *_: on_step() or {}} if on_step else {}
    scales = np.full(len(prompts), guidance) if isinstance(guidance, float | int) else np.asarray(guidance, float)
    size = {"height": height, "width": width} if family_of(pipe).takes_prompts else {}
    images: dict[int, np.ndarray] = {}
    flagged = np.zeros(len(prompts), bool)
    for scale in dict.fromkeys(scales.tolist()):
        numbers = np.flatnonzero(scales == scale).tolist()
        for start in range(0, len(numbers), batch_size):
            batch = numbers[start : start + batch_size]
            arguments = family_of(pipe).call_arguments(pipe, [prompts[i] for i in batch], scale)
            output = pipe(
                **arguments | (extra(batch) if extra else {}),
                num_inference_steps=steps,
                **size,
                generator=[torch.Generator().manual_seed(seeds[i]) for i in batch],
                output_type="np",
                **callback,
            )
            images |= zip(batch, (output.images * 255).round().astype(np.uint8), strict=True)
            flagged[batch] = safety_checker.flagged(output, len(batch))
            if progress is not None:
                progress.update(len(batch))
    safety_checker.announce_flagged(flagged, prompts, seeds)
    return Samples(np.stack([images[i] for i in range(len(prompts))]), flagged)


def call_settings(pipe: typing.Any, settings: SteerConfig) -> dict[str, typing.Any]:
    """Return the arguments of the pipeline's call that ``config.steer`` sets, without prompts."""
    family = family_of(pipe)
    arguments = {"num_inference_steps": settings.steps, **family.call_arguments(pipe, [], settings.guidance)}
    for name in ("prompt", "negative_prompt", "class_labels"):
        arguments.pop(name, None)
    size = {"height": settings.height, "width": settings.width} if family.takes_prompts else {}
    return arguments | size
