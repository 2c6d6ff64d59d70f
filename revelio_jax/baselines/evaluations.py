"""Count the evaluations of a denoiser, the part of a method's cost that does not depend on the machine."""

import contextlib
import dataclasses
import typing
from collections.abc import Generator

import torch

from revelio_jax.pipelines.families import family_of


@dataclasses.dataclass
class Evaluations:
    """Rows that a denoiser evaluated: one row is one latent with one prompt at one timestep.

    ``forward`` counts all rows, and ``backward`` those of passes whose gradient with respect to the latents was
    computed. ``calls`` counts the passes, whatever their batch size.
    """

    forward: int = 0
    backward: int = 0
    calls: int = 0

    def per_image(self, images: int) -> tuple[float, float]:
        """Return forward and backward evaluations per image."""
        return self.forward / images, self.backward / images


@contextlib.contextmanager
def counted(pipe: typing.Any) -> Generator[Evaluations]:
    """Yield a count of the evaluations of a pipeline's denoiser in the block, by whichever pipeline or method."""
    count = Evaluations()

    def record(_module: torch.nn.Module, args: tuple, kwargs: dict[str, typing.Any], _output: typing.Any) -> None:
        latents: typing.Any = args[0] if args else kwargs.get("sample", kwargs.get("hidden_states"))
        count.calls += 1
        count.forward += len(latents)
        count.backward += len(latents) * latents.requires_grad

    hook = family_of(pipe).denoiser_of(pipe).register_forward_hook(record, with_kwargs=True)
    try:
        yield count
    finally:
        hook.remove()
