"""Pictures from a pipeline, each from its own seed whatever the batch."""

import typing

import numpy as np
import torch
import tqdm


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
) -> np.ndarray:
    """Pictures [prompts, height, width, 3] as uint8. ``seeds`` has one for each prompt."""
    pictures = []
    for start in range(0, len(prompts), batch_size):
        batch = slice(start, start + batch_size)
        images = pipe(
            prompts[batch],
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=height,
            width=width,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds[batch]],
            output_type="np",
        ).images
        pictures.append((images * 255).round().astype(np.uint8))
        if progress is not None:
            progress.update(len(images))
    return np.concatenate(pictures)
