"""Limit steering to tokens, timesteps, areas of the image or the pooled vector."""

import dataclasses
import math
import typing
from collections.abc import Sequence

import torch

from revelio_jax.errors import InputError
from revelio_jax.pipelines import hook_points, hooks, tokens
from revelio_jax.pipelines.families import Family

NO_RAMP = (1.0, 1.0)


class WhereFields(typing.TypedDict, total=False):
    """The fields of :class:`Where` as keyword arguments."""

    positions: str | torch.Tensor
    steps: tuple[float, float] | None
    ramp: tuple[float, float]
    mask: torch.Tensor | None
    pooled: bool | None
    reference: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Where:
    """Limits of steering.

    ``positions``: the tokens of a prompt to steer: ``all``, ``no_padding`` or ``content`` (without BOS and EOS), or a
    bool mask [T] for prompts of T tokens. At hook points of the denoiser: ``all`` or a bool mask of its positions.

    ``steps`` (denoiser only): the first and the last timestep to steer, between 1000 (noise) and 0 (image). FLUX
    counts 1000 sigma.

    ``ramp`` (denoiser only): factors on the strengths at the first and at the last of ``steps``, linear in between.

    ``mask`` (denoiser only): [H, W] with values in 0 .. 1: the area of the image to steer. It is averaged over the area
    of each position. In pipelines that edit an image it is an area of the output image.

    ``reference`` (denoiser only): also steer the tokens of reference images (FLUX Kontext), outside of any mask.

    ``pooled``: the pooled vector of CLIP, which SDXL and FLUX use in addition to the tokens. None keeps it as the
    steered encoder computes it. True steers it by strength x (pooled vector of the concept - pooled vector of the empty
    prompt) if another encoder computes it; a negative strength removes at most the prompt's share of the concept.
    False keeps the unsteered vector.
    """

    positions: str | torch.Tensor = "all"
    steps: tuple[float, float] | None = None
    ramp: tuple[float, float] = NO_RAMP
    mask: torch.Tensor | None = None
    pooled: bool | None = None
    reference: bool = False

    @property
    def follows_timestep(self) -> bool:
        """Return whether strengths depend on the timestep."""
        return self.steps is not None or self.ramp != NO_RAMP

    def factor(self, timestep: float) -> float:
        """Return the factor on the strengths at a timestep between 1000 (noise) and 0 (image)."""
        first, last = self.steps or (1000.0, 0.0)
        if not last <= timestep <= first:
            return 0.0
        progress = (first - timestep) / max(first - last, 1e-9)
        start, end = self.ramp
        return start + (end - start) * progress

    def validate(self, points: Sequence[hooks.HookPoint], family: Family) -> "Where":
        """Return a checked copy with the positions and the mask as tensors.

        Raise InputError if a field is malformed or has no effect at these hook points.
        """
        name = "+".join(point.name for point in points)
        in_denoiser = hook_points.is_denoiser_point(name)
        if not in_denoiser and self.follows_timestep:
            raise InputError(f"steps and ramp need a hook point of the denoiser; {name} runs before the first step")
        if self.steps is not None and not self.steps[0] >= self.steps[1]:
            raise InputError(f"steps is {self.steps}; it must be two timesteps, larger first, for example (1000, 600)")
        if self.reference and not (in_denoiser and name.endswith(".image")):
            raise InputError(f"reference is True; it must be False at {name}, which has no tokens of reference images")
        self._check_ramp()
        self._check_pooled(points, name, family)
        return dataclasses.replace(
            self, positions=self._positions_tensor(name, in_denoiser), mask=self._mask_tensor(name, in_denoiser)
        )

    def _check_ramp(self) -> None:
        ramp: typing.Any = self.ramp
        numbers = isinstance(ramp, tuple | list) and all(isinstance(value, int | float) for value in ramp)
        if not numbers or len(ramp) != 2 or not all(math.isfinite(value) for value in ramp):
            raise InputError(f"ramp is {ramp!r}; it must be two finite factors, for example (1.0, 0.5)")

    def _positions_tensor(self, name: str, in_denoiser: bool) -> str | torch.Tensor:
        positions = self.positions
        if not isinstance(positions, str):
            positions = torch.as_tensor(positions)
            if positions.dtype != torch.bool or positions.ndim != 1:
                raise InputError(f"positions is {positions.dtype} {list(positions.shape)}; a mask must be bool [T]")
        elif positions not in tokens.KEPT:
            raise InputError(f"positions is {positions!r}; allowed: {', '.join(tokens.KEPT)}, or a bool mask [T]")
        elif in_denoiser and positions != "all":
            raise InputError(
                f"positions is {positions!r}, but {name} is not in a text encoder; allowed there: all, or a bool mask "
                "[positions]"
            )
        return positions

    def _mask_tensor(self, name: str, in_denoiser: bool) -> torch.Tensor | None:
        if self.mask is None:
            return None
        mask = torch.as_tensor(self.mask, dtype=torch.float32)
        if not in_denoiser or name.endswith(".text"):
            raise InputError(f"mask must be None at {name}, where positions are text tokens, not areas of the image")
        if mask.ndim != 2 or not ((mask >= 0) & (mask <= 1)).all():
            raise InputError(f"mask is {list(mask.shape)}; it must be [height, width] with values in 0 .. 1")
        return mask

    def _check_pooled(self, points: Sequence[hooks.HookPoint], name: str, family: Family) -> None:
        if self.pooled is None:
            return
        vector = family.pooled
        if hook_points.is_denoiser_point(name) or vector is None:
            raise InputError(f"pooled is {self.pooled}; it must be None at {name}, which has no pooled vector")
        if vector.is_only_output and any(point.component == vector.component for point in points):
            raise InputError(
                f"pooled is {self.pooled}; it must be None at {name}, because the pipeline uses only the pooled vector "
                "of this encoder"
            )
