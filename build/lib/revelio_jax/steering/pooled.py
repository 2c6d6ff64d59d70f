"""The vector that a CLIP encoder pools a prompt to, which SDXL and FLUX take beside the tokens.

A concept that is removed from the tokens leaks through it.
"""

import dataclasses
import typing

import torch

from revelio_jax.pipelines import hook_points
from revelio_jax.steering.concept import run_encoder

# The component that a family's pooled vector comes from, and where it is in what encode_prompt returns:
# that of the prompt, and that of the negative prompt. FLUX is asked for each by itself.
POOLED = {"sdxl": ("text_encoder_2", 2, 3), "flux": ("text_encoder", 1, 1)}


@dataclasses.dataclass(frozen=True)
class Pooled:
    """What a concept is in the pooled vector: its prompt's minus the empty prompt's, [D], and the latter."""

    direction_D: torch.Tensor
    empty_D: torch.Tensor

    def change(self, pooled_BD: torch.Tensor, weight: float) -> torch.Tensor:
        """weight x the direction; where that removes, only as much of it as a prompt has, at most all."""
        direction_D, empty_D = (v.to(pooled_BD.device) for v in (self.direction_D, self.empty_D))
        if weight >= 0:
            return weight * direction_D
        share_B = (pooled_BD - empty_D) @ direction_D / (direction_D @ direction_D).clamp_min(1e-12)
        return weight * share_B.clamp(0, 1)[:, None] * direction_D


@torch.no_grad()
def pooled_of(pipe: typing.Any, text: str) -> Pooled:
    """A concept in the pooled vector of ``pipe``, float32."""
    with torch.compiler.set_stance("force_eager"):
        got = run_encoder(pipe, POOLED[hook_points.family(pipe)][0], [text, ""])
    text_embeds = getattr(got, "text_embeds", None)  # of an encoder with a projection
    of_text, of_empty = (got.pooler_output if text_embeds is None else text_embeds).float()
    return Pooled(of_text - of_empty, of_empty)
