"""Concepts in the pooled vector of a CLIP encoder, which SDXL and FLUX use in addition to the tokens.

A concept that is removed only from the tokens can still act through the pooled vector.
"""

import dataclasses
import typing

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines.families import family_of
from revelio_jax.steering.concept import run_encoder


@dataclasses.dataclass(frozen=True)
class Pooled:
    """A concept in the pooled vector: the vector of its prompt minus ``empty_D``, the vector of the empty prompt."""

    direction_D: torch.Tensor
    empty_D: torch.Tensor

    def change(self, pooled_BD: torch.Tensor, weight: float) -> torch.Tensor:
        """Return weight x the direction, for pooled vectors [B, D] in float32.

        A negative weight removes at most each prompt's share of the direction.
        """
        direction_D, empty_D = (v.to(pooled_BD.device) for v in (self.direction_D, self.empty_D))
        if weight >= 0:
            return weight * direction_D
        share_B = (pooled_BD - empty_D) @ direction_D / (direction_D @ direction_D).clamp_min(1e-12)
        return weight * share_B.clamp(0, 1)[:, None] * direction_D


@torch.no_grad()
def pooled_of(pipe: typing.Any, text: str) -> Pooled:
    """Return a text as a concept in the pooled vector, float32. Raise InputError if the pipeline has none."""
    vector = family_of(pipe).pooled
    if vector is None:
        raise InputError(f"a {type(pipe).__name__} has no pooled vector")
    with torch.compiler.set_stance("force_eager"):
        output = run_encoder(pipe, vector.component, [text, ""])
    text_embeds = getattr(output, "text_embeds", None)  # only encoders with a projection have this field
    text_D, empty_D = (output.pooler_output if text_embeds is None else text_embeds).float()
    return Pooled(text_D - empty_D, empty_D)
