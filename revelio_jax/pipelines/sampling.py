"""Pictures from a pipeline, each from its own seed whatever the batch."""

import typing
from collections.abc import Callable

import numpy as np
import torch
import tqdm

from revelio_jax.config import SteerConfig
from revelio_jax.pipelines import hook_points


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
) -> np.ndarray:
    """Pictures [prompts, height, width, 3] as uint8. ``seeds`` has one for each prompt.

    ``guidance`` is classifier-free guidance, or what stands for it in a FLUX that was distilled from it.
    ``on_step`` is called after every step; what it raises ends the sampling.
    """
    follow = {"callback_on_step_end": lambda *_: on_step() or {}} if on_step else {}
    pictures = []
    for start in range(0, len(prompts), batch_size):
        batch = slice(start, start + batch_size)
        images = pipe(
            prompts[batch],
            num_inference_steps=steps,
            **arguments(pipe, guidance, len(prompts[batch])),
            height=height,
            width=width,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[batch]],
            output_type="np",
            **follow,
        ).images
        pictures.append((images * 255).round().astype(np.uint8))
        if progress is not None:
            progress.update(len(images))
    return np.concatenate(pictures)


def sampling_of(pipe: typing.Any, settings: SteerConfig) -> dict[str, typing.Any]:
    """The arguments of the pipeline's call that ``config.steer`` stands for."""
    given = {"num_inference_steps": settings.steps} | arguments(pipe, settings.guidance, 1)
    given.pop("negative_prompt", None)  # one for each prompt
    if hook_points.family(pipe) == "dit":
        return given
    return given | {"height": settings.height, "width": settings.width}


def arguments(pipe: typing.Any, guidance: float, n: int) -> dict[str, typing.Any]:
    """The arguments for ``n`` prompts that ask a pipeline of this family for its guidance."""
    if hook_points.family(pipe) != "flux":
        return {"guidance_scale": guidance}
    # Attention sees T5's padding: as much of it as in training and in extraction.
    arguments = {"max_sequence_length": min(512, pipe.tokenizer_2.model_max_length)}
    if pipe.transformer.config.guidance_embeds:
        return arguments | {"guidance_scale": guidance}
    return arguments | {"true_cfg_scale": guidance, "negative_prompt": [""] * n}
