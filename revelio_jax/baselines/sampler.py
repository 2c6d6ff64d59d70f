"""The interface of every method: a function that samples images like :func:`revelio_jax.pipelines.sampling.sample`."""

import typing
from collections.abc import Callable, Sequence

import tqdm

from revelio_jax.pipelines.sampling import Samples


class Sampler(typing.Protocol):
    """Samples one image per prompt with a method. The pipeline is fixed."""

    def __call__(
        self,
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
    ) -> Samples:
        """Return one image per prompt, each from its own seed. Raise InputError if the method cannot run."""
        ...
